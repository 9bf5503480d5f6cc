/* The invariants. Each sentence says what must hold, then what was seen. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

const struct sim_file *disk_file(const struct disk *d, uint32_t shard, int64_t set)
{
    const struct sim_file *found = NULL;
    for (size_t i = 0; i < d->num_files; i++) {
        const struct sim_file *f = &d->files[i];
        if (f->shard != shard || (set >= 0 && f->set != set)) continue;
        if (!found || f->set >= found->set) found = f;
    }
    return found;
}

bool check_is_pad(const struct sim *s, uint64_t member, uint64_t seq)
{
    for (size_t i = s->num_pads; i-- > 0;)
        if (s->pads[i].member == member && s->pads[i].seq == seq) return true;
    return false;
}

/* After every message to a server: weights, versions and the oracle say the same. In step an update adds up
 * the pushes of all, of which some may be padding. */
void check_shard(struct sim *s, struct proc *p)
{
    const struct shard_state *st = server_state(p);
    const struct oracle *o = server_oracle(p);
    for (uint32_t b = 0; st && b < st->count; b++) {
        const struct oracle_list *l = &o->lists[b];
        size_t at = blocks_span(&st->blocks, st->first, st->first + b);
        if (st->version[b] != l->updates || st->frames[b] != l->frames)
            sim_broken(s,
                       "a version is the number of updates: block %u of shard %u has version %lu, %lu frames "
                       "after %lu updates, %lu frames",
                       st->first + b, p->slot, (unsigned long)st->version[b], (unsigned long)st->frames[b],
                       (unsigned long)l->updates, (unsigned long)l->frames);
        for (uint32_t i = 0; i < blocks_floats(&st->blocks, st->first + b); i++)
            if (st->weights[at + i] != -(float)st->frames[b])
                sim_broken(s, "a block is applied whole: weight %u of block %u is %g after %lu frames", i,
                           st->first + b, (double)st->weights[at + i], (unsigned long)st->frames[b]);
    }
}

/* Weights that came to a worker: all of a block are of one version of it. */
void check_landed(struct sim *s, struct proc *p, const float *weights)
{
    const struct blocks *bl = &s->plan.blocks;
    for (uint32_t b = 0; b < bl->count; b++) {
        const float *w = weights + blocks_offset(bl, b);
        for (uint32_t i = 1; i < blocks_floats(bl, b); i++)
            if (w[i] != w[0])
                sim_broken(s, "a block lands whole: worker %u has %g and %g in block %u", p->slot,
                           (double)w[0], (double)w[i], b);
    }
}

/* --- generations and what is stable */
static void check_generation(struct sim *s, struct proc *p, uint32_t generation)
{
    uint32_t newest = 0;
    for (size_t i = 0; i < s->num_generations; i++) {
        const struct generation_seen *g = &s->generations[i];
        if (g->shard != p->slot) continue;
        if (g->generation > newest) newest = g->generation;
        if (g->generation != generation) continue;
        if (g->pid != p->pid)
            sim_broken(
                s,
                "one life of a shard has one generation: processes %lu and %lu both answer as %u of shard %u",
                (unsigned long)g->pid, (unsigned long)p->pid, generation, p->slot);
        return;
    }
    if (generation < newest)
        sim_broken(s, "generations rise: shard %u answers as %u after %u", p->slot, generation, newest);
    s->generations = realloc(s->generations, (s->num_generations + 1) * sizeof *s->generations);
    ASSERT(s->generations);
    s->generations[s->num_generations++] = (struct generation_seen){p->slot, generation, p->pid};
}

static void remember_stable(struct sim *s, uint64_t member, uint32_t block, uint64_t seq)
{
    for (size_t i = 0; i < s->num_stables; i++) {
        if (s->stables[i].member != member || s->stables[i].block != block) continue;
        if (seq > s->stables[i].seq) s->stables[i].seq = seq;
        return;
    }
    s->stables = realloc(s->stables, (s->num_stables + 1) * sizeof *s->stables);
    ASSERT(s->stables);
    s->stables[s->num_stables++] = (struct stable_seen){member, block, seq};
}

static uint64_t member_of(const struct sim *s, uint64_t pid)
{
    const struct proc *p = pid > 0 && pid <= s->num_procs ? s->procs[pid - 1] : NULL;
    return p && !p->dead && p->worker ? worker_member(p) : 0;
}

