#include "server/outbox.h"

#include "common/clock.h"
#include "common/err.h"

#include <stdlib.h>

#define MAX_WAITING 4096 /* letters in all */
#define MAX_WAIT_NS (5 * NS_PER_S)

struct letter {
    struct letter *next;
    uint64_t since;
    struct msg msg;
    struct frame *payload;
};

/* What waits for one peer, in order; never empty. */
struct pile {
    uint64_t peer;
    struct letter *first, *last;
    uint32_t with, without; /* a payload */
};

struct outbox {
    struct wire *wire;
    uint32_t limit;
    struct pile *piles; /* (count), owned: of the few peers that do not read fast enough */
    size_t count, capacity;
    size_t waiting; /* letters */
    uint64_t dropped;
};

struct outbox *outbox_new(struct wire *w, uint32_t limit)
{
    struct outbox *b = xcalloc(1, sizeof *b);
    b->wire = w;
    b->limit = limit;
    return b;
}

static struct pile *find(const struct outbox *b, uint64_t peer)
{
    for (size_t i = 0; i < b->count; i++)
        if (b->piles[i].peer == peer) return &b->piles[i];
    return NULL;
}

/* --- keeping */
static struct pile *new_pile(struct outbox *b, uint64_t peer)
{
    if (b->count == b->capacity) {
        b->capacity = b->capacity ? 2 * b->capacity : 16;
        b->piles = realloc(b->piles, b->capacity * sizeof *b->piles);
        ASSERT(b->piles);
    }
    b->piles[b->count] = (struct pile){.peer = peer};
    return &b->piles[b->count++];
}

static bool has_room(const struct outbox *b, const struct pile *p, bool with)
{
    if (b->waiting == MAX_WAITING) return false;
    return !p || (with ? p->with : p->without) < b->limit;
}

static void keep(struct outbox *b, struct pile *p, const struct msg *m, struct frame *payload)
{
    struct letter *l = xcalloc(1, sizeof *l);
    *l = (struct letter){NULL, clock_now_ns(), *m, payload};
    if (p->last)
        p->last->next = l;
    else
        p->first = l;
    p->last = l;
    p->with += payload != NULL;
    p->without += payload == NULL;
    b->waiting++;
}

void outbox_send(struct outbox *b, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct frame *none = NULL, **f = payload ? payload : &none;
    struct pile *p = find(b, peer);
    int rc = p ? ERR_AGAIN : wire_send(b->wire, WIRE_ROUTER, peer, m, f);
    if (rc == 0) return;
    if (rc == ERR_AGAIN && has_room(b, p, *f != NULL)) {
        keep(b, p ? p : new_pile(b, peer), m, *f);
        *f = NULL;
        return;
    }
    b->dropped++;
    frame_free(f);
}

/* --- letting go */
/* True: that was the last one. */
static bool drop_first(struct outbox *b, struct pile *p)
{
    struct letter *l = p->first;
    p->first = l->next;
    frame_free(&l->payload);
    free(l);
    b->waiting--;
    return !p->first;
}

/* True: the pile is gone through. */
static bool flush_pile(struct outbox *b, struct pile *p, uint64_t now)
{
    for (;;) {
        struct letter *l = p->first;
        bool with = l->payload != NULL;
        int rc = wire_send(b->wire, WIRE_ROUTER, p->peer, &l->msg, &l->payload);
        if (rc == ERR_AGAIN && now < l->since + MAX_WAIT_NS) return false;
        b->dropped += rc != 0;
        p->with -= with;
        p->without -= !with;
        if (drop_first(b, p)) return true;
    }
}

bool outbox_flush(struct outbox *b)
{
    if (b->count == 0) return false;
    uint64_t now = clock_now_ns();
    for (size_t i = 0; i < b->count;) {
        if (flush_pile(b, &b->piles[i], now))
            b->piles[i] = b->piles[--b->count];
        else
            i++;
    }
    return b->count > 0;
}

void outbox_free(struct outbox **b)
{
    if (!*b) return;
    for (size_t i = 0; i < (*b)->count; i++)
        while (!drop_first(*b, &(*b)->piles[i])) continue;
    free((*b)->piles);
    free(*b);
    *b = NULL;
}

bool outbox_is_crowded(const struct outbox *b, uint64_t peer)
{
    const struct pile *p = find(b, peer);
    return p && p->with >= b->limit;
}

uint64_t outbox_dropped(const struct outbox *b)
{
    return b->dropped;
}
