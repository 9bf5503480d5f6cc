/* An exchange and the fake servers it talks to, which keep the rules of proto/README.md, through a network
 * that drops, doubles, reorders and garbles, in virtual time. */
#ifndef TESTS_UNIT_WORKER_EXCHANGE_WORLD_H
#define TESTS_UNIT_WORKER_EXCHANGE_WORLD_H

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
    uint32_t grant;  /* the credit that it grants; 0: says nothing */
};

struct world {
    struct exchange *x;
    struct exchange_options o;
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
    uint32_t pushes[BLOCKS]; /* sent, with resends */
    uint32_t max_flying;
    uint32_t refusal; /* answer everything with this */
    bool lose_set;
    uint32_t stale_block; /* the next push of it is refused as STALE; BLOCKS: none */
    uint32_t out[SHARDS]; /* blocks in flight, as the worker sees it, in a network without faults */
    uint32_t granted[SHARDS];
    bool check_credit;
    double sum[BLOCKS * SIZE]; /* of all gradients that were applied */
    /* tickets */
    uint32_t quorum;         /* > 0: bsp with backup workers */
    bool no_received;        /* the first answer of a push is its last one */
    bool no_ticket;          /* say nothing of a quorum */
    uint64_t ticket_seq;     /* of the last push that got a ticket, */
    uint64_t ticket_step;    /* for that step */
    uint64_t made;           /* steps of block 0 */
    uint32_t behind[BLOCKS]; /* steps of others that the block has not made yet */
    uint32_t lag[BLOCKS];    /* so many reads find it so */
    uint32_t reads, not_found;
};

static inline void post(struct world *w, bool up, uint32_t shard, const struct msg *m, struct frame *payload)
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

/* What a server may grant: nonsense counts as what the worker asked for at most. */
static inline uint32_t credit_of(const struct world *w, uint32_t said)
{
    return said == 0 || said > w->o.credit ? w->o.credit : said;
}

static inline void check_push(struct world *w, const struct msg_push *p, struct frame *payload)
{
    uint32_t b = p->block;
    assert_int_equal(p->type, w->o.gradients);
    assert_int_equal(frame_len(payload), element_bytes(w->o.gradients, blocks_floats(&w->b, b)));
    assert_true(p->hash == wire_hash(frame_data(payload), frame_len(payload)));
    bool again = w->hash_seq[b] == p->seq;
    if (again) assert_true(w->hash_of[b] == p->hash);
    if (w->o.gradients == ELEMENT_FP32) /* lent first, then copied */
        assert_true((frame_data(payload) == w->grad + blocks_offset(&w->b, b)) == !again);
    w->pushes[b]++;
    w->hash_seq[b] = p->seq;
    w->hash_of[b] = p->hash;
    if (w->quorum == 0 || b == 0)
        assert_int_equal(p->quorum, 0);
    else
        assert_true(p->quorum == w->quorum && p->seq == w->ticket_seq && p->step == w->ticket_step);
}

static inline bool fake_send(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    struct world *w = ctx;
    if (w->refuse_sends > 0 && w->refuse_sends--) return false;
    w->sends++;
    assert_false(m->type != MSG_HELLO && exchange_idle(w->x));
    if (m->type == MSG_PUSH || m->type == MSG_READ) w->server[shard].flying++;
    if (w->server[shard].flying > w->max_flying) w->max_flying = w->server[shard].flying;
    if (m->type == MSG_PUSH || m->type == MSG_READ) w->out[shard]++;
    if (w->check_credit) assert_true(w->out[shard] <= credit_of(w, w->granted[shard]));
    if (m->type == MSG_PUSH) check_push(w, &m->push, *payload);
    post(w, true, shard, m, *payload);
    if (*payload != NULL) frame_free(payload);
    return true;
}

/* The weights of a block as they travel. */
static inline struct frame *weights_frame(const struct world *w, uint32_t block, enum element_type type)
{
    size_t n = blocks_floats(&w->b, block);
    struct frame *f = frame_new(element_bytes(type, n));
    element_encode(type, w->weights + blocks_offset(&w->b, block), n, frame_data(f));
    return f;
}

/* Other workers take a step of this block. */
static inline void change(struct world *w, uint32_t k, uint32_t block, uint64_t version)
{
    if (w->server[k].version[block] == version) return;
    w->server[k].version[block] = version;
    for (uint32_t i = 0; i < blocks_floats(&w->b, block); i++)
        w->weights[blocks_offset(&w->b, block) + i] += rng_range(&w->rng, -1, 1);
}

static inline void apply(struct world *w, struct server *s, const struct msg_push *p, struct frame *payload)
{
    float g[SIZE];
    size_t at = blocks_offset(&w->b, p->block), n = blocks_floats(&w->b, p->block);
    element_decode(w->o.gradients, frame_data(payload), n, g);
    for (size_t i = 0; i < n; i++) {
        w->weights[at + i] += g[i];
        w->sum[at + i] += g[i];
    }
    s->version[p->block]++;
    w->applied[p->block]++;
}

