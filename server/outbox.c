#include "server/outbox.h"

#include "common/clock.h"
#include "common/err.h"

#include <stdlib.h>
#include <string.h>

#define MAX_WAITING 1024
#define MAX_WAIT_NS (5 * NS_PER_S)

struct letter {
    uint64_t peer, since;
    struct msg msg;
    struct frame *payload;
};

struct outbox {
    struct wire *wire;
    struct letter *letters; /* in the order in which they were given */
    size_t count;
    uint64_t dropped;
};

struct outbox *outbox_new(struct wire *w)
{
    struct outbox *b = xcalloc(1, sizeof *b);
    b->wire = w;
    b->letters = xcalloc(MAX_WAITING, sizeof *b->letters);
    return b;
}

void outbox_free(struct outbox **b)
{
    if (!*b) return;
    for (size_t i = 0; i < (*b)->count; i++) frame_free(&(*b)->letters[i].payload);
    free((*b)->letters);
    free(*b);
    *b = NULL;
}

static bool is_waiting(const struct outbox *b, uint64_t peer)
{
    for (size_t i = 0; i < b->count; i++)
        if (b->letters[i].peer == peer) return true;
    return false;
}

void outbox_send(struct outbox *b, uint64_t now, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct frame *none = NULL, **p = payload ? payload : &none;
    int rc = is_waiting(b, peer) ? ERR_AGAIN : wire_send(b->wire, WIRE_ROUTER, peer, m, p);
    if (rc == 0) return;
    if (rc == ERR_AGAIN && b->count < MAX_WAITING) {
        b->letters[b->count++] = (struct letter){peer, now, *m, *p};
        *p = NULL;
        return;
    }
    b->dropped++;
    frame_free(p);
}

/* A peer whose queue is full again keeps its later letters back, too. */
static bool goes_out(struct outbox *b, struct letter *l, uint64_t now, bool is_blocked)
{
    int rc = is_blocked ? ERR_AGAIN : wire_send(b->wire, WIRE_ROUTER, l->peer, &l->msg, &l->payload);
    if (rc == 0) return true;
    if (rc == ERR_AGAIN && now < l->since + MAX_WAIT_NS) return false;
    b->dropped++;
    frame_free(&l->payload);
    return true;
}

bool outbox_flush(struct outbox *b, uint64_t now)
{
    size_t kept = 0, total = b->count;
    for (size_t i = 0; i < total; i++) {
        struct letter *l = &b->letters[i];
        b->count = kept; /* is_waiting looks at those that stay */
        if (!goes_out(b, l, now, is_waiting(b, l->peer))) {
            if (i != kept) b->letters[kept] = *l;
            kept++;
        }
    }
    b->count = kept;
    return kept > 0;
}

uint64_t outbox_dropped(const struct outbox *b)
{
    return b->dropped;
}
