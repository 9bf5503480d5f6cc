#include "server/pace.h"

#include <math.h>

#define RAMP_EPOCHS      (1.0 / 20) /* how long a change of workers takes to have its full effect */
#define STEADY_WORKERS   12.0       /* from here on the rate falls as 1 / workers ... */
#define STEADY_AT_WORKER 32.0       /* ... where the workers have the momentum, */
#define SPREAD_WORKERS   10.0       /* which is longer then: from here on 1 - momentum falls as 1 / workers */
#define WARM_WORKERS     8.0        /* an epoch of warm-up for as many, ... */
#define WARM_EPOCHS      2.0        /* ... and no more than this */

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
        .warmup_frames = c->optimizer.warmup_epochs * (double)epoch_frames,
        .at_worker = config_momentum_is_on_worker(c),
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

static double warm(double warmup_frames, uint64_t frames)
{
    double seen = (double)frames + 1;
    return seen < warmup_frames ? seen / warmup_frames : 1;
}

double pace_rate(const struct pace_rule *r, uint64_t frames)
{
    return scheduled(r, frames) * warm(r->warmup_frames, frames);
}

/* --- the number of workers */

/* Momentum on the servers: N workers that do not wait for each other act as a momentum of 1 - 1/N (Mitliagkas
 * 2016): that much less is asked for, and the rate keeps rate / (1 - momentum), what a gradient moves in all,
 * but for many workers. Momentum on the workers: each has that of its own gradients, whoever else is there;
 * of many workers each sees less of the data, and averages over more of its own steps. */
struct pace_setting pace_follow(const struct pace_rule *r, uint32_t workers)
{
    struct pace_setting s = {1, r->momentum, r->warmup_frames};
    if (!r->follows || workers <= 1) return s;
    double epochs = fmin(WARM_EPOCHS, workers / WARM_WORKERS);
    s.warmup_frames = fmax(r->warmup_frames, epochs * (double)r->epoch_frames);
    s.rate_factor = fmin(1, (r->at_worker ? STEADY_AT_WORKER : STEADY_WORKERS) / workers);
    if (!r->at_worker)
        s.momentum = fmax(0, r->momentum - (1 - 1.0 / workers));
    else if (r->momentum > 0 && workers > SPREAD_WORKERS)
        s.momentum =
            fmax(r->momentum, fmin(PACE_MAX_MOMENTUM, 1 - (1 - r->momentum) * SPREAD_WORKERS / workers));
    s.rate_factor *= (1 - s.momentum) / (1 - r->momentum);
    return s;
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
    const struct pace_setting *a = &p->from, *b = &p->to;
    return (struct pace_setting){a->rate_factor + way * (b->rate_factor - a->rate_factor),
                                 a->momentum + way * (b->momentum - a->momentum),
                                 a->warmup_frames + way * (b->warmup_frames - a->warmup_frames)};
}

bool pace_workers(struct pace *p, uint32_t workers, uint64_t frames)
{
    if (workers == 0) return false; /* nobody is there to be followed */
    bool first = p->workers == 0;
    struct pace_setting to = pace_follow(&p->rule, workers), old = p->to;
    p->workers = workers;
    if (to.rate_factor == old.rate_factor && to.momentum == old.momentum &&
        to.warmup_frames == old.warmup_frames)
        return false;
    p->from = first ? to : in_force(p, frames);
    p->to = to;
    p->changed = frames;
    return true;
}

void pace_step(const struct pace *p, uint64_t frames, uint64_t staleness, float *rate, float *momentum)
{
    struct pace_setting now = in_force(p, frames);
    double full = scheduled(&p->rule, frames) * warm(now.warmup_frames, frames) * now.rate_factor;
    if (p->rule.divides && staleness > 1) full /= (double)staleness;
    *rate = (float)full;
    *momentum = (float)now.momentum;
}
