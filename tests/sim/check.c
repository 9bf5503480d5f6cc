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

uint32_t check_windows(const struct plan *p, uint32_t epoch, uint32_t begin)
{
    return p->mode == MODE_BSP ? 3 : 1 + (epoch + begin) % 3;
}

/* Windows of a job in which nothing is lost and nothing is done twice. */
static uint64_t exact_windows(const struct plan *p)
{
    uint64_t steps = 0;
    for (uint32_t e = 0; e < p->epochs; e++) {
        if (p->mode == MODE_BSP) steps += (uint64_t)p->workers * check_windows(p, e, 0);
        for (uint32_t b = 0; b < p->utterances && p->mode != MODE_BSP; b += p->chunk)
            steps += check_windows(p, e, b);
    }
    return steps;
}

/* After every message to a server: weights, versions and the oracle say the same. In bsp a step adds up the
 * pushes of all, of which some may be padding. */
void check_shard(struct sim *s, struct proc *p)
{
    const struct shard_state *st = server_state(p);
    const struct oracle *o = server_oracle(p);
    bool bsp = s->plan.mode == MODE_BSP;
    for (uint32_t b = 0; st && b < st->count; b++) {
        size_t n = o->lists[b].n / (bsp ? s->plan.workers : 1);
        size_t at = blocks_offset(&st->blocks, st->first + b) - blocks_offset(&st->blocks, st->first);
        if (bsp ? st->version[b] > n : st->version[b] != n || st->frames[b] != n)
            sim_broken(s,
                       "a version is the number of updates: block %u of shard %u has version %lu after %zu",
                       st->first + b, p->slot, (unsigned long)st->version[b], n);
        for (uint32_t i = 0; i < blocks_floats(&st->blocks, st->first + b); i++)
            if (st->weights[at + i] != -(float)st->frames[b])
                sim_broken(s, "a block is applied whole: weight %u of block %u is %g after %lu frames", i,
                           st->first + b, (double)st->weights[at + i], (unsigned long)st->frames[b]);
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
    if (!oracle_has(f->oracle, m->answer.block, member, m->answer.stable))
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

/* Entries of members that are gone may go, too. */
static bool is_alive(const struct sim *s, uint64_t member)
{
    for (size_t i = 0; i < s->num_procs; i++)
        if (!s->procs[i]->dead && s->procs[i]->worker && worker_member(s->procs[i]) == member) return true;
    return false;
}

/* A server is back: nothing that was acknowledged as stable is missing, in the weights or in the table. */
void check_restored(struct sim *s, struct proc *p)
{
    const struct shard_state *st = server_state(p);
    const struct oracle *o = server_oracle(p);
    for (size_t i = 0; i < s->num_stables; i++) {
        const struct stable_seen *t = &s->stables[i];
        if (t->block < st->first || t->block - st->first >= st->count) continue;
        if (!oracle_has(o, t->block, t->member, t->seq))
            sim_broken(
                s, "what was stable survives: seq %lu of member %lu is not in block %u of the restored shard",
                (unsigned long)t->seq, (unsigned long)t->member, t->block);
        if (is_alive(s, t->member) && last_seq(st, t->member, t->block) < t->seq)
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

/* A push that was under way when a server fell is lost, and counted as lost: the chunk goes on all the same.
 */
static bool is_covered(const struct sim *s, const struct oracle *const *final, uint32_t epoch,
                       uint32_t utterance)
{
    for (size_t i = 0; i < s->num_uses; i++) {
        const struct use *u = &s->uses[i];
        if (u->epoch != epoch || utterance < u->begin || utterance >= u->end) continue;
        if (u->lost) return true;
        bool all = true;
        for (uint32_t k = 0; k < s->plan.shards && all; k++)
            for (uint32_t b = 0; b < final[k]->blocks && all; b++)
                all = oracle_has(final[k], final[k]->first + b, u->member, u->seq);
        if (all) return true;
    }
    return false;
}

/* The last set holds every utterance of every epoch, and in an exact job every step once. */
void check_end(struct sim *s)
{
    const struct plan *p = &s->plan;
    const struct sim_set *set = &s->disk.sets[s->disk.num_sets - 1];
    const struct oracle *final[SIM_SHARDS];
    if (!set->final) sim_broken(s, "a job ends with its last set: the newest is %u", set->set);
    for (uint32_t k = 0; k < p->shards; k++) {
        const struct sim_file *f = disk_file(&s->disk, k, set->set);
        if (!f) sim_broken(s, "a set is whole: shard %u is not in set %u", k, set->set);
        if (!f) return;
        final[k] = f->oracle;
        for (uint32_t b = 0; b < f->state->count && p->mode != MODE_ASYNC; b++)
            if (f->state->frames[b] != exact_windows(p))
                sim_broken(s, "an exact job takes each window once: block %u ends at %lu of %lu",
                           f->state->first + b, (unsigned long)f->state->frames[b],
                           (unsigned long)exact_windows(p));
    }
    for (uint32_t e = 0; e < p->epochs && p->mode == MODE_ASYNC; e++)
        for (uint32_t u = 0; u < p->utterances; u++)
            if (!is_covered(s, final, e, u))
                sim_broken(s, "every utterance is used: %u of epoch %u is in no push of the last set", u, e);
}
