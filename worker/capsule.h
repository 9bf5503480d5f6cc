/* The capsule of a worker: what it must hand over at a checkpoint that promises identical bits. Recurrent
 * state, what rounding on the wire still owes to the servers, where streams and queues stand, the accounts of
 * its leases, its counters. Bytes: the word "CHORALE3", the numbers in little-endian order, XXH3 of all
 * before it. Plain functions, any thread. Source: DESIGN section 5. */
#ifndef WORKER_CAPSULE_H
#define WORKER_CAPSULE_H

#include "worker/feed.h"

#include <stddef.h>
#include <stdint.h>

struct capsule {
    uint64_t model_hash;
    uint64_t windows, frames; /* computed so far, by all lives of this rank */
    uint64_t nonfinite;       /* gradients thrown away */
    uint32_t threads;         /* N, whose states follow each other */
    size_t state_size;
    float *state;                        /* (state_size) as team_get_state; owned */
    size_t residual_size, velocity_size; /* P, or 0 */
    float *residual;                     /* of the error feedback, 0 where gradients travel as fp32; owned */
    float *velocity;                     /* of momentum that is kept here; owned */
    struct feed_image feed;
};

void capsule_fini(struct capsule *c);
/* Owned by the caller (free). */
void *capsule_write(const struct capsule *c, size_t *len);
/* ERR_DATA with a sentence for bytes that are not a whole capsule; sizes are checked before they are used.
 * What the numbers mean is checked by feed_restore and the caller. */
int capsule_read(const void *bytes, size_t len, struct capsule *out);

#endif
