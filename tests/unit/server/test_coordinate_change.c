/* A job that is changed between two epochs, and one that is taken up in another mode than it was left in. */
#include "tests/unit/server/coordinate_bench.h"

static int set_up(void **state)
{
    struct bench *b = bench_new();
    b->o.epochs = 4;
    *state = b;
    return 0;
}

static const struct coordinate_next to_ssp = {CONSISTENCY_SSP, 8, 0, 4};

static void a_change_waits_for_the_end_of_what_has_begun_and_for_a_set_of_it(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 3);
    serve_both(b, true); /* set 1, at the turn of epoch 1 */
    struct msg_lease l = ask(b, 1, m, 4);
    assert_int_equal(l.epoch, 1);
    coordinate_change(b->c, b->now, &to_ssp);
    told(b, "\"next\":\"ssp, bound 8\",\"next_after\":2", true);
    use_leases(b, m, 5, 2);
    assert_int_equal(ask(b, 1, m, 7).kind, LEASE_WAIT); /* epoch 3 is held back */
    assert_int_equal(coordinate_command(b->c), COMMAND_RUN);
    used(b, 1, m, &l, 100);
    assert_int_equal(ask(b, 1, m, 8).kind, LEASE_WAIT);
    assert_int_equal(coordinate_command(b->c), COMMAND_RUN);
    serve_set(b, 8, b->server[0], true);
    assert_false(coordinate_needs_restore(b->c));
    serve_set(b, 9, b->server[1], true); /* set 2, at the turn of epoch 2 */
    assert_int_equal(b->completed, 2);
    assert_true(coordinate_switched(b->c) && coordinate_needs_restore(b->c));
    assert_int_equal(coordinate_command(b->c), COMMAND_INTERRUPT);
    assert_int_equal(order_of(b, 1).command, COMMAND_INTERRUPT);
    told(b, "\"state\":\"switching\"", true);
    assert_int_equal(account(b).used, 6);
}

/* What is evaluated only after the set would be evaluated again after it. */
static void a_change_waits_for_the_dev_result_and_then_for_a_set_that_has_it(void **state)
{
    struct bench *b = *state;
    b->o.dev = (struct data_facts){.utterances = 4, .frames = 400};
    uint64_t m = bench_begin(b);
    struct msg_lease l = ask(b, 1, m, 1);
    coordinate_change(b->c, b->now, &to_ssp);
    use_leases(b, m, 2, 2);
    used(b, 1, m, &l, 100);
    serve_both(b, true);
    assert_int_equal(b->completed, 1);
    assert_false(coordinate_switched(b->c));
    l = ask(b, 1, m, 4);
    assert_int_equal(l.kind, LEASE_EVAL);
    used(b, 1, m, &l, 100);
    assert_int_equal(b->num_epochs, 1);
    assert_false(coordinate_switched(b->c));
    serve_both(b, true);
    assert_int_equal(b->completed, 2);
    assert_true(coordinate_switched(b->c));
    assert_non_null(strstr(b->state, "\"evaluated\":true"));
}

/* Where sets take longer to write than the time between two, the next one is always due. */
static void a_change_waits_for_one_set_and_not_for_the_one_after_it(void **state)
{
    struct bench *b = *state;
    b->hold_done = true;
    b->o.interval_ns = 2 * S;
    uint64_t m = bench_begin(b);
    struct msg_lease l = ask(b, 1, m, 1);
    coordinate_change(b->c, b->now, &to_ssp);
    use_leases(b, m, 2, 2);
    used(b, 1, m, &l, 100);
    serve_both(b, true);
    wait_until(b, b->now + 5 * S);
    assert_int_equal(b->completed, 1);
    coordinate_set_done(b->c, b->now, 1, 0);
    assert_false(coordinate_switched(b->c));
    wait_until(b, b->now + 1 * S);
    assert_true(coordinate_switched(b->c));
}

