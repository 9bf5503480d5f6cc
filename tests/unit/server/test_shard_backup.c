/* bsp with backup workers: the first block of the vector decides whose gradients make a step, the other
 * blocks follow, also on other shards; who comes too late is left out and told so. */
#include "tests/unit/server/shard_world.h"

#include "common/rng.h"

#include <math.h>
#include <stdio.h>

#define SEED    43
#define WORKERS 3
#define BACKUP  1
#define QUORUM  2

static const uint64_t ranks[WORKERS] = {7, 3, 5};
static const float ones[4] = {1, 1, 1, 1};
static const float threes[4] = {3, 3, 3, 3};

/* Blocks 0..2 of the vector, or 2..5. */
static struct world *new_shard(uint32_t first, uint32_t workers, uint32_t backup)
{
    struct shard_options o = world_options();
    struct blocks b = world_blocks();
    o.mode = CONSISTENCY_BSP;
    o.mean = true;
    o.backup = backup;
    o.max_norm = 100;
    struct shard_state *s = shard_state_new(&b, first, 3, 0, 0);
    struct world *w = world_new(&o, &s);
    for (uint32_t k = 0; k < workers; k++) world_hello(w, ranks[k]);
    shard_roster(w->shard, 0, 1, ranks, workers);
    return w;
}

static void push(struct world *w, uint64_t member, uint64_t seq, uint32_t block, uint64_t base,
                 uint32_t quorum, const float *g)
{
    struct msg m = world_push_msg(w, member, seq, block, g);
    m.push.base_version = base;
    m.push.quorum = quorum;
    m.push.step = quorum > 0 ? base + 1 : 0; /* every step here raises the version */
    world_give(w, 100 + member, &m, g, 4);
}

static void expect(const struct said *s, uint64_t member, uint32_t verdict, uint64_t version, uint32_t quorum)
{
    assert_int_equal(s->m.type, MSG_ANSWER);
    assert_int_equal(s->peer, 100 + member);
    assert_int_equal(s->m.answer.verdict, verdict);
    assert_int_equal(s->m.answer.version, version);
    assert_int_equal(s->m.answer.quorum, quorum);
    assert_int_equal(s->floats, verdict == VERDICT_RECEIVED ? 0 : 4);
}

static void the_first_ones_make_the_step_and_the_last_is_told_that_it_is_stale(void **state)
{
    (void)state;
    struct world *w = new_shard(0, WORKERS, BACKUP);
    push(w, 5, 1, 0, 0, 0, ones);
    expect(world_last(w), 5, VERDICT_RECEIVED, 0, QUORUM);
    assert_int_equal(w->said[0].m.answer.step, 1);
    w->now = 90;
    push(w, 7, 1, 0, 0, 0, threes);
    assert_int_equal(w->num_said, 2); /* in rank order */
    expect(&w->said[0], 7, VERDICT_APPLIED, 1, QUORUM);
    expect(&w->said[1], 5, VERDICT_APPLIED, 1, QUORUM);
    for (int i = 0; i < 4; i++) assert_true(w->said[0].payload[i] == -0.1f * 2); /* the mean of two */
    w->num_said = 0;
    push(w, 3, 1, 0, 0, 0, ones);
    const struct said *s = world_last(w);
    expect(s, 3, VERDICT_STALE, 1, 0);
    assert_int_equal(s->m.answer.staleness, 1);
    assert_int_equal(s->m.answer.step, 1);   /* the one that was made without it */
    assert_true(s->payload[0] == -0.1f * 2); /* the present weights, at once */
    push(w, 3, 1, 0, 0, 0, ones);            /* its seq is used up */
    expect(world_last(w), 3, VERDICT_STALE, 1, 0);
    const struct shard_counts *c = shard_counts(w->shard);
    assert_true(c->stale == 1 && c->applied == 2 && c->duplicate == 1 && c->waits == 1 && c->wait_ns == 90);
    assert_int_equal(shard_look(w->shard)->frames[0], 20);
    push(w, 3, 2, 0, 1, 0, ones); /* the next step takes it */
    expect(world_last(w), 3, VERDICT_RECEIVED, 1, QUORUM);
    world_free(&w);
}

