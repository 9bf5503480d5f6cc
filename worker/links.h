/* A worker's connections: one to the coordinator, one to each shard, and the cores that speak over them. Glue
 * alone: what comes in goes to exchange or member, their ticks are called in time, a change of the map
 * connects anew, and a coordinator that is gone is looked for in RUN/members/coordinator. One thread. */
#ifndef WORKER_LINKS_H
#define WORKER_LINKS_H

#include "common/rendezvous.h"
#include "worker/exchange.h"
#include "worker/job.h"
#include "worker/member.h"

#include <stdbool.h>
#include <stdint.h>

struct links {
    struct exchange *exchange; /* owned; its member is set once we have joined */
    struct member *member;     /* owned */
    struct wire *wire;         /* inside */
    const struct job *job;
    char *endpoint;               /* of the coordinator as given, NULL = look it up */
    struct rendezvous found;      /* what the last lookup told, to see a change */
    int coordinator;              /* link, -1 = none */
    int *shard;                   /* (shards) links, -1 = none */
    char (*at)[MSG_MAX_ENDPOINT]; /* (shards) what they are connected to */
    uint32_t *generation;         /* (shards) as the map had it */
    uint32_t shards, map_version;
    uint64_t heard, looked; /* ns: last word of the coordinator; last look for it */
    int stop_fd;            /* an eventfd that ends a wait, -1 = none; emptied here */
};

/* j is borrowed. endpoint: "tcp://..." or NULL: wait for RUN/members/coordinator. ERR_REACH for an endpoint
 * that makes no sense. */
int links_open(const struct job *j, const char *endpoint, int stop_fd, struct links **out);
/* Accepts NULL. */
void links_close(struct links **l);
/* Handles what has come, waiting up to timeout_ms for the first of it, and sends what is due. 0, or trouble
 * of the exchange or the member: negative with a sentence, ERR_AGAIN = join anew. */
int links_pump(struct links *l, int timeout_ms);
/* How long the coordinator has been silent, ns. */
uint64_t links_silence(const struct links *l);

#endif