static void a_change_before_anything_has_begun_comes_at_once(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t s0 = server(b, 8, 0);
    coordinate_change(b->c, b->now, &to_ssp);
    told(b, "\"next_after\":0", true);
    uint64_t s1 = server(b, 9, 1);
    serve_set(b, 8, s0, true);
    serve_set(b, 9, s1, true);
    assert_true(coordinate_switched(b->c));
}

static void a_change_that_is_taken_back_changes_nothing(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    ask(b, 1, m, 1);
    coordinate_change(b->c, b->now, &to_ssp);
    ask(b, 1, m, 2);
    ask(b, 1, m, 3);
    assert_int_equal(ask(b, 1, m, 4).kind, LEASE_WAIT);
    coordinate_change(b->c, b->now, NULL);
    told(b, "\"next\"", false);
    assert_int_equal(ask(b, 1, m, 5).epoch, 1);
}

/* No epoch is left that it could be for: the job ends as it is; unless the change brings more epochs. */
static void in_the_last_epoch_a_change_comes_only_with_more_epochs(void **state)
{
    struct bench *b = *state;
    b->o.epochs = 1;
    for (uint32_t epochs = 1; epochs <= 2; epochs++) {
        uint64_t m = bench_begin(b);
        struct msg_lease l = ask(b, 1, m, 1);
        coordinate_change(b->c, b->now, &(struct coordinate_next){CONSISTENCY_ASYNC, 0, 0, epochs});
        told(b, epochs == 1 ? "\"next_after\":null" : "\"next_after\":1", true);
        use_leases(b, m, 2, 2);
        used(b, 1, m, &l, 100);
        serve_both(b, true);
        assert_int_equal(coordinate_command(b->c), epochs == 1 ? COMMAND_FINISH : COMMAND_INTERRUPT);
        assert_int_equal(coordinate_switched(b->c), epochs == 2);
        coordinate_free(&b->c);
    }
    bench_start(b);
}

static void a_stop_does_not_wait_for_a_change(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 2);
    coordinate_change(b->c, b->now, &to_ssp);
    coordinate_interrupt(b->c, b->now);
    serve_both(b, true);
    assert_int_equal(coordinate_command(b->c), COMMAND_INTERRUPT);
    assert_false(coordinate_switched(b->c) || coordinate_needs_restore(b->c));
}

/* A set that holds the turned epoch is worth nothing once a server has lost a part of it. */
static void a_server_that_falls_meanwhile_makes_the_change_wait_for_its_chunks(void **state)
{
    struct bench *b = *state;
    b->hold_done = true;
    uint64_t m = bench_begin(b);
    struct msg_lease l = ask(b, 1, m, 1);
    coordinate_change(b->c, b->now, &to_ssp);
    use_leases(b, m, 2, 2);
    used(b, 1, m, &l, 100);
    serve_both(b, true);
    assert_int_equal(b->completed, 1);
    dies(b, 9);
    coordinate_set_done(b->c, b->now, 1, 0);
    b->server[1] = server(b, 10, 1); /* with the weights of set 0 */
    assert_false(coordinate_switched(b->c));
    assert_int_equal(account(b).epoch, 0);
    use_leases(b, m, 5, 3); /* again, in their own epoch: the next one is held back */
    assert_int_equal(ask(b, 1, m, 9).kind, LEASE_WAIT);
    wait_until(b, b->now + 6 * S);
    serve_set(b, 8, b->server[0], true);
    serve_set(b, 10, b->server[1], true);
    coordinate_set_done(b->c, b->now, b->completed, 0);
    wait_until(b, b->now + 1 * S);
    assert_true(coordinate_switched(b->c));
}

/* An epoch that is held back may be laid out anew: it must not hold what an older one has lost. */
static void chunks_that_moved_to_the_next_epoch_are_trained_before_the_change(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 3);
    dies(b, 9);
    server(b, 10, 1); /* with the weights of set 0: the first epoch has turned, so its chunks move on */
    assert_int_equal(account(b).open, 6);
    coordinate_change(b->c, b->now, &to_ssp);
    told(b, "\"next_after\":2", true);
    use_leases(b, m, 5, 6);
    assert_int_equal(ask(b, 1, m, 11).kind, LEASE_WAIT);
}