static void a_resend_gets_its_ticket_again(void **state)
{
    (void)state;
    struct world *w = new_shard(0, WORKERS, BACKUP);
    push(w, 5, 1, 0, 0, 0, ones);
    world_last(w);
    push(w, 5, 1, 0, 0, 0, ones);
    expect(world_last(w), 5, VERDICT_RECEIVED, 0, QUORUM);
    push(w, 3, 1, 0, 0, 0, ones);
    w->num_said = 0;
    push(w, 5, 1, 0, 0, 0, ones); /* after the step, from the stored verdict */
    expect(world_last(w), 5, VERDICT_APPLIED, 1, QUORUM);
    push(w, 7, 1, 0, 0, 0, ones);
    expect(world_last(w), 7, VERDICT_STALE, 1, 0);
    push(w, 3, 2, 0, 1, 0, ones);
    push(w, 7, 2, 0, 1, 0, ones); /* a step without 5 */
    w->num_said = 0;
    push(w, 5, 1, 0, 0, 0, ones); /* still of its own last step */
    expect(world_last(w), 5, VERDICT_APPLIED, 2, QUORUM);
    push(w, 5, 2, 0, 1, 0, ones);
    expect(world_last(w), 5, VERDICT_STALE, 2, 0);
    push(w, 5, 2, 0, 1, 0, ones); /* left out: no ticket of the step before */
    expect(world_last(w), 5, VERDICT_STALE, 2, 0);
    world_free(&w);
}

static void the_other_blocks_follow_the_ticket(void **state)
{
    (void)state;
    for (uint32_t first = 0; first < 3; first += 2) { /* beside the deciding block, and on another shard */
        struct world *w = new_shard(first, WORKERS, BACKUP);
        push(w, 7, 1, 2, 0, 0, ones); /* nobody without a ticket */
        push(w, 7, 1, 2, 0, 4, ones); /* more than there are */
        assert_int_equal(w->num_said, 0);
        assert_int_equal(shard_counts(w->shard)->malformed, 2);
        push(w, 3, 1, 2, 0, 2, threes);
        expect(world_last(w), 3, VERDICT_RECEIVED, 0, 0);
        push(w, 7, 1, 2, 0, 3, ones); /* not the ticket of this step */
        assert_int_equal(shard_counts(w->shard)->malformed, 3);
        push(w, 7, 1, 2, 0, 2, ones);
        assert_int_equal(w->num_said, 2);
        expect(&w->said[0], 7, VERDICT_APPLIED, 1, 0);
        expect(&w->said[1], 3, VERDICT_APPLIED, 1, 0);
        w->num_said = 0;
        push(w, 5, 1, 2, 0, 2, ones); /* a third ticket of two */
        assert_int_equal(w->num_said, 0);
        assert_int_equal(shard_counts(w->shard)->malformed, 4);
        push(w, 7, 2, 2, 1, 3, ones);
        expect(world_last(w), 7, VERDICT_RECEIVED, 1, 0);
        push(w, 3, 1, 2, 0, 2, threes); /* its answer was lost: it comes with the ticket of its own step */
        expect(world_last(w), 3, VERDICT_APPLIED, 1, 0);
        push(w, 3, 2, 2, 1, 3, ones);
        push(w, 5, 2, 2, 1, 3, ones); /* all three this time */
        assert_int_equal(w->num_said, 4);
        world_free(&w);
    }
}

/* The step is what the ticket says, whatever weights the gradient is from. */
static void a_push_of_a_later_step_waits_and_none_with_a_ticket_is_left_out(void **state)
{
    (void)state;
    for (uint32_t first = 0; first < 3; first += 2) {
        struct world *w = new_shard(first, WORKERS, BACKUP);
        struct msg m = world_push_msg(w, 5, 1, 2, ones);
        m.push.quorum = 2;
        m.push.step = 2;
        for (int i = 0; i < 2; i++) { /* the first step has not begun, and is open */
            world_give(w, 105, &m, ones, 4);
            const struct said *s = world_last(w);
            assert_true(s->m.type == MSG_REFUSED && s->m.refused.reason == REFUSAL_NOT_READY);
            push(w, 3, 1, 2, 0, 2, ones);
            w->num_said = 0;
        }
        push(w, 7, 1, 2, 0, 2, ones);
        w->num_said = 0;
        world_give(w, 105, &m, ones, 4); /* base 0, but the block has version 1 */
        expect(world_last(w), 5, VERDICT_RECEIVED, 1, 0);
        push(w, 3, 2, 2, 1, 2, ones);
        expect(&w->said[0], 3, VERDICT_APPLIED, 2, 0);
        expect(&w->said[1], 5, VERDICT_APPLIED, 2, 0);
        assert_int_equal(shard_counts(w->shard)->malformed, 0);
        world_free(&w);
    }
}

static void push_zeros(struct world *w, uint64_t member, uint64_t seq, uint64_t base)
{
    const float zeros[4] = {0};
    struct msg m = world_push_msg(w, member, seq, 0, zeros);
    m.push.frames = 0;
    m.push.base_version = base;
    world_give(w, 100 + member, &m, zeros, 4);
}

