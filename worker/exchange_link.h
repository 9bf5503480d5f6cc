/* Inside of the exchange: its state, and the sending half (exchange_link.c); exchange.c has the rest; only
 * these two files include it. */
#ifndef WORKER_EXCHANGE_LINK_H
#define WORKER_EXCHANGE_LINK_H

#include "worker/exchange.h"

#include <stdatomic.h>

enum item_state {
    ITEM_DONE,
    ITEM_TODO,   /* to be sent when there is credit */
    ITEM_FLYING, /* sent, has a credit */
    ITEM_HELD    /* the credit is back: VERDICT_RECEIVED, the weights follow; or a READ to be asked again */
};

/* What one block still has to go through: a PUSH, or a READ. */
struct item {
    enum item_state state;
    bool read;
    bool sent;     /* at least once */
    bool prepared; /* a PUSH: its bytes are encoded and hashed, once */
    unsigned backoff, corrupt;
    uint64_t deadline;                        /* FLYING, HELD: then TODO again */
    uint64_t request, step;                   /* of a READ */
    uint64_t base_version, base_age_us, hash; /* of a PUSH, taken when it began: `into` may be `base` */
    uint32_t base_generation;
};

enum link_state { LINK_COLD, LINK_HELLO, LINK_READY };

struct link {
    enum link_state state;
    uint32_t first, count; /* its blocks */
    uint32_t generation;   /* from WELCOME; never goes back */
    uint32_t credit;       /* 1..o.credit, as the server last said */
    uint32_t in_flight;    /* items FLYING; only sent while below the credit */
    uint32_t waiting;      /* items FLYING or HELD */
    uint64_t due;          /* none of those has a deadline before this */
    uint32_t todo;         /* no block before this one is TODO */
    unsigned backoff;      /* of HELLO */
    uint64_t deadline;     /* of HELLO */
    uint64_t retry;        /* send() said no: not before this */
};

/* Frames that borrow grad or encoded, plus one for the exchange; the last one frees it (a frame may outlive
 * us). */
struct lends {
    atomic_size_t count;
    uint8_t *encoded; /* (blocks, stride) the gradient as it travels; NULL for fp32: grad itself is lent */
};

enum op { OP_NONE, OP_PUSH, OP_READ };

struct exchange {
    struct exchange_options o;
    struct exchange_io io;
    struct link *links; /* (shards) */
    struct item *items; /* (blocks) */
    struct lends *lends;
    size_t stride;   /* bytes from block to block in lends->encoded */
    float *residual; /* (P), owned: what encoding has taken off; NULL for fp32 */
    uint64_t member, seq, request;
    uint32_t job_generation;
    int trouble;
    /* what is under way */
    enum op op;
    uint32_t unfinished;          /* items not DONE */
    uint32_t lost;                /* blocks of this push */
    uint32_t set;                 /* of READs */
    bool pull, read_failed, held; /* held: some block was, first at held_since */
    uint64_t held_since;
    uint32_t quorum; /* tickets: 0 until block 0 has brought one */
    uint64_t step;   /* of the ticket */
    float *grad;
    struct weights *into;
    uint64_t frames, skew;
    struct exchange_counts counts;
};

/* Frees the counter with the last of them. */
void exchange_lend_release(void *data, void *ctx);
void exchange_item_set(struct exchange *x, struct link *l, struct item *it, enum item_state state);
/* A PUSH or READ of this block is to be sent. */
void exchange_item_begin(struct exchange *x, struct link *l, struct item *it, bool read);
/* NULL if this block is not that shard's. */
struct item *exchange_item_of(struct exchange *x, uint32_t shard, uint32_t block);
/* FLYING or HELD until then. */
void exchange_item_wait(struct exchange *x, struct link *l, struct item *it, enum item_state state,
                        uint64_t deadline);
/* What came or arrived there was garbled: the pump that follows sends it again, a few times. */
void exchange_item_again(struct exchange *x, struct link *l, struct item *it);
/* Sends what is due and what the credit allows, in the order of the blocks. */
void exchange_link_pump(struct exchange *x, uint64_t now, uint32_t shard);
/* HELLO is due; after WELCOME what is not answered is sent again. */
void exchange_link_hello(struct exchange *x, uint64_t now, uint32_t shard);
/* The shard has another life: what it has not answered is lost, and all its blocks are read anew. If one of
 * them was to bring the ticket, what waits for that is lost, too. */
void exchange_link_lose(struct exchange *x, struct link *l);
/* No ticket will come: the blocks that wait for it are read instead, as they are after that step (0: as they
 * are). Returns how many. */
uint32_t exchange_link_ungate(struct exchange *x, uint64_t step);
/* Is some of the gradient under way from weights of an earlier life of this shard? */
bool exchange_link_is_stale(const struct exchange *x, const struct link *l);
uint64_t exchange_link_next(const struct exchange *x, const struct link *l);

#endif
