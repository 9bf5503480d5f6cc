/* One seed: a scenario is drawn, the cluster runs until the job ends or an invariant breaks. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BOUND_NS (1500 * NS_PER_S) /* a job ends so long after the last fault, at most */

const char *const plant_names[PLANTS] = {"none",         "drop-table", "old-generation", "lose-used",
                                         "stable-early", "forget-seq", "no-reopen",      "keep-back",
                                         "no-bound",     "own-set",    "no-credit"};

static void plan_falls(struct sim *s)
{
    const struct plan *p = &s->plan;
    uint64_t mean[] = {p->kill_coordinator, p->kill_server, p->kill_worker, p->kill_all, p->stop_worker};
    for (uint32_t i = 0; i < 5; i++)
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
    s->refused = oracle_new(0, s->plan.blocks.count);
    s->workers = xcalloc(s->plan.workers, sizeof *s->workers);
}

int run_seed(uint64_t seed, enum plant plant, bool verbose)
{
    struct sim *s = xcalloc(1, sizeof *s);
    s->seed = seed;
    s->plant = plant;
    s->verbose = verbose;
    s->trace = 0xcbf29ce484222325ull;
    rng_init(&s->rng, rng_derive(seed, 0x51a, 0));
    plan_draw(s);
    plan_describe(s);
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
    printf(
        "seed %lu: %s, %.3f s, %lu messages, %lu kills, %lu restores, %lu waits, %lu left out, %lu switches, "
        "trace %016lx\n",
        (unsigned long)seed, rc ? "BROKEN" : "ok", (double)s->now / 1e9, (unsigned long)s->messages,
        (unsigned long)s->kills, (unsigned long)s->restores, (unsigned long)s->waits,
        (unsigned long)s->left_out, (unsigned long)s->switches, (unsigned long)s->trace);
    if (rc)
        printf("  at %.6f s: %s\n  again: chorale-simulate --seed %lu%s%s --verbose\n", (double)s->now / 1e9,
               s->broken, (unsigned long)seed, plant ? " --plant " : "", plant ? plant_names[plant] : "");
    world_fini(s);
    free(s);
    return rc;
}
