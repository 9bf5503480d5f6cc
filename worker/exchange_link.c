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
    if (atomic_fetch_sub(&lends->count, 1) != 1) return;
    free(lends->encoded);
    free(lends);
}

/* --- one block */

static bool waits(enum item_state state)
{
    return state == ITEM_FLYING || state == ITEM_HELD;
}

void exchange_item_set(struct exchange *x, struct link *l, struct item *it, enum item_state state)
{
    uint32_t block = (uint32_t)(it - x->items);
    if (it->state == ITEM_FLYING) l->in_flight--;
    if (state == ITEM_FLYING) l->in_flight++;
    if (waits(it->state)) l->waiting--;
    if (waits(state)) l->waiting++;
    if (it->state != ITEM_DONE) x->unfinished--;
    if (state != ITEM_DONE) x->unfinished++;
    if (state == ITEM_TODO && block < l->todo) l->todo = block;
    if (l->waiting == 0) l->due = UINT64_MAX;
    it->state = state;
}

void exchange_item_wait(struct exchange *x, struct link *l, struct item *it, enum item_state state,
                        uint64_t deadline)
{
    exchange_item_set(x, l, it, state);
    it->deadline = deadline;
    if (deadline < l->due) l->due = deadline;
}

void exchange_item_begin(struct exchange *x, struct link *l, struct item *it, bool read)
{
    exchange_item_set(x, l, it, ITEM_TODO);
    it->read = read;
    it->sent = it->prepared = false;
    it->backoff = 1;
    it->corrupt = 0;
    it->request = x->request;
    it->step = 0;
}

struct item *exchange_item_of(struct exchange *x, uint32_t shard, uint32_t block)
{
    const struct link *l = &x->links[shard];
    return block >= l->first && block - l->first < l->count ? &x->items[block] : NULL;
}

void exchange_item_again(struct exchange *x, struct link *l, struct item *it)
{
    x->counts.corrupt++;
    if (it->corrupt++ >= MAX_CORRUPT) return;
    it->backoff = 1;
    exchange_item_set(x, l, it, ITEM_TODO);
}

/* The bytes of a block as they travel. Encoded once, whatever happens to the frames: a second time would take
 * from the residual what the first has put there. (A block that is lost later, by a fall of its shard, loses
 * the feedback in it as it loses the gradient.) */
static void *push_bytes(struct exchange *x, struct item *it, uint32_t block, size_t *len)
{
    size_t at = blocks_offset(&x->o.blocks, block), n = blocks_floats(&x->o.blocks, block);
    void *data = x->grad + at;
    *len = element_bytes(x->o.gradients, n);
    if (x->lends->encoded != NULL) data = x->lends->encoded + block * x->stride;
    if (it->prepared) return data;
    if (x->lends->encoded != NULL && x->frames == 0) /* zeros (bsp): they add nothing, and take nothing */
        element_encode(x->o.gradients, x->grad + at, n, data);
    else if (x->lends->encoded != NULL)
        element_encode_feedback(x->o.gradients, x->grad + at, x->residual + at, n, data);
    it->hash = wire_hash(data, *len);
    it->prepared = true;
    return data;
}

/* The first frame borrows, later ones copy the same bytes: the first may still be in a queue. */
static struct frame *push_payload(struct exchange *x, struct item *it, uint32_t block)
{
    size_t len;
    void *data = push_bytes(x, it, block, &len);
    if (it->sent) return frame_copy(data, len);
    atomic_fetch_add(&x->lends->count, 1);
    return frame_lend(data, len, exchange_lend_release, x->lends);
}

static void push_fill(const struct exchange *x, const struct link *l, const struct item *it, uint32_t block,
                      struct msg *m)
{
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
                                .hash = it->hash,
                                .type = x->o.gradients,
                                .quorum = block == 0 ? 0 : x->quorum,
                                .step = block == 0 ? 0 : x->step};
}

