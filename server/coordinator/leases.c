#include "server/coordinator/leases.h"

#include "common/err.h"
#include "common/log.h"
#include "server/coordinator/change.h"
#include "server/coordinator/epochs.h"
#include "server/coordinator/members.h"
#include "server/coordinator/piles.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static void open_chunk(struct coordinator *c, const struct place *at)
{
    piles_set_open(c, at);
    rows_write(c, piles_row(c, at, &piles_find(c, at->kind, at->where)->chunks[at->chunk], 1));
}

/* ------------------------------------------------------------------ granting */

/* In async the first open chunk; in bsp the chunk of the rank. */
static bool find_in_pile(struct coordinator *c, struct pile *p, uint32_t kind, uint32_t rank, uint32_t *out)
{
    if (!p || p->open == 0) return false;
    if (c->bsp && kind == LEASE_TRAIN) {
        *out = rank;
        return rank < p->n && p->chunks[rank].state == CHUNK_OPEN;
    }
    while (p->cursor < p->n && p->chunks[p->cursor].state != CHUNK_OPEN) p->cursor++;
    *out = p->cursor;
    return p->cursor < p->n;
}

/* While one worker trains alone, that is the live one of the lowest rank. */
static bool may_train(const struct coordinator *c, const struct member *m)
{
    for (uint32_t i = 0; c->warm && i < c->num_members; i++)
        if (c->members[i]->role == ROLE_WORKER && c->members[i]->rank < m->rank) return false;
    return true;
}

void leases_check_warm(struct coordinator *c)
{
    uint64_t frames = c->o.warm_start_frames ? epochs_frames(c) : 0;
    bool warm = frames < c->o.warm_start_frames;
    if (warm == c->warm) return;
    c->warm = warm;
    c->stale_orders = true;
    log_event(LOG_INFO, warm ? "warm_start" : "warm_start_over", "\"frames\":%" PRIu64 ",\"of\":%" PRIu64,
              frames, c->o.warm_start_frames);
}

/* A lease that was not used in time. Ids rise with deadlines, so the first that is not due ends the search.
 * One of the asker itself only when it is long overdue: its grant was lost somewhere. */
static bool find_overdue(struct coordinator *c, const struct member *m, bool own, struct place *out)
{
    for (uint32_t i = 0; i < c->num_leases; i++) {
        const struct lease *l = &c->leases[i];
        if (l->superseded || (l->member == m->number) != own) continue;
        if (l->kind == LEASE_TRAIN && !may_train(c, m)) continue;
        if (c->bsp && l->kind == LEASE_TRAIN) continue; /* those last as long as the epoch does */
        if (c->now < l->deadline + (own ? 2 * c->o.lease_ns : 0)) return false;
        *out = (struct place){l->kind, l->where, l->chunk};
        return true;
    }
    return false;
}

static bool find_eval(struct coordinator *c, const struct member *m, struct place *out)
{
    out->kind = LEASE_EVAL;
    for (uint32_t i = 0; i < c->num_evals; i++) {
        out->where = c->evals[i].set;
        if (find_in_pile(c, &c->evals[i].pile, LEASE_EVAL, m->rank, &out->chunk)) return true;
    }
    return false;
}

/* The next epoch opens when all chunks of the opened ones are leased; in bsp when those of this rank are: the
 * ranks go on into the next epoch each in its own time. */
static bool find_train(struct coordinator *c, const struct member *m, struct place *out)
{
    out->kind = LEASE_TRAIN;
    if (!may_train(c, m)) return false;
    for (out->where = 0; out->where < c->num_epochs || epochs_open_next(c); out->where++) {
        if (out->where >= change_from(c)) return false;
        if (c->epochs[out->where].turned) continue;
        if (find_in_pile(c, &c->epochs[out->where].pile, LEASE_TRAIN, m->rank, &out->chunk)) return true;
    }
    return false;
}

/* An exact set is being taken, and what would be granted now were missing in it. In bsp a rank may need a
 * lease to come to the step where rank 0 stands: that one is granted, and its capsule must be made after it.
 */
