#include "server/coordinator/sets.h"

#include "common/err.h"
#include "common/clock.h"
#include "common/log.h"
#include "server/coordinator/change.h"
#include "server/coordinator/epochs.h"
#include "server/coordinator/members.h"
#include "server/coordinator/orders.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SILENT_NS (2 * NS_PER_S) /* a worker beats once a second */

/* ------------------------------------------------------------------ the end of one */

static void clear(struct coordinator *c)
{
    struct sets *s = &c->sets;
    s->phase = SET_NONE;
    s->exact = s->final = s->settled = false;
    free(s->rows);
    s->rows = NULL;
    manifest_fini(&s->manifest);
    memset(&s->manifest, 0, sizeof s->manifest);
    for (uint32_t i = 0; i < s->num_capsules; i++) free(s->capsules[i].data);
    free(s->capsules);
    s->capsules = NULL;
    s->num_capsules = 0;
    for (uint32_t i = 0; i < c->num_members; i++) {
        struct member *m = c->members[i];
        free(m->capsule);
        m->capsule = NULL;
        m->capsule_len = m->capsule_total = 0;
        m->capsule_set = 0;
    }
    c->stale_orders = true;
}

static void leave_if_last(struct coordinator *c)
{
    if (c->interrupt_at && c->last_set_tried && c->command == COMMAND_RUN)
        coordinate_command_all(c, COMMAND_INTERRUPT);
}

void sets_fail(struct coordinator *c, const char *why)
{
    struct sets *s = &c->sets;
    uint32_t set = s->set;
    log_event(LOG_ERROR, "set_failed", "\"set\":%u,\"why\":\"%s\"", set, why);
    bool copied = s->phase > SET_COPY;
    clear(c);
    if (!copied) epochs_lose_set(c, set);
    s->retry_at = c->now + RETRY_NS;
    leave_if_last(c);
}

void sets_done(struct coordinator *c, uint32_t set, int rc)
{
    struct sets *s = &c->sets;
    if (s->phase != SET_FILES || s->set != set) return;
    if (rc < 0) {
        sets_fail(c, "the manifest could not be written; is the disk full?");
        return;
    }
    s->newest = set;
    s->newest_at = c->now;
    if (s->final && epochs_all_turned(c)) s->newest_final = set;
    if (s->settled && change_is_settled(c)) s->has_settled = true;
    log_event(LOG_INFO, "set_complete", "\"set\":%u,\"final\":%s", set, s->final ? "true" : "false");
    clear(c);
    rows_write(c, sets_row(c));
    leave_if_last(c);
}

/* ------------------------------------------------------------------ the beginning */

/* bsp: every rank has its first lease. Nothing is granted during a hold, and a rank without data could not
 * end the step that another has begun. */
static bool has_begun(const struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_members; i++) {
        const struct member *m = c->members[i];
        bool begun = m->role != ROLE_WORKER || m->request > 0;
        for (uint32_t k = 0; k < c->num_leases && !begun; k++) begun = c->leases[k].member == m->number;
        if (!begun) return false;
    }
    return c->roster > 0;
}

static bool waits_for_worker(const struct coordinator *c)
{
    for (uint32_t k = 0; k < c->o.workers; k++)
        if (c->capsules[k].data && !members_of_rank(c, k)) return true;
    return false;
}

/* Otherwise a set could not be had, or would be worse than the one that we came from. */
static bool can_name(const struct coordinator *c)
{
    if (!members_all_seated(c) || (c->bsp && !has_begun(c))) return false;
    return !coordinate_is_exact(c) || members_workers(c) > 0 || (c->interrupt_at && !waits_for_worker(c));
}

static bool is_due(const struct coordinator *c)
{
    const struct sets *s = &c->sets;
    if (c->now < s->retry_at || !can_name(c)) return false;
    if (c->interrupt_at) return !c->last_set_tried;
    if (change_is_settled(c)) return !s->has_settled; /* the switch must not wait for another */
    if (epochs_want_set(c) || (epochs_all_turned(c) && !s->newest_final)) return true;
    if (epochs_all_turned(c)) return false; /* the last one is there: the end must not wait for another */
    return c->o.interval_ns && c->now - s->last_named >= c->o.interval_ns && members_workers(c) > 0;
}

static void take_rows(struct coordinator *c)
{
    free(c->sets.rows);
    c->sets.rows = coordinate_rows(c);
    c->sets.phase = SET_COPY;
    c->stale_orders = true;
}

