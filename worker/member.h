/* A worker as the coordinator knows it: joining, beats, leases asked ahead, reports of used leases until they
 * are acknowledged, the map of the shards, the capsule handed over in pages. A core without I/O, as the
 * exchange is. Everything it sends may be lost: it sends it again. Source: DESIGN section 4. One thread. */
#ifndef WORKER_MEMBER_H
#define WORKER_MEMBER_H

#include "common/msg.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdint.h>

struct member_options {
    uint64_t job, model_hash;
    char host[64];
    uint64_t pid;
    uint32_t max_leases; /* granted and not begun; asks for more while below member_want */
    uint64_t beat_ns;    /* 1 s */
    uint64_t retry_ns;   /* 1 s: ask again */
};

struct member_io {
    void *ctx;
    bool (*send)(void *ctx, const struct msg *m,
                 struct frame **payload); /* to the coordinator; as exchange_io */
};

struct member;

struct member *member_new(const struct member_options *o, const struct member_io *io);
void member_free(struct member **m);
void member_receive(struct member *m, uint64_t now, const struct msg *msg, struct frame **payload);
void member_tick(struct member *m, uint64_t now);
uint64_t member_next(const struct member *m); /* when member_tick has something to do, ns */
/* The connection to the coordinator is new (its incarnation may be, too): join again under the same number.
 */
void member_reconnected(struct member *m, uint64_t now);

/* Tells the coordinator, once, that we go. */
void member_leave(struct member *m);

/* --- what the coordinator said */
uint64_t member_number(const struct member *m); /* 0: not joined yet */
uint32_t member_rank(const struct member *m);
uint32_t member_job_generation(const struct member *m);
/* 0, or negative: refused (sentence in err_text()); ERR_AGAIN: retired, start over with a new member. */
int member_trouble(const struct member *m);
uint32_t member_command(const struct member *m); /* enum msg_command */
/* That each worker keeps for itself now, 0 <= momentum < 1; 0: as the job file says. */
double member_momentum(const struct member *m);
/* The map: 0 = not complete yet; another number whenever an endpoint or a generation in it changes. */
uint32_t member_map_version(const struct member *m);
uint32_t member_shards(const struct member *m);
const char *member_endpoint(const struct member *m, uint32_t shard);
uint32_t member_shard_generation(const struct member *m, uint32_t shard);

/* --- leases */
/* The next granted lease in the order of the grants; false if none is on hand. */
bool member_take(struct member *m, struct msg_lease *out);
/* Ask for one more as soon as possible (true), or not now. Set by the training loop from the work on hand.
 * false also forgets a WAIT. */
void member_want(struct member *m, bool more);
/* The last answer to an asking since member_want became true was WAIT, and nothing is on hand. */
bool member_waits(const struct member *m);
/* A request is unanswered: a lease may be on its way. */
bool member_asking(const struct member *m);
/* Reports until acknowledged; u->member is filled in. */
void member_report(struct member *m, uint64_t now, const struct msg_used *u);
int member_unacknowledged(const struct member *m);

/* --- progress, told in the beats */
struct member_progress {
    uint64_t seq, frames;
    double frames_per_s, staleness_mean;
};
void member_progress(struct member *m, const struct member_progress *p);

/* --- capsules */
/* The set for which we shall stand still; 0: go on. */
uint32_t member_hold(const struct member *m);
/* Hands the capsule of that set over (copied, len > 0); sent in pages until the coordinator has it all.
 * Given again for the same set, it replaces the earlier one. Ignored if that set is no longer asked for. */
void member_give_capsule(struct member *m, uint64_t now, uint32_t set, const void *data, size_t len);
/* At the start: bytes of a capsule that waits for us (0 = none), and the whole of it once it is here (NULL
 * before). A view. */
uint64_t member_capsule_bytes(const struct member *m);
const void *member_capsule(const struct member *m);

#endif
