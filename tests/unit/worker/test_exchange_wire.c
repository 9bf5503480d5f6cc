/* What travels and how much of it at once: element types with error feedback, the credit that servers grant,
 * the counts. */
#include "tests/unit/worker/exchange_world.h"

#include <math.h>

static struct world *world_of(uint64_t seed, enum element_type gradients, enum element_type weights)
{
    struct exchange_options o = plain_options();
    o.gradients = gradients;
    o.weights = weights;
    o.consistency = CONSISTENCY_SSP;
    o.optimizer = OPTIMIZER_ADAM;
    struct world *w = world_with(seed, &o, 0);
    settle(w);
    return w;
}

static void assert_counts_add_up(const struct world *w)
{
    const struct exchange_counts *c = exchange_counts(w->x);
    assert_int_equal(c->applied + c->refused + c->lost, c->exchanges * w->b.count);
}

/* Largest difference between the truth and what was applied plus what is still owed. */
static double owed(const struct world *w, const double *truth)
{
    const float *residual = exchange_residual(w->x);
    double most = 0;
    for (size_t i = 0; i < w->b.params; i++) {
        double d = fabs(truth[i] - w->sum[i] - (residual ? (double)residual[i] : 0));
        if (!(d <= most)) most = d;
    }
    return most;
}

/* --- element types */

static void test_every_pair_of_types_goes_there_and_lands(void **state)
{
    (void)state;
    for (unsigned g = 0; g < ELEMENT_TYPES; g++)
        for (unsigned t = 0; t < ELEMENT_TYPES; t++) {
            struct world *w = world_of(10 + g, g, t);
            for (int i = 0; i < 3; i++) push_and_check(w); /* the fake checks type, length and hash */
            assert_int_equal(exchange_counts(w->x)->applied, 3 * BLOCKS);
            assert_int_equal(exchange_counts(w->x)->corrupt + exchange_counts(w->x)->unexpected, 0);
            assert_true((exchange_residual(w->x) == NULL) == (g == ELEMENT_FP32));
            world_free(w);
        }
}

static void test_a_set_is_read_as_fp32_whatever_the_weights_travel_as(void **state)
{
    (void)state;
    struct world *w = world_of(11, ELEMENT_INT8, ELEMENT_INT8);
    exchange_read(w->x, w->now, 7, &w->w);
    settle(w);
    assert_false(exchange_read_failed(w->x));
    assert_memory_equal(w->w.values, w->weights, PARAMS * sizeof(float));
    exchange_read(w->x, w->now, 0, &w->w);
    settle(w);
    assert_same_weights(w);
    world_free(w);
}

/* Sum of what was applied = sum of the gradients - what is still owed, through loss, doubles and full queues:
 * each block is encoded once per push. */
static void test_error_feedback_sums_to_the_truth(void **state)
{
    (void)state;
    for (unsigned g = ELEMENT_BF16; g < ELEMENT_TYPES; g++)
        for (uint64_t seed = 1; seed <= 10; seed++) {
            struct world *w = world_of(seed, g, ELEMENT_FP32);
            double truth[PARAMS] = {0};
            w->drop = w->twice = 0.1;
            w->garble = 0.05;
            w->max_delay = 30 * NS_PER_MS;
            for (int n = 0; n < 50; n++) {
                if (rng_below(&w->rng, 3) == 0) w->refuse_sends = 4;
                push(w, true);
                for (size_t i = 0; i < PARAMS; i++) truth[i] += (double)w->grad[i];
                settle(w);
            }
            assert_same_weights(w);
            if (owed(w, truth) > 1e-4)
                fail_msg("%s, seed %llu: %g", element_name(g), (unsigned long long)seed, owed(w, truth));
            world_free(w);
        }
    print_message("seeds 1..10 of each type\n");
}