static bool is_held(const struct coordinator *c, const struct member *m)
{
    bool stands = !c->bsp || m->rank == 0;
    return c->sets.exact && (c->sets.phase == SET_COPY || (c->sets.phase == SET_HOLD && stands));
}

static void spoil_capsule(struct coordinator *c, struct member *m)
{
    if (!c->sets.exact || c->sets.phase != SET_HOLD) return;
    m->capsule_after = m->request;
    m->capsule_set = 0;
    m->capsule_len = m->capsule_total = 0;
    m->beat.holding = 0;
}

static bool find_work(struct coordinator *c, const struct member *m, struct place *out)
{
    if (c->command != COMMAND_RUN || is_held(c, m)) return false;
    if (c->sets.exact && c->sets.phase == SET_HOLD) return find_train(c, m, out);
    return find_eval(c, m, out) || find_overdue(c, m, false, out) || find_train(c, m, out) ||
           find_overdue(c, m, true, out);
}

static void send_lease(struct coordinator *c, const struct member *m, const struct lease *l)
{
    struct msg out = {.type = MSG_LEASE, .job = c->o.job};
    out.lease.request = m->request;
    out.lease.kind = l ? l->kind : m->held ? LEASE_HELD : LEASE_WAIT;
    if (l) {
        const struct chunk *k = &piles_find(c, l->kind, l->where)->chunks[l->chunk];
        bool ranked = l->kind == LEASE_TRAIN && c->epochs[l->where].span == 0;
        out.lease.id = l->id;
        out.lease.epoch = k->order;
        out.lease.begin = k->begin;
        out.lease.end = k->end;
        out.lease.modulus = ranked ? c->epochs[l->where].modulus : 1;
        out.lease.residues = ranked ? c->o.streams : 1;
        out.lease.residue = ranked ? l->chunk * c->o.streams : 0;
        out.lease.set = l->kind == LEASE_EVAL ? l->where : 0;
    }
    coordinate_reply(c, m->peer, &out);
}

static const struct lease *grant(struct coordinator *c, struct member *m, const struct place *at)
{
    struct lease l = {.id = c->next_lease++,
                      .member = m->number,
                      .request = m->request,
                      .deadline = c->now + c->o.lease_ns,
                      .kind = at->kind,
                      .where = at->where,
                      .chunk = at->chunk,
                      .rank = m->rank};
    piles_set_leased(c, &l);
    rows_write(c, piles_row(c, at, &piles_find(c, at->kind, at->where)->chunks[at->chunk], 1));
    return piles_lease(c, l.id);
}

static void answer(struct coordinator *c, struct member *m)
{
    struct place at;
    const struct lease *l = find_work(c, m, &at) ? grant(c, m, &at) : NULL;
    if (l) spoil_capsule(c, m);
    m->answer = l ? l->id : 0;
    m->held = !l && is_held(c, m);
    send_lease(c, m, l);
}

void leases_receive_ask(struct coordinator *c, struct member *m, const struct msg_lease_ask *a)
{
    if (m->role != ROLE_WORKER || a->request > MAX_NUMBER || a->request < m->request) return;
    bool again = a->request == m->request && a->request > 0 && !m->deferred;
    const struct lease *l = again && m->answer ? piles_lease(c, m->answer) : NULL;
    if ((l && !l->superseded) ||
        (again && !m->answer)) { /* WAIT stays WAIT: a grant would not be looked at */
        send_lease(c, m, l);
        return;
    }
    if (again &&
        !l) { /* used already, and an old question came late; or it was lost on its way, and is gone */
        m->answer = 0;
        m->held = true;
        send_lease(c, m, NULL);
        return;
    }
    m->request = a->request;
    m->deferred = c->bsp && c->roster == 0;
    if (!m->deferred) answer(c, m);
}

void leases_answer_deferred(struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_members; i++) {
        struct member *m = c->members[i];
        if (m->deferred && m->reached) answer(c, m);
        m->deferred = false;
    }
}

