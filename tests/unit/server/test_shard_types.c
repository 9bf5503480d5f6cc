/* Whatever travels, the shard computes in fp32: its result equals that of an fp32 shard which is given the
 * decoded gradients, and its answers are the encoded weights. */
#include "tests/unit/server/shard_world.h"

#include "common/rng.h"

#include <math.h>
#include <stdio.h>

#define SEED 47
#define WIDE (4 * sizeof(float))

/* A gradient as it travels, and what is left of it. */
struct parcel {
    float values[4];
    _Alignas(8) uint8_t bytes[64];
    size_t len;
};

static struct parcel random_parcel(struct rng *r, enum element_type t, uint32_t block)
{
    struct parcel p = {.len = element_bytes(t, world_floats(block))};
    float g[4];
    for (int i = 0; i < 4; i++) g[i] = (float)rng_normal(r);
    element_encode(t, g, world_floats(block), p.bytes);
    element_decode(t, p.bytes, world_floats(block), p.values);
    return p;
}

static void push_parcel(struct world *w, uint64_t member, uint64_t seq, uint32_t block, struct parcel *p)
{
    struct msg m = world_push_msg(w, member, seq, block, p->values);
    m.push.hash = wire_hash(p->bytes, p->len);
    world_give_bytes(w, 100 + member, &m, p->bytes, p->len);
}

/* The answer carries the weights that the fp32 shard has, encoded. */
static void expect_weights(const struct said *s, enum element_type t, uint32_t type, uint64_t hash,
                           const float *weights, uint32_t block)
{
    _Alignas(8) uint8_t want[64];
    size_t len = element_bytes(t, world_floats(block));
    element_encode(t, weights, world_floats(block), want);
    assert_int_equal(s->bytes, len);
    assert_memory_equal(s->payload, want, len);
    assert_int_equal(type, t);
    assert_true(hash == wire_hash(want, len));
}

static void expect_same_state(const struct world *a, const struct world *b)
{
    const struct shard_state *x = shard_look(a->shard), *y = shard_look(b->shard);
    size_t len = shard_state_floats(x) * sizeof(float);
    assert_memory_equal(x->weights, y->weights, len);
    assert_memory_equal(x->slot[SLOT_MOMENTUM], y->slot[SLOT_MOMENTUM], len);
    assert_memory_equal(x->version, y->version, COUNT * sizeof *x->version);
}

static struct world *new_world(enum element_type gradients, enum element_type weights,
                               enum consistency_mode mode)
{
    struct shard_options o = world_options();
    o.gradients = gradients;
    o.weights = weights;
    o.mode = mode;
    o.mean = true;
    o.bound = 100;
    struct world *w = world_new(&o, NULL);
    for (uint64_t k = 1; k <= 3; k++) world_hello(w, k);
    return w;
}

static void check_pair(enum element_type gradients, enum element_type weights, enum consistency_mode mode)
{
    struct rng r;
    rng_init(&r, SEED);
    const uint64_t member = 2;
    struct world *narrow = new_world(gradients, weights, mode);
    struct world *wide = new_world(ELEMENT_FP32, ELEMENT_FP32, CONSISTENCY_ASYNC);
    shard_roster(narrow->shard, 0, 1, &member, 1);
    for (uint64_t seq = 1; seq <= 20; seq++) {
        for (uint32_t block = FIRST; block < FIRST + COUNT; block++) {
            struct parcel p = random_parcel(&r, gradients, block);
            world_push(wide, member, seq, block, p.values);
            world_last(wide);
            for (int again = 0; again < 2; again++) { /* the second is a duplicate */
                push_parcel(narrow, member, seq, block, &p);
                const struct said *s = world_last(narrow);
                assert_int_equal(s->m.answer.verdict, VERDICT_APPLIED);
                expect_weights(s, weights, s->m.answer.type, s->m.answer.hash, world_weights(wide, block),
                               block);
            }
        }
    }
    expect_same_state(narrow, wide);
    assert_int_equal(narrow->applied, 20 * COUNT);
    world_free(&narrow);
    world_free(&wide);
}

static void what_travels_narrow_is_applied_in_fp32_and_answered_narrow(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    const enum consistency_mode modes[] = {CONSISTENCY_ASYNC, CONSISTENCY_SSP, CONSISTENCY_BSP};
    for (int g = 0; g < ELEMENT_TYPES; g++)
        for (int w = 0; w < ELEMENT_TYPES; w++)
            for (int m = 0; m < 3; m++) check_pair((enum element_type)g, (enum element_type)w, modes[m]);
}

