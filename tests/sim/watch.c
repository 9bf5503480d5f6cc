/* What a shard does, seen from outside: who takes part in a step, who is kept back in ssp. The clocks of ssp
 * are kept here a second time, by their definition alone. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

#define ROSTER 64
#define KEPT   256
#define FRESH  (2 * KEPT) /* answers in one call */

struct given {
    uint64_t pid, member, seq, since;
    uint32_t block;
};

struct watch {
    struct sim *s;
    struct proc *p;
    uint32_t first, blocks;
    uint32_t num_members; /* ssp: of the roster in force */
    uint64_t members[ROSTER], clock[ROSTER][SIM_BLOCKS], largest[SIM_BLOCKS];
    struct given kept[KEPT]; /* answers that are kept back */
    uint32_t num_kept;
    /* since the last check */
    struct given given[FRESH]; /* weights that went out with an answer */
    uint32_t num_given;
    struct oracle_entry applied[SIM_STEP];
    uint32_t num_applied, block;
};

struct watch *watch_new(struct sim *s, struct proc *p, uint32_t first, uint32_t blocks)
{
    struct watch *w = xcalloc(1, sizeof *w);
    ASSERT(blocks <= SIM_BLOCKS);
    w->s = s;
    w->p = p;
    w->first = first;
    w->blocks = blocks;
    return w;
}

void watch_free(struct watch **w)
{
    if (!*w) return;
    free(*w);
    *w = NULL;
}

/* --- the clocks of ssp */
static int row_of(const struct watch *w, uint64_t member)
{
    for (uint32_t i = 0; i < w->num_members; i++)
        if (w->members[i] == member) return (int)i;
    return -1;
}

static uint64_t least(const struct watch *w, uint32_t b)
{
    uint64_t least = w->num_members > 0 ? w->clock[0][b] : w->largest[b];
    for (uint32_t i = 1; i < w->num_members; i++)
        if (w->clock[i][b] < least) least = w->clock[i][b];
    return least;
}

/* How far a member is ahead of the slowest; who is not in the roster is not. */
static uint64_t ahead(const struct watch *w, uint64_t member, uint32_t block)
{
    int row = row_of(w, member);
    uint32_t b = block - w->first;
    return row < 0 ? 0 : w->clock[row][b] - least(w, b);
}

static void remove_member(struct watch *w, uint32_t row)
{
    w->num_members--;
    w->members[row] = w->members[w->num_members];
    memcpy(w->clock[row], w->clock[w->num_members], sizeof w->clock[row]);
}

void watch_roster(struct watch *w, const uint64_t *members, uint32_t n)
{
    uint64_t start[SIM_BLOCKS];
    for (uint32_t i = w->num_members; i-- > 0;) {
        uint32_t k = 0;
        while (k < n && members[k] != w->members[i]) k++;
        if (k == n) remove_member(w, i);
    }
    for (uint32_t b = 0; b < w->blocks; b++) start[b] = least(w, b);
    for (uint32_t k = 0; k < n; k++) {
        if (row_of(w, members[k]) >= 0) continue;
        ASSERT(w->num_members < ROSTER);
        memcpy(w->clock[w->num_members], start, sizeof start);
        w->members[w->num_members++] = members[k];
    }
}

void watch_oldest(struct watch *w, uint64_t oldest)
{
    for (uint32_t i = w->num_members; i-- > 0;)
        if (w->members[i] < oldest) remove_member(w, i);
}

static bool is_refusal(uint32_t verdict)
{
    return verdict == VERDICT_NONFINITE || verdict == VERDICT_NORM || verdict == VERDICT_STALE;
}

void watch_used(struct watch *w, uint64_t member, uint64_t seq, uint32_t block, uint32_t verdict)
{
    int row = row_of(w, member);
    if (is_refusal(verdict)) {
        oracle_add(w->s->refused, block, member, seq);
        if (!plan_in_step(w->s->plan.mode)) w->s->dropped[block]++;
    }
    if (row < 0) return;
    uint64_t clock = ++w->clock[row][block - w->first];
    if (clock > w->largest[block - w->first]) w->largest[block - w->first] = clock;
}

