/* Inside of the feed: its state. feed.c feeds, feed_image.c saves and restores; only these two include it. */
#ifndef WORKER_FEED_STATE_H
#define WORKER_FEED_STATE_H

#include "worker/feed.h"

#define ORDERS 2 /* epochs that overlap: the tail of one, the head of the next */

struct lease {
    struct feed_lease sum;
    bool begun, ended;
    bool pushed; /* ended, and last_seq is known */
    uint64_t last_seq;
};

/* Position `position` in the order of a lease's epoch; lease 0: at the end of all leases. */
struct place {
    uint64_t lease;
    uint32_t position;
};

enum entry_state { ENTRY_ASKED, ENTRY_LOADED, ENTRY_FAILED };
struct entry {
    struct place place;
    enum entry_state state;
    struct utterance *u; /* ENTRY_LOADED: owned */
};

/* Utterances in the order in which they go to streams. */
struct queue {
    struct place ask;    /* the next one to ask the prefetch for */
    struct entry *ahead; /* (capacity) ring: asked for and not yet given */
    int capacity, head, count;
};

struct order {
    bool known;
    uint32_t epoch;
    uint32_t *perm; /* (utterances), owned */
};

struct feed {
    struct feed_options options;
    struct prefetch *prefetch; /* borrowed */
    struct streams *streams;   /* borrowed */
    struct lease *leases;      /* (num_leases), in the order in which they came */
    uint32_t num_leases, room;
    struct queue *queues; /* (num_queues): 1, or S in bsp */
    int num_queues;
    struct order orders[ORDERS];
    int next_order;        /* to be overwritten */
    uint64_t window_lease; /* to which the last window is booked */
    struct feed_rows rows;
};

/* NULL if there is no such lease. */
struct lease *feed_find_lease(const struct feed *f, uint64_t id);
/* The first position >= from of the lease that belongs to queue q; false if there is none. */
bool feed_seek(const struct msg_lease *l, int q, uint64_t from, uint32_t *out);
/* How many there are of them. */
uint32_t feed_count_from(const struct msg_lease *l, int q, uint64_t from);
/* Utterances of the lease over all queues of this feed. */
uint32_t feed_count_all(const struct feed *f, const struct msg_lease *l);
/* ERR_DATA unless the lease is new and fits data and streams. */
int feed_check_lease(const struct feed *f, const struct msg_lease *l);
struct lease *feed_append_lease(struct feed *f, const struct msg_lease *l);
/* One utterance of the lease is through. */
void feed_end_one(struct lease *l);
/* The i-th of those asked for ahead. */
struct entry *feed_entry_at(struct queue *q, int i);

#endif
