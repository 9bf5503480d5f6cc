#include "server/coordinator/coordinate.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/log.h"
#include "server/coordinator/change.h"
#include "server/coordinator/epochs.h"
#include "server/coordinator/leases.h"
#include "server/coordinator/members.h"
#include "server/coordinator/orders.h"
#include "server/coordinator/piles.h"
#include "server/coordinator/sets.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ life */

struct coordinator *coordinate_new(const struct coordinate_options *o, const struct coordinate_io *io)
{
    ASSERT(o->shards > 0 && o->epochs > 0 && o->workers > 0 && o->train.utterances > 0);
    ASSERT(o->mode == CONSISTENCY_BSP ? o->streams > 0 : o->chunk_utterances > 0);
    ASSERT(o->dev.utterances == 0 || o->eval_utterances > 0);
    struct coordinator *c = xcalloc(1, sizeof *c);
    c->o = *o;
    c->io = *io;
    c->bsp = o->mode == CONSISTENCY_BSP;
    c->shape = o->shape;
    c->next_member = c->next_lease = c->next_set = c->next_roster = 1;
    c->limit = o->epochs;
    c->seats = xcalloc(o->shards, sizeof *c->seats);
    c->capsules = xcalloc(o->workers, sizeof *c->capsules);
    return c;
}

void coordinate_free(struct coordinator **pc)
{
    struct coordinator *c = *pc;
    if (!c) return;
    for (uint32_t i = 0; i < c->num_members; i++) members_free(c->members[i]);
    for (uint32_t i = 0; i < c->num_epochs; i++) piles_free(&c->epochs[i].pile);
    for (uint32_t i = 0; i < c->num_evals; i++) piles_free(&c->evals[i].pile);
    for (uint32_t i = 0; i < c->o.workers; i++) free(c->capsules[i].data);
    for (uint32_t i = 0; i < c->sets.num_capsules; i++) free(c->sets.capsules[i].data);
    manifest_fini(&c->sets.manifest);
    free(c->sets.capsules);
    free(c->sets.rows);
    free(c->capsules);
    free(c->working);
    free(c->seats);
    free(c->members);
    free(c->leases);
    free(c->epochs);
    free(c->evals);
    free(c);
    *pc = NULL;
}

/* All processes are new: nobody is a member, every seat is to be filled anew, and what the state says about
 * sets and evaluations under way is void. */
static void restore(struct coordinator *c, uint32_t set)
{
    c->generation++;
    c->roster = 0;
    c->restore = c->switched = false;
    c->restored_set = c->sets.newest = set;
    c->sets.newest_final = 0;
    if (set >= c->next_set) c->next_set = set + 1;
    while (c->num_members) members_free(c->members[--c->num_members]);
    for (uint32_t k = 0; k < c->o.shards; k++) {
        c->seats[k].member = 0;
        c->seats[k].served = false;
        c->seats[k].set = set;
    }
    epochs_void(c, 0);
    for (uint32_t i = 0; i < c->num_epochs; i++)
        if (!c->epochs[i].evaluated) c->epochs[i].set = 0;
    epochs_reshape(c);
}

/* Only the coordinator was away: a set that was under way is not finished by anyone. */
static void recover(struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_members; i++) c->members[i]->seen = c->now;
    c->map_version++; /* it may have fallen between the row of a seat and that of the new map */
    for (uint32_t k = 0; k < c->o.shards; k++)
        if (!members_find(c, c->seats[k].member)) c->seats[k].member = 0;
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        struct epoch *e = &c->epochs[i];
        if (!e->evaluated && e->set && !piles_find(c, LEASE_EVAL, e->set)) e->set = 0;
    }
    epochs_reshape(c);
    if (c->bsp && c->roster && (members_workers(c) < c->o.workers || !members_all_seated(c)))
        c->restore = true;
    if (c->restore) c->command = COMMAND_INTERRUPT;
}

void coordinate_start(struct coordinator *c, uint64_t now, bool restored, uint32_t set)
{
    ASSERT(!c->started);
    c->now = now;
    c->incarnation++;
    c->foreign = c->shape != c->o.shape;
    c->shape = c->o.shape;
    if (restored)
        restore(c, set);
    else
        recover(c);
    leases_start(c, restored);
    c->sets.last_named = c->sets.newest_at = now;
    c->frames_start = epochs_frames(c);
    c->started = true;
    rows_job(c);
}

