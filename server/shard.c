#include "server/shard_inside.h"

#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shard *shard_new(const struct shard_options *o, const struct shard_io *io, struct shard_state **state)
{
    struct shard_state *st = *state;
    ASSERT((uint64_t)st->first + st->count <= st->blocks.count && o->credit > 0);
    struct shard *s = xcalloc(1, sizeof *s);
    s->o = *o;
    s->io = *io;
    s->state = st;
    *state = NULL;
    if (o->mode == CONSISTENCY_BSP) s->o.rule.compensation = 0; /* nobody is late */
    shard_state_set_optimizer(st, s->o.rule.type, update_slots(&s->o.rule));
    admit_init(&s->table, st, o->max_members);
    pace_init(&s->pace, &o->pace);
    roster_init(&s->roster, st->count);
    shard_ssp_init(s);
    backup_weights_init(&s->backups, &st->blocks, st->first, st->count);
    if (o->mode == CONSISTENCY_BSP && o->gradients != ELEMENT_FP32)
        s->scratch = xaligned(2 * (size_t)st->blocks.size * sizeof *s->scratch);
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
    shard_ssp_fini(*s);
    backup_weights_fini(&(*s)->backups);
    staleness_free(&(*s)->staleness);
    shard_state_free(&(*s)->state);
    free((*s)->scratch);
    free((*s)->history);
    free((*s)->kept);
    free(*s);
    *s = NULL;
}

/* --- places */
uint32_t shard_floats(const struct shard *s, uint32_t local)
{
    return blocks_floats(&s->state->blocks, s->state->first + local);
}

static size_t offset_of(const struct shard *s, uint32_t local)
{
    return blocks_span(&s->state->blocks, s->state->first, s->state->first + local);
}

float *shard_weights(const struct shard *s, uint32_t local)
{
    return s->state->weights + offset_of(s, local);
}

bool shard_owns(const struct shard *s, uint32_t block)
{
    return block >= s->state->first && block - s->state->first < s->state->count;
}

/* --- what goes out */
uint32_t shard_credit(const struct shard *s)
{
    uint32_t members = s->state->num_members, share = members > 0 ? SHARD_CREDIT / members : SHARD_CREDIT;
    if (share > s->o.credit) share = s->o.credit;
    return share > 0 ? share : 1;
}

void shard_refuse(struct shard *s, uint64_t peer, uint32_t reason, const char *text)
{
    struct msg m = {.type = MSG_REFUSED, .job = s->o.job};
    m.refused.reason = reason;
    snprintf(m.refused.text, sizeof m.refused.text, "%s", text);
    struct frame *none = NULL;
    s->io.send(s->io.ctx, peer, &m, &none);
}

void shard_refuse_stranger(struct shard *s, uint64_t peer)
{
    s->counts.stranger++;
    shard_refuse(s, peer, REFUSAL_HELLO_FIRST, "this shard does not know the member: say HELLO first");
}

/* What is left of them after the way there and back. */
static void remember(struct shard *s, uint64_t member, uint32_t local, struct frame *f)
{
    float *place = backup_weights_place(&s->backups, member, local, s->state->version[local]);
    if (place) element_decode(s->o.weights, frame_data(f), shard_floats(s, local), place);
}

struct frame *shard_room(const struct shard *s, uint32_t local, struct frame *came)
{
    size_t len = element_bytes(s->o.weights, shard_floats(s, local));
    return came && frame_len(came) == len ? came : frame_new(len);
}

void shard_pack(struct shard *s, uint64_t member, uint32_t local, bool is_packed, struct frame **frame)
{
    if (!is_packed) {
        struct frame *f = shard_room(s, local, *frame);
        element_encode(s->o.weights, shard_weights(s, local), shard_floats(s, local), frame_data(f));
        if (f != *frame) frame_free(frame);
        *frame = f;
    }
    if (s->o.rule.compensation > 0) remember(s, member, local, *frame);
}