/* Three of them, held as they came, summed as floats in rank order. */
static void a_step_sums_the_decoded_gradients_in_rank_order(void **state)
{
    (void)state;
    const uint64_t ranks[] = {3, 1, 2};
    for (int t = 0; t < ELEMENT_TYPES; t++) {
        struct rng r;
        rng_init(&r, SEED);
        struct world *narrow = new_world((enum element_type)t, ELEMENT_BF16, CONSISTENCY_BSP);
        struct world *wide = new_world(ELEMENT_FP32, ELEMENT_FP32, CONSISTENCY_BSP);
        shard_roster(narrow->shard, 0, 1, ranks, 3);
        shard_roster(wide->shard, 0, 1, ranks, 3);
        for (uint64_t seq = 1; seq <= 10; seq++) {
            for (uint64_t i = 0; i < 3; i++) {
                uint64_t member = 1 + (i + seq) % 3;
                struct parcel p = random_parcel(&r, (enum element_type)t, 3);
                push_parcel(narrow, member, seq, 3, &p);
                world_push(wide, member, seq, 3, p.values);
            }
            assert_int_equal(narrow->num_said, 5);
            for (int i = 2; i < 5; i++) {
                const struct said *s = &narrow->said[i];
                expect_weights(s, ELEMENT_BF16, s->m.answer.type, s->m.answer.hash, world_weights(wide, 3),
                               3);
            }
            narrow->num_said = wide->num_said = 0;
        }
        expect_same_state(narrow, wide);
        world_free(&narrow);
        world_free(&wide);
    }
}

static void live_weights_are_read_narrow_and_those_of_a_set_whole(void **state)
{
    (void)state;
    for (int t = 0; t < ELEMENT_TYPES; t++) {
        struct world *w = new_world(ELEMENT_FP32, (enum element_type)t, CONSISTENCY_ASYNC);
        struct shard_state *copy = shard_copy(w->shard);
        shard_keep(w->shard, 8, copy);
        for (uint32_t set = 0; set <= 8; set += 8) {
            struct msg m = {.type = MSG_READ, .job = JOB, .read = {.member = 1, .block = 5, .set = set}};
            world_give(w, 7, &m, NULL, 0);
            const struct said *s = world_last(w);
            expect_weights(s, set ? ELEMENT_FP32 : (enum element_type)t, s->m.block.type, s->m.block.hash,
                           world_weights(w, 5), 5);
        }
        world_free(&w);
        shard_state_free(&copy);
    }
}

static void a_refusal_is_seen_through_the_type(void **state)
{
    (void)state;
    for (int t = 0; t < ELEMENT_TYPES; t++) {
        const float bad[2][4] = {{1, NAN, 0, 0}, {300, 0, 0, 0}};
        struct shard_options o = world_options();
        o.gradients = (enum element_type)t;
        o.max_norm = 250;
        struct world *w = world_new(&o, NULL);
        world_hello(w, 1);
        for (uint64_t i = 0; i < 2; i++) {
            struct parcel p = {.len = element_bytes(o.gradients, 4)};
            element_encode(o.gradients, bad[i], 4, p.bytes);
            push_parcel(w, 1, 1 + i, 2, &p);
            const struct said *s = world_last(w);
            assert_int_equal(s->m.answer.verdict, i ? VERDICT_NORM : VERDICT_NONFINITE);
            assert_memory_equal(s->payload, world_weights(w, 2), WIDE); /* weights are fp32 here */
        }
        assert_true(world_weights(w, 2)[0] == 1 && shard_version(w->shard) == 0);
        world_free(&w);
    }
}

static void another_type_or_its_length_is_malformed(void **state)
{
    (void)state;
    for (int t = 0; t < ELEMENT_TYPES; t++) {
        struct rng r;
        rng_init(&r, SEED);
        struct world *w = new_world((enum element_type)t, ELEMENT_FP32, CONSISTENCY_ASYNC);
        uint64_t bad = 0;
        for (uint32_t other = 0; other < ELEMENT_TYPES + 2; other++) { /* some that do not exist */
            struct parcel p = random_parcel(&r, (enum element_type)t, 2);
            struct msg m = world_push_msg(w, 1, 1, 2, p.values);
            m.push.hash = wire_hash(p.bytes, p.len);
            m.push.type = other;
            if (other != (uint32_t)t) {
                world_give_bytes(w, 7, &m, p.bytes, p.len);
                bad++;
            }
            m.push.type = (uint32_t)t;
            world_give_bytes(w, 7, &m, p.bytes, p.len - 1);
            world_give_bytes(w, 7, &m, p.bytes, p.len + 1);
            bad += 2;
        }
        assert_int_equal(w->num_said, 0);
        assert_int_equal(shard_counts(w->shard)->malformed, bad);
        assert_int_equal(shard_version(w->shard), 0);
        world_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_travels_narrow_is_applied_in_fp32_and_answered_narrow),
        cmocka_unit_test(a_step_sums_the_decoded_gradients_in_rank_order),
        cmocka_unit_test(live_weights_are_read_narrow_and_those_of_a_set_whole),
        cmocka_unit_test(a_refusal_is_seen_through_the_type),
        cmocka_unit_test(another_type_or_its_length_is_malformed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
