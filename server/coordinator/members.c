#include "server/coordinator/members.h"

#include "common/err.h"
#include "common/log.h"
#include "server/coordinator/epochs.h"
#include "server/coordinator/leases.h"
#include "server/coordinator/orders.h"
#include "server/coordinator/sets.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ who is there */

static uint32_t lower_bound(const struct coordinator *c, uint64_t number)
{
    uint32_t low = 0, high = c->num_members;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->members[middle]->number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct member *members_find(const struct coordinator *c, uint64_t number)
{
    uint32_t i = lower_bound(c, number);
    return i < c->num_members && c->members[i]->number == number ? c->members[i] : NULL;
}

struct member *members_of_rank(const struct coordinator *c, uint32_t rank)
{
    for (uint32_t i = 0; i < c->num_members; i++)
        if (c->members[i]->role == ROLE_WORKER && c->members[i]->rank == rank) return c->members[i];
    return NULL;
}

uint32_t members_workers(const struct coordinator *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->num_members; i++) n += c->members[i]->role == ROLE_WORKER;
    return n;
}

uint32_t members_training(const struct coordinator *c)
{
    uint32_t n = c->bsp ? 0 : members_workers(c);
    return n && c->warm ? 1 : n;
}

static uint64_t frames_of(const struct member *m)
{
    bool counts = m->role == ROLE_WORKER && m->beat.frames > m->frames_before;
    return counts ? m->beat.frames - m->frames_before : 0;
}

uint64_t members_frames(const struct coordinator *c)
{
    uint64_t frames = c->frames_gone;
    for (uint32_t i = 0; i < c->num_members; i++) frames += frames_of(c->members[i]);
    return frames;
}

bool members_map_complete(const struct coordinator *c)
{
    for (uint32_t k = 0; k < c->o.shards; k++)
        if (!c->seats[k].served) return false;
    return true;
}

bool members_all_seated(const struct coordinator *c)
{
    for (uint32_t k = 0; k < c->o.shards; k++)
        if (!c->seats[k].member) return false;
    return true;
}

static struct member *add(struct coordinator *c, uint64_t number)
{
    if (c->num_members == c->cap_members) {
        c->cap_members = c->cap_members ? 2 * c->cap_members : 16;
        c->members = realloc(c->members, c->cap_members * sizeof *c->members);
        ASSERT(c->members);
    }
    uint32_t i = lower_bound(c, number);
    memmove(&c->members[i + 1], &c->members[i], (c->num_members++ - i) * sizeof *c->members);
    struct member *m = c->members[i] = xcalloc(1, sizeof **c->members);
    m->number = number;
    m->seen = c->now;
    return m;
}

static void drop(struct coordinator *c, struct member *m)
{
    uint32_t i = lower_bound(c, m->number);
    memmove(&c->members[i], &c->members[i + 1], (--c->num_members - i) * sizeof *c->members);
    members_free(m);
}

void members_free(struct member *m)
{
    free(m->capsule);
    free(m);
}

/* ------------------------------------------------------------------ joining */

static uint32_t lowest_free_rank(const struct coordinator *c)
{
    bool *taken = xcalloc(c->num_members + 1, sizeof *taken);
    uint32_t rank = 0;
    for (uint32_t i = 0; i < c->num_members; i++)
        if (c->members[i]->role == ROLE_WORKER && c->members[i]->rank < c->num_members)
            taken[c->members[i]->rank] = true;
    while (taken[rank]) rank++;
    free(taken);
    return rank;
}

static void send_joined(struct coordinator *c, struct member *m)
{
    struct msg out = {.type = MSG_JOINED, .job = c->o.job};
    out.joined.member = m->number;
    out.joined.incarnation = c->incarnation;
    out.joined.job_generation = c->generation;
    out.joined.shards = c->o.shards;
    if (m->role == ROLE_SERVER) {
        out.joined.generation = c->seats[m->rank].generation;
        out.joined.set = c->seats[m->rank].set;
    } else {
        out.joined.rank = m->rank;
        if (m->rank < c->o.workers) out.joined.capsule_bytes = c->capsules[m->rank].len;
    }
    coordinate_reply(c, m->peer, &out);
    orders_send(c, m);
}

