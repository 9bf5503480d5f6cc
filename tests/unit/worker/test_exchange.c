/* The exchange of the plain case: fp32, async. Types, credit: test_exchange_wire.c; backup workers:
 * test_exchange_ticket.c and test_exchange_ticket_loss.c. */
#include "tests/unit/worker/exchange_world.h"

static void test_push_is_one_round_trip_and_keeps_the_credit(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    settle(w);
    assert_same_weights(w);
    uint64_t sends = w->sends;
    for (int i = 0; i < 3; i++) {
        push_and_check(w);
    }
    assert_int_equal(w->sends - sends, 3 * BLOCKS);
    assert_int_equal(w->max_flying, CREDIT);
    assert_int_equal(exchange_counts(w->x)->applied, 3 * BLOCKS);
    assert_int_equal(exchange_counts(w->x)->exchanges, 3);
    assert_int_equal(exchange_counts(w->x)->resent + exchange_counts(w->x)->unexpected, 0);
    assert_int_equal(exchange_counts(w->x)->staleness_max, 0);
    assert_true(exchange_next(w->x) == UINT64_MAX);
    world_free(w);
}

static void test_push_without_pull_leaves_the_weights(void **state)
{
    (void)state;
    struct world *w = world_new(2);
    settle(w);
    float before[PARAMS];
    memcpy(before, w->w.values, sizeof before);
    push(w, false);
    settle(w);
    assert_memory_equal(before, w->w.values, sizeof before);
    push_and_check(w);
    assert_int_equal(exchange_counts(w->x)->staleness_max, 1);
    world_free(w);
}

/* Each push is applied exactly once per block, whatever the network does. */
static void test_random_faults_apply_exactly_once(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct world *w = world_new(seed);
        w->drop = 0.15;
        w->twice = 0.2;
        w->garble = 0.05;
        w->max_delay = 80 * NS_PER_MS;
        settle(w);
        for (int i = 1; i <= 5; i++) {
            if (rng_below(&w->rng, 3) == 0) w->server[1].hold = 3;
            if (rng_below(&w->rng, 4) == 0) w->server[2].known = 0;
            if (rng_below(&w->rng, 4) == 0) w->refuse_sends = 3;
            push(w, true);
            if (rng_below(&w->rng, 3) == 0) exchange_connected(w->x, w->now, 0);
            settle(w);
            for (uint32_t b = 0; b < BLOCKS; b++)
                if (w->applied[b] != (uint64_t)i) fail_msg("seed %llu block %u", (unsigned long long)seed, b);
            assert_same_weights(w);
        }
        assert_int_equal(exchange_counts(w->x)->applied, 5 * BLOCKS);
        world_free(w);
    }
    print_message("seeds 1..200\n");
}

/* After falls at random moments the worker has the weights of the new life, and every block of every push is
 * applied, refused or lost. */
static void test_random_falls_end_with_the_new_weights(void **state)
{
    (void)state;
    uint64_t lost = 0, torn = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct world *w = world_new(seed);
        w->drop = w->twice = 0.1;
        w->max_delay = 20 * NS_PER_MS;
        settle(w);
        for (int i = 0; i < 6; i++) {
            push(w, true);
            for (uint64_t n = rng_below(&w->rng, 60); n > 0; n--) step(w);
            uint32_t k = (uint32_t)rng_below(&w->rng, SHARDS);
            fall(w, k);
            exchange_connected(w->x, w->now, k);
            settle(w);
        }
        w->drop = 0;
        push(w, true); /* a WELCOME that came too late for the last push is for this one */
        settle(w);
        assert_same_weights(w);
        const struct exchange_counts *c = exchange_counts(w->x);
        assert_int_equal(c->applied + c->refused + c->lost, c->exchanges * BLOCKS);
        lost += c->lost;
        torn += c->torn;
        world_free(w);
    }
    print_message("seeds 1..200: %llu blocks lost, %llu pushes torn\n", (unsigned long long)lost,
                  (unsigned long long)torn);
    assert_true(lost > 0 && torn > 0);
}

/* A gradient from weights of an earlier life is not pushed to the new one. */
static void test_gradient_of_an_earlier_life_is_lost(void **state)
{
    (void)state;
    struct world *w = world_new(3);
    settle(w);
    fall(w, 1);
    exchange_connected(w->x, w->now, 1);
    while (exchange_next(w->x) != UINT64_MAX) step(w);
    push(w, true);
    settle(w);
    assert_int_equal(exchange_counts(w->x)->lost, w->server[1].count);
    assert_int_equal(exchange_counts(w->x)->torn, 1);
    assert_int_equal(w->applied[w->server[1].first], 0);
    assert_same_weights(w);
    world_free(w);
}

/* RECEIVED returns the credit: with one credit's worth of held blocks the others still go. */
static void test_received_returns_the_credit(void **state)
{
    (void)state;
    struct world *w = world_new(4);
    settle(w);
    for (uint32_t k = 0; k < SHARDS; k++) w->server[k].hold = w->server[k].count;
    uint64_t sends = w->sends, start = w->now;
    push(w, true);
    while (w->sends < sends + BLOCKS) step(w);
    assert_true(w->now - start < 50 * NS_PER_MS);
    settle(w); /* the fake forgets to answer: sent again after ten deadlines */
    assert_true(w->now - start >= 500 * NS_PER_MS);
    assert_true(w->max_flying <= CREDIT);
    assert_same_weights(w);
    world_free(w);
}