/* Ranks that have run out of data are the quickest. */
static void at_the_tail_of_the_data_nobody_is_left_out(void **state)
{
    (void)state;
    struct world *w = new_shard(0, WORKERS, BACKUP);
    push_zeros(w, 7, 1, 0); /* the first of the step has no frames */
    expect(world_last(w), 7, VERDICT_RECEIVED, 0, WORKERS);
    push(w, 3, 1, 0, 0, 0, ones);
    expect(world_last(w), 3, VERDICT_RECEIVED, 0, WORKERS);
    push(w, 5, 1, 0, 0, 0, ones);
    assert_int_equal(w->num_said, 3);
    w->num_said = 0;
    push(w, 5, 2, 0, 1, 0, ones); /* the step before had one without */
    expect(world_last(w), 5, VERDICT_RECEIVED, 1, WORKERS);
    push(w, 3, 2, 0, 1, 0, ones);
    push(w, 7, 2, 0, 1, 0, ones); /* it found data after all */
    expect(&w->said[3], 5, VERDICT_APPLIED, 2, WORKERS);
    w->num_said = 0;
    push(w, 7, 3, 0, 2, 0, ones); /* all had frames: the slowest is not waited for again */
    expect(world_last(w), 7, VERDICT_RECEIVED, 2, QUORUM);
    world_free(&w);
}

static void a_step_of_no_frames_leaves_the_version(void **state)
{
    (void)state;
    struct world *w = new_shard(0, WORKERS, BACKUP);
    for (int k = 0; k < WORKERS; k++) push_zeros(w, ranks[k], 1, 0);
    expect(&w->said[4], 5, VERDICT_APPLIED, 0, WORKERS);
    world_free(&w);
}

/* The version names the step, so who comes late sees that it was left out; the weights stay. */
static void a_step_whose_gradients_were_all_refused_is_a_step(void **state)
{
    (void)state;
    struct world *w = new_shard(0, WORKERS, BACKUP);
    const float bad[4] = {NAN, 0, 0, 0}, big[4] = {200, 0, 0, 0};
    push(w, 7, 1, 0, 0, 0, bad);
    expect(world_last(w), 7, VERDICT_RECEIVED, 0, QUORUM);
    push(w, 3, 1, 0, 0, 0, big);
    assert_int_equal(w->num_said, 2);
    expect(&w->said[0], 7, VERDICT_NONFINITE, 1, QUORUM); /* its other blocks belong to the step */
    expect(&w->said[1], 3, VERDICT_NORM, 1, QUORUM);
    assert_true(w->said[0].payload[0] == 0);
    assert_true(shard_look(w->shard)->frames[0] == 0 && shard_look(w->shard)->slot[SLOT_MOMENTUM][0] == 0);
    w->num_said = 0;
    push(w, 5, 1, 0, 0, 0, ones);
    expect(world_last(w), 5, VERDICT_STALE, 1, 0);
    world_free(&w);
}

static void with_as_many_backups_as_workers_one_is_enough(void **state)
{
    (void)state;
    struct world *w = new_shard(0, 2, 5);
    push(w, 7, 1, 0, 0, 0, ones);
    expect(world_last(w), 7, VERDICT_APPLIED, 1, 1);
    world_free(&w);
}

static void a_new_roster_forgets_the_step_and_the_tail(void **state)
{
    (void)state;
    struct world *w = new_shard(0, WORKERS, BACKUP);
    push_zeros(w, 7, 1, 0);
    world_last(w);
    shard_roster(w->shard, 0, 2, ranks, 2);
    push(w, 3, 1, 0, 0, 0, ones);
    expect(world_last(w), 3, VERDICT_APPLIED, 1, 1);
    world_free(&w);
}

static void without_backup_workers_tickets_mean_nothing(void **state)
{
    (void)state;
    struct world *w = new_shard(0, 2, 0);
    push(w, 7, 1, 1, 0, 0, ones);
    expect(world_last(w), 7, VERDICT_RECEIVED, 0, 0);
    push(w, 3, 1, 1, 0, 9, ones);
    assert_int_equal(w->num_said, 2);
    w->num_said = 0;
    push(w, 7, 2, 1, 0, 3, ones); /* an older base is no reason */
    expect(world_last(w), 7, VERDICT_RECEIVED, 1, 0);
    world_free(&w);
}

