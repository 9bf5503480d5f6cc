/* What the main of a coordinator does around its core: the journal, manifests, recovery and restore. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

struct coordinator_node {
    struct sim *s;
    struct proc *p;
    bool told;  /* that a change waits */
    bool dying; /* it fell in the middle of what it is doing: nothing leaves it any more */
};

/* --- the core's ways out */
static void io_send(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct coordinator_node *n = ctx;
    if (!n->dying)
        world_send(n->s, n->p->pid, peer, m, payload);
    else if (payload)
        frame_free(payload);
}

static void io_journal(void *ctx, const char *row)
{
    struct coordinator_node *n = ctx;
    struct disk *d = &n->s->disk;
    if (n->dying) return;
    if (n->p && n->p->coordinator && n->s->plan.kill_coordinator && sim_faults(n->s) &&
        sim_chance(n->s, 0.003)) {
        n->dying = true; /* half of the rows are lost with it: the next one, or those after this one */
        if (sim_chance(n->s, 0.5)) return;
    }
    d->journal = realloc(d->journal, (d->num_rows + 1) * sizeof *d->journal);
    ASSERT(d->journal);
    d->journal[d->num_rows++] = xstrdup(row);
}

/* Everything that the manifest names must be on the disks. */
static void check_files(struct sim *s, uint32_t set)
{
    for (uint32_t k = 0; k < s->plan.shards; k++)
        if (!disk_file(&s->disk, k, set))
            sim_broken(s, "a set is whole or absent: set %u is complete without a file of shard %u", set, k);
}

static void io_complete(void *ctx, struct manifest *m, const struct coordinate_capsule *capsules, uint32_t n)
{
    struct coordinator_node *node = ctx;
    struct sim *s = node->s;
    if (node->dying) return;
    struct sim_set *set = xcalloc(1, sizeof *set);
    *set = (struct sim_set){.set = m->set, .final = m->final, .state = xstrdup(m->state), .num_capsules = n};
    set->capsules = xcalloc(n + 1ul, sizeof *set->capsules);
    for (uint32_t i = 0; i < n; i++) {
        set->capsules[i] =
            (struct coordinate_capsule){capsules[i].rank, xcalloc(1, capsules[i].len + 1), capsules[i].len};
        memcpy(set->capsules[i].data, capsules[i].data, capsules[i].len);
    }
    sim_say(s, "set %u is written: %u files, %u capsules%s", m->set, m->num_files, n,
            m->final ? ", the last" : "");
    check_files(s, m->set);
    world_push(s, (struct event){.at = s->now + sim_around(s, s->plan.write / 4),
                                 .kind = EVENT_COMPLETE,
                                 .pid = node->p->pid,
                                 .a = m->set,
                                 .data = set});
}

void coordinator_drop_set(struct sim_set *set)
{
    for (uint32_t i = 0; i < set->num_capsules; i++) free(set->capsules[i].data);
    free(set->capsules);
    free(set->state);
    free(set);
}

/* --- start */
static void options_of(const struct plan *p, struct coordinate_options *o)
{
    *o = (struct coordinate_options){.job = SIM_JOB,
                                     .model_hash = SIM_MODEL,
                                     .shards = p->shards,
                                     .epochs = p->epochs,
                                     .mode = plan_consistency(p->mode),
                                     .bound = p->bound,
                                     .backup = plan_backup(p->mode),
                                     .workers = p->workers,
                                     .streams = SIM_STREAMS,
                                     .shape = 1 + (uint64_t)plan_consistency(p->mode),
                                     .warm_start_frames = p->warm,
                                     .chunk_utterances = p->chunk,
                                     .lease_ns = p->lease,
                                     .interval_ns = p->interval,
                                     .limit_ns = SIM_LIMIT,
                                     .eval_utterances = 4};
    o->blocks = p->blocks;
    o->train.utterances = p->utterances;
    o->train.frames = p->utterances * 10ull;
    o->dev.utterances = p->dev;
    o->dev.frames = p->dev * 10ull;
}

static void apply_journal(struct sim *s, struct coordinator *c, bool counters_only)
{
    for (size_t i = 0; i < s->disk.num_rows; i++) {
        const char *row = s->disk.journal[i];
        int rc = counters_only ? coordinate_apply_counters(c, row) : coordinate_apply_row(c, row);
        if (rc < 0) sim_broken(s, "the journal is read back: %s", err_text());
    }
}

static void give_capsules(struct sim *s, struct coordinator *c, uint32_t number)
{
    for (size_t k = 0; k < s->disk.num_sets; k++) {
        const struct sim_set *set = &s->disk.sets[k];
        for (uint32_t i = 0; i < set->num_capsules && set->set == number; i++)
            coordinate_give_capsule(c, set->capsules[i].rank, set->capsules[i].data, set->capsules[i].len);
    }
}

