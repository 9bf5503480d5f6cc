/* bsp: pushes of a block are held until its step is complete. With backup workers the first block of the
 * vector decides who takes part in a step: whoever pushes it among the first, as many as the quorum, has a
 * ticket for the other blocks; who comes later is told STALE and begins the next step. A ticket names its
 * step: a block whose step before that is still open takes no push of it. */
#include "server/shard_inside.h"

#include "common/err.h"

#include <stdlib.h>

/* --- who takes part */
static bool decides(const struct shard *s, uint32_t local)
{
    return s->o.backup > 0 && s->state->first + local == 0;
}

bool shard_bsp_is_sound(const struct shard *s, const struct msg_push *p)
{
    return s->o.backup == 0 || p->block == 0 || (p->quorum > 0 && p->step > 0);
}

bool shard_bsp_is_left_out(const struct shard *s, const struct pushed *in)
{
    return decides(s, in->local) && roster_rank(&s->roster, in->p->member) >= 0 &&
           in->p->base_version < s->state->version[in->local];
}

struct ticket shard_bsp_ticket(const struct shard *s, const struct pushed *in, uint32_t verdict)
{
    int64_t rank = decides(s, in->local) ? roster_rank(&s->roster, in->p->member) : -1;
    if (rank < 0) return (struct ticket){0, 0};
    if (verdict == VERDICT_STALE) return (struct ticket){0, roster_steps(&s->roster, in->local)};
    return s->roster.ticket[rank];
}

/* How many pushes make the step that this one begins. At the tail of the data everyone is waited for: ranks
 * that have run out push zeros, which must not crowd out those that have frames. */
static uint32_t quorum_of(const struct shard *s, const struct pushed *in)
{
    uint32_t all = s->roster.num_members;
    if (s->o.backup == 0) return all;
    if (!decides(s, in->local)) return in->p->quorum;
    if (s->roster.tail || in->p->frames == 0) return all;
    return all > s->o.backup ? all - s->o.backup : 1;
}

/* With a ticket for a later step than the next one. */
static bool is_early(const struct shard *s, const struct pushed *in)
{
    bool follows = s->o.backup > 0 && !decides(s, in->local);
    return follows && in->p->step > roster_steps(&s->roster, in->local) + 1;
}

/* All pushes of a step carry one ticket, of no more than there are. */
static bool fits(const struct shard *s, const struct pushed *in, uint32_t quorum)
{
    const struct roster *r = &s->roster;
    if (s->o.backup == 0 || decides(s, in->local)) return true;
    if (quorum > r->num_members || in->p->step != roster_steps(r, in->local) + 1) return false;
    return r->arrived[in->local] == 0 || r->quorum[in->local] == quorum;
}

/* --- the step */
/* What the pushes of a step say of themselves, refused ones included. */
struct told {
    bool any_frames, any_without;
};

static struct told look_at(const struct shard *s, uint32_t local)
{
    const struct held *h = roster_block(&s->roster, local);
    struct told t = {false, false};
    for (uint32_t k = 0; k < s->roster.num_members; k++) {
        if (!h[k].here) continue;
        t.any_frames |= h[k].push.frames > 0;
        t.any_without |= h[k].push.frames == 0;
    }
    return t;
}

/* A step of no frames at all changes nothing: ranks that have run out of data push zeros so that the others
 * can go on, and momentum must not move the weights meanwhile. With backup workers the version names the step
 * for those who come too late, so it rises where every gradient was refused, too. */
static void update(struct shard *s, uint32_t local, float *sum, uint64_t frames, bool any_frames)
{
    if (frames > 0)
        shard_push_apply(s, local, sum, frames);
    else if (s->o.backup > 0 && any_frames)
        shard_push_count_step(s, local, 0);
}

static void answer_held(struct shard *s, uint64_t now, uint32_t local, struct held *h, uint64_t staleness)
{
    struct pushed in = {&h->push, h->peer, now, local, admit_find(&s->table, h->push.member)};
    struct outcome out = {.verdict = h->verdict, .staleness = staleness};
    shard_push_store(s, &in, h->verdict);
    if (h->verdict == VERDICT_APPLIED) shard_push_tell(s, &in);
    if (h->push.pull && now > h->since) s->counts.wait_ns += now - h->since;
    out.ticket = shard_bsp_ticket(s, &in, h->verdict);
    shard_push_answer(s, &in, &out, &h->frame);
}

/* Everyone's push of the block is here. */
static void step_together(struct shard *s, uint64_t now, uint32_t local)
{
    struct held *h = roster_block(&s->roster, local);
    uint32_t n = s->roster.num_members;
    struct told told = look_at(s, local);
    uint64_t frames, *staleness = xcalloc(n, sizeof *staleness);
    float *sum =
        roster_sum(&s->roster, local, s->o.gradients, shard_floats(s, local), s->o.mean, s->scratch, &frames);
    for (uint32_t k = 0; k < n && frames > 0; k++) {
        struct pushed in = {&h[k].push, h[k].peer, now, local, -1};
        if (!h[k].here || h[k].verdict != VERDICT_APPLIED) continue;
        staleness[k] = shard_push_staleness(s, &in, false);
        shard_push_record(s, &in);
    }
    update(s, local, sum, frames, told.any_frames);
    for (uint32_t k = 0; k < n; k++)
        if (h[k].here) answer_held(s, now, local, &h[k], staleness[k]);
    if (decides(s, local)) s->roster.tail = told.any_without;
    roster_clear(&s->roster, local);
    free(staleness);
}

/* --- holding */
static void say_received(struct shard *s, const struct pushed *in)
{
    struct outcome out = {.verdict = VERDICT_RECEIVED,
                          .staleness = shard_push_staleness(s, in, false),
                          .ticket = shard_bsp_ticket(s, in, VERDICT_RECEIVED)};
    shard_push_answer_bare(s, in, &out);
}

/* It is here already. */
static void hold_again(struct shard *s, const struct pushed *in, struct held *place)
{
    if (place->push.seq != in->p->seq) {
        s->counts.malformed++; /* a step ahead of its own */
        return;
    }
    s->counts.duplicate++;
    place->peer = in->peer;
    say_received(s, in);
}

/* The last one of a step gets its verdict at once. */
void shard_bsp_hold(struct shard *s, const struct pushed *in, uint32_t verdict, struct frame **frame)
{
    int64_t rank = roster_rank(&s->roster, in->p->member);
    if (rank < 0 || is_early(s, in)) {
        shard_refuse(s, in->peer, REFUSAL_NOT_READY,
                     rank < 0 ? "the member is not in the roster in force: push again later"
                              : "the step before is still open: push again later");
        return;
    }
    struct held *place = roster_block(&s->roster, in->local) + rank;
    if (place->here) {
        hold_again(s, in, place);
        return;
    }
    uint32_t quorum = quorum_of(s, in);
    if (!fits(s, in, quorum)) {
        s->counts.malformed++;
        return;
    }
    struct held h = {.verdict = verdict, .push = *in->p, .peer = in->peer, .since = in->now};
    bool complete = roster_hold(&s->roster, in->local, (uint32_t)rank, &h, quorum, frame);
    if (decides(s, in->local))
        s->roster.ticket[rank] =
            (struct ticket){s->roster.quorum[in->local], roster_steps(&s->roster, in->local) + 1};
    if (complete) {
        step_together(s, in->now, in->local);
        return;
    }
    s->counts.waits += in->p->pull;
    say_received(s, in);
}