static struct member *new_member(struct coordinator *c, uint64_t peer, const struct msg_join *j,
                                 uint32_t rank)
{
    struct member *m = add(c, c->next_member++);
    m->role = j->role;
    m->rank = rank;
    m->pid = j->pid;
    m->peer = peer;
    m->reached = true;
    snprintf(m->host, sizeof m->host, "%.63s", j->host);
    snprintf(m->endpoint, sizeof m->endpoint, "%.127s", j->endpoint);
    rows_write(c, members_row(m));
    char host[160];
    log_event(LOG_INFO, "joined",
              "\"member\":%" PRIu64 ",\"role\":\"%s\",\"rank\":%u,\"host\":%s,\"pid\":%" PRIu64, m->number,
              m->role == ROLE_SERVER ? "server" : "worker", rank, log_quote(host, sizeof host, m->host),
              m->pid);
    c->stale_orders = true;
    return m;
}

/* Which checkpoint set the weights of a shard come from that fell alone. */
static uint32_t set_of_fallen(const struct coordinator *c, const struct msg_join *j)
{
    return j->restored_set || j->generation ? j->restored_set : c->sets.newest;
}

static void seat_server(struct coordinator *c, uint64_t peer, const struct msg_join *j)
{
    struct seat *s = &c->seats[j->shard];
    /* A server that was only cut off still has its weights; every other one has lost some. */
    bool same = j->member && j->generation && j->generation == s->generation;
    bool fell = s->served && !same && (!c->bsp || c->roster);
    uint32_t set = fell ? set_of_fallen(c, j) : c->restored_set;
    if (fell) { /* before the rows by which a repeated JOIN is known */
        leases_reopen_after(c, set);
        epochs_void(c, 0);
    }
    if (!same) {
        s->generation++;
        s->set = set;
    }
    s->served = true;
    s->member = c->next_member;
    snprintf(s->endpoint, sizeof s->endpoint, "%.127s", j->endpoint);
    rows_write(c,
               members_seat_row(c, j->shard)); /* before the member's: without it the seat counts as empty */
    struct member *m = new_member(c, peer, j, j->shard);
    if (members_map_complete(c)) {
        c->map_version++;
        rows_job(c);
    }
    send_joined(c, m);
}

static void join_server(struct coordinator *c, uint64_t peer, const struct msg_join *j)
{
    const struct seat *s = j->shard < c->o.shards ? &c->seats[j->shard] : NULL;
    if (!s)
        coordinate_refuse(c, peer, REFUSAL_FULL,
                          "this job has fewer servers; start it with --shard below cluster.servers");
    else if (s->member)
        coordinate_refuse(c, peer, REFUSAL_NOT_READY, "another server has this shard and may still be alive");
    else if (j->member && j->generation != s->generation)
        coordinate_refuse(c, peer, REFUSAL_RETIRED,
                          "the shard has moved on without this server; start it again");
    else
        seat_server(c, peer, j);
}

static void join_worker(struct coordinator *c, uint64_t peer, const struct msg_join *j)
{
    uint32_t rank = lowest_free_rank(c);
    if (j->member) {
        coordinate_refuse(c, peer, REFUSAL_RETIRED, "this member was retired; join anew");
    } else if (c->bsp && rank >= c->o.workers) {
        coordinate_refuse(c, peer, REFUSAL_FULL,
                          "in bsp the number of workers is fixed; see cluster.workers");
    } else {
        struct member *m = new_member(c, peer, j, rank);
        leases_claim(c, m);
        send_joined(c, m);
    }
}

/* The member that this JOIN repeats. */
static struct member *find_same(const struct coordinator *c, const struct msg_join *j)
{
    struct member *m = j->member ? members_find(c, j->member) : NULL;
    for (uint32_t i = 0; i < c->num_members && !m && !j->member; i++) {
        struct member *x = c->members[i];
        if (x->pid == j->pid && x->role == j->role && strncmp(x->host, j->host, sizeof x->host - 1) == 0 &&
            (x->role == ROLE_WORKER || x->rank == j->shard))
            m = x;
    }
    return m && m->role == j->role ? m : NULL;
}

