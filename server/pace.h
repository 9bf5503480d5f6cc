/* How large a step is: rate and momentum of an update, as a function of the frames that the block has applied
 * (so no clock is shared), of the number of workers and of the staleness of the push.
 *
 *   schedule   rate * factor^k, see pace_rate
 *   warm-up    times (frames + 1) / warmup_frames, below that: not even the first step is none
 *   workers    the job file gives rate, momentum and warm-up of one worker; pace_follow says what becomes of
 * them with more, and a change takes effect in a line over a twentieth of an epoch staleness  divide: the
 * rate over max(1, staleness)
 *
 * Source: DESIGN section 2 and "Quality under asynchrony"; staleness: Zhang 2016; momentum: Mitliagkas 2016.
 * One thread. */
#ifndef SERVER_PACE_H
#define SERVER_PACE_H

#include "common/config.h"

#include <stdbool.h>
#include <stdint.h>

struct pace_rule {
    double rate, momentum; /* of one worker */
    double warmup_frames;
    bool divides;   /* by the staleness */
    bool follows;   /* the number of workers */
    bool at_worker; /* momentum is kept by the workers: the servers have none */
    enum schedule_type schedule;
    double factor;       /* what the rate is multiplied with */
    uint32_t from_epoch; /* halve: first epoch (from 1) with a lower rate; newbob: told later, 0 = not yet */
    double per_frames;   /* exponential */
    uint64_t epoch_frames; /* frames of an epoch */
};

#define PACE_MAX_MOMENTUM 0.98 /* of workers that keep it, however many */

/* rate *= rate_factor. momentum: of whoever keeps it. */
struct pace_setting {
    double rate_factor, momentum, warmup_frames;
};

struct pace {
    struct pace_rule rule;
    uint32_t workers; /* 0: not told, as one */
    struct pace_setting from, to;
    uint64_t changed; /* frames applied when `to` began to be approached */
};

void pace_rule_from(const struct config *c, uint64_t epoch_frames, struct pace_rule *out);
/* Schedule and warm-up alone. Learning rate of a block that has applied `frames` (those of the update to come
 * are not among them). Epoch = frames / epoch_frames + 1; halve and newbob: rate * factor^max(0, epoch -
 * from_epoch + 1); exponential: rate * factor^(frames / per_frames). */
double pace_rate(const struct pace_rule *r, uint64_t frames);
/* What is recommended for that many asynchronous workers, if the rule follows them (measured: DESIGN,
 * "Quality under asynchrony"); one worker: exactly factor 1 and the rule's momentum and warm-up. */
struct pace_setting pace_follow(const struct pace_rule *r, uint32_t workers);

void pace_init(struct pace *p, const struct pace_rule *r);
/* So many workers train now (0 changes nothing); the first call takes effect at once, later ones over the
 * ramp. True: that changed something. frames: applied by the shard. */
bool pace_workers(struct pace *p, uint32_t workers, uint64_t frames);
/* Rate and momentum of an update of a block that has applied `frames`. */
void pace_step(const struct pace *p, uint64_t frames, uint64_t staleness, float *rate, float *momentum);

#endif