/* false: the queue of this shard is full; nothing has changed but the time of the next try. */
static bool item_send(struct exchange *x, uint64_t now, uint32_t shard, uint32_t block)
{
    struct link *l = &x->links[shard];
    struct item *it = &x->items[block];
    struct msg m = {.type = MSG_READ, .job = x->o.job};
    struct frame *payload = NULL;
    if (it->read) {
        m.read = (struct msg_read){x->member, it->request, block, x->set, it->step};
    } else {
        payload = push_payload(x, it, block);
        push_fill(x, l, it, block, &m);
    }
    size_t bytes = payload == NULL ? 0 : frame_len(payload);
    if (!x->io.send(x->io.ctx, shard, &m, &payload)) {
        frame_free(&payload);
        l->retry = now + NS_PER_MS;
        return false;
    }
    x->counts.bytes_out += bytes;
    if (it->sent) x->counts.resent++;
    it->sent = true;
    exchange_item_wait(x, l, it, ITEM_FLYING, now + x->o.deadline_ns * it->backoff);
    if (it->backoff < MAX_BACKOFF) it->backoff *= 2;
    return true;
}

/* --- one shard */

static void link_say_hello(struct exchange *x, uint64_t now, uint32_t shard)
{
    struct link *l = &x->links[shard];
    struct msg m = {.type = MSG_HELLO, .job = x->o.job};
    m.hello = (struct msg_hello){.member = x->member,
                                 .model_hash = x->o.model_hash,
                                 .shard = shard,
                                 .job_generation = x->job_generation,
                                 .consistency = x->o.consistency,
                                 .optimizer = x->o.optimizer,
                                 .gradients = x->o.gradients,
                                 .weights = x->o.weights};
    struct frame *none = NULL;
    if (!x->io.send(x->io.ctx, shard, &m, &none)) {
        l->deadline = now + NS_PER_MS;
        return;
    }
    l->deadline = now + x->o.deadline_ns * l->backoff;
    if (l->backoff < MAX_BACKOFF) l->backoff *= 2;
}

/* What was not answered in time. FLYING is sent again and keeps its credit: it may still be on its way. HELD
 * has none and waits for one. false: the queue is full. */
static bool link_overdue(struct exchange *x, uint64_t now, uint32_t shard)
{
    struct link *l = &x->links[shard];
    uint64_t due = UINT64_MAX;
    for (uint32_t b = l->first; b < l->first + l->count; b++) {
        struct item *it = &x->items[b];
        bool overdue = waits(it->state) && now >= it->deadline;
        if (overdue && it->state == ITEM_HELD) exchange_item_set(x, l, it, ITEM_TODO);
        if (overdue && it->state == ITEM_FLYING && !item_send(x, now, shard, b)) return false;
        if (waits(it->state) && it->deadline < due) due = it->deadline;
    }
    l->due = due;
    return true;
}

/* The first block that is TODO, the end if there is none. */
static uint32_t link_todo(const struct exchange *x, const struct link *l)
{
    uint32_t b = l->todo;
    while (b < l->first + l->count && x->items[b].state != ITEM_TODO) b++;
    return b;
}

/* Waits for the ticket that block 0 is to bring; then so do all the shard's blocks after it. */
static bool is_gated(const struct exchange *x, uint32_t block)
{
    return x->o.tickets && x->quorum == 0 && block != 0 && !x->items[block].read;
}

static bool may_send(const struct exchange *x, const struct link *l, uint32_t block)
{
    return block < l->first + l->count && l->in_flight < l->credit && !is_gated(x, block);
}

void exchange_link_pump(struct exchange *x, uint64_t now, uint32_t shard)
{
    struct link *l = &x->links[shard];
    if (x->trouble != 0 || x->member == 0) return;
    if (l->state == LINK_HELLO && now >= l->deadline) link_say_hello(x, now, shard);
    if (l->state != LINK_READY || now < l->retry) return;
    if (now >= l->due && !link_overdue(x, now, shard)) return;
    for (l->todo = link_todo(x, l); may_send(x, l, l->todo); l->todo = link_todo(x, l))
        if (!item_send(x, now, shard, l->todo)) return;
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

uint32_t exchange_link_ungate(struct exchange *x, uint64_t step)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < x->o.shards; k++) {
        struct link *l = &x->links[k];
        for (uint32_t b = l->first; b < l->first + l->count; b++) {
            if (x->items[b].state != ITEM_TODO || !is_gated(x, b)) continue;
            exchange_item_begin(x, l, &x->items[b], true);
            x->items[b].step = step;
            n++;
        }
    }
    return n;
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
    if (l->first == 0 && l->count > 0) x->lost += exchange_link_ungate(x, 0);
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
    uint64_t next = l->due > l->retry ? l->due : l->retry;
    return may_send(x, l, link_todo(x, l)) && l->retry < next ? l->retry : next;
}
