#include "worker/exchange.h"

#include "common/clock.h"
#include "common/err.h"
#include "worker/exchange_link.h"

#include <stdlib.h>
#include <string.h>

#define HELD_FACTOR 10 /* deadline of a push that the server holds until its roster is complete */
#define WAIT_NS     (100 * NS_PER_MS) /* after NOT_READY */
#define POLL_NS     (5 * NS_PER_MS)   /* a step that went on without us is not done yet everywhere */
#define ALIGN       64                /* bytes, of encoded blocks */

void weights_init(struct weights *w, const struct blocks *b)
{
    w->values = xaligned(b->params * sizeof *w->values);
    w->version = xcalloc(b->count, sizeof *w->version);
    w->since = xcalloc(b->count, sizeof *w->since);
    w->generation = xcalloc(b->count, sizeof *w->generation);
}

void weights_fini(struct weights *w)
{
    free(w->values);
    free(w->version);
    free(w->since);
    free(w->generation);
    *w = (struct weights){0};
}

/* Gradients that do not travel as they are: their bytes, and what rounding took off. */
static void new_encoded(struct exchange *x)
{
    if (x->o.gradients == ELEMENT_FP32) return;
    x->stride = (element_bytes(x->o.gradients, x->o.blocks.size) + ALIGN - 1) / ALIGN * ALIGN;
    x->lends->encoded = xaligned(x->stride * x->o.blocks.count);
    x->residual = xaligned(x->o.blocks.params * sizeof *x->residual);
}

static void new_link(const struct exchange *x, uint32_t k)
{
    struct link *l = &x->links[k];
    blocks_of_shard(&x->o.blocks, x->o.shards, k, &l->first, &l->count);
    l->todo = l->first;
    l->due = UINT64_MAX;
    l->credit = x->o.credit;
}

struct exchange *exchange_new(const struct exchange_options *o, const struct exchange_io *io)
{
    ASSERT(o->shards > 0 && o->credit > 0 && o->deadline_ns > 0 && io->send != NULL);
    struct exchange *x = xcalloc(1, sizeof *x);
    x->o = *o;
    x->io = *io;
    x->links = xcalloc(o->shards, sizeof *x->links);
    x->items = xcalloc(o->blocks.count, sizeof *x->items);
    x->lends = xcalloc(1, sizeof *x->lends);
    atomic_init(&x->lends->count, 1);
    new_encoded(x);
    for (uint32_t k = 0; k < o->shards; k++) new_link(x, k);
    return x;
}

void exchange_free(struct exchange **x)
{
    if (x == NULL || *x == NULL) return;
    exchange_lend_release(NULL, (*x)->lends);
    free((*x)->residual);
    free((*x)->links);
    free((*x)->items);
    free(*x);
    *x = NULL;
}

/* --- the whole */

static void op_end(struct exchange *x, uint64_t now)
{
    if (x->op == OP_PUSH) {
        x->counts.exchanges++;
        x->counts.lost += x->lost;
        if (x->lost > 0 && x->lost < x->o.blocks.count) x->counts.torn++;
    }
    if (x->held) {
        x->counts.waits++;
        x->counts.wait_ns += now - x->held_since;
    }
    x->op = OP_NONE;
}

static void op_abort(struct exchange *x, uint64_t now)
{
    for (uint32_t k = 0; k < x->o.shards; k++) {
        struct link *l = &x->links[k];
        for (uint32_t b = l->first; b < l->first + l->count; b++) {
            struct item *it = &x->items[b];
            if (!it->read && it->state != ITEM_DONE) x->lost++;
            exchange_item_set(x, l, it, ITEM_DONE);
        }
    }
    op_end(x, now);
}

static void op_trouble(struct exchange *x, uint64_t now, int code)
{
    op_abort(x, now);
    x->trouble = code;
}

static void op_begin(struct exchange *x, enum op op, uint32_t set, struct weights *into)
{
    ASSERT(x->op == OP_NONE && x->member != 0 && into != NULL);
    x->op = op;
    x->set = set;
    x->into = into;
    x->lost = 0;
    x->read_failed = x->held = false;
    x->request++;
    for (uint32_t k = 0; k < x->o.shards; k++) {
        struct link *l = &x->links[k];
        for (uint32_t b = l->first; b < l->first + l->count; b++)
            exchange_item_begin(x, l, &x->items[b], op == OP_READ);
    }
}

