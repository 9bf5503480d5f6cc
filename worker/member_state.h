/* Inside of the member: its state. member_send.c sends what is due, member.c has the rest; only these two
 * include it. */
#ifndef WORKER_MEMBER_STATE_H
#define WORKER_MEMBER_STATE_H

#include "worker/member.h"

#define MEMBER_PAGE     (256u << 10) /* bytes of a capsule in one message */
#define MEMBER_MAX_USED 1024         /* reports not acknowledged; no lease is asked for above half of it */

struct report {
    struct msg_used used;
    uint64_t at; /* to be sent (again) */
};

/* A capsule on its way out, stop and wait: the next page starts where the coordinator's bytes of this attempt
 * end. */
struct give {
    uint8_t *data; /* NULL: none */
    uint64_t len, have, at;
    uint64_t seq, request; /* exchanges that had ended, and `taken`, when it was given */
    uint32_t set, attempt;
};

struct map {
    struct msg_shard_at *at; /* (shards) */
    uint32_t version, count; /* of the coordinator; pages so far are shards 0..count */
};

struct member {
    struct member_options o;
    struct member_io io;
    bool joined, left;
    uint64_t number, join_at, beat_at;
    uint32_t rank, job_generation, incarnation, shards, command;
    int trouble;
    struct member_progress progress;
    /* map */
    struct map map, stage;
    uint32_t map_changes, map_wanted;
    bool map_due;
    double momentum;
    uint64_t map_at;
    /* leases */
    struct msg_lease *queue; /* ring of max_leases */
    uint32_t queue_head, queue_len;
    bool want, asking, fresh, waits;        /* fresh: asked since want became true */
    uint64_t request, taken, ask_at, pause; /* taken: the question whose lease was last taken */
    struct report *reports;                 /* (MEMBER_MAX_USED) */
    int num_reports;
    /* capsules */
    uint32_t hold, hold_done, newest; /* newest: set named so far */
    uint64_t zero_since;              /* an ORDER said go on; 0: none */
    struct give give;
    uint8_t *capsule;
    uint64_t capsule_bytes, capsule_have, capsule_at;
};

static inline bool member_giving(const struct member *m)
{
    return m->give.data != NULL && m->give.have < m->give.len;
}
static inline bool member_fetching(const struct member *m)
{
    return m->capsule_have < m->capsule_bytes;
}

#endif