/* --- what comes in */
static void receive_hello(struct shard *s, uint64_t peer, const struct msg *m)
{
    if (m->hello.member == 0) {
        s->counts.malformed++;
        return;
    }
    char text[MSG_TEXT];
    struct admit_identity us = {
        s->o.job,  s->o.model_hash, s->o.shard,     s->o.job_generation,
        s->o.mode, s->o.rule.type,  s->o.gradients, s->o.weights,
    };
    uint32_t reason = admit_hello(&s->table, &us, m, text);
    if (reason) {
        shard_refuse(s, peer, reason, text);
        return;
    }
    struct msg w = {.type = MSG_WELCOME, .job = s->o.job};
    w.welcome = (struct msg_welcome){s->o.shard,      s->o.generation, s->o.job_generation,
                                     s->state->first, s->state->count, shard_credit(s)};
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

/* The weights that a READ asks for, if they are there: live ones as they travel, those of a set as they are.
 */
static struct frame *read_block(struct shard *s, const struct msg_read *r, struct msg_block *b)
{
    uint32_t local = r->block - s->state->first;
    const struct shard_state *from = find_kept(s, r->set);
    struct frame *f = NULL;
    if (!from || (r->set == 0 && roster_steps(&s->roster, local) < r->step)) return NULL;
    if (r->set == 0)
        shard_pack(s, r->member, local, false, &f);
    else
        f = frame_copy(from->weights + offset_of(s, local), shard_floats(s, local) * sizeof(float));
    b->found = true;
    b->type = r->set == 0 ? s->o.weights : ELEMENT_FP32;
    b->version = from->version[local];
    b->hash = wire_hash(frame_data(f), frame_len(f));
    return f;
}

static void receive_read(struct shard *s, uint64_t peer, const struct msg *m)
{
    const struct msg_read *r = &m->read;
    if (m->job != s->o.job || admit_find(&s->table, r->member) < 0) {
        shard_refuse_stranger(s, peer);
        return;
    }
    if (!shard_owns(s, r->block)) {
        s->counts.malformed++;
        return;
    }
    struct msg b = {.type = MSG_BLOCK, .job = s->o.job};
    b.block = (struct msg_block){.request = r->request, .block = r->block, .set = r->set};
    b.block.generation = s->o.generation;
    struct frame *payload = read_block(s, r, &b.block);
    s->io.send(s->io.ctx, peer, &b, &payload);
}

static bool is_crowded(const struct shard *s, uint64_t peer)
{
    return s->io.crowded && s->io.crowded(s->io.ctx, peer);
}

void shard_receive(struct shard *s, uint64_t now, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct frame *frame = NULL;
    if (payload) {
        frame = *payload;
        *payload = NULL;
    }
    if ((m->type == MSG_PUSH || m->type == MSG_READ) && is_crowded(s, peer))
        s->counts.overrun++;
    else if (m->type == MSG_PUSH)
        shard_push_receive(s, now, peer, m, &frame);
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
    struct shard_state *b =
        shard_state_new(&a->blocks, a->first, a->count, a->num_members, shard_state_slots(a));
    size_t floats = shard_state_floats(a), cells = (size_t)a->num_members * a->count;
    if (a->count == 0) return b;
    memcpy(b->weights, a->weights, floats * sizeof *a->weights);
    for (int k = 0; k < SHARD_SLOTS; k++)
        if (a->slot[k]) memcpy(b->slot[k], a->slot[k], floats * sizeof *a->slot[k]);
    b->optimizer = a->optimizer;
    memcpy(b->since, a->since, a->count * sizeof *a->since);
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
void shard_roster(struct shard *s, uint64_t now, uint32_t id, const uint64_t *members, uint32_t n)
{
    if (n > s->o.max_members) {
        s->counts.malformed++;
        return;
    }
    if (id <= s->roster_id) return; /* an order that was overtaken */
    if (s->o.mode == CONSISTENCY_BSP && n == 0) return;
    s->roster_id = id;
    if (s->o.mode == CONSISTENCY_BSP) roster_set(&s->roster, members, n);
    if (s->o.mode == CONSISTENCY_SSP) shard_ssp_roster(s, now, members, n);
}

bool shard_workers(struct shard *s, uint32_t workers)
{
    return pace_workers(&s->pace, workers, shard_frames(s));
}

void shard_halve_from(struct shard *s, uint32_t epoch)
{
    if (s->pace.rule.schedule == SCHEDULE_NEWBOB) s->pace.rule.from_epoch = epoch;
}

void shard_oldest_member(struct shard *s, uint64_t now, uint64_t member)
{
    if (member <= s->table.oldest) return;
    admit_set_oldest(&s->table, member);
    shard_ssp_drop_below(s, now, member);
    backup_weights_drop_below(&s->backups, member);
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

uint64_t shard_refused(const struct shard_counts *c)
{
    return c->nonfinite + c->norm + c->stale + c->generation + c->corrupt + c->malformed + c->overrun +
           c->stranger;
}

struct staleness *shard_staleness(struct shard *s)
{
    return s->staleness;
}

const struct shard_state *shard_look(const struct shard *s)
{
    return s->state;
}
