/* The exchange against fake servers that keep the rules of proto/README.md, through a network that drops,
 * doubles, reorders and garbles, in virtual time. */
#include "common/clock.h"
#include "common/err.h"
#include "common/rng.h"
#include "worker/exchange.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { JOB = 77, MODEL = 99, SHARDS = 3, BLOCKS = 11, SIZE = 16, CREDIT = 2, MAIL = 4096 };
#define PARAMS (BLOCKS * SIZE - 5)

struct mail {
    bool used, up; /* up: to the server */
    uint32_t shard;
    uint64_t at;
    struct msg m;
    struct frame *payload;
};

struct server {
    uint32_t generation, job_generation, first, count;
    uint64_t known; /* the member that said HELLO */
    uint64_t last[BLOCKS], version[BLOCKS];
    uint32_t verdict[BLOCKS];
    uint32_t flying; /* messages of the worker not answered yet, in a network without faults */
    uint32_t hold;   /* answer RECEIVED to so many pushes first */
};

struct world {
    struct exchange *x;
    struct blocks b;
    struct rng rng;
    uint64_t now;
    double drop, twice, garble;
    uint64_t max_delay;
    struct mail mail[MAIL];
    struct server server[SHARDS];
    float weights[BLOCKS * SIZE];
    float grad[BLOCKS * SIZE];
    struct weights w;
    uint64_t applied[BLOCKS]; /* times a block's gradient was applied, all in all */
    uint64_t sends, refuse_sends;
    uint64_t hash_of[BLOCKS], hash_seq[BLOCKS];
    uint32_t max_flying;
    uint32_t refusal; /* answer everything with this */
    bool lose_set;
};

static void post(struct world *w, bool up, uint32_t shard, const struct msg *m, struct frame *payload)
{
    int copies = rng_uniform(&w->rng) < w->drop ? 0 : rng_uniform(&w->rng) < w->twice ? 2 : 1;
    for (int i = 0; i < MAIL && copies > 0; i++) {
        if (w->mail[i].used) continue;
        struct mail *p = &w->mail[i];
        *p = (struct mail){.used = true, .up = up, .shard = shard, .m = *m};
        p->at = w->now + 1 + (w->max_delay ? rng_below(&w->rng, w->max_delay) : (uint64_t)i);
        if (payload != NULL) {
            p->payload = frame_copy(frame_data(payload), frame_len(payload));
            if (rng_uniform(&w->rng) < w->garble) *(uint8_t *)frame_data(p->payload) ^= 1;
        }
        copies--;
    }
}

static bool fake_send(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    struct world *w = ctx;
    if (w->refuse_sends > 0 && w->refuse_sends--) return false;
    w->sends++;
    assert_false(m->type != MSG_HELLO && exchange_idle(w->x));
    if (m->type == MSG_PUSH || m->type == MSG_READ) w->server[shard].flying++;
    if (w->server[shard].flying > w->max_flying) w->max_flying = w->server[shard].flying;
    if (m->type == MSG_PUSH) {
        uint32_t b = m->push.block;
        assert_true(m->push.hash == wire_hash(frame_data(*payload), frame_len(*payload)));
        if (w->hash_seq[b] == m->push.seq) assert_true(w->hash_of[b] == m->push.hash);
        w->hash_seq[b] = m->push.seq;
        w->hash_of[b] = m->push.hash;
    }
    post(w, true, shard, m, *payload);
    if (*payload != NULL) frame_free(payload);
    return true;
}

static void serve_push(struct world *w, uint32_t k, const struct msg_push *p, struct frame *payload)
{
    struct server *s = &w->server[k];
    struct msg m = {.type = MSG_ANSWER, .job = JOB};
    m.answer = (struct msg_answer){.block = p->block, .seq = p->seq, .generation = s->generation};
    m.answer.job_generation = s->job_generation;
    float *at = w->weights + blocks_offset(&w->b, p->block);
    size_t len = blocks_floats(&w->b, p->block) * sizeof *at;
    struct frame *back = NULL;
    if (p->generation != s->generation) {
        m.answer.verdict = VERDICT_GENERATION;
    } else if (p->seq < s->last[p->block]) {
        return;
    } else if (p->seq > s->last[p->block] && wire_hash(frame_data(payload), frame_len(payload)) != p->hash) {
        m.answer.verdict = VERDICT_CORRUPT;
    } else if (s->hold > 0) {
        s->hold--;
        m.answer.verdict = VERDICT_RECEIVED;
    } else {
        if (p->seq > s->last[p->block]) {
            const float *g = frame_data(payload);
            for (size_t i = 0; i < len / sizeof *at; i++) at[i] += g[i];
            s->version[p->block]++;
            s->last[p->block] = p->seq;
            s->verdict[p->block] = VERDICT_APPLIED;
            w->applied[p->block]++;
            m.answer.staleness = s->version[p->block] - 1 - p->base_version;
        }
        m.answer.verdict = s->verdict[p->block];
        m.answer.version = s->version[p->block];
        if (p->pull) back = frame_copy(at, len);
        if (p->pull) m.answer.hash = wire_hash(at, len);
    }
    post(w, false, k, &m, back);
    frame_free(&back);
}

