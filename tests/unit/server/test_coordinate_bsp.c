/* bsp: rosters, holds and capsules of several ranks in one step. */
#include "tests/unit/server/coordinate_bench.h"

static int set_up(void **state)
{
    struct bench *b = bench_new();
    b->o.mode = CONSISTENCY_BSP;
    *state = b;
    return 0;
}

static void in_bsp_a_death_after_the_roster_needs_a_restore(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    struct msg leave = {.type = MSG_LEAVE, .leave.member = m};
    say(b, 101, &leave); /* before the roster: nothing is lost */
    assert_false(coordinate_needs_restore(b->c));
    worker(b, 2);
    worker(b, 3);
    assert_int_equal(order_of(b, 8).roster, 1);
    dies(b, 9);
    assert_true(coordinate_needs_restore(b->c));
    assert_int_equal(order_of(b, 2).command, COMMAND_INTERRUPT);
}

static void beats(struct bench *b, uint64_t pid, uint64_t member, uint32_t holding, uint64_t seq)
{
    beat(b, pid, &(struct msg_beat){.role = ROLE_WORKER, .member = member, .holding = holding, .seq = seq});
}

static void in_bsp_capsules_of_different_steps_are_no_set(void **state)
{
    struct bench *b = *state;
    b->o.interval_ns = 5 * S;
    uint64_t m = bench_begin(b), n = worker(b, 2);
    ask(b, 1, m, 1);
    wait_until(b, b->now + 6 * S);
    assert_int_equal(order_of(b, 1).hold, 0); /* rank 1 has no data yet: it could not end a step */
    ask(b, 2, n, 1);
    assert_int_equal(order_of(b, 1).hold, 1);
    give_capsule(b, 1, m, 1, "a", 1, 1);
    give_capsule(b, 2, n, 1, "bb", 1, 1);
    beats(b, 1, m, 1, 5);
    beats(b, 2, n, 1, 4);
    assert_int_equal(order_of(b, 8).set, 0);
    give_capsule(b, 2, n, 1, "cc", 2, 1);
    beats(b, 2, n, 1, 5);
    assert_int_equal(order_of(b, 8).set, 1);
}

/* A rank may need a lease to come to the step where all stand: it gets it, and what it handed over before is
 * no longer good. */
static void in_bsp_a_lease_granted_during_a_hold_must_be_in_the_capsule(void **state)
{
    struct bench *b = *state;
    b->o.interval_ns = 5 * S;
    uint64_t m = bench_begin(b), n = worker(b, 2);
    ask(b, 1, m, 1);
    ask(b, 2, n, 1);
    wait_until(b, b->now + 6 * S);
    assert_int_equal(order_of(b, 1).hold, 1);
    give_capsule(b, 2, n, 1, "without", 1, 1);
    beats(b, 2, n, 1, 5);
    assert_int_equal(ask(b, 2, n, 2).kind, LEASE_TRAIN); /* of the next epoch */
    give_capsule(b, 1, m, 1, "rank 0", 1, 1);
    beats(b, 1, m, 1, 5);
    beats(b, 2, n, 1, 5);
    assert_int_equal(order_of(b, 8).set, 0);
    give_capsule(b, 2, n, 1, "without", 2, 1); /* it still does not have it */
    beats(b, 2, n, 1, 5);
    assert_int_equal(order_of(b, 8).set, 0);
    give_capsule(b, 2, n, 1, "with it", 3, 2);
    beats(b, 2, n, 1, 5);
    assert_int_equal(order_of(b, 8).set, 1);
    assert_int_equal(ask(b, 1, m, 2).kind, LEASE_HELD); /* while the servers copy nothing is granted */
}

/* 3 workers of which a step leaves out one; set 1 is asked for. */
static void start_backup(struct bench *b, uint64_t member[3])
{
    b->o.interval_ns = 5 * S;
    b->o.workers = 3;
    b->o.backup = 1;
    member[0] = bench_begin(b);
    for (uint64_t k = 1; k < 3; k++) member[k] = worker(b, 1 + k);
    for (uint64_t k = 0; k < 3; k++) ask(b, 1 + k, member[k], 1);
    b->now += 6 * S;
    for (uint64_t k = 0; k < 3; k++) beats(b, 1 + k, member[k], 0, 5);
    assert_int_equal(order_of(b, 3).hold, 1);
}

static void with_backup_workers_a_set_takes_ranks_of_different_steps_and_is_not_exact(void **state)
{
    struct bench *b = *state;
    uint64_t m[3];
    start_backup(b, m);
    give_capsule(b, 1, m[0], 1, "a", 1, 1);
    give_capsule(b, 2, m[1], 1, "b", 1, 1);
    give_capsule(b, 3, m[2], 1, "c", 1, 1);
    beats(b, 1, m[0], 1, 5);
    beats(b, 2, m[1], 1, 5);
    b->now += 1 * S;
    beats(b, 3, m[2], 0, 4);
    assert_int_equal(order_of(b, 8).set, 0); /* slow, but there: it is waited for */
    beats(b, 3, m[2], 1, 4);
    assert_int_equal(order_of(b, 8).set, 1);
    serve_both(b, true);
    assert_int_equal(b->completed, 1);
    assert_int_equal(b->num_capsules, 3);
    assert_false(b->exact);
    told(b, "\"mode\":\"bsp, 1 backup\"", true);
    told(b, "\"exact\":false", true);
}

static void with_backup_workers_a_set_does_not_wait_for_a_rank_that_is_silent(void **state)
{
    struct bench *b = *state;
    uint64_t m[3];
    start_backup(b, m);
    give_capsule(b, 1, m[0], 1, "a", 1, 1);
    beats(b, 1, m[0], 1, 5);
    wait_until(b, b->now + 3 * S);
    beats(b, 1, m[0], 1, 5);
    assert_int_equal(order_of(b, 8).set, 0); /* two are silent, but only one may be left out */
    give_capsule(b, 2, m[1], 1, "b", 1, 1);
    beats(b, 2, m[1], 1, 5);
    assert_int_equal(order_of(b, 8).set, 1);
    serve_both(b, true);
    assert_int_equal(b->num_capsules, 2);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, bench_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(in_bsp_a_death_after_the_roster_needs_a_restore),
        TEST(in_bsp_capsules_of_different_steps_are_no_set),
        TEST(in_bsp_a_lease_granted_during_a_hold_must_be_in_the_capsule),
        TEST(with_backup_workers_a_set_takes_ranks_of_different_steps_and_is_not_exact),
        TEST(with_backup_workers_a_set_does_not_wait_for_a_rank_that_is_silent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