void exchange_set_member(struct exchange *x, uint64_t member, uint32_t job_generation)
{
    ASSERT(x->op == OP_NONE && member != 0);
    if (x->member != 0 && x->residual != NULL) /* of weights that are no more */
        memset(x->residual, 0, x->o.blocks.params * sizeof *x->residual);
    x->member = member;
    x->job_generation = job_generation;
    x->seq = 0;
    x->trouble = 0;
    for (uint32_t k = 0; k < x->o.shards; k++)
        if (x->links[k].state != LINK_COLD) exchange_link_hello(x, 0, k);
}

void exchange_connected(struct exchange *x, uint64_t now, uint32_t shard)
{
    ASSERT(shard < x->o.shards);
    x->links[shard].retry = 0;
    exchange_link_hello(x, now, shard);
    exchange_link_pump(x, now, shard);
}

void exchange_tick(struct exchange *x, uint64_t now)
{
    for (uint32_t k = 0; k < x->o.shards; k++) exchange_link_pump(x, now, k);
}

void exchange_read(struct exchange *x, uint64_t now, uint32_t set, struct weights *into)
{
    op_begin(x, OP_READ, set, into);
    if (x->trouble != 0) op_abort(x, now);
    exchange_tick(x, now);
}

void exchange_push(struct exchange *x, uint64_t now, float *grad, uint64_t frames, const struct weights *base,
                   struct weights *into, bool pull)
{
    ASSERT(x->lends->encoded == NULL || exchange_drained(x)); /* it is written anew */
    op_begin(x, OP_PUSH, 0, into);
    x->seq++;
    x->quorum = 0;
    x->step = 0;
    x->grad = grad;
    x->frames = frames;
    x->pull = pull;
    uint64_t low = base->version[0], high = low;
    for (uint32_t b = 0; b < x->o.blocks.count; b++) {
        struct item *it = &x->items[b];
        it->base_version = base->version[b];
        it->base_generation = base->generation[b];
        it->base_age_us = now > base->since[b] ? (now - base->since[b]) / 1000 : 0;
        if (it->base_version < low) low = it->base_version;
        if (it->base_version > high) high = it->base_version;
    }
    x->skew = high - low;
    for (uint32_t k = 0; k < x->o.shards; k++)
        if (x->links[k].state == LINK_READY && exchange_link_is_stale(x, &x->links[k]))
            exchange_link_lose(x, &x->links[k]);
    if (x->trouble != 0) op_abort(x, now);
    exchange_tick(x, now);
}

/* --- what the servers say: checked, never trusted */

static void take_credit(const struct exchange *x, struct link *l, uint32_t credit)
{
    l->credit = credit == 0 || credit > x->o.credit ? x->o.credit : credit;
}

static void receive_welcome(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_welcome *w)
{
    struct link *l = &x->links[shard];
    bool changed = l->generation != 0 && w->generation != l->generation;
    if (w->shard != shard || w->first_block != l->first || w->blocks != l->count) {
        op_trouble(x, now,
                   err_set(ERR_MODEL,
                           "the server of shard %u says it is shard %u with blocks %u+%u, this worker "
                           "expects %u+%u: start all processes of the job with the same job.yaml",
                           shard, w->shard, w->first_block, w->blocks, l->first, l->count));
    } else if (w->job_generation > x->job_generation) {
        op_trouble(x, now, err_set(ERR_AGAIN, "the job was restored: join anew"));
    } else if (l->state == LINK_COLD || w->job_generation < x->job_generation || w->generation == 0 ||
               w->generation < l->generation || (l->state == LINK_READY && !changed)) {
        x->counts.unexpected++;
    } else {
        l->generation = w->generation;
        l->state = LINK_READY;
        take_credit(x, l, w->credit);
        if (changed || exchange_link_is_stale(x, l)) exchange_link_lose(x, l);
    }
}

static void receive_refused(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_refused *r)
{
    struct link *l = &x->links[shard];
    switch (r->reason) {
    case REFUSAL_HELLO_FIRST: /* one for each message that was under way */
        if (l->state == LINK_READY) exchange_link_hello(x, now, shard);
        break;
    case REFUSAL_NOT_READY:
    case REFUSAL_FULL:
        if (l->state == LINK_HELLO) l->deadline = now + WAIT_NS;
        for (uint32_t b = l->first; b < l->first + l->count; b++) {
            struct item *it = &x->items[b];
            if (it->state != ITEM_FLYING) continue;
            it->backoff = 1;
            if (it->deadline > now + WAIT_NS) exchange_item_wait(x, l, it, ITEM_FLYING, now + WAIT_NS);
        }
        break;
    case REFUSAL_RETIRED:
        op_trouble(x, now, err_set(ERR_AGAIN, "shard %u no longer knows this member: join anew", shard));
        break;
    case REFUSAL_MISMATCH:
        op_trouble(x, now,
                   err_set(ERR_MODEL, "shard %u refuses this worker: %.*s", shard, MSG_TEXT - 1, r->text));
        break;
    default:
        x->counts.unexpected++;
    }
}

