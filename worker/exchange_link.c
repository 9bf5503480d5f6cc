#include "worker/exchange_link.h"

#include "common/clock.h"
#include "common/err.h"

#include <stdlib.h>

#define MAX_BACKOFF 8 /* times the deadline */
#define MAX_CORRUPT 5 /* resends at once; after that at the deadline */

void exchange_lend_release(void *data, void *ctx)
{
    (void)data;
    struct lends *lends = ctx;
    if (atomic_fetch_sub(&lends->count, 1) == 1) free(lends);
}

/* --- one block */

void exchange_item_set(struct exchange *x, struct link *l, struct item *it, enum item_state state)
{
    if (it->state == ITEM_FLYING) l->in_flight--;
    if (state == ITEM_FLYING) l->in_flight++;
    if (it->state != ITEM_DONE) x->unfinished--;
    if (state != ITEM_DONE) x->unfinished++;
    it->state = state;
}

void exchange_item_begin(struct exchange *x, struct link *l, struct item *it, bool read)
{
    exchange_item_set(x, l, it, ITEM_TODO);
    it->read = read;
    it->sent = false;
    it->backoff = 1;
    it->corrupt = 0;
    it->request = x->request;
}

struct item *exchange_item_of(struct exchange *x, uint32_t shard, uint32_t block)
{
    const struct link *l = &x->links[shard];
    return block >= l->first && block - l->first < l->count ? &x->items[block] : NULL;
}

/* The first frame borrows grad, later ones copy the same bytes: the first may still be in a queue. */
static struct frame *push_payload(struct exchange *x, const struct item *it, uint32_t block)
{
    float *data = x->grad + blocks_offset(&x->o.blocks, block);
    size_t len = blocks_floats(&x->o.blocks, block) * sizeof *data;
    if (it->sent) return frame_copy(data, len);
    atomic_fetch_add(&x->lends->count, 1);
    return frame_lend(data, len, exchange_lend_release, x->lends);
}

static void push_fill(struct exchange *x, const struct link *l, struct item *it, uint32_t block,
                      struct frame *payload, struct msg *m)
{
    if (!it->sent) it->hash = wire_hash(frame_data(payload), frame_len(payload));
    m->type = MSG_PUSH;
    m->push = (struct msg_push){.member = x->member,
                                .seq = x->seq,
                                .job_generation = x->job_generation,
                                .generation = l->generation,
                                .block = block,
                                .base_version = it->base_version,
                                .frames = x->frames,
                                .base_age_us = it->base_age_us,
                                .skew = x->skew,
                                .pull = x->pull,
                                .hash = it->hash};
}

/* false: the queue of this shard is full; nothing has changed but the time of the next try. */
static bool item_send(struct exchange *x, uint64_t now, uint32_t shard, uint32_t block)
{
    struct link *l = &x->links[shard];
    struct item *it = &x->items[block];
    struct msg m = {.type = MSG_READ, .job = x->o.job};
    struct frame *payload = NULL;
    if (it->read) {
        m.read = (struct msg_read){x->member, it->request, block, x->set};
    } else {
        payload = push_payload(x, it, block);
        push_fill(x, l, it, block, payload, &m);
    }
    if (!x->io.send(x->io.ctx, shard, &m, &payload)) {
        frame_free(&payload);
        l->retry = now + NS_PER_MS;
        return false;
    }
    if (it->sent) x->counts.resent++;
    it->sent = true;
    it->deadline = now + x->o.deadline_ns * it->backoff;
    if (it->backoff < MAX_BACKOFF) it->backoff *= 2;
    exchange_item_set(x, l, it, ITEM_FLYING);
    return true;
}

void exchange_item_again(struct exchange *x, uint64_t now, struct item *it)
{
    x->counts.corrupt++;
    if (it->corrupt++ >= MAX_CORRUPT) return;
    it->deadline = now;
    it->backoff = 1;
}

/* --- one shard */

static void link_say_hello(struct exchange *x, uint64_t now, uint32_t shard)
{
    struct link *l = &x->links[shard];
    struct msg m = {.type = MSG_HELLO, .job = x->o.job};
    m.hello = (struct msg_hello){x->member, x->o.model_hash, shard, x->job_generation};
    struct frame *none = NULL;
    if (!x->io.send(x->io.ctx, shard, &m, &none)) {
        l->deadline = now + NS_PER_MS;
        return;
    }
    l->deadline = now + x->o.deadline_ns * l->backoff;
    if (l->backoff < MAX_BACKOFF) l->backoff *= 2;
}

void exchange_link_pump(struct exchange *x, uint64_t now, uint32_t shard)
{
    struct link *l = &x->links[shard];
    if (x->trouble != 0 || x->member == 0) return;
    if (l->state == LINK_HELLO && now >= l->deadline) link_say_hello(x, now, shard);
    if (l->state != LINK_READY || now < l->retry) return;
    for (uint32_t b = l->first; b < l->first + l->count; b++) {
        struct item *it = &x->items[b];
        bool due = it->state > ITEM_TODO && now >= it->deadline;
        if (due && it->state == ITEM_HELD) exchange_item_set(x, l, it, ITEM_TODO);
        bool send = it->state == ITEM_TODO ? l->in_flight < x->o.credit : due;
        if (send && !item_send(x, now, shard, b)) return;
    }
}

void exchange_link_hello(struct exchange *x, uint64_t now, uint32_t shard)
{
    struct link *l = &x->links[shard];
    l->state = LINK_HELLO;
    l->deadline = now;
    l->backoff = 1;
    for (uint32_t b = l->first; b < l->first + l->count; b++) {
        struct item *it = &x->items[b];
        if (it->state != ITEM_DONE) exchange_item_set(x, l, it, ITEM_TODO);
        it->backoff = 1;
    }
}

void exchange_link_lose(struct exchange *x, struct link *l)
{
    if (x->op == OP_NONE || x->set != 0) return;
    x->request++;
    for (uint32_t b = l->first; b < l->first + l->count; b++) {
        struct item *it = &x->items[b];
        if (!it->read && it->state != ITEM_DONE) x->lost++;
        exchange_item_begin(x, l, it, true);
    }
}

bool exchange_link_is_stale(const struct exchange *x, const struct link *l)
{
    for (uint32_t b = l->first; b < l->first + l->count; b++) {
        const struct item *it = &x->items[b];
        if (it->state != ITEM_DONE && !it->read && it->base_generation != 0 &&
            it->base_generation != l->generation)
            return true;
    }
    return false;
}

uint64_t exchange_link_next(const struct exchange *x, const struct link *l)
{
    if (l->state == LINK_COLD) return UINT64_MAX;
    if (l->state == LINK_HELLO) return l->deadline;
    uint64_t next = UINT64_MAX;
    for (uint32_t b = l->first; b < l->first + l->count; b++) {
        const struct item *it = &x->items[b];
        if (it->state == ITEM_DONE || (it->state == ITEM_TODO && l->in_flight >= x->o.credit)) continue;
        uint64_t at = it->state == ITEM_TODO || it->deadline < l->retry ? l->retry : it->deadline;
        if (at < next) next = at;
    }
    return next;
}
