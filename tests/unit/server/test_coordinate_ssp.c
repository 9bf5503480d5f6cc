/* ssp: whom the others may not leave behind; how many train; the warm start, where one worker trains alone.
 */
#include "tests/unit/server/coordinate_bench.h"

static int set_up(void **state)
{
    struct bench *b = bench_new();
    b->o.mode = CONSISTENCY_SSP;
    b->o.bound = 4;
    *state = b;
    return 0;
}

/* The newest roster that server 8 was told; its members are in b->roster. */
static uint32_t roster(const struct bench *b)
{
    return order_of(b, 8).roster;
}

static void the_roster_is_of_those_who_have_training_data_in_hand(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t s0 = server(b, 8, 0), m = worker(b, 1), n = worker(b, 2);
    beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = s0});
    uint32_t first = roster(b);
    assert_true(first > 0);
    assert_int_equal(b->roster_bytes, 0); /* nobody yet: told by a payload of no bytes */
    ask(b, 2, n, 1);
    assert_int_equal(roster(b), first + 1);
    assert_int_equal(b->roster_bytes, 8);
    assert_int_equal(b->roster[0], n);
    struct msg_lease l = ask(b, 1, m, 1);
    assert_int_equal(roster(b), first + 2);
    assert_int_equal(b->roster_bytes, 16); /* in the order of their numbers */
    assert_int_equal(b->roster[0], m);
    assert_int_equal(b->roster[1], n);
    struct msg_lease l2 = ask(b, 1, m, 2);
    used(b, 1, m, &l, 10);
    beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = s0});
    assert_int_equal(roster(b), first + 2); /* one of two is used: still the same */
    used(b, 1, m, &l2, 10);
    assert_int_equal(roster(b), first + 3);
    assert_int_equal(b->roster_bytes, 8);
    assert_int_equal(b->roster[0], n);
}

static void a_dead_worker_and_one_whose_lease_went_to_another_leave_the_roster(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    server(b, 8, 0);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    ask(b, 1, m, 1);
    ask(b, 2, n, 1);
    assert_int_equal(b->roster_bytes, 16);
    b->now += 121 * S;
    ask(b, 2, n, 2); /* gets the overdue lease of the first */
    assert_int_equal(b->roster_bytes, 8);
    assert_int_equal(b->roster[0], n);
    uint32_t before = roster(b);
    b->num_sent = 0;
    dies(b, 2);
    assert_int_equal(b->roster_bytes, 0);
    assert_true(roster(b) > before);
}

static void an_evaluation_makes_nobody_wait(void **state)
{
    struct bench *b = *state;
    b->o.dev = (struct data_facts){.utterances = 4, .frames = 400};
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 3);
    serve_both(b, false);
    assert_int_equal(ask(b, 1, m, 9).kind, LEASE_EVAL);
    assert_int_equal(b->roster_bytes, 0);
    ask(b, 1, m, 10);
    assert_int_equal(b->roster_bytes, 8);
}

static void roster_numbers_never_go_back(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t s0 = server(b, 8, 0), m = worker(b, 1);
    ask(b, 1, m, 1);
    uint32_t before = roster(b);
    for (int restored = 0; restored < 2; restored++) {
        char *journal = xstrdup(b->journal);
        renew(b);
        apply_lines(b->c, journal, restored ? coordinate_apply_counters : coordinate_apply_row);
        coordinate_start(b->c, b->now, restored, 0);
        if (restored) s0 = server(b, 8, 0);
        b->num_sent = 0;
        beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = s0});
        assert_true(roster(b) > before);
        assert_int_equal(b->roster_bytes, restored ? 0 : 8); /* it still has its lease, or all is new */
        before = roster(b);
        free(journal);
    }
}

static void servers_are_told_how_many_train_and_workers_what_follows(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    server(b, 8, 0);
    assert_int_equal(order_of(b, 8).workers, 0);
    worker(b, 1);
    assert_int_equal(order_of(b, 8).workers, 1);
    worker(b, 2);
    assert_int_equal(order_of(b, 8).workers, 2);
    assert_true(order_of(b, 1).momentum == 0.25 && order_of(b, 2).momentum == 0.25 &&
                order_of(b, 8).momentum == 0);
    dies(b, 1);
    assert_int_equal(order_of(b, 8).workers, 1);
    coordinate_free(&b->c);
    b->o.mode = CONSISTENCY_BSP;
    bench_start(b);
    server(b, 8, 0);
    worker(b, 1);
    worker(b, 2);
    assert_int_equal(order_of(b, 8).workers, 0);
}

static void until_the_warm_start_is_over_the_lowest_rank_trains_alone(void **state)
{
    struct bench *b = *state;
    b->o.mode = CONSISTENCY_ASYNC;
    b->o.warm_start_frames = 150;
    bench_start(b);
    uint64_t s0 = server(b, 8, 0);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = s0});
    assert_int_equal(order_of(b, 8).workers, 1);
    assert_int_equal(ask(b, 2, n, 1).kind, LEASE_WAIT);
    struct msg_lease l = ask(b, 1, m, 1), l2 = ask(b, 1, m, 2);
    assert_int_equal(l.kind, LEASE_TRAIN);
    used(b, 1, m, &l, 100);
    assert_int_equal(ask(b, 2, n, 2).kind, LEASE_WAIT);
    b->now += 200 * S; /* nor does it get one that is overdue */
    assert_int_equal(ask(b, 2, n, 3).kind, LEASE_WAIT);
    used(b, 1, m, &l2, 100);
    assert_int_equal(ask(b, 2, n, 4).kind, LEASE_TRAIN);
    beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = s0});
    assert_int_equal(order_of(b, 8).workers, 2);
    told(b, "warm_start", false);
}

static void in_a_warm_start_the_next_rank_takes_over_from_a_dead_one(void **state)
{
    struct bench *b = *state;
    b->o.warm_start_frames = 150;
    bench_start(b);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    struct msg_lease l = ask(b, 1, m, 1);
    assert_int_equal(ask(b, 2, n, 1).kind, LEASE_WAIT);
    told(b, "\"warm_start\":true", true);
    dies(b, 1);
    struct msg_lease again = ask(b, 2, n, 2);
    assert_int_equal(again.kind, LEASE_TRAIN);
    assert_int_equal(again.begin, l.begin);
}

static void the_status_tells_mode_waits_and_why_updates_were_refused(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t s0 = server(b, 8, 0);
    beat(b, 8,
         &(struct msg_beat){.role = ROLE_SERVER,
                            .member = s0,
                            .version = 5,
                            .applied = 7,
                            .refused = 6,
                            .waits = 3,
                            .wait_us = 2500000,
                            .stale = 4,
                            .other_generation = 2});
    told(b, "\"mode\":\"ssp, bound 4\"", true);
    told(b, "\"waits\":3,\"wait_s\":2.5", true);
    told(b, "\"refused_by\":{\"stale\":4,\"generation\":2}", true);
    told(b, "\"next\"", false);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, bench_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(the_roster_is_of_those_who_have_training_data_in_hand),
        TEST(a_dead_worker_and_one_whose_lease_went_to_another_leave_the_roster),
        TEST(an_evaluation_makes_nobody_wait),
        TEST(roster_numbers_never_go_back),
        TEST(servers_are_told_how_many_train_and_workers_what_follows),
        TEST(until_the_warm_start_is_over_the_lowest_rank_trains_alone),
        TEST(in_a_warm_start_the_next_rank_takes_over_from_a_dead_one),
        TEST(the_status_tells_mode_waits_and_why_updates_were_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
