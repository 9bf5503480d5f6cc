/* ssp: nobody is more than `bound` steps ahead of the slowest member that has work; who is waits for its
 * answer, and gets the weights of the moment when the others have caught up. */
#include "tests/unit/server/shard_world.h"

#include "common/clock.h"

#define BOUND 2

static const float ones[4] = {1, 1, 1, 1};
static const uint64_t both[] = {2, 1}; /* any order */

static struct world *new_world(const uint64_t *roster, uint32_t n)
{
    struct shard_options o = world_options();
    o.mode = CONSISTENCY_SSP;
    o.bound = BOUND;
    struct world *w = world_new(&o, NULL);
    for (uint64_t k = 1; k <= 3; k++) world_hello(w, k);
    shard_roster(w->shard, 0, 1, roster, n);
    return w;
}

/* Member 1 pushes block 2 until it waits; the last push has seq BOUND + 1. */
static void run_ahead(struct world *w)
{
    for (uint64_t seq = 1; seq <= BOUND; seq++) {
        world_push(w, 1, seq, 2, ones);
        world_expect(world_last(w), VERDICT_APPLIED, seq, seq);
    }
    world_push(w, 1, BOUND + 1, 2, ones);
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_RECEIVED, BOUND + 1, BOUND + 1);
    assert_int_equal(s->bytes, 0);
}

static void who_is_too_far_ahead_waits_for_the_weights_of_a_later_moment(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    w->now = 1000;
    run_ahead(w);
    assert_int_equal(w->applied, BOUND + 1); /* it is the answer that waits, not the update */
    world_push(w, 1, 1, 3, ones);            /* per block */
    world_expect(world_last(w), VERDICT_APPLIED, 1, 1);
    w->now = 5000;
    world_push(w, 2, 1, 2, ones);
    assert_int_equal(w->num_said, 2);
    world_expect(&w->said[0], VERDICT_APPLIED, 1, BOUND + 2);
    world_expect(&w->said[1], VERDICT_APPLIED, BOUND + 1, BOUND + 2);
    assert_int_equal(w->said[0].peer, 102);
    assert_int_equal(w->said[1].peer, 101);
    assert_memory_equal(w->said[1].payload, world_weights(w, 2), 4 * sizeof(float));
    const struct shard_counts *c = shard_counts(w->shard);
    assert_true(c->waits == 1 && c->wait_ns == 4000);
    world_free(&w);
}

static void a_resend_of_what_is_kept_back_is_received_again(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    run_ahead(w);
    struct msg m = world_push_msg(w, 1, BOUND + 1, 2, ones);
    for (uint64_t peer = 500; peer < 503; peer++) {
        world_give(w, peer, &m, ones, 4);
        const struct said *s = world_last(w);
        world_expect(s, VERDICT_RECEIVED, BOUND + 1, BOUND + 1);
        assert_true(s->peer == peer && s->bytes == 0);
    }
    world_push(w, 2, 1, 2, ones);
    assert_int_equal(w->num_said, 2);
    assert_int_equal(w->said[1].peer, 502); /* where it spoke last */
    w->num_said = 0;
    world_push(w, 1, BOUND + 1, 2, ones); /* now the verdict is told */
    world_expect(world_last(w), VERDICT_APPLIED, BOUND + 1, BOUND + 2);
    assert_int_equal(w->applied, BOUND + 2);
    assert_int_equal(shard_counts(w->shard)->duplicate, 4);
    assert_int_equal(shard_counts(w->shard)->waits, 1);
    world_free(&w);
}

/* Here and on another shard they wait for each other. */
static void nobody_waits_for_ever(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    w->now = 1000;
    run_ahead(w);
    w->now += 30 * NS_PER_S - 1;
    world_push(w, 1, BOUND + 1, 2, ones);
    world_expect(world_last(w), VERDICT_RECEIVED, BOUND + 1, BOUND + 1);
    w->now++;
    world_push(w, 1, BOUND + 1, 2, ones);
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_APPLIED, BOUND + 1, BOUND + 1);
    assert_int_equal(s->floats, 4);
    assert_true(shard_counts(w->shard)->wait_ns == 30 * NS_PER_S && w->applied == BOUND + 1);
    world_push(w, 1, BOUND + 2, 2, ones); /* the bound holds on from there */
    world_expect(world_last(w), VERDICT_RECEIVED, BOUND + 2, BOUND + 2);
    world_push(w, 2, 1, 2, ones); /* and the one that was waited for has one step less to catch up with */
    assert_int_equal(w->num_said, 2);
    world_expect(&w->said[0], VERDICT_APPLIED, 1, BOUND + 3);
    world_expect(&w->said[1], VERDICT_APPLIED, BOUND + 2, BOUND + 3);
    world_free(&w);
}

static void a_push_without_pull_never_waits(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    for (uint64_t seq = 1; seq <= 9; seq++) {
        struct msg m = world_push_msg(w, 1, seq, 2, ones);
        m.push.pull = false;
        world_give(w, 101, &m, ones, 4);
        world_expect(world_last(w), VERDICT_APPLIED, seq, seq);
    }
    world_push(w, 1, 10, 2, ones); /* but it counts */
    world_expect(world_last(w), VERDICT_RECEIVED, 10, 10);
    world_free(&w);
}