static void a_read_waits_for_the_step_that_it_needs(void **state)
{
    (void)state;
    struct world *w = new_shard(0, 2, BACKUP);
    struct msg m = {.type = MSG_READ, .job = JOB, .read = {.member = 3, .block = 0, .step = 1}};
    world_give(w, 9, &m, NULL, 0);
    const struct said *s = world_last(w);
    assert_true(s->m.type == MSG_BLOCK && !s->m.block.found && s->bytes == 0);
    push(w, 7, 1, 0, 0, 0, ones);
    w->num_said = 0;
    world_give(w, 9, &m, NULL, 0);
    s = world_last(w);
    assert_true(s->m.block.found && s->m.block.version == 1 && s->payload[0] == -0.1f);
    world_free(&w);
}

/* Five workers in random order, one far slower than the others; every push is tried until it is answered.
 * Every step has its quorum, is the mean of those in it in rank order, and the blocks never part. */
#define MANY 5
struct emulated {
    uint64_t base, seq;
    uint32_t ticket; /* 0: none yet */
    int block;       /* 0..2: what it pushes next */
    bool held;
};

static void hear(struct world *w, struct emulated *all, const uint64_t *members, uint64_t *left_out)
{
    for (int i = 0; i < w->num_said; i++) {
        const struct msg_answer *a = &w->said[i].m.answer;
        uint32_t k = 0;
        while (members[k] + 100 != w->said[i].peer) k++;
        struct emulated *e = &all[k];
        if (a->block == 0 && a->quorum > 0) e->ticket = a->quorum;
        e->held = a->verdict == VERDICT_RECEIVED;
        if (e->held) continue;
        bool out = a->verdict == VERDICT_STALE;
        assert_true(out || a->verdict == VERDICT_APPLIED);
        if (out) assert_int_equal(a->block, 0); /* with a ticket it takes part everywhere */
        *left_out += out;
        if (!out && ++e->block < 3) continue;
        *e = (struct emulated){.base = out ? a->version : e->base + 1, .seq = e->seq + 1};
    }
    w->num_said = 0;
}

static void in_any_order_every_step_is_whole(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    struct rng r;
    rng_init(&r, SEED);
    const uint64_t members[MANY] = {4, 1, 9, 6, 2};
    struct emulated all[MANY];
    struct shard_options o = world_options();
    struct blocks b = world_blocks();
    o.mode = CONSISTENCY_BSP;
    o.backup = 2;
    o.max_members = MANY;
    struct shard_state *s = shard_state_new(&b, 0, 3, 0, 0);
    struct world *w = world_new(&o, &s);
    for (int k = 0; k < MANY; k++) {
        world_hello(w, members[k]);
        all[k] = (struct emulated){.seq = 1};
    }
    shard_roster(w->shard, 0, 1, members, MANY);
    uint64_t left_out = 0;
    const struct shard_state *st = shard_look(w->shard);
    for (int i = 0; i < 20000; i++) {
        uint32_t k = (uint32_t)rng_below(&r, MANY);
        struct emulated *e = &all[k];
        if (k == 4 && rng_below(&r, 20) > 0) continue;  /* the slow one */
        if (e->held && rng_below(&r, 10) > 0) continue; /* a resend */
        if (e->block > 0 && st->version[e->block] < e->base)
            continue; /* left out: it reads that block first */
        push(w, members[k], e->seq, (uint32_t)e->block, e->base, e->block ? e->ticket : 0, ones);
        hear(w, all, members, &left_out);
    }
    assert_true(left_out > 100 && st->version[0] > 500);
    assert_true(st->version[0] - st->version[2] <= 1 && st->version[0] >= st->version[1]);
    for (int k = 0; k < 3; k++) assert_int_equal(st->frames[k], 30 * st->version[k]); /* three of 10 each */
    assert_int_equal(shard_counts(w->shard)->stale, left_out);
    assert_int_equal(shard_counts(w->shard)->malformed, 0);
    assert_int_equal(w->applied, 3 * (st->version[0] + st->version[1] + st->version[2]));
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_ones_make_the_step_and_the_last_is_told_that_it_is_stale),
        cmocka_unit_test(a_resend_gets_its_ticket_again),
        cmocka_unit_test(the_other_blocks_follow_the_ticket),
        cmocka_unit_test(a_push_of_a_later_step_waits_and_none_with_a_ticket_is_left_out),
        cmocka_unit_test(at_the_tail_of_the_data_nobody_is_left_out),
        cmocka_unit_test(a_step_of_no_frames_leaves_the_version),
        cmocka_unit_test(a_step_whose_gradients_were_all_refused_is_a_step),
        cmocka_unit_test(with_as_many_backups_as_workers_one_is_enough),
        cmocka_unit_test(a_new_roster_forgets_the_step_and_the_tail),
        cmocka_unit_test(without_backup_workers_tickets_mean_nothing),
        cmocka_unit_test(a_read_waits_for_the_step_that_it_needs),
        cmocka_unit_test(in_any_order_every_step_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