static void name(struct coordinator *c)
{
    struct sets *s = &c->sets;
    s->set = c->next_set++;
    s->last_named = c->now;
    s->final = epochs_all_turned(c);
    s->settled = change_is_settled(c);
    s->exact = coordinate_is_exact(c) && members_workers(c) > 0;
    s->phase = SET_HOLD;
    if (c->interrupt_at) c->last_set_tried = true;
    rows_job(c);
    epochs_name_set(c, s->set);
    c->stale_orders = true;
    log_event(LOG_INFO, "set_named", "\"set\":%u,\"exact\":%s,\"final\":%s", s->set,
              s->exact ? "true" : "false", s->final ? "true" : "false");
    if (!s->exact) take_rows(c);
}

/* ------------------------------------------------------------------ holding */

static bool is_newer(const struct member *m, const struct msg_capsule *p)
{
    return m->capsule_set != p->set || p->attempt > m->capsule_attempt;
}

void sets_receive_capsule(struct coordinator *c, struct member *m, const struct msg_capsule *p,
                          struct frame *payload)
{
    size_t len = payload ? frame_len(payload) : 0;
    if (m->role != ROLE_WORKER || c->sets.phase != SET_HOLD || p->set != c->sets.set || len == 0) return;
    if (p->request < m->capsule_after) return;
    if (p->total > CAPSULE_MAX || p->offset >= p->total || len > p->total - p->offset) return;
    const char *data = frame_data(payload);
    if (wire_hash(data, len) != p->hash) return;
    if (p->offset == 0 && is_newer(m, p)) {
        m->capsule_len = 0;
        m->capsule_set = p->set;
        m->capsule_total = p->total;
        m->capsule_attempt = p->attempt;
    }
    if (m->capsule_set == p->set && m->capsule_attempt == p->attempt && m->capsule_total == p->total &&
        m->capsule_len == p->offset) {
        m->capsule = realloc(m->capsule, m->capsule_len + len);
        ASSERT(m->capsule);
        memcpy(m->capsule + m->capsule_len, data, len);
        m->capsule_len += len;
    }
    sets_advance(c);
    orders_send(c, m);
}

static bool holds(const struct coordinator *c, const struct member *m)
{
    return m->capsule_set == c->sets.set && m->capsule_len == m->capsule_total && m->has_beat &&
           m->beat.holding == c->sets.set;
}

/* Backup workers: where a step goes without a rank, a set goes without it, too, if it is silent; its leases
 * are open after a restore. */
static bool may_be_left_out(const struct coordinator *c, const struct member *m, uint32_t left_out)
{
    return left_out < c->o.backup && c->now >= m->seen + SILENT_NS;
}

/* All stand still: every live worker holds and its capsule is here. In bsp all have ended the same exchange,
 * but with backup workers: who was left out of a step has fewer. */
static bool all_hold(const struct coordinator *c)
{
    uint64_t seq = 0;
    uint32_t left_out = 0;
    bool first = true;
    for (uint32_t i = 0; i < c->num_members; i++) {
        const struct member *m = c->members[i];
        if (m->role != ROLE_WORKER) continue;
        if (!holds(c, m)) {
            if (!may_be_left_out(c, m, left_out++)) return false;
            continue;
        }
        if (c->bsp && c->o.backup == 0 && !first && m->beat.seq != seq) return false;
        seq = m->beat.seq;
        first = false;
    }
    return true;
}

