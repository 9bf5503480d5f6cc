/* The update of one block in one pass over memory, and the learning rate that it uses. The rate is a function
 * of the frames that the block has applied, so no clock is shared. Source: DESIGN section 2. Plain functions,
 * any thread. */
#ifndef SERVER_UPDATE_H
#define SERVER_UPDATE_H

#include "common/config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct update_rule {
    enum optimizer_type type;
    float momentum;
    double rate; /* at the start */
    enum schedule_type schedule;
    double factor;       /* what the rate is multiplied with */
    uint32_t from_epoch; /* halve: first epoch (from 1) with a lower rate; newbob: told later, 0 = not yet */
    double per_frames;   /* exponential */
    uint64_t epoch_frames; /* frames of an epoch */
};

void update_rule_from(const struct config *c, uint64_t epoch_frames, struct update_rule *out);
/* Learning rate of a block that has applied `frames` (those of the update to come are not among them). Epoch
 * = frames / epoch_frames + 1; halve and newbob: rate * factor^max(0, epoch - from_epoch + 1); exponential:
 * rate * factor^(frames / per_frames). */
double update_rate(const struct update_rule *r, uint64_t frames);
/* All finite? One pass, no branch per element. */
bool update_finite(const float *g, size_t n);
/* L2 norm, summed in double precision in a fixed order. */
double update_norm(const float *g, size_t n);
/* v = mu v + g; w = w - rate v (momentum), w = w - rate g (sgd); the new weights also overwrite g. momentum
 * may be NULL for sgd. */
void update_apply(const struct update_rule *r, float rate, float *g, float *weights, float *momentum,
                  size_t n);
/* bsp: sum += g, element by element; and g /= by. */
void update_add(float *sum, const float *g, size_t n);
void update_divide(float *g, float by, size_t n);

#endif
