/* ssp: a push is applied at once, but its answer waits while the member is too far ahead of the slowest.
 * Every shard counts steps by itself, so one that fell, or heard of a roster late, may take another member
 * for the slowest than the others do; two members could then wait for each other on two shards, and for ever.
 * So an answer waits no longer than a member may be silent, and who waited so long counts as being at the
 * bound. */
#include "server/shard_inside.h"

#include "common/clock.h"
#include "common/err.h"

#include <stdlib.h>

#define LIMIT_NS (30 * NS_PER_S)

void shard_ssp_init(struct shard *s)
{
    clocks_init(&s->clocks, s->state->count);
    s->waiting = xcalloc((size_t)s->state->count + 1, sizeof *s->waiting);
}

void shard_ssp_fini(struct shard *s)
{
    clocks_fini(&s->clocks);
    for (uint32_t b = 0; b < s->state->count; b++) free(s->waiting[b].all);
    free(s->waiting);
}

static struct waiter *find(const struct waiters *w, uint64_t member)
{
    for (uint32_t i = 0; i < w->num; i++)
        if (w->all[i].member == member) return &w->all[i];
    return NULL;
}

static struct waiter *add(struct waiters *w)
{
    if (w->num == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 4;
        w->all = realloc(w->all, w->capacity * sizeof *w->all);
        ASSERT(w->all);
    }
    return &w->all[w->num++];
}

/* The weights follow; the credit comes back now. */
static void say_received(struct shard *s, const struct pushed *in, uint64_t staleness)
{
    shard_push_answer_bare(s, in, &(struct outcome){.verdict = VERDICT_RECEIVED, .staleness = staleness});
}

/* One answer per member and block: a member that pushes on without it has lost interest in the older one. */
static void keep_back(struct shard *s, const struct pushed *in, const struct outcome *out)
{
    struct waiters *w = &s->waiting[in->local];
    struct waiter *mine = find(w, in->p->member);
    if (!mine) mine = add(w);
    *mine = (struct waiter){in->p->member, in->p->seq, in->peer, out->staleness, in->now, out->verdict};
    s->counts.waits++;
    say_received(s, in, out->staleness);
}

static void answer_waiter(struct shard *s, uint64_t now, uint32_t local, const struct waiter *w)
{
    struct msg_push p = {.member = w->member, .seq = w->seq, .block = s->state->first + local, .pull = true};
    struct pushed in = {&p, w->peer, now, local, admit_find(&s->table, w->member)};
    struct frame *frame = NULL;
    if (now > w->since) s->counts.wait_ns += now - w->since;
    shard_push_answer(s, &in, &(struct outcome){.verdict = w->verdict, .staleness = w->staleness}, &frame);
}

/* Answers those that nothing keeps back any more. */
static void release(struct shard *s, uint64_t now, uint32_t local)
{
    struct waiters *w = &s->waiting[local];
    uint32_t kept = 0, total = w->num;
    for (uint32_t i = 0; i < total; i++) {
        if (clocks_is_ahead(&s->clocks, w->all[i].member, local, s->o.bound))
            w->all[kept++] = w->all[i];
        else
            answer_waiter(s, now, local, &w->all[i]);
    }
    w->num = kept;
}

void shard_ssp_answer(struct shard *s, const struct pushed *in, const struct outcome *out,
                      struct frame **frame)
{
    bool rose = clocks_advance(&s->clocks, in->p->member, in->local);
    if (in->p->pull && clocks_is_ahead(&s->clocks, in->p->member, in->local, s->o.bound))
        keep_back(s, in, out);
    else
        shard_push_answer(s, in, out, frame);
    if (rose) release(s, in->now, in->local);
}

/* It waited too long: there is nothing more to keep back. */
static void give_up(struct shard *s, const struct pushed *in, struct waiter *mine)
{
    struct waiters *w = &s->waiting[in->local];
    s->counts.wait_ns += in->now - mine->since;
    for (w->num--; mine < w->all + w->num; mine++) mine[0] = mine[1];
    clocks_lower(&s->clocks, in->p->member, in->local, s->o.bound);
}

bool shard_ssp_is_waiting(struct shard *s, const struct pushed *in)
{
    struct waiter *mine = find(&s->waiting[in->local], in->p->member);
    if (!mine || mine->seq != in->p->seq) return false;
    if (in->now - mine->since >= LIMIT_NS) {
        give_up(s, in, mine);
        return false;
    }
    mine->peer = in->peer; /* where it spoke last */
    say_received(s, in, mine->staleness);
    return true;
}

static void release_all(struct shard *s, uint64_t now)
{
    for (uint32_t b = 0; b < s->state->count; b++) release(s, now, b);
}

void shard_ssp_roster(struct shard *s, uint64_t now, const uint64_t *members, uint32_t n)
{
    clocks_set(&s->clocks, members, n);
    release_all(s, now);
}

void shard_ssp_drop_below(struct shard *s, uint64_t now, uint64_t oldest)
{
    clocks_drop_below(&s->clocks, oldest);
    release_all(s, now);
}