static int by_rank(const void *a, const void *b)
{
    const struct coordinate_capsule *x = a, *y = b;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

static void take_capsules(struct coordinator *c)
{
    struct sets *s = &c->sets;
    s->capsules = xcalloc(c->num_members + 1, sizeof *s->capsules);
    for (uint32_t i = 0; i < c->num_members; i++) {
        struct member *m = c->members[i];
        if (m->role != ROLE_WORKER || !holds(c, m)) continue;
        s->capsules[s->num_capsules++] =
            (struct coordinate_capsule){.rank = m->rank, .data = m->capsule, .len = m->capsule_len};
        m->capsule = NULL;
    }
    qsort(s->capsules, s->num_capsules, sizeof *s->capsules, by_rank);
}

static void hold(struct coordinator *c)
{
    if (members_workers(c) == 0) c->sets.exact = false; /* nobody is left to hand anything over */
    if (c->sets.exact && !all_hold(c)) return;
    take_capsules(c);
    take_rows(c);
}

/* ------------------------------------------------------------------ copying and writing */

static const struct msg_beat *beat_of(const struct coordinator *c, uint32_t shard)
{
    const struct member *m = members_find(c, c->seats[shard].member);
    return m && m->has_beat ? &m->beat : NULL;
}

static bool all_servers(const struct coordinator *c, bool written)
{
    for (uint32_t k = 0; k < c->o.shards; k++) {
        const struct msg_beat *b = beat_of(c, k);
        if (!b || (written ? b->written : b->copied) != c->sets.set) return false;
    }
    return true;
}

static bool has_failed(const struct coordinator *c)
{
    for (uint32_t k = 0; k < c->o.shards; k++) {
        const struct msg_beat *b = beat_of(c, k);
        if (b && b->failed_set == c->sets.set) return true;
    }
    return false;
}

/* {"rows":[...]} from one row per line. */
static char *state_of_rows(const char *rows)
{
    size_t len = strlen(rows);
    char *out = xcalloc(len + 16, 1), *to = out + sprintf(out, "{\"rows\":[");
    for (const char *p = rows; *p; p++) {
        if (*p != '\n')
            *to++ = *p;
        else if (p[1])
            *to++ = ',';
    }
    memcpy(to, "]}", 3);
    return out;
}

static void fill_manifest(struct coordinator *c)
{
    struct sets *s = &c->sets;
    struct manifest *m = &s->manifest;
    uint64_t total = (uint64_t)c->limit * c->o.train.frames;
    double done = total ? (double)epochs_frames(c) / (double)total : 0;
    *m = (struct manifest){
        .set = s->set, .epoch = epochs_turned(c), .exact = s->exact && c->o.backup == 0, .final = s->final};
    m->done = s->final || done > 1 ? 1 : done;
    m->job = c->o.job;
    m->model_hash = c->o.model_hash;
    m->num_files = c->o.shards;
    m->files = xcalloc(c->o.shards, sizeof *m->files);
    for (uint32_t k = 0; k < c->o.shards; k++) {
        const struct msg_beat *b = beat_of(c, k);
        struct snapshot_file *f = &m->files[k];
        snprintf(f->name, sizeof f->name, "shard-%02u-of-%02u.safetensors", k, c->o.shards);
        f->bytes = b->file_bytes;
        f->hash = b->file_hash;
        if (c->o.blocks.count) blocks_of_shard(&c->o.blocks, c->o.shards, k, &f->first, &f->count);
    }
    m->state = state_of_rows(s->rows);
}

static void complete(struct coordinator *c)
{
    struct sets *s = &c->sets;
    fill_manifest(c);
    s->phase = SET_FILES;
    c->stale_orders = true;
    c->io.complete(c->io.ctx, &s->manifest, s->capsules, s->num_capsules);
}

void sets_advance(struct coordinator *c)
{
    struct sets *s = &c->sets;
    if (c->command != COMMAND_RUN || !c->started) return;
    if (s->phase == SET_NONE && is_due(c)) name(c);
    if ((s->phase == SET_COPY || s->phase == SET_WRITE) && has_failed(c))
        sets_fail(c, "a server could not write its shard; is the disk full?");
    if (s->phase == SET_HOLD) hold(c);
    if (s->phase == SET_COPY && all_servers(c, false)) {
        s->phase = SET_WRITE;
        c->stale_orders = true;
        epochs_evaluate(c, s->set);
    }
    if (s->phase == SET_WRITE && all_servers(c, true)) complete(c);
    if (c->interrupt_at && c->command == COMMAND_RUN && s->phase == SET_NONE && !can_name(c))
        coordinate_command_all(c, COMMAND_INTERRUPT); /* no last set can be had */
}

uint64_t sets_next(const struct coordinator *c)
{
    const struct sets *s = &c->sets;
    if (s->phase != SET_NONE || c->o.interval_ns == 0) return UINT64_MAX;
    return s->last_named + c->o.interval_ns;
}

/* ------------------------------------------------------------------ rows */

json_t *sets_row(const struct coordinator *c)
{
    return json_pack("{s:s, s:I, s:I}", "row", "set", "set", (json_int_t)c->sets.newest, "final",
                     (json_int_t)c->sets.newest_final);
}

int sets_apply(struct coordinator *c, const json_t *row)
{
    int rc = rows_u32(row, "set", UINT32_MAX - 1, 0, &c->sets.newest);
    if (rc == 0) rc = rows_u32(row, "final", UINT32_MAX - 1, 0, &c->sets.newest_final);
    if (rc == 0 && c->sets.newest >= c->next_set) c->next_set = c->sets.newest + 1;
    return rc;
}
