/* From leases to filled streams: expands each lease into its utterances by the order of its epoch, asks the
 * prefetch thread for them ahead of need, gives them to idle streams, and keeps the account of every lease. A
 * core without I/O of its own: equal leases give equal windows, however the network and the disk time them.
 * async (modulus 1): the next utterance goes to the lowest idle stream. bsp: stream s runs the positions p
 * with p % modulus == residue + s of each lease. One thread. Source: DESIGN sections 2 and 4. */
#ifndef WORKER_FEED_H
#define WORKER_FEED_H

#include "common/msg.h"
#include "worker/data/prefetch.h"
#include "worker/data/streams.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum feed_state {
    FEED_READY, /* cut a window: every stream has an utterance, or there are no more for the idle ones */
    FEED_NEEDS_LEASE, /* an idle stream waits for a lease that the coordinator may still have */
    FEED_NEEDS_LOAD,  /* an idle stream waits for the disk */
    FEED_EMPTY        /* no stream holds anything and no lease is on hand */
};

struct feed_options {
    uint64_t seed;
    int streams;         /* S */
    bool bsp;            /* every stream has a queue of its own */
    uint32_t utterances; /* n of the corpus, which every lease's end must respect */
};

struct feed;

/* Utterances asked for ahead: the capacity that the prefetch of this feed must have. */
int feed_capacity(const struct feed_options *o);
/* Prefetch and streams are borrowed until feed_free, and nobody else uses them. */
struct feed *feed_new(const struct feed_options *o, struct prefetch *p, struct streams *s);
/* Accepts NULL. */
void feed_free(struct feed **f);

/* Takes a TRAIN lease; ERR_DATA with a sentence, and nothing taken, if it makes no sense for this corpus. */
int feed_add(struct feed *f, const struct msg_lease *l);
/* Fills idle streams. more: the coordinator may have another lease (then no free stream is ever padded);
 * wait: wait for the disk where an idle stream needs it (FEED_NEEDS_LOAD is then not returned). */
enum feed_state feed_fill(struct feed *f, bool more, bool wait);
/* After FEED_READY: the next window. */
void feed_cut(struct feed *f, struct minibatch *out);
/* Rows of all windows cut so far: what is computed, and what of that is for nothing. */
struct feed_rows {
    uint64_t all;        /* T*S of every window */
    uint64_t padded;     /* hold no input */
    uint64_t unlabelled; /* hold an input without error: those of the target delay */
};
struct feed_rows feed_rows(const struct feed *f);
/* What the net made of that window. It is booked whole to the oldest lease that had frames in it, so sums
 * over all leases are exact and those of one lease are not. */
void feed_account(struct feed *f, double loss, uint64_t frames, uint64_t correct);
/* All windows cut so far are part of exchange `seq` (or of an earlier one): leases that have ended since get
 * it. */
void feed_pushed(struct feed *f, uint64_t seq);
/* The next lease whose last frame was in an exchange up to `ended`; it leaves the feed. False if there is
 * none. */
bool feed_take_used(struct feed *f, uint64_t ended, struct msg_used *out);

/* Work on hand: utterances that no stream has begun, leases of which no utterance was begun, leases in all.
 */
uint64_t feed_waiting(const struct feed *f);
uint32_t feed_unbegun(const struct feed *f);
uint32_t feed_leases(const struct feed *f);

/* --- capsules: the leases not ended, where each queue and each stream stands. */
struct feed_lease {
    struct msg_lease lease;
    double loss;
    uint64_t frames, correct;
    uint32_t left, failed; /* utterances not yet through the streams; that could not be read */
};
struct feed_queue {
    uint64_t lease;    /* id; 0: at the end of all */
    uint32_t position; /* the next one to give to a stream */
};
struct feed_cursor {
    uint64_t lease; /* 0: the stream is idle */
    uint32_t index, next_frame;
};
struct feed_image {
    uint32_t num_leases, num_queues, num_cursors; /* queues: 1 or S; cursors: S */
    struct feed_lease *leases;                    /* owned, oldest first */
    struct feed_queue *queues;
    struct feed_cursor *cursors;
};
void feed_image_fini(struct feed_image *i);
/* All leases that ended must have been taken. */
void feed_save(const struct feed *f, struct feed_image *out);
/* Into a fresh feed; waits for the disk. ERR_DATA if the image does not fit this corpus or these streams. */
int feed_restore(struct feed *f, const struct feed_image *i);

#endif
