/* Momentum on the worker: each worker keeps the velocity of its own gradients and pushes the step that this
 * makes; the servers then do plain SGD. v = mu v + g;   pushed: g + mu v (nesterov), v (momentum) With one
 * worker the weights are those of the same momentum on the servers, bit for bit. With many, a worker's
 * velocity does not speed up the gradients of the others, and what it pulls is already where momentum is
 * about to carry the weights: that takes most of the harm out of staleness (AN4, 16 workers: DESIGN, "Quality
 * under asynchrony"). Source: Hakimi, Barkai, Gabel, Schuster 2019 (DANA-Slim). One thread. */
#ifndef WORKER_VELOCITY_H
#define WORKER_VELOCITY_H

#include "common/config.h"

#include <stddef.h>

struct velocity {
    float *values; /* (n), owned; NULL: the servers have the momentum, or there is none */
    size_t n;
    float momentum;
    bool nesterov;
};

void velocity_init(struct velocity *v, const struct config *c, size_t n);
void velocity_fini(struct velocity *v);
/* From now on, where the number of workers has changed it; 0: as it is. True: that is another one. */
bool velocity_set_momentum(struct velocity *v, double momentum);
/* grad (n), scaled and clipped, becomes what is pushed. */
void velocity_apply(struct velocity *v, float *grad);

#endif