/* Killed between its decision and its leaving. */
static void a_coordinator_that_comes_back_goes_on_with_leaving(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t s0 = server(b, 8, 0);
    coordinate_change(b->c, b->now, &to_ssp);
    uint64_t s1 = server(b, 9, 1);
    serve_set(b, 8, s0, true);
    serve_set(b, 9, s1, true);
    assert_true(coordinate_switched(b->c));
    char *journal = xstrdup(b->journal);
    b->o.mode = CONSISTENCY_SSP; /* the file has changed already */
    come_back(b, journal);
    assert_true(coordinate_switched(b->c) && coordinate_needs_restore(b->c));
    assert_int_equal(coordinate_command(b->c), COMMAND_INTERRUPT);
    renew(b); /* everything new: that is over */
    apply_lines(b->c, journal, coordinate_apply_counters);
    coordinate_start(b->c, b->now, true, 1);
    assert_false(coordinate_switched(b->c) || coordinate_needs_restore(b->c));
    assert_int_equal(coordinate_command(b->c), COMMAND_RUN);
    free(journal);
}

/* ------------------------------------------------------------------ another mode in mid-epoch */

/* Stops with a last set after `chunks` chunks of the first epoch, and comes back from it in another mode. */
static uint64_t resume_in(struct bench *b, int chunks, enum consistency_mode mode, uint32_t pid)
{
    uint64_t s0 = server(b, 8, 0), s1 = server(b, 9, 1), m = worker(b, 1);
    use_leases(b, m, 1, chunks);
    coordinate_interrupt(b->c, b->now);
    serve_set(b, 8, s0, true);
    serve_set(b, 9, s1, true);
    b->o.mode = mode;
    restore_set_1(b);
    server(b, 18, 0);
    server(b, 19, 1);
    return worker(b, pid);
}

static void async_goes_on_as_ssp_where_it_stood(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = resume_in(b, 2, CONSISTENCY_SSP, 11);
    struct msg_lease l = ask(b, 11, m, 1);
    assert_int_equal(l.epoch, 0);
    assert_int_equal(l.begin, 8);
    assert_int_equal(account(b).used, 2);
}

static void async_goes_on_as_bsp_with_its_epoch_from_the_start(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = resume_in(b, 2, CONSISTENCY_BSP, 11), n = worker(b, 12);
    struct msg_lease l = ask(b, 11, m, 1), k = ask(b, 12, n, 1);
    assert_int_equal(l.epoch, 0);
    assert_int_equal(l.modulus, 6);
    assert_int_equal(l.end, 10);
    assert_int_equal(k.residue, 3);
    assert_int_equal(account(b).used, 0);
    used(b, 11, m, &l, 500);
    used(b, 12, n, &k, 500);
    told(b, "\"done\":0.25", true); /* what was used before is counted once: 1000 of 4000 */
}

static void bsp_goes_on_as_async_with_its_epoch_from_the_start(void **state)
{
    struct bench *b = *state;
    b->o.mode = CONSISTENCY_BSP;
    uint64_t m = bench_begin(b), n = worker(b, 2);
    ask(b, 2, n, 1);
    use_leases(b, m, 1, 1); /* the chunk of rank 0 */
    struct msg_lease ahead = ask(b, 1, m, 2);
    assert_int_equal(ahead.epoch, 1);
    coordinate_interrupt(b->c, b->now);
    uint32_t set = order_of(b, 1).hold;
    give_capsule(b, 1, m, set, "a", 1, 2);
    give_capsule(b, 2, n, set, "b", 1, 1);
    beat(b, 1, &(struct msg_beat){.role = ROLE_WORKER, .member = m, .holding = set, .seq = 5});
    beat(b, 2, &(struct msg_beat){.role = ROLE_WORKER, .member = n, .holding = set, .seq = 5});
    serve_both(b, true);
    assert_int_equal(b->num_capsules, 2);
    b->o.mode = CONSISTENCY_ASYNC;
    b->o.shape = 5; /* as main would compute it */
    restore_set_1(b);
    coordinate_give_capsule(b->c, 0, "a", 1);
    struct msg_joined j = join_as(b, ROLE_WORKER, 11, 0, 0);
    assert_int_equal(j.capsule_bytes, 0);
    static const uint32_t begin[] = {0, 4, 8, 0};
    for (uint32_t i = 0; i < 4; i++) {
        struct msg_lease l = ask(b, 11, j.member, i + 1);
        assert_int_equal(l.epoch, i / 3);
        assert_int_equal(l.begin, begin[i]);
        assert_int_equal(l.modulus, 1);
    }
    assert_int_equal(account(b).leased, 4);
}