void members_receive_join(struct coordinator *c, uint64_t peer, const struct msg_join *j)
{
    char text[MSG_TEXT];
    if (j->role != ROLE_WORKER && j->role != ROLE_SERVER) return;
    if (j->model_hash != c->o.model_hash) {
        snprintf(text, sizeof text,
                 "this job trains model %016" PRIx64 ", you have %016" PRIx64
                 "; start all processes of a job from the same run directory",
                 c->o.model_hash, j->model_hash);
        coordinate_refuse(c, peer, REFUSAL_MISMATCH, text);
        return;
    }
    struct member *m = find_same(c, j);
    if (!m && j->role == ROLE_SERVER) {
        join_server(c, peer, j);
    } else if (!m) {
        join_worker(c, peer, j);
    } else {
        m->peer = peer;
        m->reached = true;
        m->seen = c->now;
        /* a coordinator that died between the row of the member and those of its leases left this undone */
        if (m->role == ROLE_WORKER) leases_claim(c, m);
        send_joined(c, m);
    }
}

/* ------------------------------------------------------------------ leaving */

static void fall_of_server(struct coordinator *c, uint32_t shard)
{
    c->seats[shard].member = 0;
    rows_write(c, members_seat_row(c, shard));
    if (c->command != COMMAND_RUN) return;
    if (c->sets.phase != SET_NONE) sets_fail(c, "a server fell");
    if (!c->bsp) epochs_void(c, 0);
}

void members_retire(struct coordinator *c, struct member *m, const char *why)
{
    uint64_t number = m->number;
    uint32_t role = m->role, rank = m->rank;
    log_event(c->command == COMMAND_RUN ? LOG_WARN : LOG_INFO, "retired",
              "\"member\":%" PRIu64 ",\"role\":\"%s\",\"rank\":%u,\"why\":\"%s\"", number,
              role == ROLE_SERVER ? "server" : "worker", rank, why);
    c->frames_gone += frames_of(m);
    bool had_capsule = role == ROLE_WORKER && rank < c->o.workers && c->capsules[rank].data;
    json_t *row = members_row(m);
    json_object_set_new(row, "gone", json_true());
    drop(c, m);
    rows_write(c, row);
    if (role == ROLE_SERVER) {
        fall_of_server(c, rank);
    } else {
        leases_open_of(c, number);
        if (rank < c->o.workers) {
            free(c->capsules[rank].data);
            c->capsules[rank] = (struct capsule){NULL, 0};
        }
    }
    /* Before the roster, too, if a server falls (workers may have read weights of that life of it) or a
     * worker with a capsule. */
    if (c->bsp && (c->roster || role == ROLE_SERVER || had_capsule) && c->command == COMMAND_RUN) {
        c->restore = true;
        coordinate_command_all(c, COMMAND_INTERRUPT);
    }
    c->stale_orders = true;
}

void members_receive_gone(struct coordinator *c, const struct msg_gone *g)
{
    for (uint32_t i = 0; i < c->num_members;) {
        struct member *m = c->members[i];
        if (m->pid == g->pid && strncmp(m->host, g->host, sizeof m->host - 1) == 0)
            members_retire(c, m, "its process ended");
        else
            i++;
    }
}

void members_expire(struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_members;) {
        struct member *m = c->members[i];
        if (c->now >= m->seen && c->now - m->seen >= c->o.limit_ns)
            members_retire(c, m, "silent for too long");
        else
            i++;
    }
}

uint64_t members_next(const struct coordinator *c)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < c->num_members; i++)
        if (c->members[i]->seen + c->o.limit_ns < next) next = c->members[i]->seen + c->o.limit_ns;
    return next;
}

