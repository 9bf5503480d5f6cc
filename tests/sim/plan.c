/* The scenario of a seed. */
#include "tests/sim/sim.h"

static uint64_t between(struct sim *s, uint64_t low, uint64_t high)
{
    return low + rng_below(&s->rng, high - low + 1);
}

/* --- modes */
bool plan_in_step(enum sim_mode m)
{
    return m == MODE_BSP || m == MODE_BACKUP;
}

uint32_t plan_backup(enum sim_mode m)
{
    return m == MODE_BACKUP ? 1 : 0;
}

enum consistency_mode plan_consistency(enum sim_mode m)
{
    if (m == MODE_SSP) return CONSISTENCY_SSP;
    return plan_in_step(m) ? CONSISTENCY_BSP : CONSISTENCY_ASYNC;
}

bool plan_is_calm(const struct plan *p)
{
    return p->fault_end == 0;
}

uint32_t plan_windows(enum sim_mode m, uint32_t epoch, uint32_t where)
{
    return plan_in_step(m) ? 2 + (epoch + where) % 3 : 1 + (epoch + where) % 3;
}

uint32_t plan_windows_of(const struct msg_lease *l)
{
    if (l->modulus > 1) return plan_windows(MODE_BSP, l->epoch, l->residue / SIM_STREAMS);
    return plan_windows(MODE_ASYNC, l->epoch, l->begin);
}

void plan_take_change(struct plan *p, uint32_t from)
{
    p->mode = p->change.mode;
    p->bound = p->change.bound;
    p->epochs = p->change.epochs;
    for (uint32_t e = from; e < SIM_EPOCHS; e++) p->epoch_modes[e] = p->mode;
    p->change.at = 0;
    if (plan_in_step(p->mode)) p->max_staleness = p->warm = 0; /* not in bsp */
}

/* --- drawing */
static enum sim_mode draw_mode(struct sim *s)
{
    static const double upto[MODES] = {0.45, 0.57, 0.7, 0.87, 1};
    double what = rng_uniform(&s->rng);
    int m = 0;
    while (what >= upto[m]) m++;
    return (enum sim_mode)m;
}

static uint32_t draw_workers(struct sim *s, enum sim_mode m)
{
    if (m == MODE_ONE) return 1;
    if (m == MODE_BACKUP) return (uint32_t)between(s, 3, SIM_STEP);
    return (uint32_t)between(s, 2, m == MODE_BSP ? 3 : 6);
}

static void draw_size(struct sim *s, struct plan *p)
{
    p->mode = draw_mode(s);
    p->workers = draw_workers(s, p->mode);
    p->bound = (uint32_t)between(s, 0, 4);
    p->shards = (uint32_t)between(s, 1, SIM_SHARDS);
    p->epochs = (uint32_t)between(s, 1, 3);
    p->utterances = (uint32_t)between(s, 4, 20);
    p->chunk = (uint32_t)between(s, 1, 5);
    p->dev = sim_chance(s, 0.5) ? (uint32_t)between(s, 1, 9) : 0;
    p->blocks.size = 4;
    p->blocks.params = between(s, 12, 40);
    p->blocks.count = (uint32_t)((p->blocks.params + 3) / 4);
    if (p->shards > p->blocks.count) p->shards = p->blocks.count;
    p->credit = (uint32_t)between(s, 1, 4);
}

static enum element_type draw_type(struct sim *s)
{
    return sim_chance(s, 0.75) ? ELEMENT_FP32 : (enum element_type)between(s, ELEMENT_BF16, ELEMENT_INT8);
}

static void draw_ways(struct sim *s, struct plan *p)
{
    bool in_step = plan_in_step(p->mode);
    p->gradients = draw_type(s);
    p->weights = draw_type(s);
    if (!in_step && sim_chance(s, 0.15)) p->max_staleness = (uint32_t)between(s, 1, 8);
    if (!in_step && sim_chance(s, 0.15)) p->warm = 10 * between(s, 1, 5);
    if (sim_chance(s, 0.15)) {
        p->crowd = (uint32_t)between(s, 60, 300);
        p->crowd_at = sim_chance(s, 0.5) ? 0 : between(s, 1, 30) * NS_PER_S;
    }
}

