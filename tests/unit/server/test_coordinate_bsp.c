/* bsp: rosters, holds and capsules of several ranks in one step. */
#include "tests/unit/server/coordinate_bench.h"

static int set_up(void **state)
{
    struct bench *b = bench_new();
    b->o.bsp = true;
    *state = b;
    return 0;
}

static int tear_down(void **state)
{
    bench_free(*state);
    return 0;
}

static void in_bsp_a_death_after_the_roster_needs_a_restore(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    server(b, 8, 0);
    server(b, 9, 1);
    uint64_t m = worker(b, 1);
    struct msg leave = {.type = MSG_LEAVE, .leave.member = m};
    say(b, 101, &leave); /* before the roster: nothing is lost */
    assert_false(coordinate_needs_restore(b->c));
    worker(b, 2);
    worker(b, 3);
    assert_int_equal(order_of(b, 8).roster, 1);
    struct msg gone = {.type = MSG_GONE, .gone = {.host = "h", .pid = 9}};
    say(b, 1, &gone);
    assert_true(coordinate_needs_restore(b->c));
    assert_int_equal(order_of(b, 2).command, COMMAND_INTERRUPT);
}

static void in_bsp_capsules_of_different_steps_are_no_set(void **state)
{
    struct bench *b = *state;
    b->o.interval_ns = 5 * S;
    bench_start(b);
    server(b, 8, 0);
    server(b, 9, 1);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    ask(b, 1, m, 1);
    wait_until(b, b->now + 6 * S);
    assert_int_equal(order_of(b, 1).hold, 0); /* rank 1 has no data yet: it could not end a step */
    ask(b, 2, n, 1);
    assert_int_equal(order_of(b, 1).hold, 1);
    give_capsule(b, 1, m, 1, "a", 1, 1);
    give_capsule(b, 2, n, 1, "bb", 1, 1);
    beat(b, 1, &(struct msg_beat){.role = ROLE_WORKER, .member = m, .holding = 1, .seq = 5});
    beat(b, 2, &(struct msg_beat){.role = ROLE_WORKER, .member = n, .holding = 1, .seq = 4});
    assert_int_equal(order_of(b, 8).set, 0);
    give_capsule(b, 2, n, 1, "cc", 2, 1);
    beat(b, 2, &(struct msg_beat){.role = ROLE_WORKER, .member = n, .holding = 1, .seq = 5});
    assert_int_equal(order_of(b, 8).set, 1);
}

static void stands(struct bench *b, uint64_t pid, uint64_t member, uint64_t seq)
{
    beat(b, pid, &(struct msg_beat){.role = ROLE_WORKER, .member = member, .holding = 1, .seq = seq});
}

/* A rank may need a lease to come to the step where all stand: it gets it, and what it handed over before is
 * no longer good. */
static void in_bsp_a_lease_granted_during_a_hold_must_be_in_the_capsule(void **state)
{
    struct bench *b = *state;
    b->o.interval_ns = 5 * S;
    bench_start(b);
    server(b, 8, 0);
    server(b, 9, 1);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    ask(b, 1, m, 1);
    ask(b, 2, n, 1);
    wait_until(b, b->now + 6 * S);
    assert_int_equal(order_of(b, 1).hold, 1);
    give_capsule(b, 2, n, 1, "without", 1, 1);
    stands(b, 2, n, 5);
    assert_int_equal(ask(b, 2, n, 2).kind, LEASE_TRAIN); /* of the next epoch */
    give_capsule(b, 1, m, 1, "rank 0", 1, 1);
    stands(b, 1, m, 5);
    stands(b, 2, n, 5);
    assert_int_equal(order_of(b, 8).set, 0);
    give_capsule(b, 2, n, 1, "without", 2, 1); /* it still does not have it */
    stands(b, 2, n, 5);
    assert_int_equal(order_of(b, 8).set, 0);
    give_capsule(b, 2, n, 1, "with it", 3, 2);
    stands(b, 2, n, 5);
    assert_int_equal(order_of(b, 8).set, 1);
    assert_int_equal(ask(b, 1, m, 2).kind, LEASE_HELD); /* while the servers copy nothing is granted */
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(in_bsp_a_death_after_the_roster_needs_a_restore),
        TEST(in_bsp_capsules_of_different_steps_are_no_set),
        TEST(in_bsp_a_lease_granted_during_a_hold_must_be_in_the_capsule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