static void restore(struct sim *s, struct coordinator *c)
{
    const struct sim_set *set = &s->disk.sets[s->disk.num_sets - 1];
    if (set->state && coordinate_apply_state(c, set->state) < 0)
        sim_broken(s, "the state of a set is read back: %s", err_text());
    apply_journal(s, c, true);
    coordinate_start(c, s->now, true, set->set);
    give_capsules(s, c, set->set);
    sim_say(s, "the job takes up set %u", set->set);
}

/* A life begins with a journal that holds the whole state and nothing of earlier ones. */
static void rewrite_journal(struct sim *s, const struct coordinator *c)
{
    for (size_t i = 0; i < s->disk.num_rows; i++) free(s->disk.journal[i]);
    s->disk.num_rows = 0;
    char *rows = coordinate_rows(c), *rest = NULL;
    struct coordinator_node n = {.s = s};
    for (char *row = strtok_r(rows, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest)) io_journal(&n, row);
    free(rows);
}

void coordinator_start(struct sim *s, struct proc *p, bool restored)
{
    struct coordinator_node *n = xcalloc(1, sizeof *n);
    n->s = s;
    n->p = p;
    struct coordinate_options o;
    options_of(&s->plan, &o);
    struct coordinate_io io = {.ctx = n, .send = io_send, .journal = io_journal, .complete = io_complete};
    p->coordinator = coordinate_new(&o, &io);
    p->node = n;
    if (restored) {
        restore(s, p->coordinator);
    } else {
        apply_journal(s, p->coordinator, false);
        coordinate_start(p->coordinator, s->now, false, 0);
        give_capsules(s, p->coordinator, coordinate_capsules_of(p->coordinator));
    }
    rewrite_journal(s, p->coordinator);
    check_account(s, p);
}

void coordinator_stop(struct proc *p)
{
    coordinate_free(&p->coordinator);
    free(p->node);
}

/* --- a change of the job */
static void tell_change(struct sim *s, struct proc *p)
{
    struct coordinator_node *n = p->node;
    const struct plan *plan = &s->plan;
    if (n->told || !plan->change.at || s->now < plan->change.at) return;
    struct coordinate_next next = {plan_consistency(plan->change.mode), plan->change.bound,
                                   plan_backup(plan->change.mode), plan->change.epochs};
    n->told = true;
    coordinate_change(p->coordinator, s->now, &next);
}

/* Everyone left, and all starts again as the changed job file says. */
static void take_change(struct sim *s, struct proc *p)
{
    struct coordinate_account a;
    coordinate_account(p->coordinator, &a);
    if (!s->plan.change.at) sim_broken(s, "a job is switched if that is asked for");
    if (!s->disk.sets[s->disk.num_sets - 1].state) sim_broken(s, "a switched job has a set to go on from");
    sim_say(s, "the job is switched after %u epochs", a.epoch);
    s->switches++;
    plan_take_change(&s->plan, a.epoch);
}

/* --- events */
static void after(struct sim *s, struct proc *p)
{
    if (((struct coordinator_node *)p->node)->dying) {
        world_kill(s, p->pid, "killed between two rows");
        return;
    }
    check_account(s, p);
    if (coordinate_needs_restore(p->coordinator)) s->restoring = true;
    if (coordinate_switched(p->coordinator)) take_change(s, p);
    if (coordinate_command(p->coordinator) == COMMAND_FINISH && !s->ended) {
        s->ended = true;
        sim_say(s, "the job is done");
        check_end(s, p);
    }
    world_wake(s, p, coordinate_next(p->coordinator));
}

void coordinator_complete(struct sim *s, struct proc *p, struct event *e)
{
    struct sim_set *set = e->data;
    e->data = NULL;
    int rc = sim_faults(s) && sim_chance(s, 0.05) ? ERR_STORAGE : 0;
    if (rc == 0) {
        s->disk.sets = realloc(s->disk.sets, (s->disk.num_sets + 1) * sizeof *set);
        ASSERT(s->disk.sets);
        s->disk.sets[s->disk.num_sets++] = *set;
        free(set);
    } else {
        coordinator_drop_set(set);
    }
    coordinate_set_done(p->coordinator, s->now, e->a, rc);
    after(s, p);
}

void coordinator_receive(struct sim *s, struct proc *p, const struct msg *m, uint64_t from,
                         struct frame **payload)
{
    coordinate_receive(p->coordinator, s->now, from, m, payload);
    after(s, p);
}

void coordinator_tick(struct sim *s, struct proc *p)
{
    tell_change(s, p);
    coordinate_tick(p->coordinator, s->now);
    after(s, p);
}