/* To another mode, or bound, that as many workers can have. */
static void draw_change(struct sim *s, struct plan *p)
{
    p->first_mode = p->mode;
    for (uint32_t e = 0; e < SIM_EPOCHS; e++) p->epoch_modes[e] = p->mode;
    if (!sim_chance(s, 0.15)) return;
    static const enum sim_mode to[] = {MODE_ASYNC, MODE_SSP, MODE_BSP, MODE_BACKUP};
    uint32_t choices = p->workers > SIM_STEP ? 2 : p->workers > 2 ? 4 : 3;
    p->change.mode = p->mode == MODE_ONE ? MODE_ONE : to[rng_below(&s->rng, choices)];
    p->change.bound = (uint32_t)between(s, 0, 4);
    p->change.epochs = p->epochs + (sim_chance(s, 0.3) ? 1 : 0);
    p->change.at = between(s, 1, 40) * NS_PER_S;
}

static void draw_times(struct sim *s, struct plan *p)
{
    p->delay = between(s, 1, 40) * NS_PER_MS;
    p->window = between(s, 50, 1500) * NS_PER_MS;
    p->write = between(s, 10, 8000) * NS_PER_MS;
    p->interval = sim_chance(s, 0.2) ? 0 : between(s, 2, 25) * NS_PER_S;
    p->lease = between(s, 20, 200) * NS_PER_S;
    bool can = p->mode == MODE_ASYNC || p->mode == MODE_SSP || p->mode == MODE_BACKUP;
    p->slow = can && sim_chance(s, 0.3) ? 0.3 : 0;
    p->slower = p->mode == MODE_ASYNC && !p->change.at ? 10 : 4;
}

static void draw_kills(struct sim *s, struct plan *p)
{
    bool alone = p->mode == MODE_ASYNC || p->mode == MODE_SSP; /* nobody else has to start again */
    if (alone && sim_chance(s, 0.6)) p->kill_worker = between(s, 10, 60) * NS_PER_S;
    if (alone && sim_chance(s, 0.6)) p->kill_server = between(s, 10, 60) * NS_PER_S;
    if (plan_in_step(p->mode) && sim_chance(s, 0.5)) p->kill_worker = p->kill_server = 60 * NS_PER_S;
    if (p->mode != MODE_ONE && sim_chance(s, 0.3)) p->stop_worker = between(s, 10, 60) * NS_PER_S;
    if (sim_chance(s, 0.4)) p->kill_coordinator = between(s, 15, 60) * NS_PER_S;
    if (sim_chance(s, 0.3)) p->kill_all = between(s, 20, 100) * NS_PER_S;
}

static void draw_faults(struct sim *s, struct plan *p)
{
    if (sim_chance(s, 0.1)) { /* calm; no lease ends before its time, so that nothing is done twice */
        p->lease = 100000 * NS_PER_S;
        return;
    }
    p->fault_end = between(s, 20, 150) * NS_PER_S;
    p->loss = sim_chance(s, 0.7) ? 0.1 * rng_uniform(&s->rng) : 0;
    p->twice = sim_chance(s, 0.7) ? 0.1 * rng_uniform(&s->rng) : 0;
    p->late = sim_chance(s, 0.5) ? 0.05 * rng_uniform(&s->rng) : 0;
    draw_kills(s, p);
}

void plan_draw(struct sim *s)
{
    struct plan *p = &s->plan;
    draw_size(s, p);
    draw_ways(s, p);
    draw_change(s, p);
    draw_times(s, p);
    draw_faults(s, p);
}

void plan_describe(struct sim *s)
{
    const struct plan *p = &s->plan;
    static const char *const modes[] = {"async", "one worker", "bsp", "ssp", "bsp with 1 backup worker"};
    sim_say(s, "%s: %u servers, %u workers, %u epochs of %u utterances by %u, %u dev, %u blocks, credit %u",
            modes[p->mode], p->shards, p->workers, p->epochs, p->utterances, p->chunk, p->dev,
            p->blocks.count, p->credit);
    sim_say(s, "bound %u, staleness at most %u, gradients %s, weights %s, %lu frames alone, crowd %u at %g s",
            p->bound, p->max_staleness, element_name(p->gradients), element_name(p->weights),
            (unsigned long)p->warm, p->crowd, (double)p->crowd_at / 1e9);
    if (p->change.at)
        sim_say(s, "at %g s a change waits: %s, bound %u, %u epochs", (double)p->change.at / 1e9,
                modes[p->change.mode], p->change.bound, p->change.epochs);
    sim_say(s,
            "window %g s, write %g s, interval %g s, lease %g s, loss %.3f, doubled %.3f, late %.3f, faults "
            "until %g s",
            (double)p->window / 1e9, (double)p->write / 1e9, (double)p->interval / 1e9,
            (double)p->lease / 1e9, p->loss, p->twice, p->late, (double)p->fault_end / 1e9);
}
