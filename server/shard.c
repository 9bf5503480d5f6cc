#include "server/shard.h"

#include "common/err.h"
#include "server/admit.h"
#include "server/roster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kept {
    uint32_t set;
    const struct shard_state *copy; /* borrowed */
};

struct shard {
    struct shard_options o;
    struct shard_io io;
    struct shard_state *state; /* owned */
    struct admit_table table;
    struct roster roster;
    struct staleness *staleness;
    struct shard_counts counts;
    struct staleness_history *history; /* (count), owned */
    struct kept *kept;
    uint32_t num_kept;
};

/* A well-formed push of a known member. */
struct pushed {
    const struct msg_push *p;
    uint64_t peer;
    uint32_t local; /* block - first of the shard */
    int64_t row;    /* of the member, -1 if it was dropped meanwhile */
};

struct shard *shard_new(const struct shard_options *o, const struct shard_io *io, struct shard_state **state)
{
    struct shard_state *st = *state;
    ASSERT((uint64_t)st->first + st->count <= st->blocks.count);
    struct shard *s = xcalloc(1, sizeof *s);
    s->o = *o;
    s->io = *io;
    s->state = st;
    *state = NULL;
    admit_init(&s->table, st, o->max_members);
    roster_init(&s->roster, st->count);
    s->staleness = staleness_new();
    s->history = xcalloc((size_t)st->count + 1, sizeof *s->history);
    for (uint32_t b = 0; b < st->count; b++)
        staleness_history_begin(&s->history[b], st->version[b], st->frames[b]);
    return s;
}

void shard_free(struct shard **s)
{
    if (!*s) return;
    admit_fini(&(*s)->table);
    roster_fini(&(*s)->roster);
    staleness_free(&(*s)->staleness);
    shard_state_free(&(*s)->state);
    free((*s)->history);
    free((*s)->kept);
    free(*s);
    *s = NULL;
}

/* --- places */
static uint32_t floats_of(const struct shard *s, uint32_t local)
{
    return blocks_floats(&s->state->blocks, s->state->first + local);
}

static size_t offset_of(const struct shard *s, uint32_t local)
{
    const struct blocks *b = &s->state->blocks;
    return blocks_offset(b, s->state->first + local) - blocks_offset(b, s->state->first);
}

static size_t cell_of(const struct shard *s, const struct pushed *in)
{
    return (size_t)in->row * s->state->count + in->local;
}

static bool owns(const struct shard *s, uint32_t block)
{
    return block >= s->state->first && block - s->state->first < s->state->count;
}

/* --- answers */
static void refuse(struct shard *s, uint64_t peer, uint32_t reason, const char *text)
{
    struct msg m = {.type = MSG_REFUSED, .job = s->o.job};
    m.refused.reason = reason;
    snprintf(m.refused.text, sizeof m.refused.text, "%s", text);
    struct frame *none = NULL;
    s->io.send(s->io.ctx, peer, &m, &none);
}

static void refuse_stranger(struct shard *s, uint64_t peer)
{
    s->counts.stranger++;
    refuse(s, peer, REFUSAL_HELLO_FIRST, "this shard does not know the member: say HELLO first");
}

/* Versions that passed since the push's weights, not counting the update of the push itself. */
static uint64_t staleness_of(const struct shard *s, const struct pushed *in, bool counts_itself)
{
    uint64_t version = s->state->version[in->local] - (counts_itself ? 1 : 0);
    return version > in->p->base_version ? version - in->p->base_version : 0;
}

/* Sends a verdict. If weights is true the payload, already the weights, goes with it. */
static void send_answer(struct shard *s, const struct pushed *in, uint32_t verdict, uint64_t staleness,
                        struct frame **weights)
{
    struct msg m = {.type = MSG_ANSWER, .job = s->o.job};
    m.answer = (struct msg_answer){
        .block = in->p->block,
        .seq = in->p->seq,
        .verdict = verdict,
        .version = s->state->version[in->local],
        .staleness = staleness,
        .stable = in->row >= 0 ? s->table.stable[cell_of(s, in)] : 0,
        .generation = s->o.generation,
        .job_generation = s->o.job_generation,
    };
    if (*weights) m.answer.hash = wire_hash(frame_data(*weights), frame_len(*weights));
    s->io.send(s->io.ctx, in->peer, &m, weights);
}

/* The verdict alone. */
static void answer_bare(struct shard *s, const struct pushed *in, uint32_t verdict)
{
    struct frame *none = NULL;
    send_answer(s, in, verdict, staleness_of(s, in, false), &none);
}

