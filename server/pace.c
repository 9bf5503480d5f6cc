#include "server/pace.h"

#include <math.h>

#define RAMP_EPOCHS    (1.0 / 20) /* how long a change of workers takes to have its full effect */
#define STEADY_WORKERS 4.0        /* from here on the effective rate falls as 1 / workers */

static bool has_momentum(enum optimizer_type t)
{
    return t == OPTIMIZER_MOMENTUM || t == OPTIMIZER_NESTEROV;
}

void pace_rule_from(const struct config *c, uint64_t epoch_frames, struct pace_rule *out)
{
    enum optimizer_type type = c->optimizer.type;
    enum consistency_mode mode = c->consistency.mode;
    *out = (struct pace_rule){
        .rate = c->optimizer.rate,
        .momentum = has_momentum(type) ? c->optimizer.momentum : 0,
        .warmup_frames = c->optimizer.warmup_frames,
        .divides = c->optimizer.staleness == STALENESS_DIVIDE,
        .follows = c->optimizer.follow_workers && mode != CONSISTENCY_BSP &&
                   (has_momentum(type) || type == OPTIMIZER_SGD),
        .schedule = c->optimizer.schedule.type,
        .factor = c->optimizer.schedule.factor,
        .per_frames = c->optimizer.schedule.per_frames,
        .epoch_frames = epoch_frames,
    };
    if (out->schedule == SCHEDULE_HALVE) out->from_epoch = (uint32_t)c->optimizer.schedule.from_epoch;
}

/* --- the rate of one worker */

/* rate * factor^max(0, epoch - from_epoch + 1), epochs from 1. */
static double rate_by_epoch(const struct pace_rule *r, uint64_t frames)
{
    uint64_t epoch = r->epoch_frames ? frames / r->epoch_frames + 1 : 1;
    if (r->from_epoch == 0 || epoch < r->from_epoch) return r->rate;
    return r->rate * pow(r->factor, (double)(epoch - r->from_epoch + 1));
}

static double scheduled(const struct pace_rule *r, uint64_t frames)
{
    switch (r->schedule) {
    case SCHEDULE_EXPONENTIAL:
        return r->per_frames > 0 ? r->rate * pow(r->factor, (double)frames / r->per_frames) : r->rate;
    case SCHEDULE_HALVE:
    case SCHEDULE_NEWBOB:
        return rate_by_epoch(r, frames);
    case SCHEDULE_CONSTANT:
        break;
    }
    return r->rate;
}

double pace_rate(const struct pace_rule *r, uint64_t frames)
{
    double rate = scheduled(r, frames), warm = (double)frames + 1;
    return warm < r->warmup_frames ? rate * (warm / r->warmup_frames) : rate;
}

/* --- the number of workers */

/* N workers that do not wait for each other act as a momentum of 1 - 1/N (Mitliagkas 2016): that much less is
 * asked for, and the rate keeps rate / (1 - momentum), what a gradient moves in all, but for many workers. */
struct pace_setting pace_follow(const struct pace_rule *r, uint32_t workers)
{
    if (!r->follows || workers <= 1) return (struct pace_setting){1, r->momentum};
    double implicit = 1 - 1.0 / workers;
    double momentum = fmax(0, r->momentum - implicit), damping = fmin(1, STEADY_WORKERS / workers);
    return (struct pace_setting){damping * (1 - momentum) / (1 - r->momentum), momentum};
}

void pace_init(struct pace *p, const struct pace_rule *r)
{
    struct pace_setting one = pace_follow(r, 1);
    *p = (struct pace){.rule = *r, .from = one, .to = one};
}

/* What is in force at `frames`: a line from `from` to `to`. */
static struct pace_setting in_force(const struct pace *p, uint64_t frames)
{
    double ramp = fmax(1, (double)p->rule.epoch_frames * RAMP_EPOCHS);
    double way = frames > p->changed ? (double)(frames - p->changed) / ramp : 0;
    if (way >= 1) return p->to;
    return (struct pace_setting){p->from.rate_factor + way * (p->to.rate_factor - p->from.rate_factor),
                                 p->from.momentum + way * (p->to.momentum - p->from.momentum)};
}

bool pace_workers(struct pace *p, uint32_t workers, uint64_t frames)
{
    if (workers == 0) return false; /* nobody is there to be followed */
    bool first = p->workers == 0;
    struct pace_setting to = pace_follow(&p->rule, workers), old = p->to;
    p->workers = workers;
    if (to.rate_factor == old.rate_factor && to.momentum == old.momentum) return false;
    p->from = first ? to : in_force(p, frames);
    p->to = to;
    p->changed = frames;
    return true;
}

void pace_step(const struct pace *p, uint64_t frames, uint64_t staleness, float *rate, float *momentum)
{
    struct pace_setting now = in_force(p, frames);
    double full = pace_rate(&p->rule, frames) * now.rate_factor;
    if (p->rule.divides && staleness > 1) full /= (double)staleness;
    *rate = (float)full;
    *momentum = (float)now.momentum;
}
