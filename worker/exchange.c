#include "worker/exchange.h"

#include "common/clock.h"
#include "common/err.h"
#include "worker/exchange_link.h"

#include <stdlib.h>
#include <string.h>

#define HELD_FACTOR 10 /* deadline of a push that the server holds until its roster is complete */
#define WAIT_NS     (100 * NS_PER_MS) /* after NOT_READY */

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
    for (uint32_t k = 0; k < o->shards; k++)
        blocks_of_shard(&o->blocks, o->shards, k, &x->links[k].first, &x->links[k].count);
    return x;
}

void exchange_free(struct exchange **x)
{
    if (x == NULL || *x == NULL) return;
    exchange_lend_release(NULL, (*x)->lends);
    free((*x)->links);
    free((*x)->items);
    free(*x);
    *x = NULL;
}

/* --- the whole */

static void op_end(struct exchange *x)
{
    if (x->op == OP_PUSH) {
        x->counts.exchanges++;
        x->counts.lost += x->lost;
        if (x->lost > 0 && x->lost < x->o.blocks.count) x->counts.torn++;
    }
    x->op = OP_NONE;
}

static void op_abort(struct exchange *x)
{
    for (uint32_t k = 0; k < x->o.shards; k++) {
        struct link *l = &x->links[k];
        for (uint32_t b = l->first; b < l->first + l->count; b++) {
            struct item *it = &x->items[b];
            if (!it->read && it->state != ITEM_DONE) x->lost++;
            exchange_item_set(x, l, it, ITEM_DONE);
        }
    }
    op_end(x);
}

static void op_trouble(struct exchange *x, int code)
{
    op_abort(x);
    x->trouble = code;
}

static void op_begin(struct exchange *x, enum op op, uint32_t set, struct weights *into)
{
    ASSERT(x->op == OP_NONE && x->member != 0 && into != NULL);
    x->op = op;
    x->set = set;
    x->into = into;
    x->lost = 0;
    x->read_failed = false;
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
    if (x->trouble != 0) op_abort(x);
    exchange_tick(x, now);
}

void exchange_push(struct exchange *x, uint64_t now, float *grad, uint64_t frames, const struct weights *base,
                   struct weights *into, bool pull)
{
    op_begin(x, OP_PUSH, 0, into);
    x->seq++;
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
    if (x->trouble != 0) op_abort(x);
    exchange_tick(x, now);
}

/* --- what the servers say: checked, never trusted */

static void receive_welcome(struct exchange *x, uint32_t shard, const struct msg_welcome *w)
{
    struct link *l = &x->links[shard];
    bool changed = l->generation != 0 && w->generation != l->generation;
    if (w->shard != shard || w->first_block != l->first || w->blocks != l->count) {
        op_trouble(x, err_set(ERR_MODEL,
                              "the server of shard %u says it is shard %u with blocks %u+%u, this worker "
                              "expects %u+%u: start all processes of the job with the same job.yaml",
                              shard, w->shard, w->first_block, w->blocks, l->first, l->count));
    } else if (w->job_generation > x->job_generation) {
        op_trouble(x, err_set(ERR_AGAIN, "the job was restored: join anew"));
    } else if (l->state == LINK_COLD || w->job_generation < x->job_generation || w->generation == 0 ||
               w->generation < l->generation || (l->state == LINK_READY && !changed)) {
        x->counts.unexpected++;
    } else {
        l->generation = w->generation;
        l->state = LINK_READY;
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
            if (it->deadline > now + WAIT_NS) it->deadline = now + WAIT_NS;
        }
        break;
    case REFUSAL_RETIRED:
        op_trouble(x, err_set(ERR_AGAIN, "shard %u no longer knows this member: join anew", shard));
        break;
    case REFUSAL_MISMATCH:
        op_trouble(x, err_set(ERR_MODEL, "shard %u refuses this worker: %.*s", shard, MSG_TEXT - 1, r->text));
        break;
    default:
        x->counts.unexpected++;
    }
}