/* The verdict with the present weights, if the push asked for them, in the frame that it came in (if it is
 * still there). */
static void answer_weights(struct shard *s, const struct pushed *in, uint32_t verdict, uint64_t staleness,
                           struct frame **frame)
{
    const float *w = s->state->weights + offset_of(s, in->local);
    size_t len = floats_of(s, in->local) * sizeof *w;
    if (!in->p->pull) {
        frame_free(frame);
    } else if (*frame) {
        memcpy(frame_data(*frame), w, len);
    } else {
        *frame = frame_copy(w, len);
    }
    send_answer(s, in, verdict, staleness, frame);
}

/* --- the update */
/* Before its update: a push that will be applied. Returns its staleness. */
static uint64_t record(struct shard *s, const struct pushed *in)
{
    struct staleness_record r = {
        .member = in->p->member,
        .versions = staleness_of(s, in, false),
        .frames = staleness_history_since(&s->history[in->local], in->p->base_version),
        .age_us = in->p->base_age_us,
        .skew = in->p->skew,
    };
    staleness_add(s->staleness, &r);
    s->counts.applied++;
    s->counts.frames_in += in->p->frames;
    return r.versions;
}

/* One step of a block with gradient g, which then holds the new weights. */
static void apply(struct shard *s, uint32_t local, float *g, uint64_t frames)
{
    struct shard_state *st = s->state;
    size_t at = offset_of(s, local);
    float rate = (float)update_rate(&s->o.rule, st->frames[local]);
    update_apply(&s->o.rule, rate, g, st->weights + at, st->momentum ? st->momentum + at : NULL,
                 floats_of(s, local));
    st->version[local]++;
    st->frames[local] += frames;
    staleness_history_add(&s->history[local], st->frames[local]);
}

static void store(struct shard *s, const struct pushed *in, uint32_t verdict)
{
    if (in->row < 0) return;
    s->state->last_seq[cell_of(s, in)] = in->p->seq;
    s->state->verdict[cell_of(s, in)] = (uint8_t)verdict;
}

static void tell_applied(struct shard *s, const struct pushed *in)
{
    if (!s->io.applied) return;
    s->io.applied(s->io.ctx, in->p->member, in->p->seq, in->p->block, s->state->version[in->local]);
}

static void count_refused(struct shard *s, uint32_t verdict)
{
    if (verdict == VERDICT_NONFINITE) s->counts.nonfinite++;
    if (verdict == VERDICT_NORM) s->counts.norm++;
}

/* async: at once. */
static void step_alone(struct shard *s, const struct pushed *in, uint32_t verdict, struct frame **frame)
{
    uint64_t staleness = staleness_of(s, in, false);
    store(s, in, verdict);
    if (verdict != VERDICT_APPLIED) {
        count_refused(s, verdict);
        answer_weights(s, in, verdict, staleness, frame);
        return;
    }
    record(s, in);
    apply(s, in->local, frame_data(*frame), in->p->frames);
    tell_applied(s, in);
    if (!in->p->pull) frame_free(frame);
    send_answer(s, in, verdict, staleness, frame);
}

/* bsp: everyone's push of the block is here. A step of no frames at all changes nothing: ranks that have run
 * out of data push zeros so that the others can go on, and momentum must not move the weights meanwhile. */
static void step_together(struct shard *s, uint32_t local)
{
    struct held *h = roster_block(&s->roster, local);
    uint32_t n = s->roster.num_members;
    uint64_t frames, *staleness = xcalloc(n, sizeof *staleness);
    float *sum = roster_sum(&s->roster, local, floats_of(s, local), s->o.mean, &frames);
    for (uint32_t k = 0; k < n; k++) {
        struct pushed in = {&h[k].push, h[k].peer, local, -1};
        if (h[k].verdict != VERDICT_APPLIED)
            count_refused(s, h[k].verdict);
        else if (frames > 0)
            staleness[k] = record(s, &in);
    }
    if (frames > 0) apply(s, local, sum, frames);
    for (uint32_t k = 0; k < n; k++) {
        struct pushed in = {&h[k].push, h[k].peer, local, admit_find(&s->table, h[k].push.member)};
        store(s, &in, h[k].verdict);
        if (h[k].verdict == VERDICT_APPLIED) tell_applied(s, &in);
        answer_weights(s, &in, h[k].verdict, staleness[k], &h[k].frame);
    }
    roster_clear(&s->roster, local);
    free(staleness);
}

