/* What a shard does not take: a HELLO of another way of training, a push that is wrong in one thing, one that
 * is too stale, one of a peer that does not read. Each is counted by its reason, and nobody else notices. And
 * how much it lets come at once. */
#include "tests/unit/server/shard_world.h"

#include <math.h>

static const float ones[4] = {1, 1, 1, 1};

static void expect_refused(struct world *w, const struct msg *m, const char *sentence)
{
    world_give(w, 7, m, NULL, 0);
    const struct said *s = world_last(w);
    assert_true(s->m.type == MSG_REFUSED && s->m.refused.reason == REFUSAL_MISMATCH);
    assert_string_equal(s->m.refused.text, sentence);
    assert_int_equal(shard_num_members(w->shard), 0);
}

static void a_hello_of_another_way_is_refused_with_both_sides(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    o.gradients = ELEMENT_BF16;
    struct world *w = world_new(&o, NULL);
    struct msg m = world_hello_msg(w, 1);
    m.hello.gradients = ELEMENT_FP32;
    expect_refused(w, &m,
                   "the job's gradients travel as bf16, the worker's as fp32: start both from the same run "
                   "directory");
    m = world_hello_msg(w, 1);
    m.hello.weights = ELEMENT_INT8;
    expect_refused(w, &m,
                   "the job's weights travel as fp32, the worker's as int8: start both from the same run "
                   "directory");
    m = world_hello_msg(w, 1);
    m.hello.consistency = CONSISTENCY_SSP;
    expect_refused(
        w, &m, "the job's consistency is async, the worker's ssp: start both from the same run directory");
    m = world_hello_msg(w, 1);
    m.hello.optimizer = OPTIMIZER_ADAMW;
    expect_refused(
        w, &m,
        "the job's optimizer on the servers is momentum, the worker's adamw: start both from the same run "
        "directory");
    m.hello.optimizer = UINT32_MAX;
    expect_refused(w, &m,
                   "the job's optimizer on the servers is momentum, the worker's a kind 4294967295 that is "
                   "not known: start "
                   "both from the same run directory");
    world_hello(w, 1);
    world_free(&w);
}

/* Member 1 does one thing wrong; then member 2's push is applied as ever. */
static void every_wrong_push_is_counted_by_its_reason_and_hurts_nobody(void **state)
{
    (void)state;
    const float bad[4] = {1, 1, INFINITY, 1}, big[4] = {99, 0, 0, 0};
    struct shard_options o = world_options();
    o.max_norm = 50;
    o.max_staleness = 3;
    struct world *w = world_new(&o, NULL);
    world_hello(w, 1);
    world_hello(w, 2);
    const struct shard_counts *c = shard_counts(w->shard);
    const uint64_t *const reasons[] = {&c->malformed, &c->malformed,  &c->malformed,  &c->malformed,
                                       &c->corrupt,   &c->generation, &c->generation, &c->nonfinite,
                                       &c->norm,      &c->stale,      &c->stranger,   &c->overrun};
    const uint32_t num = sizeof reasons / sizeof reasons[0];
    for (uint64_t i = 0; i < num; i++) {
        const float *g = i == 7 ? bad : i == 8 ? big : ones;
        struct msg m = world_push_msg(w, 1, 10 + i, 2, g);
        m.push.base_version = i;
        size_t n = 4;
        if (i == 0) n = 3;
        if (i == 1) m.push.type = ELEMENT_BF16;
        if (i == 2) m.push.block = 99;
        if (i == 3) m.push.seq = 0;
        if (i == 4) m.push.hash++;
        if (i == 5) m.push.generation++;
        if (i == 6) m.push.job_generation--;
        if (i == 9) m.push.base_version = i - 4;
        if (i == 10) m.push.member = 3;
        w->crowded = i == 11 ? 101 : 0;
        uint64_t before = *reasons[i], all = shard_refused(c);
        world_give(w, 101, &m, g, n);
        assert_int_equal(*reasons[i], before + 1);
        assert_int_equal(shard_refused(c), all + 1);
        assert_int_equal(shard_look(w->shard)->version[0], i);
        w->num_said = 0;
        m = world_push_msg(w, 2, 1 + i, 2, ones);
        m.push.base_version = i;
        world_give(w, 102, &m, ones, 4);
        world_expect(world_last(w), VERDICT_APPLIED, 1 + i, i + 1);
    }
    assert_int_equal(c->applied, num);
    world_free(&w);
}

