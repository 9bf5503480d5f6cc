/* Chunks are granted once each and in order, and come back when their worker does not. */
#include "tests/unit/server/coordinate_bench.h"

static int set_up(void **state)
{
    struct bench *b = bench_new();
    *state = b;
    return 0;
}

static void every_chunk_of_an_epoch_is_leased_once_and_in_order(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    static const uint32_t begin[] = {0, 4, 8, 0, 4, 8}, end[] = {4, 8, 10, 4, 8, 10};
    for (uint32_t i = 0; i < 6; i++) {
        struct msg_lease l = i % 2 ? ask(b, 2, n, i + 1) : ask(b, 1, m, i + 1);
        assert_int_equal(l.kind, LEASE_TRAIN);
        assert_int_equal(l.request, i + 1);
        assert_int_equal(l.id, i + 1);
        assert_int_equal(l.epoch, i / 3); /* the next epoch opens when all of this one is leased */
        assert_int_equal(l.begin, begin[i]);
        assert_int_equal(l.end, end[i]);
        assert_int_equal(l.modulus, 1);
        assert_int_equal(l.residues, 1);
    }
    assert_int_equal(ask(b, 1, m, 7).kind, LEASE_WAIT);
    assert_int_equal(account(b).leased, 6);
}

static void a_grant_is_journaled_before_it_is_sent(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    ask(b, 1, m, 1);
    assert_non_null(strstr(b->journal, "\"state\":\"leased\""));
    assert_non_null(strstr(b->journal, "\"row\":\"member\""));
}

static void a_repeated_question_gets_the_same_lease(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    struct msg_lease first = ask(b, 1, m, 1);
    assert_int_equal(ask(b, 1, m, 1).id, first.id);
    assert_int_equal(ask(b, 1, m, 2).id, first.id + 1);
    assert_int_equal(ask(b, 1, m, 1).kind, 99); /* an old question that came late: no answer */
    assert_int_equal(account(b).leased, 2);
}

/* Otherwise a late WAIT could make the worker pass over the lease that the repetition got. */
static void a_repeated_question_gets_the_same_wait(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    struct msg_lease l = {0};
    for (uint32_t i = 0; i < 6; i++) l = ask(b, 1, m, i + 1);
    assert_int_equal(ask(b, 2, n, 1).kind, LEASE_WAIT);
    struct msg back = {.type = MSG_USED,
                       .used = {.member = m, .id = l.id, .kind = LEASE_TRAIN, .given_back = true}};
    say(b, 101, &back);
    assert_int_equal(ask(b, 2, n, 1).kind, LEASE_WAIT);
    assert_int_equal(ask(b, 2, n, 2).begin, 8);
}

static void a_used_report_that_comes_twice_counts_once(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    struct msg_lease l = ask(b, 1, m, 1);
    used(b, 1, m, &l, 100);
    used(b, 1, m, &l, 100);
    struct coordinate_account a = account(b);
    assert_int_equal(a.used, 1);
    assert_int_equal(a.doubled, 0);
    char *s = coordinate_status(b->c, b->now, "r");
    assert_non_null(strstr(s, "\"done\":0.05")); /* 100 of 2 x 1000 frames */
    free(s);
}

static double rate_told(struct bench *b)
{
    char *s = coordinate_status(b->c, b->now, "r"), *at = strstr(s, "\"frames_per_s\":");
    double rate = at ? strtod(at + strlen("\"frames_per_s\":"), NULL) : -1;
    free(s);
    return rate;
}

/* Those of a resumed worker's capsule and what the servers applied are no work of this minute. */
static void the_rate_counts_what_workers_compute_from_the_first_frame_on(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t s = server(b, 1, 0), m = worker(b, 2);
    assert_true(rate_told(b) == 0);
    uint64_t begin = b->now;
    for (uint64_t t = 0; t <= 20; t++) {
        wait_until(b, begin + t * S);
        uint64_t frames = t < 10 ? 0 : (t - 10) * 500;
        beat(b, 1, &(struct msg_beat){.role = ROLE_SERVER, .member = s, .frames = 7000 * t});
        beat(b, 2,
             &(struct msg_beat){.role = ROLE_WORKER,
                                .member = m,
                                .frames = 100000 + frames,
                                .frames_per_s = frames ? 480 : 0});
    }
    wait_until(b, begin + 21 * S);
    double rate = rate_told(b);
    if (!(rate > 400 && rate < 560)) fail_msg("500 frames a second are told as %g", rate);
}