/* The verdict on a new push; with tickets one of a step that has gone on is too late. */
static inline uint32_t decide(struct world *w, struct server *s, const struct msg_push *p,
                              struct frame *payload)
{
    bool late = w->quorum > 0 && p->block == 0 && p->base_version < s->version[0];
    if (late || p->block == w->stale_block) {
        w->stale_block = BLOCKS;
        return VERDICT_STALE;
    }
    if (w->quorum > 0) assert_true(p->base_version == s->version[p->block]);
    if (w->quorum > 0 && p->block == 0) {
        w->ticket_seq = p->seq;
        w->ticket_step = ++w->made;
    }
    apply(w, s, p, payload);
    return VERDICT_APPLIED;
}

static inline void answer(struct world *w, uint32_t k, const struct msg_push *p, uint32_t verdict,
                          bool weights)
{
    struct server *s = &w->server[k];
    struct msg m = {.type = MSG_ANSWER, .job = JOB};
    m.answer = (struct msg_answer){.block = p->block, .seq = p->seq, .generation = s->generation};
    m.answer.job_generation = s->job_generation;
    m.answer.verdict = verdict;
    m.answer.credit = s->grant;
    m.answer.version = s->version[p->block];
    if (verdict == VERDICT_APPLIED && weights)
        m.answer.staleness = s->version[p->block] - 1 - p->base_version;
    if (p->block == 0 && verdict != VERDICT_STALE && !w->no_ticket) m.answer.quorum = w->quorum;
    if (p->block == 0 && w->quorum > 0) m.answer.step = verdict == VERDICT_STALE ? w->made : w->ticket_step;
    m.answer.type = w->o.weights;
    struct frame *back = weights && p->pull ? weights_frame(w, p->block, w->o.weights) : NULL;
    if (back) m.answer.hash = wire_hash(frame_data(back), frame_len(back));
    post(w, false, k, &m, back);
    frame_free(&back);
}

static inline void serve_push(struct world *w, uint32_t k, const struct msg_push *p, struct frame *payload)
{
    struct server *s = &w->server[k];
    bool fresh = p->seq > s->last[p->block];
    if (p->generation != s->generation) {
        answer(w, k, p, VERDICT_GENERATION, false);
    } else if (p->seq < s->last[p->block]) {
        return;
    } else if (fresh && wire_hash(frame_data(payload), frame_len(payload)) != p->hash) {
        answer(w, k, p, VERDICT_CORRUPT, false);
    } else if (s->hold > 0) {
        s->hold--;
        answer(w, k, p, VERDICT_RECEIVED, false);
    } else {
        if (fresh) s->verdict[p->block] = decide(w, s, p, payload);
        s->last[p->block] = p->seq;
        if (fresh && w->quorum > 0 && s->verdict[p->block] == VERDICT_APPLIED && !w->no_received)
            answer(w, k, p, VERDICT_RECEIVED, false);
        answer(w, k, p, s->verdict[p->block], true);
    }
}

static inline void serve_read(struct world *w, uint32_t k, const struct msg_read *r)
{
    struct server *s = &w->server[k];
    enum element_type type = r->set != 0 ? ELEMENT_FP32 : w->o.weights;
    struct msg m = {.type = MSG_BLOCK, .job = JOB};
    m.block = (struct msg_block){.request = r->request, .block = r->block, .set = r->set, .type = type};
    w->reads++;
    bool found = !(w->lose_set && r->set != 0);
    if (r->step > 0) assert_true(r->step <= w->made);
    if (r->step > 0 && w->behind[r->block] && w->lag[r->block] > 0) {
        w->lag[r->block]--;
        w->not_found++;
        found = false;
    } else if (r->step > 0 && w->behind[r->block]) {
        change(w, k, r->block, s->version[r->block] + w->behind[r->block]);
        w->behind[r->block] = 0;
    }
    m.block.found = found;
    m.block.version = s->version[r->block];
    m.block.generation = s->generation;
    struct frame *back = found ? weights_frame(w, r->block, type) : NULL;
    if (back) m.block.hash = wire_hash(frame_data(back), frame_len(back));
    post(w, false, k, &m, back);
    frame_free(&back);
}

static inline void check_hello(const struct world *w, uint32_t k, const struct msg_hello *h)
{
    assert_true(h->model_hash == MODEL && h->shard == k && h->member != 0);
    assert_int_equal(h->consistency, w->o.consistency);
    assert_int_equal(h->optimizer, w->o.optimizer);
    assert_int_equal(h->gradients, w->o.gradients);
    assert_int_equal(h->weights, w->o.weights);
}

