/* What is let through: the table of members with the last sequence number per block, and the checks that a
 * pushed block goes through before it may be applied. This is where "exactly once" lives. Source: DESIGN
 * section 4. One thread. */
#ifndef SERVER_ADMIT_H
#define SERVER_ADMIT_H

#include "common/msg.h"
#include "common/snapshot.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The rows are the arrays of the shard's state, so that every copy of the state has them; `stable` beside
 * them is what a snapshot on disk holds. */
struct admit_table {
    struct shard_state *state; /* borrowed; its members, last_seq and verdict grow here */
    uint64_t *stable;          /* (num_members, count), owned */
    uint32_t capacity, max_members;
    uint64_t oldest; /* lower members are retired */
};

/* What the state holds is stable: it comes from a snapshot. */
void admit_init(struct admit_table *t, struct shard_state *state, uint32_t max_members);
void admit_fini(struct admit_table *t);
/* The first of n rising numbers that is not below `member`; n if there is none. */
uint32_t admit_lower_bound(const uint64_t *members, uint32_t n, uint64_t member);
/* Row of a member, or -1. */
int64_t admit_find(const struct admit_table *t, uint64_t member);
/* Makes a row if there is none. 0, REFUSAL_RETIRED or REFUSAL_FULL. */
uint32_t admit_member(struct admit_table *t, uint64_t member);
/* Who this shard is, for admit_hello. */
struct admit_identity {
    uint64_t job, model_hash;
    uint32_t shard, job_generation;
    uint32_t consistency, optimizer, gradients, weights; /* as in struct msg_hello */
};
/* A HELLO: 0, the member has a row; or an enum msg_refusal with a sentence (for MISMATCH it shows both
 * sides).
 */
uint32_t admit_hello(struct admit_table *t, const struct admit_identity *us, const struct msg *m,
                     char text[MSG_TEXT]);
/* Drops the rows of members below `oldest`; a lower number than before changes nothing. */
void admit_set_oldest(struct admit_table *t, uint64_t oldest);
/* Takes over what another state, now on disk, holds. */
void admit_stable(struct admit_table *t, const struct shard_state *written);

struct admit_limits {
    uint32_t job_generation, generation;
    uint64_t max_staleness; /* 0 = off */
    double max_norm;        /* 0 = off */
};

enum admission {
    ADMIT_NEW,       /* its seq is used up, whatever admit_gradient says of it */
    ADMIT_RETURN,    /* its verdict is answered and not stored */
    ADMIT_DUPLICATE, /* answered again from the stored verdict */
    ADMIT_LATE       /* dropped */
};

/* Generations, then seq, then hash. payload: len bytes; last and stored are the block's last seq and verdict
 * of this member. *verdict: what to answer, but for ADMIT_NEW. */
enum admission admit_push(const struct admit_limits *l, const struct msg_push *p, const void *payload,
                          size_t len, uint64_t last, uint32_t stored, uint32_t *verdict);
/* The verdict on a new push: STALE, NONFINITE, NORM or APPLIED. norm: of its gradient, not finite if that is
 * not; staleness in versions. */
uint32_t admit_gradient(const struct admit_limits *l, uint64_t staleness, double norm);

#endif