/* Applied to it, or refused once and for all. */
static bool is_decided(const struct sim *s, const struct oracle *o, uint32_t block, uint64_t member,
                       uint64_t seq)
{
    return oracle_has(o, block, member, seq) || oracle_has(s->refused, block, member, seq);
}

/* peer: the pid that the answer goes to. */
void check_answer(struct sim *s, struct proc *p, uint64_t peer, const struct msg *m)
{
    if (m->type == MSG_WELCOME) check_generation(s, p, m->welcome.generation);
    if (m->type == MSG_BLOCK) check_generation(s, p, m->block.generation);
    if (m->type != MSG_ANSWER) return;
    check_generation(s, p, m->answer.generation);
    uint64_t member = member_of(s, peer);
    if (m->answer.stable == 0 || member == 0) return;
    const struct sim_file *f = disk_file(&s->disk, p->slot, -1);
    if (!is_decided(s, f->oracle, m->answer.block, member, m->answer.stable))
        sim_broken(
            s,
            "what is told as stable is on the disk: seq %lu of member %lu, block %u, newest file is set %u",
            (unsigned long)m->answer.stable, (unsigned long)member, m->answer.block, f->set);
    remember_stable(s, member, m->answer.block, m->answer.stable);
}

static uint64_t last_seq(const struct shard_state *st, uint64_t member, uint32_t block)
{
    for (uint32_t i = 0; i < st->num_members; i++)
        if (st->members[i] == member) return st->last_seq[(size_t)i * st->count + block - st->first];
    return 0;
}

/* A server is back: nothing that was acknowledged as stable is missing, in the weights or in the table. */
void check_restored(struct sim *s, struct proc *p)
{
    const struct shard_state *st = server_state(p);
    const struct oracle *o = server_oracle(p);
    for (size_t i = 0; i < s->num_stables; i++) {
        const struct stable_seen *t = &s->stables[i];
        if (t->block < st->first || t->block - st->first >= st->count) continue;
        if (!is_decided(s, o, t->block, t->member, t->seq))
            sim_broken(
                s, "what was stable survives: seq %lu of member %lu is not in block %u of the restored shard",
                (unsigned long)t->seq, (unsigned long)t->member, t->block);
        if (t->member >= s->oldest && last_seq(st, t->member, t->block) < t->seq)
            sim_broken(
                s,
                "the table survives with the weights: member %lu, block %u, seq %lu was stable, %lu is known",
                (unsigned long)t->member, t->block, (unsigned long)t->seq,
                (unsigned long)last_seq(st, t->member, t->block));
    }
    check_shard(s, p);
}

void check_forget(struct sim *s)
{
    s->num_stables = 0;
}

/* --- leases */
void check_account(struct sim *s, struct proc *p)
{
    struct coordinate_account a;
    coordinate_account(p->coordinator, &a);
    if (a.open + a.leased + a.used != a.chunks)
        sim_broken(s, "a chunk is in one state: %lu open, %lu leased, %lu used of %lu", (unsigned long)a.open,
                   (unsigned long)a.leased, (unsigned long)a.used, (unsigned long)a.chunks);
}

/* A push that was under way when a server fell is lost, and counted as lost, one that a step did without is
 * dropped: the chunk goes on all the same. */
static bool is_covered(const struct sim *s, const struct oracle *const *final, uint32_t epoch,
                       uint32_t utterance, uint32_t residue)
{
    for (size_t i = 0; i < s->num_uses; i++) {
        const struct use *u = &s->uses[i];
        if (u->epoch != epoch || u->residue != residue || utterance < u->begin || utterance >= u->end)
            continue;
        if (u->lost) return true;
        bool all = true;
        for (uint32_t k = 0; k < s->plan.shards && all; k++)
            for (uint32_t b = 0; b < final[k]->blocks && all; b++)
                all = oracle_has(final[k], final[k]->first + b, u->member, u->seq);
        if (all) return true;
    }
    return false;
}

