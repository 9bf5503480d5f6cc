/* Every optimizer keeps its state in the shard: a copy that is restored goes on bit-equal. What changes the
 * size of a step: the staleness of a push, the number of workers, the weights that a late gradient is from.
 */
#include "tests/unit/server/shard_world.h"

#include "common/rng.h"

#include <math.h>
#include <stdio.h>

#define SEED 53

static const float ones[4] = {1, 1, 1, 1};

static struct shard_options options_of(enum optimizer_type type)
{
    struct shard_options o = world_options();
    o.rule = (struct update_rule){
        .type = type, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .weight_decay = 0.01f};
    return o;
}

static void push_random(struct rng *r, struct world *a, struct world *b, uint64_t seq)
{
    for (uint32_t block = FIRST; block < FIRST + COUNT; block++) {
        float g[4];
        for (int i = 0; i < 4; i++) g[i] = (float)rng_normal(r);
        world_push(a, 1, seq, block, g);
        if (b) world_push(b, 1, seq, block, g);
    }
    a->num_said = 0;
    if (b) b->num_said = 0;
}

static void a_restored_copy_of_any_optimizer_goes_on_bit_equal(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    for (int t = OPTIMIZER_SGD; t <= OPTIMIZER_ADAMW; t++) {
        struct rng r;
        rng_init(&r, SEED);
        struct shard_options o = options_of((enum optimizer_type)t);
        struct world *w = world_new(&o, NULL);
        world_hello(w, 1);
        for (uint64_t seq = 1; seq <= 50; seq++) push_random(&r, w, NULL, seq);
        struct shard_state *copy = shard_copy(w->shard);
        assert_int_equal(shard_state_slots(copy), update_slots(&o.rule));
        struct world *again = world_new(&o, &copy);
        for (uint64_t seq = 51; seq <= 100; seq++) push_random(&r, w, again, seq);
        const struct shard_state *a = shard_look(w->shard), *b = shard_look(again->shard);
        size_t len = shard_state_floats(a) * sizeof(float);
        assert_int_equal(b->version[0], 100);
        assert_memory_equal(a->weights, b->weights, len);
        for (int k = 0; k < SHARD_SLOTS; k++)
            if (a->slot[k]) assert_memory_equal(a->slot[k], b->slot[k], len);
        world_free(&w);
        world_free(&again);
    }
}

/* A set of another optimizer, or set 0, which has none. */
static void a_new_shard_has_the_slots_of_its_optimizer(void **state)
{
    (void)state;
    struct blocks b = world_blocks();
    for (int t = OPTIMIZER_SGD; t <= OPTIMIZER_ADAMW; t++) {
        struct shard_options o = options_of((enum optimizer_type)t);
        struct shard_state *s = shard_state_new(&b, FIRST, COUNT, 0, 1u << SLOT_MOMENTUM);
        struct world *w = world_new(&o, &s);
        assert_int_equal(shard_state_slots(shard_look(w->shard)), update_slots(&o.rule));
        world_free(&w);
    }
}

/* The first step of Adam is the rate in the direction of the gradient, whatever its size; that holds for the
 * update with number 1 alone. */
static void adam_counts_the_updates_of_each_block(void **state)
{
    (void)state;
    struct shard_options o = options_of(OPTIMIZER_ADAM);
    o.rule.weight_decay = 0;
    struct world *w = world_new(&o, NULL);
    world_hello(w, 1);
    const float g[4] = {3, -0.01f, 7, -20};
    for (uint32_t block = FIRST; block < FIRST + 2; block++) {
        float before[4];
        memcpy(before, world_weights(w, block), sizeof before);
        world_push(w, 1, 1, block, g);
        w->num_said = 0;
        for (int i = 0; i < 4; i++)
            assert_float_equal(before[i] - world_weights(w, block)[i], copysignf(0.1f, g[i]), 1e-5f);
    }
    world_free(&w);
}

/* A shard that goes on with another optimizer: what the first left is not taken for the second's, and Adam
 * counts from there. */