void members_receive_beat(struct coordinator *c, struct member *m, const struct msg_beat *b)
{
    if (b->role != m->role) return;
    if (b->incarnation > c->incarnation) {
        c->superseded = true; /* a younger coordinator leads this job: leave without a word */
        c->command = COMMAND_INTERRUPT;
        return;
    }
    /* until it computes, what it has is what its capsule brought */
    if (!m->has_beat || (m->beat.frames == m->frames_before && !(b->frames_per_s > 0)))
        m->frames_before = b->frames;
    m->beat = *b;
    m->has_beat = true;
    if (m->role == ROLE_SERVER) {
        c->seats[m->rank].beat = *b;
        c->seats[m->rank].has_beat = true;
    }
    sets_advance(c);
    orders_send(c, m);
}

/* ------------------------------------------------------------------ rows */

json_t *members_row(const struct member *m)
{
    /* names come from peers: what is not UTF-8 is no JSON */
    json_t *host = json_string(m->host), *endpoint = json_string(m->endpoint);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:o, s:o}", "row", "member", "member", (json_int_t)m->number,
                     "role", (json_int_t)m->role, "rank", (json_int_t)m->rank, "pid",
                     (json_int_t)(m->pid < MAX_NUMBER ? m->pid : 0), "host", host ? host : json_string("?"),
                     "endpoint", endpoint ? endpoint : json_string("?"));
}

int members_apply(struct coordinator *c, const json_t *row)
{
    uint64_t number, pid;
    uint32_t role, rank;
    const char *host = json_string_value(json_object_get(row, "host"));
    const char *endpoint = json_string_value(json_object_get(row, "endpoint"));
    int rc = rows_number(row, "member", MAX_NUMBER, 0, &number);
    if (rc == 0) rc = rows_number(row, "pid", MAX_NUMBER, 0, &pid);
    if (rc == 0) rc = rows_u32(row, "role", ROLE_SERVER, ROLE_WORKER, &role);
    if (rc == 0) rc = rows_u32(row, "rank", UINT32_MAX - 1, 0, &rank);
    if (rc == 0 && (number == 0 || role == 0)) rc = err_set(ERR_DATA, "a member that cannot be");
    if (rc < 0) return rc;
    if (number >= c->next_member) c->next_member = number + 1;
    if (role == ROLE_SERVER && rank >= c->o.shards) return 0; /* of a job with more servers */
    struct member *m = members_find(c, number);
    if (json_is_true(json_object_get(row, "gone"))) {
        if (m) drop(c, m);
        return 0;
    }
    if (!m) m = add(c, number);
    m->role = role;
    m->rank = rank;
    m->pid = pid;
    snprintf(m->host, sizeof m->host, "%.63s", host ? host : "");
    snprintf(m->endpoint, sizeof m->endpoint, "%.127s", endpoint ? endpoint : "");
    return 0;
}

json_t *members_seat_row(const struct coordinator *c, uint32_t shard)
{
    const struct seat *s = &c->seats[shard];
    json_t *endpoint = json_string(s->endpoint);
    return json_pack("{s:s, s:I, s:I, s:I, s:b, s:I, s:o}", "row", "shard", "shard", (json_int_t)shard,
                     "generation", (json_int_t)s->generation, "member", (json_int_t)s->member, "served",
                     s->served, "set", (json_int_t)s->set, "endpoint",
                     endpoint ? endpoint : json_string("?"));
}

int members_apply_seat(struct coordinator *c, const json_t *row, bool counters)
{
    uint32_t shard, generation;
    const char *endpoint = json_string_value(json_object_get(row, "endpoint"));
    int rc = rows_u32(row, "shard", UINT32_MAX - 1, UINT32_MAX, &shard);
    if (rc == 0) rc = rows_u32(row, "generation", UINT32_MAX - 1, 0, &generation);
    if (rc < 0) return rc;
    if (shard >= c->o.shards) return 0; /* of a job with more servers */
    struct seat *s = &c->seats[shard];
    if (generation > s->generation) s->generation = generation;
    if (counters) return 0;
    s->served = json_is_true(json_object_get(row, "served"));
    snprintf(s->endpoint, sizeof s->endpoint, "%.127s", endpoint ? endpoint : "");
    rc = rows_number(row, "member", MAX_NUMBER, 0, &s->member);
    return rc < 0 ? rc : rows_u32(row, "set", UINT32_MAX - 1, 0, &s->set);
}