/* Beside a number 1000 times as large, int8 alone would never send it. */
static void test_a_small_gradient_arrives_by_feedback(void **state)
{
    (void)state;
    struct world *w = world_of(12, ELEMENT_INT8, ELEMENT_FP32);
    for (size_t i = 0; i < PARAMS; i++) w->grad[i] = i % SIZE ? 0.001f : 1.0f;
    for (int n = 0; n < 1000; n++) {
        exchange_push(w->x, w->now, w->grad, 10, &w->w, &w->w, true);
        settle(w);
    }
    for (size_t i = 0; i < PARAMS; i++) assert_true(fabs(w->sum[i] - (i % SIZE ? 1 : 1000)) < 0.01);
    world_free(w);
}

static void test_the_residual_can_be_handed_over(void **state)
{
    (void)state;
    struct world *w[3];
    for (int i = 0; i < 3; i++) {
        w[i] = world_of(13, ELEMENT_INT8, ELEMENT_FP32);
        push_and_check(w[i]);
        if (i > 0) memset(exchange_residual(w[i]->x), 0, PARAMS * sizeof(float));
    }
    memcpy(exchange_residual(w[1]->x), exchange_residual(w[0]->x), PARAMS * sizeof(float));
    for (int i = 0; i < 3; i++) push_and_check(w[i]);
    assert_memory_equal(w[1]->w.values, w[0]->w.values, PARAMS * sizeof(float));
    assert_memory_not_equal(w[2]->w.values, w[0]->w.values, PARAMS * sizeof(float));
    exchange_set_member(w[0]->x, 6, 1); /* joined anew: what is left over is of other weights */
    for (size_t i = 0; i < PARAMS; i++) assert_true(exchange_residual(w[0]->x)[i] == 0);
    for (int i = 0; i < 3; i++) world_free(w[i]);
}

struct kept {
    struct frame *frame;
};

static bool keep_frame(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    (void)shard;
    struct kept *k = ctx;
    if (m->type != MSG_PUSH || k->frame != NULL) return true;
    k->frame = *payload;
    *payload = NULL;
    return true;
}

/* A frame in a queue keeps the encoded bytes, even of an exchange that is no more. */
static void test_an_encoded_frame_outlives_the_exchange(void **state)
{
    (void)state;
    struct kept k = {NULL};
    struct exchange_io io = {&k, keep_frame};
    struct exchange_options o = plain_options();
    o.gradients = ELEMENT_BF16;
    o.shards = 1;
    struct exchange *x = exchange_new(&o, &io);
    struct weights w;
    weights_init(&w, &o.blocks);
    float *grad = xaligned(PARAMS * sizeof *grad);
    for (size_t i = 0; i < PARAMS; i++) grad[i] = 2.0f;
    exchange_set_member(x, 1, 1);
    exchange_connected(x, 1, 0);
    struct msg m = {.type = MSG_WELCOME, .job = JOB};
    m.welcome = (struct msg_welcome){0, 1, 1, 0, BLOCKS, 1};
    struct frame *none = NULL;
    exchange_receive(x, 1, 0, &m, &none);
    exchange_push(x, 1, grad, 1, &w, &w, true);
    assert_non_null(k.frame);
    assert_false(exchange_drained(x));
    exchange_free(&x);
    free(grad);
    assert_int_equal(((uint16_t *)frame_data(k.frame))[SIZE - 1], 0x4000); /* 2.0 */
    frame_free(&k.frame);
    weights_fini(&w);
}

/* --- answers that are not what must come */

static void receive(struct world *w, uint32_t shard, const struct msg *m, struct frame *payload)
{
    exchange_receive(w->x, w->now, shard, m, &payload);
    assert_null(payload);
}

static struct msg applied(struct world *w, uint32_t block, uint32_t type, struct frame *payload)
{
    struct msg m = {.type = MSG_ANSWER, .job = JOB};
    m.answer = (struct msg_answer){.block = block, .seq = exchange_seq(w->x), .verdict = VERDICT_APPLIED};
    m.answer.generation = m.answer.job_generation = 1;
    m.answer.type = type;
    m.answer.hash = wire_hash(frame_data(payload), frame_len(payload));
    return m;
}