static void another_optimizer_begins_anew(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, SEED);
    struct shard_options o = options_of(OPTIMIZER_MOMENTUM), adam = options_of(OPTIMIZER_ADAM);
    struct world *w = world_new(&o, NULL);
    world_hello(w, 1);
    for (uint64_t seq = 1; seq <= 50; seq++) push_random(&r, w, NULL, seq);
    struct shard_state *copy = shard_copy(w->shard);
    adam.rule.weight_decay = 0;
    struct world *next = world_new(&adam, &copy);
    float before[4];
    memcpy(before, world_weights(next, FIRST), sizeof before);
    const float g[4] = {3, -0.01f, 7, -20};
    world_push(next, 1, 51, FIRST, g);
    for (int i = 0; i < 4; i++)
        assert_float_equal(before[i] - world_weights(next, FIRST)[i], copysignf(0.1f, g[i]), 1e-5f);
    assert_int_equal(shard_look(next->shard)->since[0], 50);
    world_free(&w);
    world_free(&next);
}

static void push_from(struct world *w, uint64_t member, uint64_t seq, uint64_t base)
{
    struct msg m = world_push_msg(w, member, seq, 2, ones);
    m.push.base_version = base;
    world_give(w, 100 + member, &m, ones, 4);
    assert_int_equal(world_last(w)->m.answer.verdict, VERDICT_APPLIED);
}

static void the_rate_is_divided_by_the_staleness_if_asked(void **state)
{
    (void)state;
    struct shard_options o = options_of(OPTIMIZER_SGD);
    o.rule.weight_decay = 0;
    o.pace.rate = 0.5;
    o.pace.divides = true;
    struct world *w = world_new(&o, NULL);
    world_hello(w, 1);
    const uint64_t bases[] = {0, 1, 1, 1, 0}; /* staleness 0, 0, 1, 2, 4 */
    const float steps[] = {0.5f, 0.5f, 0.5f, 0.25f, 0.125f};
    float at = 1;
    for (uint64_t i = 0; i < 5; i++) {
        push_from(w, 1, 1 + i, bases[i]);
        at -= steps[i];
        assert_true(world_weights(w, 2)[0] == at);
    }
    world_free(&w);
}

/* In bsp all of a step come from one version, whatever they say. */
static void in_bsp_nothing_is_divided(void **state)
{
    (void)state;
    struct shard_options o = options_of(OPTIMIZER_SGD);
    const uint64_t member = 1;
    o.rule.weight_decay = 0;
    o.pace.rate = 0.5;
    o.pace.divides = true;
    o.mode = CONSISTENCY_BSP;
    struct world *w = world_new(&o, NULL);
    world_hello(w, 1);
    shard_roster(w->shard, 0, 1, &member, 1);
    for (uint64_t i = 0; i < 5; i++) push_from(w, 1, 1 + i, 0);
    assert_true(world_weights(w, 2)[0] == 1 - 2.5f);
    world_free(&w);
}

static void the_number_of_workers_sets_rate_and_momentum(void **state)
{
    (void)state;
    struct shard_options o = options_of(OPTIMIZER_MOMENTUM);
    o.rule.weight_decay = 0;
    o.pace.follows = true;
    struct world *w = world_new(&o, NULL);
    struct pace p;
    world_hello(w, 1);
    pace_init(&p, &o.pace);
    assert_int_equal(shard_workers(w->shard, 8), pace_workers(&p, 8, 0));
    assert_false(shard_workers(w->shard, 8)); /* said again */
    float rate, momentum, want = 1, v = 0;
    for (uint64_t i = 0; i < 3; i++) {
        pace_step(&p, 10 * i, 0, &rate, &momentum);
        v = momentum * v + 1;
        want -= rate * v;
        push_from(w, 1, 1 + i, i);
        assert_float_equal(world_weights(w, 2)[0], want, 1e-6f);
    }
    world_free(&w);
}

/* --- delay compensation: w -= r (g + lambda g g (w - backup)) */
#define LAMBDA 0.5f

static struct world *new_compensating(enum element_type weights, uint32_t members)
{
    struct shard_options o = options_of(OPTIMIZER_SGD);
    o.rule.weight_decay = 0;
    o.rule.compensation = LAMBDA;
    o.weights = weights;
    o.max_members = members;
    struct world *w = world_new(&o, NULL);
    for (uint64_t k = 1; k <= members; k++) world_hello(w, k);
    return w;
}