/* bsp: held until the roster's other members have pushed this block too. The last one gets its verdict at
 * once. */
static void hold(struct shard *s, const struct pushed *in, uint32_t verdict, struct frame **frame)
{
    int64_t rank = roster_rank(&s->roster, in->p->member);
    if (rank < 0) {
        refuse(s, in->peer, REFUSAL_NOT_READY, "the member is not in the roster in force: push again later");
        return;
    }
    struct held *place = roster_block(&s->roster, in->local) + rank;
    if (place->here && place->push.seq != in->p->seq) {
        s->counts.malformed++; /* a step ahead of its own */
        return;
    }
    if (place->here) {
        s->counts.duplicate++;
        place->peer = in->peer;
        answer_bare(s, in, VERDICT_RECEIVED);
        return;
    }
    struct held h = {.verdict = verdict, .push = *in->p, .peer = in->peer};
    if (roster_hold(&s->roster, in->local, (uint32_t)rank, &h, frame))
        step_together(s, in->local);
    else
        answer_bare(s, in, VERDICT_RECEIVED);
}

/* --- what comes in */
static void decide(struct shard *s, const struct pushed *in, struct frame **frame)
{
    struct admit_limits limits = {s->o.job_generation, s->o.generation, s->o.max_norm};
    size_t cell = cell_of(s, in);
    uint32_t verdict;
    switch (admit_push(&limits, in->p, frame_data(*frame), floats_of(s, in->local), s->state->last_seq[cell],
                       s->state->verdict[cell], &verdict)) {
    case ADMIT_APPLY:
    case ADMIT_REFUSE:
        if (s->o.bsp)
            hold(s, in, verdict, frame);
        else
            step_alone(s, in, verdict, frame);
        break;
    case ADMIT_RETURN:
        if (verdict == VERDICT_CORRUPT)
            s->counts.corrupt++;
        else
            s->counts.generation++;
        answer_bare(s, in, verdict);
        break;
    case ADMIT_DUPLICATE:
        s->counts.duplicate++;
        answer_weights(s, in, verdict, staleness_of(s, in, verdict == VERDICT_APPLIED), frame);
        break;
    case ADMIT_LATE:
        s->counts.late++;
        break;
    }
}

static void receive_push(struct shard *s, uint64_t peer, const struct msg *m, struct frame **frame)
{
    const struct msg_push *p = &m->push;
    int64_t row = m->job == s->o.job ? admit_find(&s->table, p->member) : -1;
    if (row < 0) {
        refuse_stranger(s, peer);
        return;
    }
    if (!owns(s, p->block) || !*frame || p->seq == 0 || p->frames > UINT32_MAX ||
        frame_len(*frame) != floats_of(s, p->block - s->state->first) * sizeof(float)) {
        s->counts.malformed++;
        return;
    }
    s->counts.bytes_in += frame_len(*frame);
    struct pushed in = {p, peer, p->block - s->state->first, row};
    decide(s, &in, frame);
}

static void receive_hello(struct shard *s, uint64_t peer, const struct msg *m)
{
    if (m->hello.member == 0) {
        s->counts.malformed++;
        return;
    }
    char text[MSG_TEXT];
    struct admit_identity us = {s->o.job, s->o.model_hash, s->o.shard, s->o.job_generation};
    uint32_t reason = admit_hello(&s->table, &us, m, text);
    if (reason) {
        refuse(s, peer, reason, text);
        return;
    }
    struct msg w = {.type = MSG_WELCOME, .job = s->o.job};
    w.welcome = (struct msg_welcome){s->o.shard, s->o.generation, s->o.job_generation, s->state->first,
                                     s->state->count};
    struct frame *none = NULL;
    s->io.send(s->io.ctx, peer, &w, &none);
}

static const struct shard_state *find_kept(const struct shard *s, uint32_t set)
{
    if (set == 0) return s->state;
    for (uint32_t i = 0; i < s->num_kept; i++)
        if (s->kept[i].set == set) return s->kept[i].copy;
    return NULL;
}