static bool take_weights(struct exchange *x, uint32_t block, struct frame *payload, uint64_t hash)
{
    size_t len = blocks_floats(&x->o.blocks, block) * sizeof(float);
    if (payload == NULL || frame_len(payload) != len) return false;
    if (wire_hash(frame_data(payload), len) != hash) return false;
    memcpy(x->into->values + blocks_offset(&x->o.blocks, block), frame_data(payload), len);
    return true;
}

static void stamp_weights(struct exchange *x, uint64_t now, uint32_t block, uint64_t version,
                          uint32_t generation)
{
    x->into->version[block] = version;
    x->into->since[block] = now;
    x->into->generation[block] = generation;
}

/* APPLIED, or refused for good: the push of this block is over. */
static void receive_verdict(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_answer *a,
                            struct frame *payload)
{
    struct link *l = &x->links[shard];
    struct item *it = &x->items[a->block];
    if (a->generation != l->generation) {
        x->counts.unexpected++;
        return;
    }
    if (x->pull && !take_weights(x, a->block, payload, a->hash)) {
        exchange_item_again(x, now, it);
        return;
    }
    if (x->pull) stamp_weights(x, now, a->block, a->version, a->generation);
    if (a->verdict == VERDICT_APPLIED) {
        x->counts.applied++;
        x->counts.staleness_sum += a->staleness;
        if (a->staleness > x->counts.staleness_max) x->counts.staleness_max = a->staleness;
    } else {
        x->counts.refused++;
    }
    exchange_item_set(x, l, it, ITEM_DONE);
}

static void receive_answer(struct exchange *x, uint64_t now, uint32_t shard, const struct msg_answer *a,
                           struct frame *payload)
{
    struct link *l = &x->links[shard];
    struct item *it = exchange_item_of(x, shard, a->block);
    bool ours = it != NULL && it->state != ITEM_DONE && !it->read && it->sent && a->seq == x->seq;
    if (ours && (a->verdict == VERDICT_APPLIED || a->verdict == VERDICT_NONFINITE ||
                 a->verdict == VERDICT_NORM || a->verdict == VERDICT_STALE)) {
        receive_verdict(x, now, shard, a, payload);
    } else if (ours && a->verdict == VERDICT_RECEIVED && it->state == ITEM_FLYING &&
               a->generation == l->generation) {
        exchange_item_set(x, l, it, ITEM_HELD);
        it->deadline = now + HELD_FACTOR * x->o.deadline_ns;
        it->backoff = 1;
    } else if (ours && a->verdict == VERDICT_CORRUPT) {
        exchange_item_again(x, now, it);
    } else if (ours && a->verdict == VERDICT_GENERATION && a->job_generation > x->job_generation) {
        op_trouble(x, err_set(ERR_AGAIN, "the job was restored: join anew"));
    } else if (ours && a->verdict == VERDICT_GENERATION && a->generation > l->generation) {
        exchange_link_lose(x, l);
        exchange_link_hello(x, now, shard);
    } else {
        x->counts.unexpected++;
    }
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
    } else if (!b->found && live) {
        it->deadline = now + WAIT_NS;
        it->backoff = 1;
    } else if (!b->found) {
        op_abort(x);
        x->read_failed = true;
    } else if (!take_weights(x, b->block, payload, b->hash)) {
        exchange_item_again(x, now, it);
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
    if (x->trouble != 0 || m->job != x->o.job)
        x->counts.unexpected++;
    else if (m->type == MSG_WELCOME)
        receive_welcome(x, shard, &m->welcome);
    else if (m->type == MSG_REFUSED)
        receive_refused(x, now, shard, &m->refused);
    else if (m->type == MSG_ANSWER)
        receive_answer(x, now, shard, &m->answer, bytes);
    else if (m->type == MSG_BLOCK)
        receive_block(x, now, shard, &m->block, bytes);
    else
        x->counts.unexpected++;
    if (bytes != NULL) frame_free(payload);
    if (x->op != OP_NONE && x->unfinished == 0) op_end(x);
    exchange_link_pump(x, now, shard);
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
