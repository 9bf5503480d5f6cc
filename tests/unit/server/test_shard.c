/* A shard applies every push exactly once, answers every repetition from what it has stored, and lets nothing
 * else through. */
#include "tests/unit/server/shard_world.h"

#include "common/rng.h"

#include <math.h>
#include <stdio.h>

#define SEED 23

static const float ones[4] = {1, 1, 1, 1};

static struct world *new_world(void)
{
    struct shard_options o = world_options();
    return world_new(&o, NULL);
}

static void a_push_is_applied_and_answered_with_the_new_weights(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    world_push(w, 1, 1, 3, ones);
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_APPLIED, 1, 1);
    assert_int_equal(s->peer, 101);
    assert_int_equal(s->m.answer.block, 3);
    assert_true(s->m.answer.generation == 5 && s->m.answer.job_generation == 3);
    assert_int_equal(s->floats, 4);
    for (int i = 0; i < 4; i++) assert_true(s->payload[i] == (float)(5 + i) - 0.1f);
    assert_memory_equal(s->payload, world_weights(w, 3), sizeof s->payload / 2);
    assert_true(world_weights(w, 2)[3] == 4 && world_weights(w, 4)[0] == 9);
    world_free(&w);
}

static void a_push_that_wants_no_weights_gets_none(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    for (uint64_t i = 0; i < 2; i++) { /* applied, then again */
        struct msg m = world_push_msg(w, 1, 1, 5, ones);
        m.push.pull = false;
        world_give(w, 7, &m, ones, 3);
        const struct said *s = world_last(w);
        world_expect(s, VERDICT_APPLIED, 1, 1);
        assert_int_equal(s->floats, 0);
    }
    assert_int_equal(w->applied, 1);
    world_free(&w);
}

static void a_duplicate_gets_the_stored_verdict_and_the_present_weights(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    world_hello(w, 2);
    world_push(w, 1, 4, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 4, 1);
    world_push(w, 2, 9, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 9, 2);
    float now[4];
    memcpy(now, world_weights(w, 2), sizeof now);
    world_push(w, 1, 4, 2, ones);
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_APPLIED, 4, 2);
    assert_memory_equal(s->payload, now, sizeof now);
    assert_memory_equal(world_weights(w, 2), now, sizeof now);
    assert_int_equal(w->applied, 2);
    assert_int_equal(shard_counts(w->shard)->duplicate, 1);
    world_free(&w);
}

static void a_late_push_is_dropped_without_a_word(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    world_push(w, 1, 2, 2, ones);
    world_last(w);
    world_push(w, 1, 1, 2, ones);
    assert_int_equal(w->num_said, 0);
    assert_int_equal(shard_counts(w->shard)->late, 1);
    world_push(w, 1, 1, 3, ones); /* another block has a number of its own */
    world_expect(world_last(w), VERDICT_APPLIED, 1, 1);
    world_free(&w);
}

/* Three members push seq 1..20 of every block; the network doubles and shuffles within a window. What counts
 * as applied is what rises, per block and member, and each is applied once. */
static void in_any_order_each_seq_is_applied_at_most_once(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    struct rng r;
    rng_init(&r, SEED);
    struct world *w = new_world();
    uint64_t last[3][COUNT] = {{0}}, versions[COUNT] = {0};
    for (uint64_t k = 1; k <= 3; k++) world_hello(w, k);
    for (uint64_t i = 0; i < 4000; i++) {
        uint64_t member = 1 + rng_below(&r, 3), seq = 1 + i / 200 + rng_below(&r, 3);
        uint32_t local = (uint32_t)rng_below(&r, COUNT);
        uint64_t *mine = &last[member - 1][local];
        world_push(w, member, seq, FIRST + local, ones);
        if (seq < *mine) {
            assert_int_equal(w->num_said, 0);
            continue;
        }
        if (seq > *mine) versions[local]++;
        *mine = seq;
        world_expect(world_last(w), VERDICT_APPLIED, seq, versions[local]);
    }
    assert_int_equal(w->applied, versions[0] + versions[1] + versions[2] + versions[3]);
    assert_int_equal(shard_look(w->shard)->frames[1], 10 * versions[1]);
    const struct shard_counts *c = shard_counts(w->shard);
    assert_int_equal(c->applied + c->duplicate + c->late, 4000);
    world_free(&w);
}

