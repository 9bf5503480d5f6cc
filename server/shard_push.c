/* What one pushed block goes through: checks, update, answer. */
#include "server/shard_inside.h"

#include "common/err.h"

/* --- answers */
static size_t cell_of(const struct shard *s, const struct pushed *in)
{
    return (size_t)in->row * s->state->count + in->local;
}

uint64_t shard_push_staleness(const struct shard *s, const struct pushed *in, bool counts_itself)
{
    uint64_t version = s->state->version[in->local] - (counts_itself ? 1 : 0);
    return version > in->p->base_version ? version - in->p->base_version : 0;
}

/* Sends a verdict; with weights if there are any. */
static void send_answer(struct shard *s, const struct pushed *in, const struct outcome *out,
                        struct frame **weights)
{
    struct msg m = {.type = MSG_ANSWER, .job = s->o.job};
    m.answer = (struct msg_answer){
        .block = in->p->block,
        .seq = in->p->seq,
        .verdict = out->verdict,
        .version = s->state->version[in->local],
        .staleness = out->staleness,
        .stable = in->row >= 0 ? s->table.stable[cell_of(s, in)] : 0,
        .generation = s->o.generation,
        .job_generation = s->o.job_generation,
        .type = s->o.weights,
        .credit = shard_credit(s),
        .quorum = out->ticket.quorum,
        .step = out->ticket.step,
    };
    if (*weights) m.answer.hash = wire_hash(frame_data(*weights), frame_len(*weights));
    s->io.send(s->io.ctx, in->peer, &m, weights);
}

void shard_push_answer_bare(struct shard *s, const struct pushed *in, const struct outcome *out)
{
    struct frame *none = NULL;
    send_answer(s, in, out, &none);
}

void shard_push_answer(struct shard *s, const struct pushed *in, const struct outcome *out,
                       struct frame **frame)
{
    if (in->p->pull)
        shard_pack(s, in->p->member, in->local, out->is_packed, frame);
    else
        frame_free(frame);
    send_answer(s, in, out, frame);
}

/* --- the update */
void shard_push_record(struct shard *s, const struct pushed *in)
{
    struct staleness_record r = {
        .member = in->p->member,
        .versions = shard_push_staleness(s, in, false),
        .frames = staleness_history_since(&s->history[in->local], in->p->base_version),
        .age_us = in->p->base_age_us,
        .skew = in->p->skew,
    };
    staleness_add(s->staleness, &r);
    s->counts.applied++;
    s->counts.frames_in += in->p->frames;
}

static float *slot_of(const struct shard *s, enum shard_slot k, uint32_t local)
{
    float *slot = s->state->slot[k];
    return slot ? slot + (shard_weights(s, local) - s->state->weights) : NULL;
}

static struct update_step step_of(const struct shard *s, uint32_t local, uint64_t staleness)
{
    const struct shard_state *st = s->state;
    struct update_step step = {.number = st->version[local] - st->since[local] + 1};
    pace_step(&s->pace, st->frames[local], staleness, &step.rate, &step.momentum);
    return step;
}

static struct update_block block_of(const struct shard *s, uint32_t local)
{
    return (struct update_block){.weights = shard_weights(s, local),
                                 .momentum = slot_of(s, SLOT_MOMENTUM, local),
                                 .square = slot_of(s, SLOT_SQUARE, local),
                                 .n = shard_floats(s, local)};
}

void shard_push_count_step(struct shard *s, uint32_t local, uint64_t frames)
{
    s->state->version[local]++;
    s->state->frames[local] += frames;
    staleness_history_add(&s->history[local], s->state->frames[local]);
}

void shard_push_apply(struct shard *s, uint32_t local, float *g, uint64_t frames)
{
    struct update_step step = step_of(s, local, 0);
    struct update_block block = block_of(s, local);
    block.g = g;
    update_apply(&s->o.rule, &step, &block);
    shard_push_count_step(s, local, frames);
}

static void count_refused(struct shard *s, uint32_t verdict)
{
    if (verdict == VERDICT_NONFINITE) s->counts.nonfinite++;
    if (verdict == VERDICT_NORM) s->counts.norm++;
    if (verdict == VERDICT_STALE) s->counts.stale++;
}

void shard_push_store(struct shard *s, const struct pushed *in, uint32_t verdict)
{
    count_refused(s, verdict);
    if (in->row < 0) return;
    s->state->last_seq[cell_of(s, in)] = in->p->seq;
    s->state->verdict[cell_of(s, in)] = (uint8_t)verdict;
}

void shard_push_tell(struct shard *s, const struct pushed *in)
{
    if (!s->io.applied) return;
    s->io.applied(s->io.ctx, in->p->member, in->p->seq, in->p->block, s->state->version[in->local]);
}

/* Delay compensation: the weights that the gradient was computed from, if they are known. */
static const float *backup_of(const struct shard *s, const struct pushed *in)
{
    if (s->o.rule.compensation <= 0) return NULL;
    return backup_weights_find(&s->backups, in->p->member, in->local, in->p->base_version);
}