static void test_weights_of_a_wrong_type_or_length_are_corrupt(void **state)
{
    (void)state;
    for (unsigned t = 0; t < ELEMENT_TYPES; t++)
        for (unsigned wrong = 0; wrong <= ELEMENT_TYPES;
             wrong++) { /* ELEMENT_TYPES: the right one, too short */
            if (wrong == t) continue;
            struct world *w = world_of(14, ELEMENT_FP32, t);
            push(w, true);
            float before[PARAMS];
            memcpy(before, w->w.values, sizeof before);
            struct frame *f = weights_frame(w, 0, wrong < ELEMENT_TYPES ? wrong : ELEMENT_FP32);
            if (wrong == ELEMENT_TYPES) {
                frame_free(&f);
                f = frame_new(element_bytes(t, SIZE) - 1);
                memset(frame_data(f), 0, frame_len(f));
            }
            struct msg m = applied(w, 0, wrong < ELEMENT_TYPES ? wrong : t, f);
            receive(w, 0, &m, f);
            assert_int_equal(exchange_counts(w->x)->corrupt, 1);
            assert_int_equal(exchange_counts(w->x)->applied, 0);
            assert_memory_equal(w->w.values, before, sizeof before);
            settle(w);
            assert_same_weights(w);
            world_free(w);
        }
}

static void test_a_number_that_is_no_type_is_corrupt(void **state)
{
    (void)state;
    struct world *w = world_of(15, ELEMENT_FP32, ELEMENT_FP32);
    push(w, true);
    for (int i = 0; i < 20; i++) { /* sent again at once a few times, then at the deadline */
        struct frame *f = weights_frame(w, 0, ELEMENT_FP32);
        struct msg m = applied(w, 0, UINT32_MAX - (uint32_t)i, f);
        receive(w, 0, &m, f);
    }
    assert_int_equal(exchange_counts(w->x)->corrupt, 20);
    assert_true(exchange_counts(w->x)->resent <= 5);
    settle(w);
    assert_same_weights(w);
    world_free(w);
}

static void test_a_set_in_the_type_of_live_weights_is_corrupt(void **state)
{
    (void)state;
    struct world *w = world_of(16, ELEMENT_FP32, ELEMENT_BF16);
    exchange_read(w->x, w->now, 7, &w->w);
    struct frame *f = weights_frame(w, 0, ELEMENT_BF16);
    struct msg m = {.type = MSG_BLOCK, .job = JOB};
    m.block =
        (struct msg_block){.request = 2, .set = 7, .generation = 1, .found = true, .type = ELEMENT_BF16};
    m.block.hash = wire_hash(frame_data(f), frame_len(f));
    receive(w, 0, &m, f);
    assert_int_equal(exchange_counts(w->x)->corrupt, 1);
    settle(w);
    assert_memory_equal(w->w.values, w->weights, PARAMS * sizeof(float));
    world_free(w);
}

/* --- credit */

static struct world *world_of_credit(uint64_t seed, uint32_t credit, uint32_t grant)
{
    struct exchange_options o = plain_options();
    o.credit = credit;
    struct world *w = world_with(seed, &o, 0);
    for (uint32_t k = 0; k < SHARDS; k++) w->server[k].grant = grant;
    w->check_credit = true;
    settle(w);
    return w;
}

static void test_a_newcomer_begins_with_the_credit_of_welcome(void **state)
{
    (void)state;
    struct world *w = world_of_credit(20, 8, 1);
    assert_int_equal(w->max_flying, 1); /* reads, too */
    push_and_check(w);
    assert_int_equal(w->max_flying, 1);
    world_free(w);
}

static void test_credit_shrinks_and_grows_in_mid_flight(void **state)
{
    (void)state;
    struct world *w = world_of_credit(21, 3, 3);
    struct server *s = &w->server[0];
    push(w, true);
    assert_int_equal(w->out[0], 3);
    s->grant = 1;
    for (uint64_t sends = w->sends; w->out[0] > 1;) { /* two answers bring no new block of that shard */
        step(w);
        assert_true(w->sends - sends <= BLOCKS - s->count);
    }
    settle(w);
    s->grant = 2;
    push(w, true);
    assert_int_equal(w->out[0], 1);
    while (w->out[0] == 1) step(w);
    assert_int_equal(w->out[0], 2);
    settle(w);
    assert_same_weights(w);
    assert_int_equal(exchange_counts(w->x)->resent, 0);
    world_free(w);
}