static void a_dead_workers_lease_is_granted_again(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    struct msg_lease l = ask(b, 1, m, 1);
    ask(b, 2, n, 1);
    dies(b, 1);
    struct msg_lease again = ask(b, 2, n, 2);
    assert_int_equal(again.begin, l.begin);
    assert_int_not_equal(again.id, l.id);
    b->num_sent = 0;
    struct msg late = {.type = MSG_USED, .used = {.member = m, .id = l.id, .frames = 1}};
    say(b, 101, &late);
    assert_int_equal(last_to(b, 101, MSG_REFUSED)->refused.reason, REFUSAL_RETIRED);
    assert_int_equal(account(b).used, 0);
}

static void a_lease_not_used_in_time_goes_to_another_and_a_double_is_counted(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    struct msg_lease l = ask(b, 1, m, 1);
    b->now += 121 * S;
    assert_int_equal(ask(b, 1, m, 2).begin, 4); /* its own slow lease is not given to it again */
    struct msg_lease again = ask(b, 2, n, 1);
    assert_int_equal(again.begin, 0);
    used(b, 1, m, &l, 10); /* the slow one is there first after all */
    assert_int_equal(account(b).used, 1);
    used(b, 2, n, &again, 10);
    assert_int_equal(account(b).used, 1);
    assert_int_equal(account(b).doubled, 1);
}

static void a_lease_given_back_is_granted_to_the_next(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    struct msg_lease l = ask(b, 1, m, 1);
    struct msg back = {.type = MSG_USED,
                       .used = {.member = m, .id = l.id, .kind = LEASE_TRAIN, .given_back = true}};
    say(b, 101, &back);
    assert_int_equal(ask(b, 2, n, 1).begin, 0);
}

static void a_report_of_nonsense_keeps_the_sums_finite(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    struct msg_lease l = ask(b, 1, m, 1);
    struct msg u = {
        .type = MSG_USED,
        .used = {.member = m, .id = l.id, .frames = UINT64_MAX, .loss = 0.0 / 0.0, .correct = UINT64_MAX}};
    say(b, 101, &u);
    char *s = coordinate_status(b->c, b->now, "r"), *rows = coordinate_rows(b->c);
    assert_null(strstr(s, "nan"));
    struct coordinator *c = bench_core(b);
    apply_lines(c, rows, coordinate_apply_row);
    coordinate_free(&c);
    free(rows);
    free(s);
}

static void bsp_leases_are_one_per_rank_and_epoch_and_wait_for_the_roster(void **state)
{
    struct bench *b = *state;
    b->o.mode = CONSISTENCY_BSP;
    bench_start(b);
    uint64_t m = worker(b, 1);
    assert_int_equal(ask(b, 1, m, 1).kind, 99);
    server(b, 8, 0);
    server(b, 9, 1);
    b->num_sent = 0;
    uint64_t n = worker(b, 2);
    const struct msg *late = last_to(b, 101, MSG_LEASE); /* the question of rank 0 is answered now */
    assert_non_null(late);
    assert_int_equal(late->lease.kind, LEASE_TRAIN);
    assert_int_equal(late->lease.modulus, 6);
    assert_int_equal(late->lease.residue, 0);
    assert_int_equal(late->lease.residues, 3);
    assert_int_equal(late->lease.end, 10);
    assert_int_equal(order_of(b, 8).roster, 1);
    assert_int_equal(b->roster[0], m);
    assert_int_equal(b->roster[1], n);
    /* rank 0 goes on into the next epoch before rank 1 has asked for anything */
    assert_int_equal(ask(b, 1, m, 2).epoch, 1);
    assert_int_equal(ask(b, 1, m, 3).kind, LEASE_WAIT);
    struct msg_lease l = ask(b, 2, n, 1);
    assert_int_equal(l.epoch, 0);
    assert_int_equal(l.residue, 3);
    assert_int_equal(join_as(b, ROLE_WORKER, 3, 0, 0).member, 0);
    assert_int_equal(last_to(b, 103, MSG_REFUSED)->refused.reason, REFUSAL_FULL);
}