static void check_covered(struct sim *s, const struct oracle *const *final)
{
    const struct plan *p = &s->plan;
    for (uint32_t e = 0; e < p->epochs; e++) {
        bool in_step = plan_in_step(p->epoch_modes[e]);
        for (uint32_t k = 0; k < (in_step ? p->workers : p->utterances); k++)
            if (!is_covered(s, final, e, in_step ? 0 : k, in_step ? k * SIM_STREAMS : 0))
                sim_broken(s, "every utterance is used: %s %u of epoch %u is in no push of the last set",
                           in_step ? "rank" : "utterance", k, e);
    }
}

/* Windows of a job in which nothing is lost and nothing is done twice. */
static uint64_t exact_windows(const struct plan *p)
{
    uint64_t n = 0;
    for (uint32_t e = 0; e < p->epochs; e++) {
        enum sim_mode m = p->epoch_modes[e];
        uint32_t end = plan_in_step(m) ? p->workers : p->utterances, by = plan_in_step(m) ? 1 : p->chunk;
        for (uint32_t at = 0; at < end; at += by) n += plan_windows(m, e, at);
    }
    return n;
}

/* Alone, or all together, or with nothing that goes wrong. */
static bool is_exact(const struct plan *p)
{
    bool exact = p->first_mode == MODE_ONE || p->first_mode == MODE_BSP;
    for (uint32_t e = 0; e < p->epochs; e++)
        exact &= p->epoch_modes[e] == MODE_ONE || p->epoch_modes[e] == MODE_BSP;
    return exact || plan_is_calm(p);
}

static void check_exact(struct sim *s, const struct shard_state *st)
{
    uint64_t n = exact_windows(&s->plan);
    for (uint32_t b = 0; b < st->count && is_exact(&s->plan); b++) {
        uint64_t dropped = plan_is_calm(&s->plan) ? s->left_out + s->dropped[st->first + b] : 0;
        if (st->frames[b] + dropped != n)
            sim_broken(s,
                       "an exact job takes each window once: block %u ends at %lu of %lu, %lu were dropped",
                       st->first + b, (unsigned long)st->frames[b], (unsigned long)n, (unsigned long)dropped);
    }
}

static bool is_same_chunk(const struct use *a, const struct use *b)
{
    return a->epoch == b->epoch && a->begin == b->begin && a->residue == b->residue;
}

/* What the coordinator counts as done twice was; where nothing goes wrong nothing is. */
static void check_doubled(struct sim *s, struct proc *p)
{
    struct coordinate_account a;
    uint64_t twice = 0;
    coordinate_account(p->coordinator, &a);
    for (size_t i = 0; i < s->num_uses; i++) {
        size_t k = 0;
        while (k < i && !is_same_chunk(&s->uses[k], &s->uses[i])) k++;
        twice += k < i;
    }
    if (a.doubled > twice || (plan_is_calm(&s->plan) && (twice || a.reopened)))
        sim_broken(
            s, "what is done twice is counted: %lu chunks are, the coordinator has %lu doubled, %lu reopened",
            (unsigned long)twice, (unsigned long)a.doubled, (unsigned long)a.reopened);
}

/* A warm start is of one worker alone. */
static void check_warm(struct sim *s)
{
    for (size_t i = 1; i < s->num_uses && 10 * i < s->plan.warm && plan_is_calm(&s->plan); i++)
        if (s->uses[i].member != s->uses[0].member)
            sim_broken(
                s, "one worker begins alone: chunk %zu is of member %lu, %lu frames are to be of member %lu",
                i, (unsigned long)s->uses[i].member, (unsigned long)s->plan.warm,
                (unsigned long)s->uses[0].member);
}

/* The last set holds every utterance of every epoch, and in an exact job every step once. */
void check_end(struct sim *s, struct proc *p)
{
    const struct sim_set *set = &s->disk.sets[s->disk.num_sets - 1];
    const struct oracle *final[SIM_SHARDS];
    if (!set->final) sim_broken(s, "a job ends with its last set: the newest is %u", set->set);
    for (uint32_t k = 0; k < s->plan.shards; k++) {
        const struct sim_file *f = disk_file(&s->disk, k, set->set);
        if (!f) sim_broken(s, "a set is whole: shard %u is not in set %u", k, set->set);
        if (!f) return;
        final[k] = f->oracle;
        check_exact(s, f->state);
    }
    check_covered(s, final);
    check_doubled(s, p);
    check_warm(s);
}