/* --- answers */
static struct given *find_kept(const struct watch *w, uint64_t pid, uint32_t block)
{
    for (uint32_t i = 0; i < w->num_kept; i++)
        if (w->kept[i].pid == pid && w->kept[i].block == block) return (struct given *)&w->kept[i];
    return NULL;
}

bool watch_is_kept(const struct watch *w, uint64_t pid, const struct msg_answer *a)
{
    const struct given *k = find_kept(w, pid, a->block);
    return a->verdict != VERDICT_RECEIVED && k && k->seq == a->seq;
}

static void check_verdict(struct watch *w, uint64_t member, const struct msg_answer *a)
{
    bool applied = oracle_has(server_oracle(w->p), a->block, member, a->seq);
    if ((a->verdict == VERDICT_APPLIED && !applied) || (is_refusal(a->verdict) && applied))
        sim_broken(w->s,
                   "an answer tells what was done: verdict %s on seq %lu of member %lu, block %u, which is%s",
                   msg_verdict_name(a->verdict), (unsigned long)a->seq, (unsigned long)member, a->block,
                   applied ? " applied" : " not applied");
}

static void keep(struct watch *w, const struct given *g)
{
    struct given *k = find_kept(w, g->pid, g->block);
    if (k && k->seq == g->seq) return;
    if (!k) {
        ASSERT(w->num_kept < KEPT);
        k = &w->kept[w->num_kept++];
    }
    w->s->waits++;
    *k = *g;
}

void watch_answer(struct watch *w, uint64_t pid, const struct msg_answer *a, bool has_weights)
{
    uint64_t member = pid <= w->s->num_procs ? w->s->procs[pid - 1]->member : 0;
    struct given g = {pid, member, a->seq, w->s->now, a->block};
    if (member == 0) return;
    if (a->verdict == VERDICT_RECEIVED && w->s->plan.mode == MODE_SSP) keep(w, &g);
    check_verdict(w, member, a);
    if (watch_is_kept(w, pid, a)) {
        struct given *k = find_kept(w, pid, a->block);
        g.since = k->since;
        *k = w->kept[--w->num_kept];
    }
    if (!has_weights) return;
    ASSERT(w->num_given < FRESH);
    w->given[w->num_given++] = g;
}

/* A worker that is there asks again, and is answered. */
static void check_patience(const struct watch *w, const struct given *g)
{
    const struct proc *p = w->s->procs[g->pid - 1];
    if (p->away || p->was_away || w->s->now < g->since + SIM_LIMIT + 60 * NS_PER_S) return;
    sim_broken(w->s, "nobody waits for ever: member %lu waits for block %u since %g s",
               (unsigned long)g->member, g->block, (double)g->since / 1e9);
}

/* Not ahead of the bound; but who waited for as long as a member may be silent counts as being there. */
static void check_given(struct watch *w, const struct given *g)
{
    uint32_t b = g->block - w->first, bound = w->s->plan.bound;
    uint64_t lead = ahead(w, g->member, g->block);
    if (lead <= bound) return;
    if (w->s->now >= g->since + SIM_LIMIT)
        w->clock[row_of(w, g->member)][b] = least(w, b) + bound;
    else
        sim_broken(w->s,
                   "nobody is given weights ahead of the bound: member %lu is %lu steps ahead on block %u, "
                   "the bound is %u",
                   (unsigned long)g->member, (unsigned long)lead, g->block, bound);
}

static void check_bound(struct watch *w)
{
    uint32_t bound = w->s->plan.bound;
    for (uint32_t i = 0; i < w->num_given; i++) check_given(w, &w->given[i]);
    for (uint32_t i = 0; i < w->num_kept; i++) {
        const struct given *g = &w->kept[i];
        check_patience(w, g);
        if (ahead(w, g->member, g->block) <= bound)
            sim_broken(w->s,
                       "nobody is kept back without a reason: member %lu is %lu steps ahead on block %u, the "
                       "bound is %u",
                       (unsigned long)g->member, (unsigned long)ahead(w, g->member, g->block), g->block,
                       bound);
    }
}