static void who_has_no_work_neither_waits_nor_holds_up(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    for (uint64_t seq = 1; seq <= 9; seq++) {
        world_push(w, 3, seq, 2, ones);
        world_expect(world_last(w), VERDICT_APPLIED, seq, seq);
    }
    shard_roster(w->shard, 0, 2, both + 1, 1); /* 1 alone: nobody is behind it */
    for (uint64_t seq = 1; seq <= 9; seq++) {
        world_push(w, 1, seq, 2, ones);
        world_expect(world_last(w), VERDICT_APPLIED, seq, seq + 9);
    }
    assert_int_equal(shard_counts(w->shard)->waits, 0);
    world_free(&w);
}

static void a_roster_frees_those_that_nobody_holds_up_any_more(void **state)
{
    (void)state;
    for (uint32_t n = 0; n < 2; n++) { /* the slow one leaves; both leave */
        struct world *w = new_world(both, 2);
        run_ahead(w);
        shard_roster(w->shard, 0, 1, both + 1, n); /* an order that was overtaken */
        assert_int_equal(w->num_said, 0);
        shard_roster(w->shard, 70, 2, both + 1, n);
        const struct said *s = world_last(w);
        world_expect(s, VERDICT_APPLIED, BOUND + 1, BOUND + 1);
        assert_true(s->peer == 101 && s->floats == 4);
        assert_int_equal(shard_counts(w->shard)->wait_ns, 70);
        world_free(&w);
    }
}

static void a_newcomer_starts_at_the_step_of_the_slowest(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    const uint64_t three[] = {1, 2, 3};
    for (uint64_t seq = 1; seq <= 5; seq++) {
        world_push(w, 1, seq, 2, ones);
        world_push(w, 2, seq, 2, ones);
    }
    w->num_said = 0;
    shard_roster(w->shard, 0, 2, three, 3);
    for (uint64_t seq = 6; seq < 6 + BOUND; seq++) { /* not held up by what 3 never did */
        world_push(w, 1, seq, 2, ones);
        assert_int_equal(world_last(w)->m.answer.verdict, VERDICT_APPLIED);
    }
    world_push(w, 1, 6 + BOUND, 2, ones);
    assert_int_equal(world_last(w)->m.answer.verdict, VERDICT_RECEIVED);
    world_push(w, 2, 6, 2, ones); /* 3 is at 5, too */
    assert_int_equal(world_last(w)->m.answer.verdict, VERDICT_APPLIED);
    world_push(w, 3, 1, 2, ones);
    assert_int_equal(w->num_said, 2);
    world_free(&w);
}

static void a_dropped_row_frees_the_others_and_itself(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    for (uint64_t seq = 1; seq <= BOUND + 1; seq++) world_push(w, 2, seq, 2, ones);
    assert_int_equal(w->said[BOUND].m.answer.verdict, VERDICT_RECEIVED);
    w->num_said = 0;
    shard_oldest_member(w->shard, 30, 2); /* 1 goes, whom 2 waits for */
    const struct said *s = world_last(w);
    world_expect(s, VERDICT_APPLIED, BOUND + 1, BOUND + 1);
    assert_int_equal(s->peer, 102);
    world_free(&w);

    w = new_world(both, 2);
    run_ahead(w);
    shard_oldest_member(w->shard, 30, 3); /* both go */
    s = world_last(w);
    world_expect(s, VERDICT_APPLIED, BOUND + 1, BOUND + 1);
    assert_int_equal(s->m.answer.stable, 0);
    world_free(&w);
}

static void a_refused_push_is_a_step_too_and_waits_with_its_verdict(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    o.mode = CONSISTENCY_SSP;
    o.max_norm = 10;
    struct world *w = world_new(&o, NULL); /* bound 0: in step */
    const float big[4] = {100, 0, 0, 0};
    world_hello(w, 1);
    world_hello(w, 2);
    shard_roster(w->shard, 0, 1, both, 2);
    world_push(w, 1, 1, 2, big);
    world_expect(world_last(w), VERDICT_RECEIVED, 1, 0);
    world_push(w, 2, 1, 2, ones);
    assert_int_equal(w->num_said, 2);
    world_expect(&w->said[0], VERDICT_APPLIED, 1, 1);
    world_expect(&w->said[1], VERDICT_NORM, 1, 1);
    assert_true(w->said[1].payload[0] == 1 - 0.1f);
    world_free(&w);
}

/* It has lost interest in the older answer; there is one for it at most. */
static void who_pushes_on_without_waiting_is_answered_for_the_last_one(void **state)
{
    (void)state;
    struct world *w = new_world(both, 2);
    run_ahead(w);
    for (uint64_t seq = BOUND + 2; seq <= BOUND + 9; seq++) {
        world_push(w, 1, seq, 2, ones);
        assert_int_equal(world_last(w)->m.answer.verdict, VERDICT_RECEIVED);
    }
    shard_roster(w->shard, 0, 2, NULL, 0);
    world_expect(world_last(w), VERDICT_APPLIED, BOUND + 9, BOUND + 9);
    assert_int_equal(w->applied, BOUND + 9);
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_is_too_far_ahead_waits_for_the_weights_of_a_later_moment),
        cmocka_unit_test(a_resend_of_what_is_kept_back_is_received_again),
        cmocka_unit_test(nobody_waits_for_ever),
        cmocka_unit_test(a_push_without_pull_never_waits),
        cmocka_unit_test(who_has_no_work_neither_waits_nor_holds_up),
        cmocka_unit_test(a_roster_frees_those_that_nobody_holds_up_any_more),
        cmocka_unit_test(a_newcomer_starts_at_the_step_of_the_slowest),
        cmocka_unit_test(a_dropped_row_frees_the_others_and_itself),
        cmocka_unit_test(a_refused_push_is_a_step_too_and_waits_with_its_verdict),
        cmocka_unit_test(who_pushes_on_without_waiting_is_answered_for_the_last_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