static void serve(struct world *w, uint32_t k, const struct msg *in, struct frame *payload)
{
    struct server *s = &w->server[k];
    struct msg m = {.type = MSG_REFUSED, .job = JOB};
    if (in->type != MSG_HELLO && s->flying > 0) s->flying--;
    m.refused.reason = w->refusal != 0 ? w->refusal : REFUSAL_HELLO_FIRST;
    strcpy(m.refused.text, "the models differ");
    struct frame *back = NULL;
    if (w->refusal == 0 && in->type == MSG_HELLO) {
        s->known = in->hello.member;
        m.type = MSG_WELCOME;
        m.welcome = (struct msg_welcome){k, s->generation, s->job_generation, s->first, s->count};
    } else if (w->refusal == 0 && in->type == MSG_PUSH && s->known == in->push.member) {
        serve_push(w, k, &in->push, payload);
        return;
    } else if (w->refusal == 0 && in->type == MSG_READ && s->known == in->read.member) {
        const float *at = w->weights + blocks_offset(&w->b, in->read.block);
        size_t len = blocks_floats(&w->b, in->read.block) * sizeof *at;
        m.type = MSG_BLOCK;
        m.block = (struct msg_block){in->read.request,           in->read.block, in->read.set,
                                     s->version[in->read.block], s->generation,  true,
                                     wire_hash(at, len)};
        m.block.found = !(w->lose_set && in->read.set != 0);
        if (m.block.found) back = frame_copy(at, len);
    }
    post(w, false, k, &m, back);
    frame_free(&back);
}

/* Delivers the next message or lets time pass to the next tick. */
static void step(struct world *w)
{
    struct mail *next = NULL;
    for (int i = 0; i < MAIL; i++)
        if (w->mail[i].used && (next == NULL || w->mail[i].at < next->at)) next = &w->mail[i];
    uint64_t tick = exchange_next(w->x);
    if (next == NULL || tick < next->at) {
        if (tick != UINT64_MAX && tick > w->now) w->now = tick;
        exchange_tick(w->x, w->now);
        return;
    }
    struct mail p = *next;
    *next = (struct mail){0};
    if (p.at > w->now) w->now = p.at;
    if (p.up)
        serve(w, p.shard, &p.m, p.payload);
    else
        exchange_receive(w->x, w->now, p.shard, &p.m, &p.payload);
    frame_free(&p.payload);
}

static void settle(struct world *w)
{
    for (int i = 0; i < 200000 && !exchange_idle(w->x); i++) step(w);
    assert_true(exchange_idle(w->x));
    assert_true(exchange_drained(w->x));
}

static void drain(struct world *w)
{
    for (int i = 0; i < MAIL; i++) frame_free(&w->mail[i].payload);
    memset(w->mail, 0, sizeof w->mail);
    for (uint32_t k = 0; k < SHARDS; k++) w->server[k].flying = 0;
}

static struct world *world_new(uint64_t seed)
{
    struct world *w = xcalloc(1, sizeof *w);
    w->b = (struct blocks){PARAMS, SIZE, BLOCKS};
    w->now = 1000;
    rng_init(&w->rng, seed);
    for (size_t i = 0; i < PARAMS; i++) w->weights[i] = rng_range(&w->rng, -1, 1);
    struct exchange_options o = {JOB, MODEL, w->b, SHARDS, CREDIT, 50 * NS_PER_MS};
    struct exchange_io io = {w, fake_send};
    w->x = exchange_new(&o, &io);
    weights_init(&w->w, &w->b);
    for (uint32_t k = 0; k < SHARDS; k++) {
        struct server *s = &w->server[k];
        s->generation = s->job_generation = 1;
        blocks_of_shard(&w->b, SHARDS, k, &s->first, &s->count);
    }
    exchange_set_member(w->x, 5, 1);
    for (uint32_t k = 0; k < SHARDS; k++) exchange_connected(w->x, w->now, k);
    exchange_read(w->x, w->now, 0, &w->w);
    return w;
}

static void world_free(struct world *w)
{
    drain(w);
    exchange_free(&w->x);
    weights_fini(&w->w);
    free(w);
}

static void push(struct world *w, bool pull)
{
    for (size_t i = 0; i < PARAMS; i++) w->grad[i] = rng_range(&w->rng, -1, 1);
    exchange_push(w->x, w->now, w->grad, 10, &w->w, &w->w, pull);
}

static void assert_same_weights(const struct world *w)
{
    assert_memory_equal(w->w.values, w->weights, PARAMS * sizeof(float));
}

static void push_and_check(struct world *w)
{
    push(w, true);
    settle(w);
    assert_same_weights(w);
}

/* The life of a shard ends: other weights, no table. */
static void fall(struct world *w, uint32_t k)
{
    struct server *s = &w->server[k];
    s->generation++;
    s->known = 0;
    s->hold = 0;
    for (uint32_t b = s->first; b < s->first + s->count; b++) {
        s->last[b] = 0;
        s->version[b] = 0;
        for (uint32_t i = 0; i < blocks_floats(&w->b, b); i++)
            w->weights[blocks_offset(&w->b, b) + i] = rng_range(&w->rng, -1, 1);
    }
}

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