static void read_live(struct world *w, uint64_t member)
{
    struct msg m = {.type = MSG_READ, .job = JOB, .read = {.member = member, .block = 2}};
    world_give(w, 100 + member, &m, NULL, 0);
    world_last(w);
}

static float compensated(float w, float backup)
{
    return w - 0.1f * (1 + LAMBDA * (w - backup));
}

static void a_late_gradient_is_compensated_from_what_its_member_was_sent(void **state)
{
    (void)state;
    struct world *w = new_compensating(ELEMENT_FP32, 2);
    float weight = 1;
    read_live(w, 1);
    read_live(w, 2); /* both have 1 */
    push_from(w, 1, 1, 0);
    weight = compensated(weight, 1);
    assert_float_equal(world_weights(w, 2)[0], weight, 1e-6f);
    float sent = weight; /* to member 1, in the answer */
    push_from(w, 2, 1, 0);
    weight = compensated(weight, 1);
    assert_float_equal(world_weights(w, 2)[0], weight, 1e-6f);
    push_from(w, 1, 2, 1);
    weight = compensated(weight, sent);
    assert_float_equal(world_weights(w, 2)[0], weight, 1e-6f);
    push_from(w, 2, 2, 3); /* not what it was sent last: as it is */
    push_from(w, 1, 3, 1); /* nor this one */
    assert_float_equal(world_weights(w, 2)[0], weight - 0.2f, 1e-6f);
    world_free(&w);
}

static void what_counts_as_sent_is_what_arrives(void **state)
{
    (void)state;
    struct world *w = new_compensating(ELEMENT_INT8, 2);
    read_live(w, 1);
    _Alignas(8) uint8_t bytes[64];
    float sent[4];
    element_encode(ELEMENT_INT8, world_weights(w, 2), 4, bytes);
    element_decode(ELEMENT_INT8, bytes, 4, sent);
    assert_true(sent[0] != world_weights(w, 2)[0]);
    push_from(w, 1, 1, 0);
    assert_float_equal(world_weights(w, 2)[0], compensated(1, sent[0]), 1e-6f);
    world_free(&w);
}

static void who_was_sent_nothing_and_who_is_one_too_many_go_uncompensated(void **state)
{
    (void)state;
    const uint32_t many = 65; /* BACKUP_WEIGHTS_MEMBERS + 1 */
    struct world *w = new_compensating(ELEMENT_FP32, many);
    for (uint64_t k = 1; k <= many; k++) {
        read_live(w, k);
        w->num_said = 0;
    }
    struct msg m = world_push_msg(w, 1, 1, 2, ones);
    m.push.pull = false; /* moves the weights to 0.9, compensated by 0 */
    world_give(w, 101, &m, ones, 4);
    w->num_said = 0;
    float weight = world_weights(w, 2)[0];
    push_from(w, many, 1, 0);
    assert_float_equal(world_weights(w, 2)[0], weight - 0.1f, 1e-6f);
    weight = world_weights(w, 2)[0];
    push_from(w, 64, 1, 0);
    assert_float_equal(world_weights(w, 2)[0], compensated(weight, 1), 1e-6f);
    shard_oldest_member(w->shard, 0, 64); /* room again */
    read_live(w, many);
    uint64_t base = shard_look(w->shard)->version[0];
    float sent = world_weights(w, 2)[0];
    push_from(w, 64, 2, base);
    weight = world_weights(w, 2)[0];
    push_from(w, many, 2, base);
    assert_float_equal(world_weights(w, 2)[0], compensated(weight, sent), 1e-6f);
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_restored_copy_of_any_optimizer_goes_on_bit_equal),
        cmocka_unit_test(a_new_shard_has_the_slots_of_its_optimizer),
        cmocka_unit_test(adam_counts_the_updates_of_each_block),
        cmocka_unit_test(another_optimizer_begins_anew),
        cmocka_unit_test(the_rate_is_divided_by_the_staleness_if_asked),
        cmocka_unit_test(in_bsp_nothing_is_divided),
        cmocka_unit_test(the_number_of_workers_sets_rate_and_momentum),
        cmocka_unit_test(a_late_gradient_is_compensated_from_what_its_member_was_sent),
        cmocka_unit_test(what_counts_as_sent_is_what_arrives),
        cmocka_unit_test(who_was_sent_nothing_and_who_is_one_too_many_go_uncompensated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