static void receive_read(struct shard *s, uint64_t peer, const struct msg *m)
{
    const struct msg_read *r = &m->read;
    if (m->job != s->o.job || admit_find(&s->table, r->member) < 0) {
        refuse_stranger(s, peer);
        return;
    }
    if (!owns(s, r->block)) {
        s->counts.malformed++;
        return;
    }
    uint32_t local = r->block - s->state->first;
    const struct shard_state *from = find_kept(s, r->set);
    struct msg b = {.type = MSG_BLOCK, .job = s->o.job};
    b.block = (struct msg_block){.request = r->request, .block = r->block, .set = r->set};
    b.block.generation = s->o.generation;
    struct frame *payload = NULL;
    if (from) {
        size_t len = floats_of(s, local) * sizeof(float);
        payload = frame_copy(from->weights + offset_of(s, local), len);
        b.block.found = true;
        b.block.version = from->version[local];
        b.block.hash = wire_hash(frame_data(payload), len);
    }
    s->io.send(s->io.ctx, peer, &b, &payload);
}

void shard_receive(struct shard *s, uint64_t now, uint64_t peer, const struct msg *m, struct frame **payload)
{
    (void)now; /* nothing here waits for a time */
    struct frame *frame = NULL;
    if (payload) {
        frame = *payload;
        *payload = NULL;
    }
    if (m->type == MSG_PUSH)
        receive_push(s, peer, m, &frame);
    else if (m->type == MSG_HELLO)
        receive_hello(s, peer, m);
    else if (m->type == MSG_READ)
        receive_read(s, peer, m);
    else
        s->counts.malformed++;
    frame_free(&frame);
}

/* --- checkpoints */
struct shard_state *shard_copy(const struct shard *s)
{
    const struct shard_state *a = s->state;
    struct shard_state *b = shard_state_new(&a->blocks, a->first, a->count, a->num_members);
    size_t floats = shard_state_floats(a), cells = (size_t)a->num_members * a->count;
    if (a->count == 0) return b;
    memcpy(b->weights, a->weights, floats * sizeof *a->weights);
    if (a->momentum && b->momentum) memcpy(b->momentum, a->momentum, floats * sizeof *a->momentum);
    memcpy(b->version, a->version, a->count * sizeof *a->version);
    memcpy(b->frames, a->frames, a->count * sizeof *a->frames);
    if (cells == 0) return b;
    memcpy(b->members, a->members, a->num_members * sizeof *a->members);
    memcpy(b->last_seq, a->last_seq, cells * sizeof *a->last_seq);
    memcpy(b->verdict, a->verdict, cells * sizeof *a->verdict);
    return b;
}

void shard_keep(struct shard *s, uint32_t set, const struct shard_state *copy)
{
    ASSERT(set > 0);
    ASSERT(!copy || (copy->first == s->state->first && copy->count == s->state->count));
    uint32_t i = 0;
    while (i < s->num_kept && s->kept[i].set != set) i++;
    if (!copy) {
        if (i < s->num_kept) s->kept[i] = s->kept[--s->num_kept];
        return;
    }
    if (i == s->num_kept) {
        s->kept = realloc(s->kept, (i + 1) * sizeof *s->kept);
        ASSERT(s->kept);
        s->num_kept++;
    }
    s->kept[i] = (struct kept){set, copy};
}

void shard_stable(struct shard *s, const struct shard_state *written)
{
    admit_stable(&s->table, written);
}

/* --- orders */
void shard_roster(struct shard *s, uint32_t id, const uint64_t *members, uint32_t n)
{
    if (n > s->o.max_members)
        s->counts.malformed++;
    else
        roster_set(&s->roster, id, members, n);
}

void shard_halve_from(struct shard *s, uint32_t epoch)
{
    if (s->o.rule.schedule == SCHEDULE_NEWBOB) s->o.rule.from_epoch = epoch;
}

void shard_oldest_member(struct shard *s, uint64_t member)
{
    admit_set_oldest(&s->table, member);
}

/* --- looking in */
static uint64_t smallest(const uint64_t *values, uint32_t n)
{
    uint64_t least = n > 0 ? values[0] : 0;
    for (uint32_t i = 1; i < n; i++)
        if (values[i] < least) least = values[i];
    return least;
}

uint64_t shard_version(const struct shard *s)
{
    return smallest(s->state->version, s->state->count);
}

uint64_t shard_frames(const struct shard *s)
{
    return smallest(s->state->frames, s->state->count);
}

uint32_t shard_num_members(const struct shard *s)
{
    return s->state->num_members;
}

const struct shard_counts *shard_counts(const struct shard *s)
{
    return &s->counts;
}

struct staleness *shard_staleness(struct shard *s)
{
    return s->staleness;
}

const struct shard_state *shard_look(const struct shard *s)
{
    return s->state;
}