/* The payload lands in `into`, its only copy, if it is what must come: weights of a set travel as they are
 * kept. */
static bool take_weights(struct exchange *x, uint32_t block, struct frame *payload, uint32_t type,
                         uint64_t hash)
{
    enum element_type expected = x->set != 0 ? ELEMENT_FP32 : x->o.weights;
    size_t n = blocks_floats(&x->o.blocks, block), len = element_bytes(expected, n);
    if (payload == NULL || type != expected || frame_len(payload) != len) return false;
    if (wire_hash(frame_data(payload), len) != hash) return false;
    element_decode(expected, frame_data(payload), n, x->into->values + blocks_offset(&x->o.blocks, block));
    return true;
}

static void stamp_weights(struct exchange *x, uint64_t now, uint32_t block, uint64_t version,
                          uint32_t generation)
{
    x->into->version[block] = version;
    x->into->since[block] = now;
    x->into->generation[block] = generation;
}

static void count_verdict(struct exchange *x, const struct msg_answer *a)
{
    if (a->verdict != VERDICT_APPLIED) {
        x->counts.refused++;
        return;
    }
    x->counts.applied++;
    x->counts.staleness_sum += a->staleness;
    if (a->staleness > x->counts.staleness_max) x->counts.staleness_max = a->staleness;
}

/* The step goes on without us: no block of it is applied, and the weights are those after it. Block 0 brought
 * its own, if they were wanted. */
static void leave_out(struct exchange *x, const struct msg_answer *a)
{
    struct item *it = &x->items[0];
    x->counts.left_out++;
    x->lost = 0;
    x->request++;
    exchange_link_ungate(x, a->step);
    if (x->pull) return;
    struct link *l = &x->links[blocks_owner(&x->o.blocks, x->o.shards, 0)];
    exchange_item_begin(x, l, it, true);
    it->step = a->step;
}

/* APPLIED, or refused for good: the push of this block is over. */
static void receive_verdict(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_answer *a,
                            struct frame *payload)
{
    struct link *l = &x->links[shard];
    struct item *it = &x->items[a->block];
    bool left_out = x->o.tickets && a->block == 0 && x->quorum == 0;
    if (a->generation != l->generation || (left_out && a->verdict == VERDICT_APPLIED)) {
        x->counts.unexpected++;
        return;
    }
    if (x->pull && !take_weights(x, a->block, payload, a->type, a->hash)) {
        exchange_item_again(x, l, it);
        return;
    }
    if (x->pull) stamp_weights(x, now, a->block, a->version, a->generation);
    exchange_item_set(x, l, it, ITEM_DONE);
    if (left_out)
        leave_out(x, a);
    else
        count_verdict(x, a);
}

static void hold(struct exchange *x, uint64_t now, struct link *l, struct item *it)
{
    if (!x->held) x->held_since = now;
    x->held = true;
    it->backoff = 1;
    exchange_item_wait(x, l, it, ITEM_HELD, now + HELD_FACTOR * x->o.deadline_ns);
}

static bool is_refusal(uint32_t verdict)
{
    return verdict == VERDICT_NONFINITE || verdict == VERDICT_NORM || verdict == VERDICT_STALE;
}

/* The first word on block 0 that has a ticket opens the gate for the others. */
static void take_ticket(struct exchange *x, const struct link *l, const struct msg_answer *a)
{
    if (!x->o.tickets || x->quorum != 0 || a->block != 0 || a->generation != l->generation) return;
    if (a->step == 0 || (a->verdict != VERDICT_RECEIVED && a->verdict != VERDICT_APPLIED &&
                         a->verdict != VERDICT_NONFINITE && a->verdict != VERDICT_NORM))
        return;
    x->quorum = a->quorum;
    x->step = a->step;
}

