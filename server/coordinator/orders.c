#include "server/coordinator/orders.h"

#include "common/err.h"
#include "common/log.h"
#include "server/coordinator/epochs.h"
#include "server/coordinator/leases.h"
#include "server/coordinator/members.h"

#include <stdlib.h>
#include <string.h>

static void issue(struct coordinator *c, uint32_t workers)
{
    c->roster = c->next_roster++;
    rows_job(c);
    c->stale_orders = true;
    log_event(c->bsp ? LOG_INFO : LOG_DEBUG, "roster", "\"id\":%u,\"workers\":%u", c->roster, workers);
}

static void issue_whole(struct coordinator *c)
{
    if (c->roster || !members_all_seated(c) || members_workers(c) < c->o.workers) return;
    issue(c, c->o.workers);
    leases_answer_deferred(c);
}

/* Members with a lease to train on that is still theirs; a new array, *n of them. */
static uint64_t *find_working(const struct coordinator *c, uint32_t *n)
{
    uint64_t *numbers = xcalloc(c->num_members + 1ul, sizeof *numbers);
    for (uint32_t i = 0; i < c->num_members; i++) c->members[i]->works = false;
    for (uint32_t i = 0; i < c->num_leases; i++) {
        const struct lease *l = &c->leases[i];
        struct member *m = l->kind == LEASE_TRAIN && !l->superseded ? members_find(c, l->member) : NULL;
        if (m) m->works = true;
    }
    *n = 0;
    for (uint32_t i = 0; i < c->num_members; i++)
        if (c->members[i]->works) numbers[(*n)++] = c->members[i]->number;
    return numbers;
}

/* A worker without data must hold up nobody: it may have none for long. */
static void issue_working(struct coordinator *c)
{
    uint32_t n;
    uint64_t *now = find_working(c, &n);
    if (c->working && n == c->num_working && memcmp(now, c->working, n * sizeof *now) == 0) {
        free(now);
        return;
    }
    free(c->working);
    c->working = now;
    c->num_working = n;
    issue(c, n);
}

void orders_issue_roster(struct coordinator *c)
{
    if (c->command != COMMAND_RUN) return;
    if (c->bsp) issue_whole(c);
    if (c->o.mode == CONSISTENCY_SSP) issue_working(c);
}

static uint64_t oldest_worker(const struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_members; i++)
        if (c->members[i]->role == ROLE_WORKER) return c->members[i]->number;
    return c->next_member;
}

static void fill_order(const struct coordinator *c, const struct member *m, struct msg_order *o)
{
    const struct sets *s = &c->sets;
    memset(o, 0, sizeof *o);
    o->incarnation = c->incarnation;
    o->command = c->command;
    o->map_version = members_map_complete(c) ? c->map_version : 0;
    if (m->role == ROLE_WORKER) {
        if (s->exact && (s->phase == SET_HOLD || s->phase == SET_COPY)) o->hold = s->set;
        if (c->io.momentum) o->momentum = c->io.momentum(c->io.ctx, members_training(c));
        o->set = c->next_set - 1; /* tells an order from before a hold from the release after it */
        if (o->hold && m->capsule_set == o->hold) {
            o->capsule_have = m->capsule_len;
            o->capsule_attempt = m->capsule_attempt;
        }
        return;
    }
    if (s->phase == SET_COPY || s->phase == SET_WRITE) o->set = s->set;
    o->keep_set = epochs_keep_set(c);
    o->roster = c->roster;
    o->halve_from = c->halve_from;
    o->workers = members_training(c);
    o->oldest_member = oldest_worker(c);
}

static struct frame *roster_frame(const struct coordinator *c)
{
    if (!c->bsp) return frame_copy(c->working, c->num_working * sizeof *c->working);
    struct frame *f = frame_new(c->o.workers * sizeof(uint64_t));
    uint64_t *numbers = frame_data(f);
    for (uint32_t k = 0; k < c->o.workers; k++) {
        const struct member *m = members_of_rank(c, k);
        numbers[k] = m ? m->number : 0;
    }
    return f;
}

void orders_send(struct coordinator *c, struct member *m)
{
    if (!m->reached) return;
    struct msg out = {.type = MSG_ORDER, .job = c->o.job};
    fill_order(c, m, &out.order);
    m->told = out.order;
    struct frame *roster = out.order.roster && c->command == COMMAND_RUN ? roster_frame(c) : NULL;
    if (m->role == ROLE_SERVER && !roster) out.order.roster = 0;
    c->io.send(c->io.ctx, m->peer, &out, &roster);
    frame_free(&roster);
}

void orders_send_changed(struct coordinator *c)
{
    if (!c->stale_orders) return;
    c->stale_orders = false;
    for (uint32_t i = 0; i < c->num_members; i++) {
        struct msg_order o;
        fill_order(c, c->members[i], &o);
        if (memcmp(&o, &c->members[i]->told, sizeof o) != 0) orders_send(c, c->members[i]);
    }
}

/* ------------------------------------------------------------------ answers */

void orders_receive_map_ask(struct coordinator *c, const struct member *m, uint32_t first)
{
    struct msg out = {.type = MSG_MAP, .job = c->o.job};
    if (first >= c->o.shards) return;
    out.map.version = members_map_complete(c) ? c->map_version : 0;
    out.map.first = first;
    out.map.total = c->o.shards;
    out.map.count = c->o.shards - first < MSG_MAP_PAGE ? c->o.shards - first : MSG_MAP_PAGE;
    for (uint32_t i = 0; i < out.map.count; i++) {
        memcpy(out.map.shards[i].endpoint, c->seats[first + i].endpoint, MSG_MAX_ENDPOINT);
        out.map.shards[i].generation = c->seats[first + i].generation;
    }
    coordinate_reply(c, m->peer, &out);
}

void orders_receive_capsule_ask(struct coordinator *c, struct member *m, uint64_t offset)
{
    if (m->role != ROLE_WORKER || m->rank >= c->o.workers) return;
    const struct capsule *x = &c->capsules[m->rank];
    if (!x->data || offset >= x->len) return;
    size_t len = x->len - offset < MSG_MAX_PAYLOAD ? x->len - offset : MSG_MAX_PAYLOAD;
    struct msg out = {.type = MSG_CAPSULE, .job = c->o.job};
    out.capsule.member = m->number;
    out.capsule.set = c->restored_set;
    out.capsule.offset = offset;
    out.capsule.total = x->len;
    out.capsule.hash = wire_hash(x->data + offset, len);
    struct frame *page = frame_copy(x->data + offset, len);
    c->io.send(c->io.ctx, m->peer, &out, &page);
    frame_free(&page);
}