static void a_refusal_uses_up_its_seq_and_leaves_the_weights(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    o.max_norm = 10;
    struct world *w = world_new(&o, NULL);
    world_hello(w, 1);
    const float bad[4] = {1, NAN, 0, 0}, worse[4] = {0, 0, -INFINITY, 0}, big[4] = {10, 1, 0, 0};
    world_push(w, 1, 1, 2, bad);
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_NONFINITE, 1, 0);
    assert_true(s->payload[0] == 1 && s->payload[1] == 2 && s->payload[3] == 4);
    world_push(w, 1, 1, 2, ones); /* good bytes now: too late, the verdict is stored */
    world_expect(world_last(w), VERDICT_NONFINITE, 1, 0);
    world_push(w, 1, 2, 2, worse);
    world_expect(world_last(w), VERDICT_NONFINITE, 2, 0);
    world_push(w, 1, 3, 2, big);
    world_expect(world_last(w), VERDICT_NORM, 3, 0);
    for (int i = 0; i < 4; i++) assert_true(world_weights(w, 2)[i] == (float)(i + 1));
    assert_true(shard_look(w->shard)->slot[SLOT_MOMENTUM][0] == 0 && shard_look(w->shard)->frames[0] == 0);
    world_push(w, 1, 4, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 4, 1);
    const struct shard_counts *c = shard_counts(w->shard);
    assert_true(c->nonfinite == 2 && c->norm == 1 && c->duplicate == 1 && c->applied == 1);
    world_free(&w);
}

static void another_generation_is_refused_and_not_stored(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    for (int i = 0; i < 2; i++) {
        struct msg m = world_push_msg(w, 1, 1, 2, ones);
        if (i == 0)
            m.push.generation = 4;
        else
            m.push.job_generation = 4;
        world_give(w, 7, &m, ones, 4);
        const struct said *s = world_last(w);
        world_expect(s, VERDICT_GENERATION, 1, 0);
        assert_int_equal(s->floats, 0);
        assert_true(s->m.answer.generation == 5 && s->m.answer.job_generation == 3);
    }
    assert_int_equal(shard_counts(w->shard)->generation, 2);
    world_push(w, 1, 1, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 1, 1);
    world_free(&w);
}

static void corrupt_bytes_are_refused_and_not_stored(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    const float garbled[4] = {1, 1, 1, 2};
    struct msg m = world_push_msg(w, 1, 1, 2, ones);
    world_give(w, 7, &m, garbled, 4);
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_CORRUPT, 1, 0);
    assert_int_equal(s->floats, 0);
    assert_int_equal(shard_counts(w->shard)->corrupt, 1);
    world_push(w, 1, 1, 2, ones);
    world_expect(world_last(w), VERDICT_APPLIED, 1, 1);
    world_free(&w);
}

static void what_has_the_wrong_form_is_counted_and_dropped(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    struct msg m = world_push_msg(w, 1, 1, 5, ones);
    world_give(w, 7, &m, ones, 4); /* this block has 3 floats */
    world_give(w, 7, &m, NULL, 0);
    m.push.block = 1; /* of the other shard */
    world_give(w, 7, &m, ones, 4);
    m.push.block = 6;
    world_give(w, 7, &m, ones, 4);
    m.push.block = UINT32_MAX;
    world_give(w, 7, &m, ones, 4);
    m = world_push_msg(w, 1, 0, 2, ones);
    world_give(w, 7, &m, ones, 4);
    m = world_push_msg(w, 1, 1, 2, ones);
    m.push.frames = UINT64_MAX;
    world_give(w, 7, &m, ones, 4);
    m = (struct msg){.type = MSG_READ, .job = JOB, .read = {.member = 1, .block = 6}};
    world_give(w, 7, &m, NULL, 0);
    m = (struct msg){.type = MSG_BEAT, .job = JOB};
    world_give(w, 7, &m, ones, 4);
    m = world_hello_msg(w, 0);
    world_give(w, 7, &m, NULL, 0);
    assert_int_equal(w->num_said, 0);
    assert_int_equal(shard_counts(w->shard)->malformed, 10);
    assert_int_equal(shard_version(w->shard), 0);
    world_free(&w);
}