/* ------------------------------------------------------------------ reports */

static uint64_t at_most(uint64_t value, uint64_t limit)
{
    return value < limit ? value : limit;
}

/* Numbers of a peer: kept inside what the data can give, so that no sum overflows or turns into nan. */
static void add_sums(struct sums *s, const struct msg_used *u, const struct data_facts *data)
{
    uint64_t frames = at_most(u->frames, data->frames);
    double limit = 1e6 * ((double)frames + 1);
    s->frames += frames;
    s->loss += isfinite(u->loss) ? fmin(fmax(u->loss, -limit), limit) : limit;
    s->correct += at_most(u->correct, frames);
    s->speech_frames += at_most(u->speech_frames, frames);
    s->speech_correct += at_most(u->speech_correct, frames);
    s->failed += at_most(u->failed, data->utterances);
}

static void give_back(struct coordinator *c, const struct lease *l, const struct msg_used *u)
{
    const struct place at = {l->kind, l->where, l->chunk};
    if (l->superseded) {
        piles_remove_lease(c, l->id);
        return;
    }
    open_chunk(c, &at);
    for (uint32_t i = 0; at.kind == LEASE_EVAL && i < c->num_evals; i++) {
        struct evaluation *e = &c->evals[i];
        if (e->set != at.where) continue;
        /* utterances that failed: the copy is gone. Again and again for no reason: the same. */
        if (u->failed || ++e->returned > 8 + 2 * e->pile.n) epochs_void(c, e->set);
        return;
    }
}

static void use(struct coordinator *c, const struct lease *l, const struct msg_used *u)
{
    const struct place at = {l->kind, l->where, l->chunk};
    struct pile *p = piles_find(c, at.kind, at.where);
    uint64_t id = l->id;
    if (p->chunks[at.chunk].state == CHUNK_USED) {
        c->doubled++;
        piles_remove_lease(c, id);
        return;
    }
    if (at.kind == LEASE_TRAIN && id < c->believed_from) { /* some of its pushes may be lost: once more */
        c->reopened++;
        if (l->superseded)
            piles_remove_lease(c, id);
        else
            open_chunk(c, &at);
        return;
    }
    bool counted = p->chunks[at.chunk].counted;
    piles_set_used(c, &at, id, c->next_set - 1);
    if (!counted) add_sums(&p->sums, u, at.kind == LEASE_TRAIN ? &c->o.train : &c->o.dev);
    json_t *row = piles_row(c, &at, &p->chunks[at.chunk], 1);
    json_object_set_new(row, "lease", json_integer((json_int_t)id));
    json_object_set_new(row, "sums", rows_sums(&p->sums));
    rows_write(c, row);
}

void leases_receive_used(struct coordinator *c, struct member *m, const struct msg_used *u)
{
    const struct lease *l = piles_lease(c, u->id);
    if (l && l->member == m->number) {
        if (u->given_back)
            give_back(c, l, u);
        else
            use(c, l, u);
    }
    struct msg out = {.type = MSG_USED_OK, .job = c->o.job, .used_ok.id = u->id};
    coordinate_reply(c, m->peer, &out);
    epochs_check(c);
}

/* ------------------------------------------------------------------ leases that change hands */

static void open_if(struct coordinator *c, bool (*is_lost)(struct coordinator *c, const struct lease *l))
{
    for (uint32_t i = 0; i < c->num_leases;) {
        const struct lease l = c->leases[i];
        const struct place at = {l.kind, l.where, l.chunk};
        if (!is_lost(c, &l)) {
            i++;
            continue;
        }
        if (l.superseded)
            piles_remove_lease(c, l.id);
        else
            open_chunk(c, &at);
    }
}

static bool is_of_nobody(struct coordinator *c, const struct lease *l)
{
    return l->member && !members_find(c, l->member);
}

static bool has_no_capsule(struct coordinator *c, const struct lease *l)
{
    return l->member == 0 && (l->rank >= c->o.workers || !c->capsules[l->rank].data);
}