void coordinate_give_capsule(struct coordinator *c, uint32_t rank, const void *data, size_t len)
{
    ASSERT(!c->settled);
    if (rank >= c->o.workers || len == 0 || c->foreign) return;
    free(c->capsules[rank].data);
    c->capsules[rank].data = xcalloc(len, 1);
    memcpy(c->capsules[rank].data, data, len);
    c->capsules[rank].len = len;
}

/* ------------------------------------------------------------------ answers */

void coordinate_reply(struct coordinator *c, uint64_t peer, const struct msg *m)
{
    c->io.send(c->io.ctx, peer, m, NULL);
}

void coordinate_refuse(struct coordinator *c, uint64_t peer, uint32_t reason, const char *text)
{
    struct msg out = {.type = MSG_REFUSED, .job = c->o.job};
    out.refused.reason = reason;
    snprintf(out.refused.text, sizeof out.refused.text, "%s", text);
    coordinate_reply(c, peer, &out);
}

void coordinate_command_all(struct coordinator *c, enum msg_command command)
{
    c->command = command;
    c->stale_orders = true;
    log_event(LOG_INFO, "command", "\"command\":%d,\"restore\":%s", (int)command,
              c->restore ? "true" : "false");
}

bool coordinate_is_exact(const struct coordinator *c)
{
    return c->bsp || c->o.workers == 1;
}

static uint64_t sender_of(const struct msg *m)
{
    switch (m->type) {
    case MSG_BEAT:
        return m->beat.member;
    case MSG_MAP_ASK:
        return m->map_ask.member;
    case MSG_LEASE_ASK:
        return m->lease_ask.member;
    case MSG_USED:
        return m->used.member;
    case MSG_CAPSULE:
        return m->capsule.member;
    case MSG_CAPSULE_ASK:
        return m->capsule_ask.member;
    case MSG_LEAVE:
        return m->leave.member;
    default:
        return 0;
    }
}

static void receive_of_member(struct coordinator *c, struct member *m, const struct msg *in,
                              struct frame *payload)
{
    switch (in->type) {
    case MSG_BEAT:
        members_receive_beat(c, m, &in->beat);
        break;
    case MSG_MAP_ASK:
        orders_receive_map_ask(c, m, in->map_ask.first);
        break;
    case MSG_LEASE_ASK:
        leases_receive_ask(c, m, &in->lease_ask);
        break;
    case MSG_USED:
        leases_receive_used(c, m, &in->used);
        break;
    case MSG_CAPSULE:
        sets_receive_capsule(c, m, &in->capsule, payload);
        break;
    case MSG_CAPSULE_ASK:
        orders_receive_capsule_ask(c, m, in->capsule_ask.offset);
        break;
    case MSG_LEAVE:
        members_retire(c, m, "it left");
        break;
    default:
        break;
    }
}

static void receive(struct coordinator *c, uint64_t peer, const struct msg *in, struct frame *payload)
{
    char text[MSG_TEXT];
    uint64_t number = sender_of(in);
    struct member *m = number ? members_find(c, number) : NULL;
    if (in->job != c->o.job) {
        snprintf(text, sizeof text, "this coordinator leads job %016" PRIx64 ", you are of job %016" PRIx64,
                 c->o.job, in->job);
        coordinate_refuse(c, peer, REFUSAL_MISMATCH, text);
    } else if (in->type == MSG_JOIN) {
        members_receive_join(c, peer, &in->join);
    } else if (in->type == MSG_GONE) {
        members_receive_gone(c, &in->gone);
    } else if (m) {
        m->peer = peer;
        m->reached = true;
        m->seen = c->now;
        receive_of_member(c, m, in, payload);
    } else if (number && in->type != MSG_LEAVE) {
        snprintf(text, sizeof text, "member %" PRIu64 " is not, or no longer, of this job; join anew",
                 number);
        coordinate_refuse(c, peer, REFUSAL_RETIRED, text);
    }
}

/* ------------------------------------------------------------------ time */

static void settle(struct coordinator *c)
{
    if (c->settled) return;
    c->settled = true;
    leases_settle(c);
}