static void a_stranger_is_told_to_say_hello_first(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    world_push(w, 2, 1, 2, ones);
    const struct said *s = world_last(w);
    assert_true(s->m.type == MSG_REFUSED && s->m.refused.reason == REFUSAL_HELLO_FIRST);
    struct msg m = {.type = MSG_READ, .job = JOB, .read = {.member = 2, .block = 2}};
    world_give(w, 7, &m, NULL, 0);
    assert_int_equal(world_last(w)->m.refused.reason, REFUSAL_HELLO_FIRST);
    m = world_push_msg(w, 1, 1, 2, ones);
    m.job = 9; /* member 1 of another job is a stranger, too */
    world_give(w, 7, &m, ones, 4);
    assert_int_equal(world_last(w)->m.refused.reason, REFUSAL_HELLO_FIRST);
    assert_int_equal(shard_counts(w->shard)->stranger, 3);
    assert_int_equal(shard_num_members(w->shard), 1);
    world_free(&w);
}

static void expect_mismatch(struct world *w, const struct msg *m, const char *ours, const char *theirs)
{
    world_give(w, 7, m, NULL, 0);
    const struct said *s = world_last(w);
    assert_true(s->m.type == MSG_REFUSED && s->m.refused.reason == REFUSAL_MISMATCH);
    assert_non_null(strstr(s->m.refused.text, ours));
    assert_non_null(strstr(s->m.refused.text, theirs));
    assert_int_equal(shard_num_members(w->shard), 0);
}

static void a_mismatch_is_refused_with_both_sides(void **state)
{
    (void)state;
    struct world *w = new_world();
    struct msg m = world_hello_msg(w, 1);
    m.job = 0xfeed;
    expect_mismatch(w, &m, "1122334455667788", "000000000000feed");
    m = world_hello_msg(w, 1);
    m.hello.model_hash = 0xbeef;
    expect_mismatch(w, &m, "abcdef0102030405", "000000000000beef");
    m = world_hello_msg(w, 1);
    m.hello.shard = 17;
    expect_mismatch(w, &m, "shard 1", "shard 17");
    m = world_hello_msg(w, 1);
    m.hello.job_generation = 2;
    expect_mismatch(w, &m, "generation 3", "generation 2");
    world_free(&w);
}

static void hello_is_welcomed_again_and_again_until_the_table_is_full(void **state)
{
    (void)state;
    struct world *w = new_world();
    const uint64_t members[] = {40, 10, 30, 20}; /* any order */
    for (int i = 0; i < 4; i++) {
        world_hello(w, members[i]);
        world_push(w, members[i], members[i], 2, ones);
        world_expect(world_last(w), VERDICT_APPLIED, members[i], (uint64_t)i + 1);
    }
    world_hello(w, 30); /* keeps its entry */
    world_push(w, 30, 30, 2, ones);
    assert_int_equal(world_last(w)->m.answer.version, 4);
    struct msg m = world_hello_msg(w, 50);
    world_give(w, 7, &m, NULL, 0);
    assert_int_equal(world_last(w)->m.refused.reason, REFUSAL_FULL);
    const struct shard_state *s = shard_look(w->shard);
    for (uint64_t i = 0; i < 4; i++) {
        assert_int_equal(s->members[i], 10 * (i + 1));
        assert_int_equal(s->last_seq[i * COUNT], 10 * (i + 1));
        assert_int_equal(s->verdict[i * COUNT], VERDICT_APPLIED);
    }
    world_free(&w);
}

static void members_below_the_oldest_are_dropped_and_retired(void **state)
{
    (void)state;
    struct world *w = new_world();
    for (uint64_t k = 1; k <= 4; k++) {
        world_hello(w, k);
        world_push(w, k, 100 + k, 3, ones);
        world_last(w);
    }
    shard_oldest_member(w->shard, w->now, 3);
    shard_oldest_member(w->shard, w->now, 2); /* an order that was overtaken */
    assert_int_equal(shard_num_members(w->shard), 2);
    world_push(w, 2, 200, 3, ones);
    assert_int_equal(world_last(w)->m.refused.reason, REFUSAL_HELLO_FIRST);
    struct msg m = world_hello_msg(w, 2);
    world_give(w, 7, &m, NULL, 0);
    assert_int_equal(world_last(w)->m.refused.reason, REFUSAL_RETIRED);
    world_push(w, 4, 104, 3, ones); /* its row moved with its numbers */
    world_expect(world_last(w), VERDICT_APPLIED, 104, 4);
    assert_int_equal(shard_counts(w->shard)->duplicate, 1);
    world_hello(w, 9);
    world_free(&w);
}