/* The gradient in *frame; afterwards that is the answer's, with the new weights, or NULL if they are not
 * asked for. */
static void apply(struct shard *s, const struct pushed *in, uint64_t staleness, struct frame **frame)
{
    struct frame *to = in->p->pull ? shard_room(s, in->local, *frame) : NULL;
    struct update_step step = step_of(s, in->local, staleness);
    struct update_block block = block_of(s, in->local);
    block.backup = backup_of(s, in);
    block.g = frame_data(*frame);
    block.g_type = s->o.gradients;
    block.to = to ? frame_data(to) : NULL;
    block.to_type = s->o.weights;
    update_apply(&s->o.rule, &step, &block);
    shard_push_count_step(s, in->local, in->p->frames);
    if (to != *frame) frame_free(frame);
    *frame = to;
}

/* Nobody is waited for: at once. */
static void step_alone(struct shard *s, const struct pushed *in, uint32_t verdict, struct frame **frame)
{
    struct outcome out = {.verdict = verdict,
                          .staleness = shard_push_staleness(s, in, false),
                          .ticket = shard_bsp_ticket(s, in, verdict),
                          .is_packed = verdict == VERDICT_APPLIED};
    shard_push_store(s, in, verdict);
    if (verdict == VERDICT_APPLIED) {
        shard_push_record(s, in);
        apply(s, in, out.staleness, frame);
        shard_push_tell(s, in);
    }
    if (s->o.mode == CONSISTENCY_SSP)
        shard_ssp_answer(s, in, &out, frame);
    else
        shard_push_answer(s, in, &out, frame);
}

/* --- what comes in */
/* Its seq is new. */
static void take(struct shard *s, const struct pushed *in, const struct admit_limits *limits,
                 struct frame **frame)
{
    double norm = update_norm(s->o.gradients, frame_data(*frame), shard_floats(s, in->local));
    uint32_t verdict = admit_gradient(limits, shard_push_staleness(s, in, false), norm);
    if (s->o.mode != CONSISTENCY_BSP)
        step_alone(s, in, verdict, frame);
    else if (shard_bsp_is_left_out(s, in))
        step_alone(s, in, VERDICT_STALE, frame);
    else
        shard_bsp_hold(s, in, verdict, frame);
}

static void answer_again(struct shard *s, const struct pushed *in, uint32_t verdict, struct frame **frame)
{
    s->counts.duplicate++;
    if (s->o.mode == CONSISTENCY_SSP && shard_ssp_is_waiting(s, in)) return;
    struct outcome out = {.verdict = verdict,
                          .staleness = shard_push_staleness(s, in, verdict == VERDICT_APPLIED),
                          .ticket = shard_bsp_ticket(s, in, verdict)};
    shard_push_answer(s, in, &out, frame);
}

static void send_back(struct shard *s, const struct pushed *in, uint32_t verdict)
{
    struct outcome out = {.verdict = verdict, .staleness = shard_push_staleness(s, in, false)};
    if (verdict == VERDICT_CORRUPT)
        s->counts.corrupt++;
    else
        s->counts.generation++;
    shard_push_answer_bare(s, in, &out);
}

static void decide(struct shard *s, const struct pushed *in, struct frame **frame)
{
    struct admit_limits limits = {s->o.job_generation, s->o.generation, 0, s->o.max_norm};
    if (s->o.mode != CONSISTENCY_BSP) limits.max_staleness = s->o.max_staleness;
    size_t cell = cell_of(s, in);
    uint32_t verdict;
    switch (admit_push(&limits, in->p, frame_data(*frame), frame_len(*frame), s->state->last_seq[cell],
                       s->state->verdict[cell], &verdict)) {
    case ADMIT_NEW:
        take(s, in, &limits, frame);
        break;
    case ADMIT_RETURN:
        send_back(s, in, verdict);
        break;
    case ADMIT_DUPLICATE:
        answer_again(s, in, verdict, frame);
        break;
    case ADMIT_LATE:
        s->counts.late++;
        break;
    }
}

static bool is_sound(const struct shard *s, const struct msg_push *p, struct frame *frame)
{
    if (!shard_owns(s, p->block) || !frame || p->seq == 0 || p->frames > UINT32_MAX) return false;
    size_t n = shard_floats(s, p->block - s->state->first);
    if (p->type != s->o.gradients || frame_len(frame) != element_bytes(s->o.gradients, n)) return false;
    return s->o.mode != CONSISTENCY_BSP || shard_bsp_is_sound(s, p);
}

void shard_push_receive(struct shard *s, uint64_t now, uint64_t peer, const struct msg *m,
                        struct frame **frame)
{
    const struct msg_push *p = &m->push;
    int64_t row = m->job == s->o.job ? admit_find(&s->table, p->member) : -1;
    if (row < 0) {
        shard_refuse_stranger(s, peer);
        return;
    }
    if (!is_sound(s, p, *frame)) {
        s->counts.malformed++;
        return;
    }
    s->counts.bytes_in += frame_len(*frame);
    struct pushed in = {p, peer, now, p->block - s->state->first, row};
    decide(s, &in, frame);
}
