/* Writes the copies of a shard to disk on a thread of its own, so that serving never waits for a disk. One
 * write at a time; while it runs, the newest wish alone waits. A write that fails leaves the older sets as
 * they are, raises an alarm in the log and is told as a result: training goes on. All functions are for the
 * serving thread; the thread in here only reads the state that it is writing. */
#ifndef SERVER_CHECKPOINT_H
#define SERVER_CHECKPOINT_H

#include "common/snapshot.h"

#include <stdbool.h>
#include <stdint.h>

struct checkpoint;

struct checkpoint_result {
    uint32_t set;
    int rc; /* 0, or a negative enum err: already in the log */
    const struct shard_state *state;
    struct snapshot_file file; /* if rc is 0 */
};

/* f is borrowed for life. ERR_FAIL if there is no thread to be had. */
int checkpoint_new(const char *run, const struct facts *f, uint32_t shard, uint32_t shards,
                   struct checkpoint **out);
/* Waits for the write under way; a wish that waits is forgotten. Accepts NULL. */
void checkpoint_free(struct checkpoint **c);
/* Becomes readable when there is a result (wire_watch). */
int checkpoint_fd(const struct checkpoint *c);
/* The state is borrowed until checkpoint_uses says no. An older wish that still waits is dropped. */
void checkpoint_write(struct checkpoint *c, uint32_t set, const struct shard_state *state);
/* The result of the last write, once; the next write begins after it was taken. */
bool checkpoint_poll(struct checkpoint *c, struct checkpoint_result *out);
bool checkpoint_uses(struct checkpoint *c, const struct shard_state *state);

#endif