static void test_nonsense_credit_is_the_one_of_the_job_file(void **state)
{
    (void)state;
    const uint32_t said[] = {0, 4, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof said / sizeof said[0]; i++) {
        struct world *w = world_of_credit(22, 3, said[i]);
        push_and_check(w);
        assert_int_equal(w->max_flying, 3);
        world_free(w);
    }
}

/* Any credit at any time, in a network with faults: everything arrives once, and nothing stands still. */
static void test_random_credit_applies_exactly_once(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct exchange_options o = plain_options();
        o.credit = 4;
        o.gradients = seed % ELEMENT_TYPES;
        o.weights = seed / 4 % ELEMENT_TYPES;
        struct world *w = world_with(seed, &o, 0);
        w->drop = w->twice = 0.1;
        w->garble = 0.03;
        w->max_delay = 40 * NS_PER_MS;
        settle(w);
        for (uint64_t i = 1; i <= 5; i++) {
            push(w, true);
            while (!exchange_idle(w->x)) {
                w->server[rng_below(&w->rng, SHARDS)].grant = (uint32_t)rng_below(&w->rng, 6);
                step(w);
            }
            settle(w);
            for (uint32_t b = 0; b < BLOCKS; b++)
                if (w->applied[b] != i) fail_msg("seed %llu block %u", (unsigned long long)seed, b);
            assert_same_weights(w);
        }
        assert_counts_add_up(w);
        world_free(w);
    }
    print_message("seeds 1..200\n");
}

/* What is in flight without faults never exceeds what was granted last, whatever that is. */
static void test_random_credit_is_never_exceeded(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct world *w = world_of_credit(seed, 5, 5);
        for (int i = 0; i < 5; i++) {
            push(w, true);
            while (!exchange_idle(w->x)) {
                w->server[rng_below(&w->rng, SHARDS)].grant = (uint32_t)rng_below(&w->rng, 7);
                step(w);
            }
            assert_same_weights(w);
        }
        assert_int_equal(exchange_counts(w->x)->resent, 0);
        world_free(w);
    }
    print_message("seeds 1..100\n");
}

/* --- deadlines */

/* The one message that was lost is found and sent again, in its turn, though all after it were answered. */
static void test_a_lost_block_is_sent_again_at_its_deadline(void **state)
{
    (void)state;
    struct world *w = world_of_credit(23, 3, 0);
    w->check_credit = false;
    uint64_t start = w->now;
    w->drop = 1;
    push(w, true); /* what the credit allows is lost */
    w->drop = 0;
    assert_true(exchange_next(w->x) == start + 50 * NS_PER_MS);
    settle(w);
    assert_int_equal(exchange_counts(w->x)->resent, 9);
    assert_true(w->now - start < 60 * NS_PER_MS);
    assert_true(exchange_next(w->x) == UINT64_MAX);
    assert_same_weights(w);
    world_free(w);
}

/* A block that may still be on its way keeps its credit, also against one that the server held before. */
static void test_a_block_that_is_overdue_keeps_its_credit(void **state)
{
    (void)state;
    struct world *w = world_of_credit(27, 1, 0);
    w->check_credit = false;
    w->server[0].hold = 1;
    push(w, true);
    while (w->hash_seq[1] == 0) step(w); /* block 0 is held, block 1 is sent */
    drain(w);
    w->drop = 1;
    for (uint64_t start = w->now; w->now < start + NS_PER_S;) step(w);
    assert_int_equal(w->pushes[0], 1);
    w->drop = 0;
    settle(w);
    assert_int_equal(w->pushes[0], 2);
    assert_same_weights(w);
    world_free(w);
}

/* --- verdicts and counts */