void watch_check_roster(const struct watch *w)
{
    const struct sim *s = w->s;
    const uint64_t limit = SIM_LIMIT + 15 * NS_PER_S; /* and a few orders may be lost */
    const struct proc *c = world_proc(w->s, s->coordinator);
    if (!c || s->now < c->born + limit || !w->p->found || w->p->found != c->pid) return;
    for (size_t i = 0; i < s->num_procs; i++) {
        const struct proc *p = s->procs[i];
        if (!p->member || !p->away || s->now < p->away + limit || row_of(w, p->member) < 0) continue;
        sim_broken(w->s, "a worker that is gone is waited for until its time is over: member %lu since %g s",
                   (unsigned long)p->member, (double)p->away / 1e9);
    }
}

/* --- steps */
void watch_applied(struct watch *w, uint64_t member, uint64_t seq, uint32_t block)
{
    if (oracle_has(w->s->refused, block, member, seq))
        sim_broken(w->s, "a push has one verdict: seq %lu of member %lu was refused by block %u",
                   (unsigned long)seq, (unsigned long)member, block);
    ASSERT(w->num_applied < SIM_STEP && (w->num_applied == 0 || w->block == block));
    w->block = block;
    w->applied[w->num_applied++] = (struct oracle_entry){member, seq};
}

static bool takes_part(const struct oracle_entry *who, uint32_t n, const struct oracle_entry *e)
{
    for (uint32_t i = 0; i < n; i++)
        if (who[i].member == e->member && who[i].seq == e->seq) return true;
    return false;
}

static const struct step *find_step(const struct sim *s, const struct oracle_entry *who, uint32_t n)
{
    for (size_t i = s->num_steps; i-- > 0;)
        for (uint32_t k = 0; k < n; k++)
            if (takes_part(s->steps[i].who, s->steps[i].n, &who[k])) return &s->steps[i];
    return NULL;
}

static void add_step(struct sim *s, const struct watch *w)
{
    s->steps = realloc(s->steps, (s->num_steps + 1) * sizeof *s->steps);
    ASSERT(s->steps);
    struct step *t = &s->steps[s->num_steps++];
    t->n = w->num_applied;
    memcpy(t->who, w->applied, sizeof t->who);
}

/* In step: the same pushes on every block, all of them or (backup workers) all but one, as block 0 says. */
static void check_step(struct watch *w)
{
    struct sim *s = w->s;
    const struct step *t = find_step(s, w->applied, w->num_applied);
    uint32_t all = s->plan.workers, backup = plan_backup(s->plan.mode);
    if (w->num_applied > all || w->num_applied < all - backup)
        sim_broken(s, "a step is of its quorum: %u of %u workers on block %u", w->num_applied, all, w->block);
    if (!t && backup > 0 && w->block != 0)
        sim_broken(s, "block 0 decides: block %u of shard %u makes a step first", w->block, w->p->slot);
    bool same = !t || t->n == w->num_applied;
    for (uint32_t i = 0; t && i < w->num_applied; i++) same &= takes_part(t->who, t->n, &w->applied[i]);
    if (!same)
        sim_broken(
            s,
            "a step is of the same pushes on every block: block %u of shard %u differs, with seq %lu of "
            "member %lu",
            w->block, w->p->slot, (unsigned long)w->applied[0].seq, (unsigned long)w->applied[0].member);
    if (!t) add_step(s, w);
}

static void count_update(struct watch *w, struct oracle *o)
{
    struct oracle_list *l = &o->lists[w->block - w->first];
    uint64_t frames = 0;
    for (uint32_t i = 0; i < w->num_applied; i++)
        frames += !check_is_pad(w->s, w->applied[i].member, w->applied[i].seq);
    l->frames += frames;
    l->updates += frames > 0;
}

void watch_check(struct watch *w, struct oracle *o)
{
    if (w->num_applied > 0) {
        if (plan_in_step(w->s->plan.mode)) check_step(w);
        count_update(w, o);
    }
    if (w->s->plan.mode == MODE_SSP) check_bound(w);
    w->num_applied = w->num_given = 0;
}