static void a_push_that_is_too_stale_uses_up_its_seq(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct shard_options o = world_options();
        o.mode = mode ? CONSISTENCY_SSP : CONSISTENCY_ASYNC;
        o.max_staleness = 2;
        struct world *w = world_new(&o, NULL);
        world_hello(w, 1);
        world_hello(w, 2);
        for (uint64_t i = 1; i <= 3; i++) {
            struct msg m = world_push_msg(w, 1, i, 2, ones);
            m.push.base_version = i - 1;
            world_give(w, 101, &m, ones, 4);
            world_last(w);
        }
        for (int again = 0; again < 2; again++) {
            world_push(w, 2, 1, 2, ones); /* base version 0: 3 behind */
            const struct said *s = world_last(w);
            world_expect(s, VERDICT_STALE, 1, 3);
            assert_int_equal(s->m.answer.staleness, 3);
            assert_memory_equal(s->payload, world_weights(w, 2), 4 * sizeof(float));
        }
        struct msg m = world_push_msg(w, 2, 2, 2, ones);
        m.push.base_version = 1; /* 2 behind: good */
        world_give(w, 102, &m, ones, 4);
        world_expect(world_last(w), VERDICT_APPLIED, 2, 4);
        assert_int_equal(shard_counts(w->shard)->stale, 1);
        world_free(&w);
    }
}

static void a_peer_that_does_not_read_is_not_worked_for(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    struct world *w = world_new(&o, NULL);
    world_hello(w, 1);
    world_hello(w, 2);
    w->crowded = 101;
    struct msg read = {.type = MSG_READ, .job = JOB, .read = {.member = 1, .block = 2}};
    world_push(w, 1, 1, 2, ones);
    world_give(w, 101, &read, NULL, 0);
    assert_int_equal(w->num_said, 0);
    assert_int_equal(shard_counts(w->shard)->overrun, 2);
    assert_int_equal(shard_counts(w->shard)->bytes_in, 0);
    world_push(w, 2, 1, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 1, 1);
    w->crowded = 0; /* it reads again: the same push is good */
    world_push(w, 1, 1, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 1, 2);
    assert_int_equal(w->applied, 2);
    world_free(&w);
}

/* 256 blocks for all, but at least one and at most the option for each. */
static void the_more_members_the_less_credit(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    o.max_members = 1000;
    o.credit = 8;
    struct world *w = world_new(&o, NULL);
    for (uint32_t k = 1; k <= 600; k++) {
        struct msg m = world_hello_msg(w, k);
        world_give(w, 7, &m, NULL, 0);
        uint32_t want = 256 / k > 8 ? 8 : 256 / k < 1 ? 1 : 256 / k;
        assert_int_equal(world_last(w)->m.welcome.credit, want);
        world_push(w, 1, k, 2, ones);
        assert_int_equal(world_last(w)->m.answer.credit, want);
    }
    shard_oldest_member(w->shard, 0, 600);
    world_push(w, 600, 1, 2, ones);
    assert_int_equal(world_last(w)->m.answer.credit, 8);
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hello_of_another_way_is_refused_with_both_sides),
        cmocka_unit_test(every_wrong_push_is_counted_by_its_reason_and_hurts_nobody),
        cmocka_unit_test(a_push_that_is_too_stale_uses_up_its_seq),
        cmocka_unit_test(a_peer_that_does_not_read_is_not_worked_for),
        cmocka_unit_test(the_more_members_the_less_credit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