static void test_a_push_that_is_too_stale_is_refused_and_brings_weights(void **state)
{
    (void)state;
    struct world *w = world_of(24, ELEMENT_FP32, ELEMENT_FP32);
    w->stale_block = 4;
    uint64_t reads = w->reads;
    push_and_check(w);
    assert_int_equal(exchange_counts(w->x)->refused, 1);
    assert_int_equal(exchange_counts(w->x)->applied, BLOCKS - 1);
    assert_int_equal(exchange_counts(w->x)->left_out, 0);
    assert_int_equal(w->reads, reads);
    w->stale_block = 0; /* block 0 is like any other without tickets */
    push_and_check(w);
    assert_int_equal(exchange_counts(w->x)->refused, 2);
    assert_int_equal(exchange_counts(w->x)->left_out, 0);
    assert_int_equal(w->reads, reads);
    assert_counts_add_up(w);
    world_free(w);
}

static void test_a_wait_is_counted_from_the_first_received_to_the_end(void **state)
{
    (void)state;
    struct world *w = world_of(25, ELEMENT_FP32, ELEMENT_FP32);
    push_and_check(w);
    assert_int_equal(exchange_counts(w->x)->waits, 0);
    uint64_t start = w->now;
    w->server[1].hold = 2;
    w->server[2].hold = 1;
    push(w, true); /* sent again after ten deadlines of 50 ms */
    while (w->now < start + 100 * NS_PER_MS) step(w);
    w->server[1].hold = 1;
    settle(w);
    assert_same_weights(w);
    assert_int_equal(exchange_counts(w->x)->waits, 1);
    assert_true(exchange_counts(w->x)->wait_ns >= 1000 * NS_PER_MS - 1000);
    assert_true(exchange_counts(w->x)->wait_ns < w->now - start);
    push_and_check(w);
    assert_int_equal(exchange_counts(w->x)->waits, 1);
    world_free(w);
}

static void test_bytes_are_those_of_the_payloads(void **state)
{
    (void)state;
    const size_t size[] = {4, 2};
    for (size_t i = 0; i < 2; i++) {
        struct world *w = world_of(26, i ? ELEMENT_BF16 : ELEMENT_FP32, i ? ELEMENT_FP16 : ELEMENT_FP32);
        for (int n = 0; n < 3; n++) push_and_check(w);
        assert_int_equal(exchange_counts(w->x)->bytes_out, 3 * PARAMS * size[i]);
        assert_int_equal(exchange_counts(w->x)->bytes_in, (1 + 3) * PARAMS * size[i]);
        world_free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_pair_of_types_goes_there_and_lands),
        cmocka_unit_test(test_a_set_is_read_as_fp32_whatever_the_weights_travel_as),
        cmocka_unit_test(test_error_feedback_sums_to_the_truth),
        cmocka_unit_test(test_a_small_gradient_arrives_by_feedback),
        cmocka_unit_test(test_the_residual_can_be_handed_over),
        cmocka_unit_test(test_an_encoded_frame_outlives_the_exchange),
        cmocka_unit_test(test_weights_of_a_wrong_type_or_length_are_corrupt),
        cmocka_unit_test(test_a_number_that_is_no_type_is_corrupt),
        cmocka_unit_test(test_a_set_in_the_type_of_live_weights_is_corrupt),
        cmocka_unit_test(test_a_newcomer_begins_with_the_credit_of_welcome),
        cmocka_unit_test(test_credit_shrinks_and_grows_in_mid_flight),
        cmocka_unit_test(test_nonsense_credit_is_the_one_of_the_job_file),
        cmocka_unit_test(test_random_credit_applies_exactly_once),
        cmocka_unit_test(test_random_credit_is_never_exceeded),
        cmocka_unit_test(test_a_lost_block_is_sent_again_at_its_deadline),
        cmocka_unit_test(test_a_block_that_is_overdue_keeps_its_credit),
        cmocka_unit_test(test_a_push_that_is_too_stale_is_refused_and_brings_weights),
        cmocka_unit_test(test_a_wait_is_counted_from_the_first_received_to_the_end),
        cmocka_unit_test(test_bytes_are_those_of_the_payloads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
