/* Copies of the shard in memory, one for each checkpoint set: the writer puts them on disk, evaluations READ
 * them. How many there are is bounded here, whatever the coordinator orders. One thread, as the shard. */
#ifndef SERVER_COPIES_H
#define SERVER_COPIES_H

#include "server/shard.h"

#define COPIES_KEPT 8 /* evaluations that lag further behind lose theirs */

struct copy {
    uint32_t set;
    struct shard_state *state; /* owned */
    bool is_kept;              /* the shard answers READs from it */
};

/* Zeroed but for the shard and, where copies are written, in_use. */
struct copies {
    struct shard *shard; /* borrowed */
    /* May be NULL: is this state being written, or waits for it? At most two are. Such a copy goes after
     * that. */
    bool (*in_use)(void *ctx, const struct shard_state *state);
    void *ctx;
    struct copy list[COPIES_KEPT + 2]; /* + those that are in use alone */
    uint32_t num;
};

/* After shard_free. */
void copies_fini(struct copies *c);
/* A copy of the shard as it is now, of a set newer than all there are; borrowed while it is in use. */
struct shard_state *copies_add(struct copies *c, uint32_t set);
const struct shard_state *copies_find(const struct copies *c, uint32_t set); /* NULL: there is none */
/* keep_set is the oldest that is still to be read, 0: none. It stays, the newest does, and as many of those
 * between as there is room for. */
void copies_drop(struct copies *c, uint32_t keep_set);

#endif