/* Chunks used after the set that a fallen server comes back with are lost for it: opened again. */
static void chunks_used_after_the_set_of_a_fallen_server_are_opened_again(void **state)
{
    struct bench *b = *state;
    b->o.interval_ns = 10 * S;
    uint64_t m = bench_begin(b);
    struct msg_lease l[6];
    for (uint32_t i = 0; i < 4; i++) l[i] = ask(b, 1, m, i + 1);
    used(b, 1, m, &l[0], 100);
    wait_until(b, b->now + 11 * S); /* set 1 */
    serve_both(b, true);
    assert_int_equal(b->completed, 1);
    used(b, 1, m, &l[1], 100);
    used(b, 1, m, &l[2], 100); /* epoch 0 turns */
    used(b, 1, m, &l[3], 100); /* of epoch 1 */
    assert_int_equal(account(b).epoch, 1);
    dies(b, 9);
    struct msg_joined j = join_as(b, ROLE_SERVER, 10, 1, 1);
    assert_int_equal(j.generation, 2);
    assert_int_equal(j.set, 1);
    assert_int_equal(account(b).reopened, 3);
    assert_int_equal(account(b).used, 3); /* two of epoch 0 live on in epoch 1 */
    /* in place first, then the rest of the epoch, then those of the epoch before */
    static const uint32_t epoch[] = {1, 1, 1, 0, 0}, begin[] = {0, 4, 8, 4, 8};
    for (uint32_t i = 0; i < 5; i++) {
        struct msg_lease x = ask(b, 1, m, 10 + i);
        assert_int_equal(x.kind, LEASE_TRAIN);
        assert_int_equal(x.epoch, epoch[i]);
        assert_int_equal(x.begin, begin[i]);
        used(b, 1, m, &x, 100);
    }
    assert_int_equal(account(b).epoch, 2);
    told(b, "\"done\":1", true); /* no chunk is counted twice: 6 x 100 of 2000 frames */
    told(b, "\"train_loss\":2.0", true);
    char *rows = coordinate_rows(b->c);
    struct coordinator *c = bench_core(b);
    apply_lines(c, rows, coordinate_apply_row);
    char *again = coordinate_rows(c);
    assert_string_equal(rows, again);
    free(again);
    free(rows);
    coordinate_free(&c);
}

/* A lease from before the fall may have had its pushes among the lost ones. */
static void a_lease_granted_before_a_server_fell_is_not_believed(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    struct msg_lease l = ask(b, 1, m, 1);
    dies(b, 9);
    server(b, 10, 1);
    used(b, 1, m, &l, 100);
    assert_int_equal(account(b).used, 0);
    assert_int_equal(account(b).reopened, 1);
    struct msg_lease again = ask(b, 1, m, 2);
    assert_int_equal(again.begin, l.begin);
    used(b, 1, m, &again, 100);
    assert_int_equal(account(b).used, 1);
}

/* A coordinator that reads the journal of another has the same rows as that one. */
static void the_journal_alone_gives_the_same_state(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1), n = worker(b, 2);
    struct msg_lease l[5];
    for (uint32_t i = 0; i < 5; i++) l[i] = ask(b, 1 + i % 2, i % 2 ? n : m, i + 1);
    used(b, 1, m, &l[0], 10);
    used(b, 2, n, &l[1], 20);
    used(b, 1, m, &l[2], 30);
    dies(b, 2);
    char *rows = coordinate_rows(b->c);
    struct coordinator *c = bench_core(b);
    apply_lines(c, b->journal, coordinate_apply_row);
    char *again = coordinate_rows(c);
    assert_string_equal(rows, again);
    free(again);
    free(rows);
    coordinate_free(&c);
}

/* Silence would leave a worker asking for ever whose answer was lost before its lease went away. */
static void a_question_whose_lease_is_gone_is_answered_ask_again(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    struct msg_lease l = ask(b, 1, m, 1);
    assert_int_equal(l.kind, LEASE_TRAIN);
    used(b, 1, m, &l, 10);
    assert_int_equal(ask(b, 1, m, 1).kind, LEASE_HELD);
    assert_int_equal(ask(b, 1, m, 2).kind, LEASE_TRAIN);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, bench_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_question_whose_lease_is_gone_is_answered_ask_again),
        TEST(every_chunk_of_an_epoch_is_leased_once_and_in_order),
        TEST(a_grant_is_journaled_before_it_is_sent),
        TEST(a_repeated_question_gets_the_same_lease),
        TEST(a_repeated_question_gets_the_same_wait),
        TEST(a_used_report_that_comes_twice_counts_once),
        TEST(the_rate_counts_what_workers_compute_from_the_first_frame_on),
        TEST(a_dead_workers_lease_is_granted_again),
        TEST(a_lease_not_used_in_time_goes_to_another_and_a_double_is_counted),
        TEST(a_lease_given_back_is_granted_to_the_next),
        TEST(a_report_of_nonsense_keeps_the_sums_finite),
        TEST(bsp_leases_are_one_per_rank_and_epoch_and_wait_for_the_roster),
        TEST(chunks_used_after_the_set_of_a_fallen_server_are_opened_again),
        TEST(a_lease_granted_before_a_server_fell_is_not_believed),
        TEST(the_journal_alone_gives_the_same_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
