/* bsp: a roster steps together, to the sum in rank order, and alone to the bits of async. */
#include "tests/unit/server/shard_world.h"

#include "common/rng.h"

#include <math.h>
#include <stdio.h>

#define SEED 29

static const float ones[4] = {1, 1, 1, 1};
static const uint64_t ranks[] = {7, 3, 5}; /* members in rank order, not in the order of their numbers */

static struct world *new_world(bool mean, uint32_t members)
{
    struct shard_options o = world_options();
    o.mode = CONSISTENCY_BSP;
    o.mean = mean;
    struct world *w = world_new(&o, NULL);
    for (uint32_t k = 0; k < members; k++) world_hello(w, ranks[k]);
    shard_roster(w->shard, w->now, 1, ranks, members);
    return w;
}

static void random_block(struct rng *r, float g[4])
{
    for (int i = 0; i < 4; i++) g[i] = (float)rng_normal(r);
}

static void without_a_roster_or_outside_it_nothing_is_taken(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    o.mode = CONSISTENCY_BSP;
    struct world *w = world_new(&o, NULL);
    world_hello(w, 3);
    world_hello(w, 4);
    world_push(w, 3, 1, 2, ones);
    const struct said *s = world_last(w);
    assert_true(s->m.type == MSG_REFUSED && s->m.refused.reason == REFUSAL_NOT_READY);
    shard_roster(w->shard, w->now, 1, ranks + 1, 1);
    world_push(w, 4, 1, 2, ones);
    assert_int_equal(world_last(w)->m.refused.reason, REFUSAL_NOT_READY);
    world_push(w, 3, 1, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 1, 1);
    world_free(&w);
}

/* Each step: the pushes arrive in another order; the sum is ((g0 + g1) + g2) with the ranks' numbering. */
static void the_step_is_the_sum_in_rank_order(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    for (int mean = 0; mean < 2; mean++) {
        struct rng r;
        rng_init(&r, SEED);
        struct world *w = new_world(mean, 3);
        float weights[4], velocity[4] = {0};
        memcpy(weights, world_weights(w, 3), sizeof weights);
        for (uint64_t step = 1; step <= 6; step++) {
            float g[3][4];
            for (int k = 0; k < 3; k++) random_block(&r, g[k]);
            for (uint64_t i = 0; i < 3; i++) {
                uint64_t k = step % 2 ? (i + step) % 3 : 2 - i;
                world_push(w, ranks[k], step, 3, g[k]);
                if (i == 2) continue;
                const struct said *s = world_last(w);
                world_expect(s, VERDICT_RECEIVED, step, step - 1);
                assert_int_equal(s->floats, 0);
            }
            for (int i = 0; i < 4; i++) {
                volatile float sum = g[0][i] + g[1][i], product;
                sum = sum + g[2][i];
                if (mean) sum = sum / 3;
                product = 0.5f * velocity[i];
                velocity[i] = product + sum;
                product = 0.1f * velocity[i];
                weights[i] = weights[i] - product;
            }
            assert_int_equal(w->num_said, 3);
            for (int k = 0; k < 3; k++) {
                world_expect(&w->said[k], VERDICT_APPLIED, step, step);
                assert_int_equal(w->said[k].peer, 100 + ranks[k]);
                assert_int_equal(w->said[k].floats, 4);
                assert_memory_equal(w->said[k].payload, weights, sizeof weights);
            }
            w->num_said = 0;
            assert_memory_equal(world_weights(w, 3), weights, sizeof weights);
            assert_int_equal(shard_look(w->shard)->frames[1], 30 * step);
        }
        assert_int_equal(w->applied, 18);
        world_free(&w);
    }
}

static void the_mean_of_two_is_half_their_sum(void **state)
{
    (void)state;
    struct world *w = new_world(true, 2);
    const float threes[4] = {3, 3, 3, 3};
    world_push(w, 7, 1, 2, ones);
    world_push(w, 3, 1, 2, threes);
    assert_int_equal(w->num_said, 3);
    assert_true(w->said[1].payload[0] == 1 - 0.1f * 2 && w->said[2].payload[3] == 4 - 0.1f * 2);
    world_free(&w);
}

static void a_roster_of_one_has_the_bits_of_async(void **state)
{
    (void)state;
    for (int mean = 0; mean < 2; mean++) {
        struct rng r;
        rng_init(&r, SEED);
        struct world *together = new_world(mean, 1);
        struct shard_options o = world_options();
        struct world *alone = world_new(&o, NULL);
        world_hello(alone, ranks[0]);
        for (uint64_t step = 1; step <= 50; step++) {
            for (uint32_t block = FIRST; block < FIRST + COUNT; block++) {
                float g[4];
                random_block(&r, g);
                world_push(together, ranks[0], step, block, g);
                world_push(alone, ranks[0], step, block, g);
                const struct said *a = world_last(alone), *b = world_last(together);
                world_expect(b, VERDICT_APPLIED, step, step);
                assert_int_equal(a->floats, b->floats);
                assert_memory_equal(a->payload, b->payload, sizeof a->payload);
            }
        }
        const struct shard_state *a = shard_look(alone->shard), *b = shard_look(together->shard);
        assert_memory_equal(a->slot[SLOT_MOMENTUM], b->slot[SLOT_MOMENTUM],
                            shard_state_floats(a) * sizeof(float));
        assert_memory_equal(a->frames, b->frames, COUNT * sizeof *a->frames);
        world_free(&together);
        world_free(&alone);
    }
}

