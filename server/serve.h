/* The serving loop: what comes in goes to the shard; what the coordinator orders is done; copies of the shard
 * are written beside. One thread (and the one of checkpoint.c). */
#ifndef SERVER_SERVE_H
#define SERVER_SERVE_H

#include "common/snapshot.h"
#include "common/wire.h"
#include "server/link.h"
#include "server/shard.h"

struct serve_options {
    const char *run;
    const struct facts *facts;
    struct shard_options shard;
    uint32_t set;  /* newest set that needs no copy of ours any more: what we were restored from */
    bool is_whole; /* our state is exactly that complete set: it can be read here at once */
};

/* Serves until the coordinator orders otherwise: 0 finished, ERR_INTERRUPTED, ERR_DIVERGED; ERR_REACH if
 * there was no word of it for 60 s (10 s after TERM: ERR_INTERRUPTED). The link has joined. Takes *state. */
int serve_run(const struct serve_options *o, struct wire *w, struct link *l, struct shard_state **state);

/* TERM and INT from now on only ask for the end, once; so they may come before serve_run. */
void serve_catch_signals(void);
bool serve_was_asked_to_stop(void);

#endif