static inline void serve(struct world *w, uint32_t k, const struct msg *in, struct frame *payload)
{
    struct server *s = &w->server[k];
    struct msg m = {.type = MSG_REFUSED, .job = JOB};
    if (in->type != MSG_HELLO && s->flying > 0) s->flying--;
    m.refused.reason = w->refusal != 0 ? w->refusal : REFUSAL_HELLO_FIRST;
    strcpy(m.refused.text, "the models differ");
    if (w->refusal == 0 && in->type == MSG_HELLO) {
        check_hello(w, k, &in->hello);
        s->known = in->hello.member;
        m.type = MSG_WELCOME;
        m.welcome = (struct msg_welcome){k, s->generation, s->job_generation, s->first, s->count, s->grant};
    } else if (w->refusal == 0 && in->type == MSG_PUSH && s->known == in->push.member) {
        serve_push(w, k, &in->push, payload);
        return;
    } else if (w->refusal == 0 && in->type == MSG_READ && s->known == in->read.member) {
        serve_read(w, k, &in->read);
        return;
    }
    post(w, false, k, &m, NULL);
}

static inline void deliver(struct world *w, struct mail *p)
{
    const struct msg *m = &p->m;
    if (m->type == MSG_ANSWER || m->type == MSG_BLOCK) w->out[p->shard]--;
    if (m->type == MSG_ANSWER) w->granted[p->shard] = m->answer.credit;
    if (m->type == MSG_WELCOME) w->granted[p->shard] = m->welcome.credit;
    exchange_receive(w->x, w->now, p->shard, m, &p->payload);
}

/* Delivers the next message or lets time pass to the next tick. */
static inline void step(struct world *w)
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
        deliver(w, &p);
    frame_free(&p.payload);
}

static inline void settle(struct world *w)
{
    for (int i = 0; i < 200000 && !exchange_idle(w->x); i++) step(w);
    assert_true(exchange_idle(w->x));
    assert_true(exchange_drained(w->x));
}

static inline void drain(struct world *w)
{
    for (int i = 0; i < MAIL; i++) frame_free(&w->mail[i].payload);
    memset(w->mail, 0, sizeof w->mail);
    for (uint32_t k = 0; k < SHARDS; k++) w->server[k].flying = 0;
}

/* What all tests but those of an option begin with; a job of fp32 in async. */
static inline struct exchange_options plain_options(void)
{
    return (struct exchange_options){.job = JOB,
                                     .model_hash = MODEL,
                                     .blocks = {PARAMS, SIZE, BLOCKS},
                                     .shards = SHARDS,
                                     .credit = CREDIT,
                                     .deadline_ns = 50 * NS_PER_MS};
}

/* Connected, and reads the weights. quorum > 0: tickets. */
static inline struct world *world_with(uint64_t seed, const struct exchange_options *o, uint32_t quorum)
{
    struct world *w = xcalloc(1, sizeof *w);
    w->o = *o;
    w->b = o->blocks;
    w->quorum = quorum;
    w->stale_block = BLOCKS;
    w->now = 1000;
    rng_init(&w->rng, seed);
    for (size_t i = 0; i < w->b.params; i++) w->weights[i] = rng_range(&w->rng, -1, 1);
    struct exchange_io io = {w, fake_send};
    w->x = exchange_new(o, &io);
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

static inline struct world *world_new(uint64_t seed)
{
    struct exchange_options o = plain_options();
    return world_with(seed, &o, 0);
}

static inline void world_free(struct world *w)
{
    drain(w);
    exchange_free(&w->x);
    weights_fini(&w->w);
    free(w);
}

static inline void push(struct world *w, bool pull)
{
    for (size_t i = 0; i < w->b.params; i++) w->grad[i] = rng_range(&w->rng, -1, 1);
    exchange_push(w->x, w->now, w->grad, 10, &w->w, &w->w, pull);
}

static inline void assert_same_block(const struct world *w, uint32_t b)
{
    float landed[SIZE];
    size_t n = blocks_floats(&w->b, b);
    struct frame *f = weights_frame(w, b, w->o.weights);
    element_decode(w->o.weights, frame_data(f), n, landed);
    assert_memory_equal(w->w.values + blocks_offset(&w->b, b), landed, n * sizeof(float));
    frame_free(&f);
}

static inline void assert_same_weights(const struct world *w)
{
    for (uint32_t b = 0; b < w->b.count; b++) assert_same_block(w, b);
}

static inline void push_and_check(struct world *w)
{
    push(w, true);
    settle(w);
    assert_same_weights(w);
}

/* The life of a shard ends: other weights, no table. */
static inline void fall(struct world *w, uint32_t k)
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

/* --- backup workers */

enum { QUORUM = 3 };

static inline struct world *world_of_tickets(uint64_t seed, uint32_t quorum)
{
    struct exchange_options o = plain_options();
    o.consistency = CONSISTENCY_BSP;
    o.tickets = true;
    struct world *w = world_with(seed, &o, quorum);
    settle(w);
    return w;
}

/* The others take a step without us: at once in block 0, in each other block when it has been read `lag`
 * times. */
static inline void step_of_others(struct world *w, uint32_t lag)
{
    change(w, 0, 0, w->server[0].version[0] + 1);
    w->made++;
    for (uint32_t b = 1; b < BLOCKS; b++) {
        w->behind[b]++;
        w->lag[b] = lag;
    }
}

static inline const struct exchange_counts *counts(const struct world *w)
{
    return exchange_counts(w->x);
}

#endif