static void a_duplicate_of_a_held_push_is_received_again_and_summed_once(void **state)
{
    (void)state;
    struct world *w = new_world(false, 2);
    for (int i = 0; i < 3; i++) {
        struct msg m = world_push_msg(w, 7, 1, 2, ones);
        world_give(w, 500 + (uint64_t)i, &m, ones, 4); /* each time over a new connection */
        world_expect(world_last(w), VERDICT_RECEIVED, 1, 0);
    }
    assert_int_equal(shard_counts(w->shard)->duplicate, 2);
    world_push(w, 3, 1, 2, ones);
    assert_int_equal(w->num_said, 2);
    assert_int_equal(w->said[0].peer, 502); /* where it spoke last */
    assert_true(w->said[0].payload[0] == 1 - 0.1f * 2);
    w->num_said = 0;
    world_push(w, 7, 1, 2, ones); /* now it is applied */
    world_expect(world_last(w), VERDICT_APPLIED, 1, 1);
    assert_int_equal(w->applied, 2);
    world_free(&w);
}

static void a_push_ahead_of_its_own_step_is_dropped(void **state)
{
    (void)state;
    struct world *w = new_world(false, 2);
    world_push(w, 7, 1, 2, ones);
    world_last(w);
    world_push(w, 7, 2, 2, ones);
    assert_int_equal(w->num_said, 0);
    assert_int_equal(shard_counts(w->shard)->malformed, 1);
    world_free(&w);
}

/* The refused rank adds nothing, steps with the others and gets its verdict with the new weights. */
static void a_refused_push_does_not_stop_the_others(void **state)
{
    (void)state;
    struct world *w = new_world(true, 2);
    const float bad[4] = {0, 0, 0, NAN};
    world_push(w, 7, 1, 2, bad);
    world_expect(world_last(w), VERDICT_RECEIVED, 1, 0);
    world_push(w, 3, 1, 2, ones);
    assert_int_equal(w->num_said, 2);
    world_expect(&w->said[0], VERDICT_NONFINITE, 1, 1);
    world_expect(&w->said[1], VERDICT_APPLIED, 1, 1);
    for (int k = 0; k < 2; k++) assert_true(w->said[k].payload[3] == 4 - 0.1f);
    w->num_said = 0;
    world_push(w, 7, 2, 2, bad);
    world_last(w);
    world_push(w, 3, 2, 2, bad); /* nobody has anything good */
    world_expect(&w->said[0], VERDICT_NONFINITE, 2, 1);
    world_expect(&w->said[1], VERDICT_NONFINITE, 2, 1);
    assert_true(w->said[1].payload[3] == 4 - 0.1f);
    assert_int_equal(shard_look(w->shard)->frames[0], 10);
    assert_int_equal(shard_counts(w->shard)->nonfinite, 3);
    world_free(&w);
}

static void push_zeros(struct world *w, uint64_t member, uint64_t seq)
{
    const float zeros[4] = {0};
    struct msg m = world_push_msg(w, member, seq, 2, zeros);
    m.push.frames = 0;
    world_give(w, 7, &m, zeros, 4);
}

/* Momentum would go on moving the weights otherwise. */
static void a_step_of_no_frames_changes_nothing(void **state)
{
    (void)state;
    struct world *w = new_world(false, 2);
    world_push(w, 7, 1, 2, ones);
    world_push(w, 3, 1, 2, ones);
    float weights[4];
    memcpy(weights, world_weights(w, 2), sizeof weights);
    w->num_said = 0;
    push_zeros(w, 7, 2);
    world_expect(world_last(w), VERDICT_RECEIVED, 2, 1);
    push_zeros(w, 3, 2);
    assert_int_equal(w->num_said, 2);
    for (int k = 0; k < 2; k++) {
        world_expect(&w->said[k], VERDICT_APPLIED, 2, 1);
        assert_memory_equal(w->said[k].payload, weights, sizeof weights);
    }
    assert_true(shard_look(w->shard)->slot[SLOT_MOMENTUM][0] == 2);
    w->num_said = 0;
    push_zeros(w, 7, 3); /* one of them has frames: a step */
    world_push(w, 3, 3, 2, ones);
    world_expect(&w->said[2], VERDICT_APPLIED, 3, 2);
    assert_true(shard_look(w->shard)->slot[SLOT_MOMENTUM][0] == 2);
    world_free(&w);
}

/* What was held is no part of a copy, so it comes again under the next roster. */
static void a_new_roster_drops_what_was_held(void **state)
{
    (void)state;
    struct world *w = new_world(false, 2);
    world_push(w, 7, 1, 2, ones);
    world_last(w);
    struct shard_state *copy = shard_copy(w->shard);
    assert_int_equal(copy->last_seq[0] + copy->last_seq[COUNT], 0);
    shard_state_free(&copy);
    shard_roster(w->shard, w->now, 1, ranks + 1, 1); /* an old order changes nothing */
    shard_roster(w->shard, w->now, 2, ranks, 1);
    shard_roster(w->shard, w->now, 1, ranks, 2);
    world_push(w, 7, 1, 2, ones);
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_APPLIED, 1, 1);
    assert_true(s->payload[0] == 1 - 0.1f);
    assert_int_equal(w->applied, 1);
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_roster_or_outside_it_nothing_is_taken),
        cmocka_unit_test(the_step_is_the_sum_in_rank_order),
        cmocka_unit_test(the_mean_of_two_is_half_their_sum),
        cmocka_unit_test(a_roster_of_one_has_the_bits_of_async),
        cmocka_unit_test(a_duplicate_of_a_held_push_is_received_again_and_summed_once),
        cmocka_unit_test(a_push_ahead_of_its_own_step_is_dropped),
        cmocka_unit_test(a_refused_push_does_not_stop_the_others),
        cmocka_unit_test(a_step_of_no_frames_changes_nothing),
        cmocka_unit_test(a_new_roster_drops_what_was_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