static void receive_ours(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_answer *a,
                         struct frame *payload)
{
    struct link *l = &x->links[shard];
    struct item *it = &x->items[a->block];
    take_credit(x, l, a->credit);
    take_ticket(x, l, a);
    if (a->verdict == VERDICT_APPLIED || is_refusal(a->verdict)) {
        receive_verdict(x, now, shard, a, payload);
    } else if (a->verdict == VERDICT_RECEIVED && it->state == ITEM_FLYING && a->generation == l->generation) {
        hold(x, now, l, it);
    } else if (a->verdict == VERDICT_CORRUPT) {
        exchange_item_again(x, l, it);
    } else if (a->verdict == VERDICT_GENERATION && a->job_generation > x->job_generation) {
        op_trouble(x, now, err_set(ERR_AGAIN, "the job was restored: join anew"));
    } else if (a->verdict == VERDICT_GENERATION && a->generation > l->generation) {
        exchange_link_lose(x, l);
        exchange_link_hello(x, now, shard);
    } else {
        x->counts.unexpected++;
    }
}

static void receive_answer(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_answer *a,
                           struct frame *payload)
{
    const struct item *it = exchange_item_of(x, shard, a->block);
    if (it != NULL && it->state != ITEM_DONE && !it->read && it->sent && a->seq == x->seq)
        receive_ours(x, now, shard, a, payload);
    else
        x->counts.unexpected++;
}

/* Not there, or not yet: asked again a little later; the credit is back. */
static void read_again(struct exchange *x, uint64_t now, struct link *l, struct item *it)
{
    uint64_t at = now + (it->step > 0 ? POLL_NS : WAIT_NS);
    it->sent = false;
    it->backoff = 1;
    exchange_item_wait(x, l, it, ITEM_HELD, at);
}

static void receive_block(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_block *b,
                          struct frame *payload)
{
    struct link *l = &x->links[shard];
    struct item *it = exchange_item_of(x, shard, b->block);
    bool live = x->set == 0;
    if (it == NULL || it->state == ITEM_DONE || !it->read || !it->sent || b->request != it->request ||
        b->set != x->set || (live && b->generation < l->generation)) {
        x->counts.unexpected++;
    } else if (live && b->generation > l->generation) {
        exchange_link_lose(x, l);
        exchange_link_hello(x, now, shard);
    } else if (live && !b->found) {
        read_again(x, now, l, it);
    } else if (!b->found) {
        op_abort(x, now);
        x->read_failed = true;
    } else if (!take_weights(x, b->block, payload, b->type, b->hash)) {
        exchange_item_again(x, l, it);
    } else {
        stamp_weights(x, now, b->block, b->version, b->generation);
        exchange_item_set(x, l, it, ITEM_DONE);
    }
}

void exchange_receive(struct exchange *x, uint64_t now, uint32_t shard, const struct msg *m,
                      struct frame **payload)
{
    ASSERT(shard < x->o.shards);
    struct frame *bytes = payload == NULL ? NULL : *payload;
    if (bytes != NULL) x->counts.bytes_in += frame_len(bytes);
    if (x->trouble != 0 || m->job != x->o.job)
        x->counts.unexpected++;
    else if (m->type == MSG_WELCOME)
        receive_welcome(x, now, shard, &m->welcome);
    else if (m->type == MSG_REFUSED)
        receive_refused(x, now, shard, &m->refused);
    else if (m->type == MSG_ANSWER)
        receive_answer(x, now, shard, &m->answer, bytes);
    else if (m->type == MSG_BLOCK)
        receive_block(x, now, shard, &m->block, bytes);
    else
        x->counts.unexpected++;
    if (bytes != NULL) frame_free(payload);
    if (x->op != OP_NONE && x->unfinished == 0) op_end(x, now);
    exchange_tick(x, now); /* of every shard: a ticket is for all of them */
}

bool exchange_idle(const struct exchange *x)
{
    return x->op == OP_NONE;
}
bool exchange_drained(const struct exchange *x)
{
    return atomic_load(&x->lends->count) == 1;
}
uint64_t exchange_seq(const struct exchange *x)
{
    return x->seq;
}
float *exchange_residual(struct exchange *x)
{
    return x->residual;
}
bool exchange_read_failed(const struct exchange *x)
{
    return x->read_failed;
}
int exchange_trouble(const struct exchange *x)
{
    return x->trouble;
}
const struct exchange_counts *exchange_counts(const struct exchange *x)
{
    return &x->counts;
}

uint64_t exchange_next(const struct exchange *x)
{
    uint64_t next = UINT64_MAX;
    if (x->trouble != 0 || x->member == 0) return next;
    for (uint32_t k = 0; k < x->o.shards; k++) {
        uint64_t at = exchange_link_next(x, &x->links[k]);
        if (at < next) next = at;
    }
    return next;
}
