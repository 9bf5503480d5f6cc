/* One seed: a scenario is drawn, the cluster runs until the job ends or an invariant breaks. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BOUND_NS (1500 * NS_PER_S) /* a job ends so long after the last fault, at most */

const char *const plant_names[PLANTS] = {"none",         "drop-table", "old-generation", "lose-used",
                                         "stable-early", "forget-seq", "no-reopen"};

static uint64_t between(struct sim *s, uint64_t low, uint64_t high)
{
    return low + rng_below(&s->rng, high - low + 1);
}

static void draw_size(struct sim *s, struct plan *p)
{
    double what = rng_uniform(&s->rng);
    p->mode = what < 0.7 ? MODE_ASYNC : what < 0.85 ? MODE_ONE : MODE_BSP;
    p->shards = (uint32_t)between(s, 1, SIM_SHARDS);
    p->workers = p->mode == MODE_ONE ? 1 : (uint32_t)between(s, 2, p->mode == MODE_BSP ? 3 : 6);
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

static void draw_faults(struct sim *s, struct plan *p)
{
    bool calm = sim_chance(s, 0.1);
    p->delay = between(s, 1, 40) * NS_PER_MS;
    p->window = between(s, 50, 1500) * NS_PER_MS;
    p->write = between(s, 10, 8000) * NS_PER_MS;
    p->interval = sim_chance(s, 0.2) ? 0 : between(s, 2, 25) * NS_PER_S;
    p->lease = between(s, 20, 200) * NS_PER_S;
    p->slow = p->mode == MODE_ASYNC && sim_chance(s, 0.3) ? 0.3 : 0;
    if (calm) return;
    p->fault_end = between(s, 20, 150) * NS_PER_S;
    p->loss = sim_chance(s, 0.7) ? 0.1 * rng_uniform(&s->rng) : 0;
    p->twice = sim_chance(s, 0.7) ? 0.1 * rng_uniform(&s->rng) : 0;
    p->late = sim_chance(s, 0.5) ? 0.05 * rng_uniform(&s->rng) : 0;
    if (p->mode == MODE_ASYNC && sim_chance(s, 0.6)) p->kill_worker = between(s, 10, 60) * NS_PER_S;
    if (p->mode == MODE_ASYNC && sim_chance(s, 0.6)) p->kill_server = between(s, 10, 60) * NS_PER_S;
    if (p->mode == MODE_BSP && sim_chance(s, 0.5)) p->kill_worker = p->kill_server = 60 * NS_PER_S;
    if (sim_chance(s, 0.4)) p->kill_coordinator = between(s, 15, 60) * NS_PER_S;
    if (sim_chance(s, 0.3)) p->kill_all = between(s, 20, 100) * NS_PER_S;
}

static void plan_falls(struct sim *s)
{
    const struct plan *p = &s->plan;
    uint64_t mean[] = {p->kill_coordinator, p->kill_server, p->kill_worker, p->kill_all};
    for (uint32_t i = 0; i < 4; i++)
        if (mean[i]) world_push(s, (struct event){.at = sim_around(s, mean[i]), .kind = EVENT_KILL, .a = i});
}

/* What chorale-prepare leaves: set 0, all weights zero. */
static void prepare(struct sim *s)
{
    struct disk *d = &s->disk;
    d->files = xcalloc(s->plan.shards, sizeof *d->files);
    for (uint32_t k = 0; k < s->plan.shards; k++) {
        uint32_t first, count;
        blocks_of_shard(&s->plan.blocks, s->plan.shards, k, &first, &count);
        d->files[d->num_files++] = (struct sim_file){
            0, k, shard_state_new(&s->plan.blocks, first, count, 0, 0), oracle_new(first, count)};
    }
    d->sets = xcalloc(1, sizeof *d->sets);
    d->num_sets = 1;
    s->workers = xcalloc(s->plan.workers, sizeof *s->workers);
}

static void describe(struct sim *s)
{
    const struct plan *p = &s->plan;
    static const char *const modes[] = {"async", "one worker", "bsp"};
    sim_say(s, "%s: %u servers, %u workers, %u epochs of %u utterances by %u, %u dev, %u blocks, credit %u",
            modes[p->mode], p->shards, p->workers, p->epochs, p->utterances, p->chunk, p->dev,
            p->blocks.count, p->credit);
    sim_say(s,
            "window %g s, write %g s, interval %g s, lease %g s, loss %.3f, doubled %.3f, late %.3f, faults "
            "until %g s",
            (double)p->window / 1e9, (double)p->write / 1e9, (double)p->interval / 1e9,
            (double)p->lease / 1e9, p->loss, p->twice, p->late, (double)p->fault_end / 1e9);
}

int run_seed(uint64_t seed, enum plant plant, bool verbose)
{
    struct sim *s = xcalloc(1, sizeof *s);
    s->seed = seed;
    s->plant = plant;
    s->verbose = verbose;
    s->trace = 0xcbf29ce484222325ull;
    rng_init(&s->rng, rng_derive(seed, 0x51a, 0));
    draw_size(s, &s->plan);
    draw_faults(s, &s->plan);
    describe(s);
    prepare(s);
    plan_falls(s);
    world_restore(s);
    s->restores = 0;
    while (!s->broken[0] && !s->ended) {
        if (!world_step(s)) sim_broken(s, "something always remains to be done until the job ends");
        if (s->now > s->plan.fault_end + BOUND_NS)
            sim_broken(s, "a job ends once faults end: %.0f s later it has not", (double)BOUND_NS / 1e9);
    }
    for (size_t i = 0; i < s->num_procs && s->broken[0]; i++) {
        if (s->procs[i]->dead) continue;
        if (s->procs[i]->coordinator) {
            char *status = coordinate_status(s->procs[i]->coordinator, s->now, "sim");
            sim_say(s, "%s", status);
            free(status);
        }
        if (s->procs[i]->server) server_describe(s, s->procs[i]);
        if (s->procs[i]->worker) worker_describe(s, s->procs[i]);
    }
    int rc = s->broken[0] ? ERR_FAIL : 0;
    printf("seed %lu: %s, %.3f s, %lu messages, %lu kills, %lu restores, trace %016lx\n", (unsigned long)seed,
           rc ? "BROKEN" : "ok", (double)s->now / 1e9, (unsigned long)s->messages, (unsigned long)s->kills,
           (unsigned long)s->restores, (unsigned long)s->trace);
    if (rc)
        printf("  at %.6f s: %s\n  again: chorale-simulate --seed %lu%s%s --verbose\n", (double)s->now / 1e9,
               s->broken, (unsigned long)seed, plant ? " --plant " : "", plant ? plant_names[plant] : "");
    world_fini(s);
    free(s);
    return rc;
}
