/* One shard: a run of blocks with weights, optimizer state, versions and the table of the last sequence
 * number per member and block with its verdict. A core without I/O: it is given messages and a time and sends
 * answers through shard_io; the simulator drives this same code. What a pushed block goes through: admit.c
 * decides, pace.c says how far, update.c computes, staleness.c records; shard_ssp.c and shard_bsp.c say when.
 * The answers of a member grant it fewer blocks in flight the more members there are: SHARD_CREDIT for all.
 * Source: DESIGN sections 2 and 4. One thread. */
#ifndef SERVER_SHARD_H
#define SERVER_SHARD_H

#include "common/blocks.h"
#include "common/msg.h"
#include "common/snapshot.h"
#include "common/wire.h"
#include "server/pace.h"
#include "server/staleness.h"
#include "server/update.h"

#include <stdbool.h>
#include <stdint.h>

#define SHARD_CREDIT 256 /* blocks in flight of all members together, but one for each at least */

struct shard_options {
    uint32_t shard, shards;
    uint64_t job, model_hash;
    uint32_t job_generation, generation;
    struct update_rule rule;
    struct pace_rule pace;
    enum consistency_mode mode;
    uint32_t bound;                       /* ssp: steps */
    uint32_t backup;                      /* bsp: gradients that a step does not wait for */
    uint32_t max_staleness;               /* async, ssp: 0 = off */
    bool mean;                            /* bsp: divide the sum by the number of gradients in it */
    double max_norm;                      /* refuse a block's gradient above this L2 norm; 0 = off */
    enum element_type gradients, weights; /* on the wire */
    uint32_t max_members;
    uint32_t credit; /* blocks in flight per member at most, >= 1; fewer where there are many members */
};

struct shard_io {
    void *ctx;
    /* Takes *payload (may be NULL or point to NULL). Losing the message is allowed. */
    void (*send)(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload);
    /* After an update, for tests and the simulator; may be NULL. Also in a bsp step of no frames, which
     * changes nothing: its version does not rise. */
    void (*applied)(void *ctx, uint64_t member, uint64_t seq, uint32_t block, uint64_t version);
    /* May be NULL. True: this peer does not read its answers: a PUSH or READ of it is dropped before anything
     * is made of it, and counted as overrun. */
    bool (*crowded)(void *ctx, uint64_t peer);
};

struct shard_counts {
    uint64_t applied, duplicate, late; /* late: seq below the last, dropped */
    uint64_t nonfinite, norm, stale, generation, corrupt, stranger;
    uint64_t malformed; /* number, length or type of a block, a message that is not for a shard */
    uint64_t overrun;
    uint64_t waits, wait_ns; /* answers with weights that a bound or a roster kept back, and for how long */
    uint64_t frames_in;      /* with error, of applied pushes of every block */
    uint64_t bytes_in;       /* of payload */
};

struct shard;

/* Takes *state (blocks first..first+count with their table) and sets *state to NULL. */
struct shard *shard_new(const struct shard_options *o, const struct shard_io *io, struct shard_state **state);
void shard_free(struct shard **s);
/* HELLO, PUSH, READ; anything else is counted as malformed. now in ns. Consumes *payload. */
void shard_receive(struct shard *s, uint64_t now, uint64_t peer, const struct msg *m, struct frame **payload);
/* A copy of everything, for a checkpoint set. */
struct shard_state *shard_copy(const struct shard *s);
/* Keeps a copy so that READs of that set (> 0) are answered; borrowed until it is dropped or replaced by a
 * call with that set again. NULL copy: drop. */
void shard_keep(struct shard *s, uint32_t set, const struct shard_state *copy);
/* A snapshot is on disk: from now on answers carry its sequence numbers as stable. */
void shard_stable(struct shard *s, const struct shard_state *written);
/* An id that is not above the one in force changes nothing. bsp: members in rank order, in force at once (a
 * roster is only issued while nobody steps); what was held for the roster before is dropped. ssp: the members
 * that nobody may leave behind (n may be 0); a newcomer among them starts at the step of the slowest; answers
 * that nothing keeps back any more go out. */
void shard_roster(struct shard *s, uint64_t now, uint32_t id, const uint64_t *members, uint32_t n);
/* So many workers train now (>= 1). True: that changes the rate. */
bool shard_workers(struct shard *s, uint32_t workers);
/* newbob: first epoch (from 1) with a lower rate. */
void shard_halve_from(struct shard *s, uint32_t epoch);
/* Entries of members below this number may go; nobody waits for them any more. */
void shard_oldest_member(struct shard *s, uint64_t now, uint64_t member);

uint64_t shard_version(const struct shard *s); /* smallest over its blocks */
uint64_t shard_frames(const struct shard *s);  /* smallest over its blocks */
uint32_t shard_num_members(const struct shard *s);
const struct shard_counts *shard_counts(const struct shard *s);
uint64_t shard_refused(const struct shard_counts *c); /* for whatever reason */
struct staleness *shard_staleness(struct shard *s);
const struct shard_state *shard_look(const struct shard *s); /* a view, for tests and checks */

#endif