void leases_open_of(struct coordinator *c, uint64_t member)
{
    ASSERT(!members_find(c, member));
    open_if(c, is_of_nobody);
}

void leases_start(struct coordinator *c, bool restored)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->num_leases; i++) {
        if (restored && c->leases[i].superseded) continue;
        struct lease *l = &c->leases[n];
        *l = c->leases[i];
        n++;
        l->deadline = c->now + c->o.lease_ns;
        struct member *m = members_find(c, l->member);
        if (m && l->request >= m->request) {
            m->request = l->request;
            m->answer = l->id;
        }
        if (restored) l->member = l->request = 0;
    }
    c->num_leases = n;
    if (!restored) open_if(c, is_of_nobody);
}

void leases_settle(struct coordinator *c)
{
    open_if(c, has_no_capsule);
}

void leases_claim(struct coordinator *c, const struct member *m)
{
    for (uint32_t i = 0; i < c->num_leases; i++) {
        struct lease *l = &c->leases[i];
        if (l->member || l->superseded || l->rank != m->rank) continue;
        l->member = m->number;
        l->deadline = c->now + c->o.lease_ns;
        const struct place at = {l->kind, l->where, l->chunk};
        rows_write(c, piles_row(c, &at, &piles_find(c, at.kind, at.where)->chunks[at.chunk], 1));
    }
}

/* ------------------------------------------------------------------ a server fell */

/* The first epoch that has not turned; if all that are not held back have, the last one takes up work again.
 */
static uint32_t current_epoch(struct coordinator *c)
{
    uint32_t end = change_from(c), e = 0;
    for (; e < end && (e < c->num_epochs || epochs_open_next(c)); e++)
        if (!c->epochs[e].turned) return e;
    uint32_t last = e - 1;
    c->epochs[last].turned = false;
    c->epochs[last].set = 0;
    c->sets.newest_final = 0;
    rows_write(c, epochs_row(c, last));
    return last;
}

static void move_chunk(struct coordinator *c, uint32_t from, uint32_t chunk, uint32_t to)
{
    struct pile *p = &c->epochs[to].pile;
    struct chunk k = c->epochs[from].pile.chunks[chunk];
    k.state = CHUNK_OPEN;
    piles_append(p, &k);
    const struct place new_at = {LEASE_TRAIN, to, p->n - 1}, old_at = {LEASE_TRAIN, from, chunk};
    rows_write(c, piles_row(c, &new_at, &p->chunks[p->n - 1], 1));
    struct chunk *old = &c->epochs[from].pile.chunks[chunk];
    old->after = CHUNK_MOVED;
    rows_write(c, piles_row(c, &old_at, old, 1));
}

static bool is_newer(const struct chunk *k, uint32_t set)
{
    return k->state == CHUNK_USED && k->after >= set && k->after != CHUNK_MOVED;
}

void leases_reopen_after(struct coordinator *c, uint32_t set)
{
    bool any = false;
    c->believed_from = c->next_lease;
    c->sets.has_settled = false;
    rows_job(c);
    for (uint32_t e = 0; e < c->num_epochs && !any; e++)
        for (uint32_t i = 0; c->epochs[e].pile.chunks && i < c->epochs[e].pile.n && !any; i++)
            any = is_newer(&c->epochs[e].pile.chunks[i], set);
    if (!any) return;
    uint32_t current = current_epoch(c);
    uint64_t before = c->reopened;
    for (uint32_t e = 0; e < c->num_epochs; e++) {
        struct pile *p = &c->epochs[e].pile;
        for (uint32_t i = 0, n = p->chunks ? p->n : 0; i < n; i++) {
            if (!is_newer(&p->chunks[i], set)) continue;
            const struct place at = {LEASE_TRAIN, e, i};
            if (c->epochs[e].turned)
                move_chunk(c, e, i, current);
            else
                open_chunk(c, &at);
            c->reopened++;
        }
    }
    log_event(LOG_WARN, "reopened", "\"set\":%u,\"chunks\":%" PRIu64, set, c->reopened - before);
}
