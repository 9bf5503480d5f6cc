/* The inside of a shard, for shard.c and shard_*.c alone. */
#ifndef SERVER_SHARD_INSIDE_H
#define SERVER_SHARD_INSIDE_H

#include "server/admit.h"
#include "server/backup_weights.h"
#include "server/clocks.h"
#include "server/roster.h"
#include "server/shard.h"

struct kept {
    uint32_t set;
    const struct shard_state *copy; /* borrowed */
};

/* ssp: an answer that is kept back. */
struct waiter {
    uint64_t member, seq, peer, staleness;
    uint64_t since; /* ns */
    uint32_t verdict;
};

/* Those of one block, in the order in which they came. */
struct waiters {
    struct waiter *all; /* owned */
    uint32_t num, capacity;
};

struct shard {
    struct shard_options o;
    struct shard_io io;
    struct shard_state *state; /* owned */
    struct admit_table table;
    struct pace pace;
    uint32_t roster_id;            /* in force; 0: none yet */
    struct roster roster;          /* bsp */
    struct clocks clocks;          /* ssp */
    struct waiters *waiting;       /* ssp: (count), owned */
    struct backup_weights backups; /* delay compensation */
    float *scratch;                /* bsp, narrow gradients: (2, block), owned; else NULL */
    struct staleness *staleness;
    struct staleness_history *history; /* (count), owned */
    struct shard_counts counts;
    struct kept *kept;
    uint32_t num_kept;
};

/* A well-formed push of a known member. */
struct pushed {
    const struct msg_push *p;
    uint64_t peer, now;
    uint32_t local; /* block - first of the shard */
    int64_t row;    /* of the member, -1 if it was dropped meanwhile */
};

/* What becomes of a push, apart from its weights. */
struct outcome {
    uint32_t verdict;
    uint64_t staleness;
    struct ticket ticket; /* backup workers; quorum 0: takes no part */
    bool is_packed;       /* the frame holds the weights of the answer already */
};

/* --- shard.c */
uint32_t shard_floats(const struct shard *s, uint32_t local);
float *shard_weights(const struct shard *s, uint32_t local); /* of a block */
bool shard_owns(const struct shard *s, uint32_t block);
uint32_t shard_credit(const struct shard *s);
void shard_refuse(struct shard *s, uint64_t peer, uint32_t reason, const char *text);
void shard_refuse_stranger(struct shard *s, uint64_t peer);
/* A frame for the weights of a block as they travel: `came` (or NULL) if that has the right size, else a new
 * one. */
struct frame *shard_room(const struct shard *s, uint32_t local, struct frame *came);
/* The weights of a block as they travel, in *frame (or NULL) or a new one; is_packed: it has them already.
 * Remembered as what the member was sent. */
void shard_pack(struct shard *s, uint64_t member, uint32_t local, bool is_packed, struct frame **frame);

/* --- shard_push.c: one push */
void shard_push_receive(struct shard *s, uint64_t now, uint64_t peer, const struct msg *m,
                        struct frame **frame);
/* Versions that passed since the push's weights, not counting the update of the push itself. */
uint64_t shard_push_staleness(const struct shard *s, const struct pushed *in, bool counts_itself);
/* The verdict alone. */
void shard_push_answer_bare(struct shard *s, const struct pushed *in, const struct outcome *out);
/* The verdict with the present weights, if the push asked for them. Takes *frame. */
void shard_push_answer(struct shard *s, const struct pushed *in, const struct outcome *out,
                       struct frame **frame);
/* Uses up its seq; counts a refusal. */
void shard_push_store(struct shard *s, const struct pushed *in, uint32_t verdict);
/* Before its update: a push that is applied. */
void shard_push_record(struct shard *s, const struct pushed *in);
/* One step of a block with gradient g, which then holds the new weights. */
void shard_push_apply(struct shard *s, uint32_t local, float *g, uint64_t frames);
/* The block has had a step of so many frames: version + 1. */
void shard_push_count_step(struct shard *s, uint32_t local, uint64_t frames);
void shard_push_tell(struct shard *s, const struct pushed *in);

/* --- shard_ssp.c: answers that wait for the slowest member */
void shard_ssp_init(struct shard *s);
void shard_ssp_fini(struct shard *s);
/* A push that used up its seq: answers it, in *frame, or keeps the answer back. */
void shard_ssp_answer(struct shard *s, const struct pushed *in, const struct outcome *out,
                      struct frame **frame);
/* A resend: true if its answer is being kept back, and not for too long yet; then that is said. */
bool shard_ssp_is_waiting(struct shard *s, const struct pushed *in);
void shard_ssp_roster(struct shard *s, uint64_t now, const uint64_t *members, uint32_t n);
void shard_ssp_drop_below(struct shard *s, uint64_t now, uint64_t oldest);

/* --- shard_bsp.c: steps of a roster */
/* Holds a push until its step is complete. Takes *frame if it keeps it. */
void shard_bsp_hold(struct shard *s, const struct pushed *in, uint32_t verdict, struct frame **frame);
/* Backup workers: the push has a ticket where it needs one. */
bool shard_bsp_is_sound(const struct shard *s, const struct msg_push *p);
/* The push asks for a ticket and comes from the weights before a step that went on without it. */
bool shard_bsp_is_left_out(const struct shard *s, const struct pushed *in);
/* What an answer with that verdict says of steps: of the last one that the member took part in; STALE: of the
 * last one that was made. Zeros for other blocks than the first, or if there are no backup workers. */
struct ticket shard_bsp_ticket(const struct shard *s, const struct pushed *in, uint32_t verdict);

#endif