static void test_refusals_become_trouble_and_end_the_push(void **state)
{
    (void)state;
    const uint32_t reason[] = {REFUSAL_RETIRED, REFUSAL_MISMATCH};
    const int trouble[] = {ERR_AGAIN, ERR_MODEL};
    for (size_t i = 0; i < 2; i++) {
        struct world *w = world_new(5);
        settle(w);
        w->refusal = reason[i];
        push(w, true);
        settle(w);
        assert_int_equal(exchange_trouble(w->x), trouble[i]);
        assert_true(exchange_next(w->x) == UINT64_MAX);
        if (trouble[i] == ERR_MODEL) assert_non_null(strstr(err_text(), "the models differ"));
        drain(w);
        w->refusal = 0;
        exchange_set_member(w->x, 6, 1);
        memset(w->hash_seq, 0, sizeof w->hash_seq);
        for (uint32_t k = 0; k < SHARDS; k++) memset(w->server[k].last, 0, sizeof w->server[k].last);
        exchange_read(w->x, w->now, 0, &w->w);
        settle(w);
        push(w, true);
        settle(w);
        assert_int_equal(exchange_seq(w->x), 1);
        assert_same_weights(w);
        world_free(w);
    }
}

static void test_not_ready_is_tried_again_after_100_ms(void **state)
{
    (void)state;
    struct world *w = world_new(6);
    settle(w);
    w->refusal = REFUSAL_NOT_READY;
    uint64_t start = w->now;
    push(w, true);
    while (w->now < start + 350 * NS_PER_MS) step(w);
    w->refusal = 0;
    settle(w);
    assert_true(w->now < start + 600 * NS_PER_MS);
    assert_same_weights(w);
    world_free(w);
}

static void test_read_of_a_set_that_is_gone_fails(void **state)
{
    (void)state;
    struct world *w = world_new(7);
    settle(w);
    exchange_read(w->x, w->now, 3, &w->w);
    settle(w);
    assert_false(exchange_read_failed(w->x));
    w->lose_set = true;
    exchange_read(w->x, w->now, 3, &w->w);
    settle(w);
    assert_true(exchange_read_failed(w->x));
    world_free(w);
}

/* Bytes of a peer: nothing that makes no sense does anything but count. */
static void test_nonsense_is_counted_and_ignored(void **state)
{
    (void)state;
    struct world *w = world_new(8);
    settle(w);
    push(w, true);
    const struct msg bad[] = {
        {.type = MSG_ANSWER, .job = JOB, .answer = {.block = 4000000000u, .seq = 1, .verdict = 1}},
        {.type = MSG_ANSWER, .job = JOB, .answer = {.block = BLOCKS - 1, .seq = 1, .verdict = 1}},
        {.type = MSG_ANSWER, .job = JOB, .answer = {.block = 0, .seq = 9, .verdict = 1, .generation = 1}},
        {.type = MSG_ANSWER, .job = JOB, .answer = {.block = 0, .seq = 1, .verdict = 99, .generation = 1}},
        {.type = MSG_ANSWER, .job = 1, .answer = {.block = 0, .seq = 1, .verdict = 1, .generation = 1}},
        {.type = MSG_BLOCK, .job = JOB, .block = {.request = 2, .block = 0, .found = true}},
        {.type = MSG_REFUSED, .job = JOB, .refused = {.reason = 1234}},
        {.type = MSG_ORDER, .job = JOB},
    };
    const size_t n = sizeof bad / sizeof bad[0];
    struct frame *payload;
    for (size_t i = 0; i < n; i++) {
        payload = frame_new(i);
        exchange_receive(w->x, w->now, 0, &bad[i], &payload);
    }
    assert_int_equal(exchange_counts(w->x)->unexpected, n);
    struct msg wrong_size = bad[2];
    wrong_size.answer.seq = 1;
    payload = frame_new(3);
    exchange_receive(w->x, w->now, 0, &wrong_size, &payload);
    assert_int_equal(exchange_counts(w->x)->corrupt, 1);
    settle(w);
    assert_same_weights(w);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_push_is_one_round_trip_and_keeps_the_credit),
        cmocka_unit_test(test_push_without_pull_leaves_the_weights),
        cmocka_unit_test(test_random_faults_apply_exactly_once),
        cmocka_unit_test(test_random_falls_end_with_the_new_weights),
        cmocka_unit_test(test_gradient_of_an_earlier_life_is_lost),
        cmocka_unit_test(test_received_returns_the_credit),
        cmocka_unit_test(test_refusals_become_trouble_and_end_the_push),
        cmocka_unit_test(test_not_ready_is_tried_again_after_100_ms),
        cmocka_unit_test(test_read_of_a_set_that_is_gone_fails),
        cmocka_unit_test(test_nonsense_is_counted_and_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