/* The same K*S in other ranks is another layout. */
static void bsp_with_other_ranks_of_the_same_product_starts_the_epoch_over(void **state)
{
    struct bench *b = *state;
    b->o.mode = CONSISTENCY_BSP; /* 2 workers of 3 streams */
    uint64_t m = bench_begin(b);
    worker(b, 2);
    use_leases(b, m, 1, 1);
    char *rows = coordinate_rows(b->c);
    b->o.workers = 3;
    b->o.streams = 2;
    renew(b);
    apply_lines(b->c, rows, coordinate_apply_row);
    coordinate_start(b->c, b->now, true, 0);
    struct coordinate_account a = account(b);
    assert_int_equal(a.chunks, 3);
    assert_int_equal(a.open, 3);
    free(rows);
}

static void fewer_servers_take_up_the_state_of_more(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    server(b, 8, 0);
    uint64_t last = server(b, 9, 1);
    char *rows = coordinate_rows(b->c);
    b->o.shards = 1;
    renew(b);
    apply_lines(b->c, rows, coordinate_apply_row);
    coordinate_start(b->c, b->now, true, 0);
    assert_true(server(b, 18, 0) > last);
    free(rows);
}

static void capsules_are_handed_out_in_the_shape_that_they_were_taken_in(void **state)
{
    struct bench *b = *state;
    b->o.workers = 1;
    b->o.shape = 77;
    bench_start(b);
    char *rows = coordinate_rows(b->c);
    for (uint64_t shape = 77; shape <= 78; shape++) {
        b->o.shape = shape;
        renew(b);
        apply_lines(b->c, rows, coordinate_apply_row);
        coordinate_start(b->c, b->now, true, 1);
        coordinate_give_capsule(b->c, 0, "capsule", 7);
        assert_int_equal(join_as(b, ROLE_WORKER, 11, 0, 0).capsule_bytes, shape == 77 ? 7 : 0);
    }
    free(rows);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, bench_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_change_waits_for_the_end_of_what_has_begun_and_for_a_set_of_it),
        TEST(a_change_waits_for_the_dev_result_and_then_for_a_set_that_has_it),
        TEST(a_change_waits_for_one_set_and_not_for_the_one_after_it),
        TEST(a_change_before_anything_has_begun_comes_at_once),
        TEST(a_change_that_is_taken_back_changes_nothing),
        TEST(in_the_last_epoch_a_change_comes_only_with_more_epochs),
        TEST(a_stop_does_not_wait_for_a_change),
        TEST(a_server_that_falls_meanwhile_makes_the_change_wait_for_its_chunks),
        TEST(chunks_that_moved_to_the_next_epoch_are_trained_before_the_change),
        TEST(a_coordinator_that_comes_back_goes_on_with_leaving),
        TEST(async_goes_on_as_ssp_where_it_stood),
        TEST(async_goes_on_as_bsp_with_its_epoch_from_the_start),
        TEST(bsp_goes_on_as_async_with_its_epoch_from_the_start),
        TEST(bsp_with_other_ranks_of_the_same_product_starts_the_epoch_over),
        TEST(fewer_servers_take_up_the_state_of_more),
        TEST(capsules_are_handed_out_in_the_shape_that_they_were_taken_in),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