/* For the rate of the job. It is measured from the first frame on: until then the only sample moves along. */
static void sample(struct coordinator *c)
{
    uint64_t frames = members_frames(c);
    if (c->num_samples == 1 && c->samples[0].frames == frames) c->num_samples = 0;
    if (c->num_samples && c->now - c->samples[c->num_samples - 1].at < NS_PER_S) return;
    if (c->num_samples == RATE_SAMPLES)
        memmove(&c->samples[0], &c->samples[1], --c->num_samples * sizeof c->samples[0]);
    c->samples[c->num_samples].at = c->now;
    c->samples[c->num_samples++].frames = frames;
}

static uint64_t house_interval(const struct coordinator *c)
{
    uint64_t t = NS_PER_S;
    if (c->o.limit_ns / 4 < t) t = c->o.limit_ns / 4;
    if (c->o.interval_ns && c->o.interval_ns / 4 < t) t = c->o.interval_ns / 4;
    return t > NS_PER_MS ? t : NS_PER_MS;
}

static void advance(struct coordinator *c)
{
    if (c->superseded) return;
    epochs_check(c);
    leases_check_warm(c);
    orders_issue_roster(c);
    sets_advance(c);
    change_check(c);
    if (c->command == COMMAND_RUN && c->interrupt_at && c->now >= c->interrupt_at)
        coordinate_command_all(c, COMMAND_INTERRUPT);
    if (c->command == COMMAND_RUN && epochs_all_turned(c) && epochs_all_evaluated(c) &&
        c->sets.newest_final && c->sets.phase == SET_NONE && !change_is_settled(c))
        coordinate_command_all(c, COMMAND_FINISH);
    orders_send_changed(c);
}

void coordinate_receive(struct coordinator *c, uint64_t now, uint64_t peer, const struct msg *m,
                        struct frame **payload)
{
    ASSERT(c->started);
    c->now = now;
    settle(c);
    if (!c->superseded) receive(c, peer, m, payload ? *payload : NULL);
    if (payload) frame_free(payload);
    advance(c);
}

void coordinate_tick(struct coordinator *c, uint64_t now)
{
    ASSERT(c->started);
    c->now = now;
    settle(c);
    if (now >= c->house_at) {
        c->house_at = now + house_interval(c);
        members_expire(c);
        sample(c);
    }
    advance(c);
}

uint64_t coordinate_next(const struct coordinator *c)
{
    uint64_t next = c->house_at, sets = sets_next(c), silent = members_next(c);
    if (sets < next && sets > c->now) next = sets;
    if (silent < next && silent > c->now) next = silent;
    return next;
}

void coordinate_set_done(struct coordinator *c, uint64_t now, uint32_t set, int rc)
{
    c->now = now;
    sets_done(c, set, rc);
}

void coordinate_interrupt(struct coordinator *c, uint64_t now)
{
    c->now = now;
    if (!c->interrupt_at) c->interrupt_at = now + INTERRUPT_NS;
    advance(c);
}

/* ------------------------------------------------------------------ questions */

enum msg_command coordinate_command(const struct coordinator *c)
{
    return c->command;
}

bool coordinate_is_empty(const struct coordinator *c)
{
    return c->num_members == 0 || c->superseded;
}

bool coordinate_needs_restore(const struct coordinator *c)
{
    return c->restore;
}

/* A lease of the restored set (later ones have a request) that its worker has not taken up, or not used. */
static bool has_restored_lease(const struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_leases; i++)
        if (!c->leases[i].superseded && c->leases[i].request == 0) return true;
    return false;
}

uint32_t coordinate_capsules_of(const struct coordinator *c)
{
    bool awaited = c->bsp || (coordinate_is_exact(c) && has_restored_lease(c));
    return awaited ? c->restored_set : 0;
}

uint64_t coordinate_generation(const struct coordinator *c)
{
    return c->generation;
}

uint32_t coordinate_incarnation(const struct coordinator *c)
{
    return c->incarnation;
}

void coordinate_account(const struct coordinator *c, struct coordinate_account *out)
{
    *out = (struct coordinate_account){.doubled = c->doubled, .reopened = c->reopened};
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        const struct pile *p = &c->epochs[i].pile;
        out->chunks += p->n;
        out->open += p->open;
        out->leased += p->leased;
    }
    out->used = out->chunks - out->open - out->leased;
    out->epoch = epochs_turned(c);
    out->newest_set = c->sets.newest;
}