/* 10 frames a push, 20 an epoch, half the rate from epoch 2 on: steps of 1, 1, 1/2, 1/2, 1/4... */
static void the_rate_follows_the_frames_of_each_block(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    o.rule = (struct update_rule){.type = OPTIMIZER_SGD};
    o.pace = (struct pace_rule){
        .rate = 1, .schedule = SCHEDULE_HALVE, .factor = 0.5, .from_epoch = 2, .epoch_frames = 20};
    const float weights[] = {0, -1, -1.5f, -2, -2.25f, -2.5f};
    for (int newbob = 0; newbob < 2; newbob++) {
        if (newbob) {
            o.pace.schedule = SCHEDULE_NEWBOB;
            o.pace.from_epoch = 0;
        }
        struct world *w = world_new(&o, NULL);
        if (newbob) shard_halve_from(w->shard, 2);
        world_hello(w, 1);
        for (uint64_t i = 0; i < 6; i++) {
            world_push(w, 1, i + 1, 2, ones);
            assert_true(world_last(w)->payload[0] == weights[i]);
        }
        world_push(w, 1, 7, 3, ones);
        assert_true(world_last(w)->payload[0] == 4); /* a block of its own clock */
        assert_int_equal(shard_frames(w->shard), 0);
        world_free(&w);
    }
}

static void staleness_counts_the_updates_in_between(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    world_hello(w, 2);
    for (uint64_t i = 1; i <= 3; i++) {
        struct msg m = world_push_msg(w, 1, i, 2, ones);
        m.push.base_version = i - 1;
        world_give(w, 7, &m, ones, 4);
        assert_int_equal(world_last(w)->m.answer.staleness, 0);
    }
    struct msg m = world_push_msg(w, 2, 1, 2, ones);
    m.push.base_version = 1;
    world_give(w, 7, &m, ones, 4);
    assert_int_equal(world_last(w)->m.answer.staleness, 2);
    m.push.base_version = UINT64_MAX;
    m.push.seq = 2;
    world_give(w, 7, &m, ones, 4);
    assert_int_equal(world_last(w)->m.answer.staleness, 0);
    struct staleness_summary sum;
    staleness_summarise(shard_staleness(w->shard), 0, &sum);
    assert_true(sum.count == 5 && sum.max == 2 && sum.mean == 0.4 && sum.mean_frames == 4);
    world_free(&w);
}

static void a_shard_without_blocks_lives(void **state)
{
    (void)state;
    struct blocks b = world_blocks();
    struct shard_state *none = shard_state_new(&b, 3, 0, 0, 0);
    struct shard_options o = world_options();
    struct world *w = world_new(&o, &none);
    for (uint64_t k = 1; k < 4; k++) world_hello(w, k);
    shard_oldest_member(w->shard, w->now, 2);
    struct shard_state *copy = shard_copy(w->shard);
    assert_int_equal(copy->num_members, 2);
    shard_stable(w->shard, copy);
    shard_state_free(&copy);
    world_push(w, 2, 1, 3, ones);
    assert_int_equal(shard_counts(w->shard)->malformed, 1);
    assert_int_equal(shard_version(w->shard), 0);
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_push_is_applied_and_answered_with_the_new_weights),
        cmocka_unit_test(a_push_that_wants_no_weights_gets_none),
        cmocka_unit_test(a_duplicate_gets_the_stored_verdict_and_the_present_weights),
        cmocka_unit_test(a_late_push_is_dropped_without_a_word),
        cmocka_unit_test(in_any_order_each_seq_is_applied_at_most_once),
        cmocka_unit_test(a_refusal_uses_up_its_seq_and_leaves_the_weights),
        cmocka_unit_test(another_generation_is_refused_and_not_stored),
        cmocka_unit_test(corrupt_bytes_are_refused_and_not_stored),
        cmocka_unit_test(what_has_the_wrong_form_is_counted_and_dropped),
        cmocka_unit_test(a_stranger_is_told_to_say_hello_first),
        cmocka_unit_test(a_mismatch_is_refused_with_both_sides),
        cmocka_unit_test(hello_is_welcomed_again_and_again_until_the_table_is_full),
        cmocka_unit_test(members_below_the_oldest_are_dropped_and_retired),
        cmocka_unit_test(the_rate_follows_the_frames_of_each_block),
        cmocka_unit_test(staleness_counts_the_updates_in_between),
        cmocka_unit_test(a_shard_without_blocks_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
