#include "worker/member.h"

#include "common/clock.h"
#include "common/err.h"
#include "worker/member_state.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CAPSULE (1ull << 31)
#define MAX_SHARDS  4096
#define WAIT_NS     (200 * NS_PER_MS) /* the first pause after WAIT; doubles up to retry_ns */

struct member *member_new(const struct member_options *o, const struct member_io *io)
{
    ASSERT(o->max_leases > 0 && o->beat_ns > 0 && o->retry_ns > 0 && io->send != NULL);
    struct member *m = xcalloc(1, sizeof *m);
    m->o = *o;
    m->io = *io;
    m->queue = xcalloc(o->max_leases, sizeof *m->queue);
    m->reports = xcalloc(MEMBER_MAX_USED, sizeof *m->reports);
    return m;
}

void member_free(struct member **m)
{
    if (m == NULL || *m == NULL) return;
    free((*m)->map.at);
    free((*m)->stage.at);
    free((*m)->queue);
    free((*m)->reports);
    free((*m)->give.data);
    free((*m)->capsule);
    free(*m);
    *m = NULL;
}

static void join_again(struct member *m, uint64_t now)
{
    m->joined = false;
    m->join_at = now;
}

void member_reconnected(struct member *m, uint64_t now)
{
    join_again(m, now);
    member_tick(m, now);
}

/* --- joining */

/* Another life of the coordinator: what it told before may no longer hold. */
static void obey(struct member *m, uint64_t now, uint32_t incarnation)
{
    if (incarnation == m->incarnation) return;
    m->incarnation = incarnation;
    m->map.version = 0; /* asked for again; the old one stays in use until then */
    m->stage.count = 0;
    m->hold_done = m->newest = 0;
    m->give.at = now;
}

static void take_shape(struct member *m, const struct msg_joined *j)
{
    m->shards = j->shards;
    m->map.at = xcalloc(m->shards, sizeof *m->map.at);
    m->stage.at = xcalloc(m->shards, sizeof *m->stage.at);
}

/* bytes comes from a peer: memory is asked for once it is plausible, and may be refused. */
static void take_capsule_size(struct member *m, uint64_t now, uint64_t bytes)
{
    bool whole = m->capsule != NULL && !member_fetching(m);
    if (whole || bytes == m->capsule_bytes) return;
    free(m->capsule);
    m->capsule = bytes > 0 ? malloc((size_t)bytes) : NULL;
    m->capsule_bytes = bytes;
    m->capsule_have = 0;
    m->capsule_at = now;
    if (bytes > 0 && m->capsule == NULL)
        m->trouble = err_set(ERR_FAIL, "no memory for a capsule of %llu bytes", (unsigned long long)bytes);
}

static void receive_joined(struct member *m, uint64_t now, const struct msg_joined *j)
{
    if (j->incarnation < m->incarnation || (m->joined && j->incarnation == m->incarnation)) return;
    if (j->member == 0 || j->shards == 0 || j->shards > MAX_SHARDS || j->capsule_bytes > MAX_CAPSULE) return;
    if (m->number != 0 && (j->member != m->number || j->job_generation != m->job_generation)) {
        m->trouble = err_set(ERR_AGAIN, "the coordinator has another number for this worker: start over");
        return;
    }
    if (m->number != 0 && j->shards != m->shards) {
        m->trouble = err_set(ERR_MODEL, "the job now has %u shards, not %u: start all its processes again",
                             j->shards, m->shards);
        return;
    }
    if (m->number == 0) take_shape(m, j);
    m->number = j->member;
    m->rank = j->rank;
    m->job_generation = j->job_generation;
    m->joined = true;
    m->beat_at = now;
    m->ask_at = m->asking ? now : m->ask_at;
    obey(m, now, j->incarnation);
    take_capsule_size(m, now, j->capsule_bytes);
}

static void receive_refused(struct member *m, uint64_t now, const struct msg_refused *r)
{
    if (r->reason == REFUSAL_MISMATCH)
        m->trouble = err_set(ERR_MODEL, "the coordinator refuses this worker: %.*s", MSG_TEXT - 1, r->text);
    else if (r->reason == REFUSAL_RETIRED)
        m->trouble = err_set(ERR_AGAIN, "the coordinator has retired this worker: start over");
    else if (r->reason == REFUSAL_HELLO_FIRST && m->joined)
        join_again(m, now);
}

/* --- orders */

static void drop_give(struct member *m)
{
    free(m->give.data);
    m->give = (struct give){0};
}

static void take_have(struct member *m, uint64_t now, const struct msg_order *o)
{
    struct give *g = &m->give;
    uint64_t have = o->capsule_attempt == g->attempt ? o->capsule_have : 0;
    if (have > g->len || (have < g->len && have % MEMBER_PAGE != 0)) have = 0;
    if (have > g->have) g->at = now;
    if (have < g->have) g->at = now + 2 * m->o.retry_ns;    /* perhaps an old ORDER: a newer one may come */
    if (have == g->len && g->have < have) m->beat_at = now; /* holding is told once all has arrived */
    g->have = have;
}

/* Sets are named in rising order, and o->set is the newest: so an old ORDER is known. From a coordinator that
 * does not tell (0), "go on" is believed when it is still said a beat later. */
static void take_hold(struct member *m, uint64_t now, const struct msg_order *o)
{
    uint32_t hold = o->hold <= m->hold_done ? 0 : o->hold;
    if ((o->set != 0 && o->set < m->newest) || (hold != 0 && hold < m->hold)) return;
    if (o->set > m->newest) m->newest = o->set;
    if (hold == m->hold) {
        m->zero_since = 0;
        if (hold != 0 && m->give.data != NULL) take_have(m, now, o);
        return;
    }
    if (hold == 0 && o->set == 0) {
        if (m->zero_since == 0) m->zero_since = now;
        if (now - m->zero_since < m->o.beat_ns) return;
    }
    if (o->set != 0) m->hold_done = m->hold;
    m->hold = hold;
    if (hold == 0 && !m->asking) m->ask_at = now;
    m->zero_since = 0;
    drop_give(m);
    m->beat_at = now;
}

static void receive_order(struct member *m, uint64_t now, const struct msg_order *o)
{
    if (!m->joined || o->incarnation < m->incarnation || o->command > COMMAND_DIVERGED) return;
    obey(m, now, o->incarnation);
    if (o->command != COMMAND_RUN) m->command = o->command; /* never taken back */
    if (o->momentum >= 0 && o->momentum < 1) m->momentum = o->momentum;
    take_hold(m, now, o);
    bool due = o->map_version != 0 && o->map_version != m->map.version;
    if (due && !m->map_due) m->map_at = now;
    m->map_wanted = o->map_version;
    m->map_due = due;
}

static void commit_map(struct member *m)
{
    bool same = m->map_changes != 0 && memcmp(m->map.at, m->stage.at, m->shards * sizeof *m->map.at) == 0;
    struct msg_shard_at *old = m->map.at;
    m->map = m->stage;
    m->stage = (struct map){.at = old};
    if (!same) m->map_changes++;
    m->map_due = false;
}

static void receive_map(struct member *m, uint64_t now, const struct msg_map *p)
{
    if (!m->map_due || p->version == 0 || p->version < m->map_wanted || p->total != m->shards) return;
    if (p->count == 0 || p->count > MSG_MAP_PAGE || p->first > m->shards || p->count > m->shards - p->first)
        return;
    if (p->version != m->stage.version) m->stage.count = 0;
    m->stage.version = p->version;
    if (p->first != m->stage.count) return;
    for (uint32_t i = 0; i < p->count; i++) {
        struct msg_shard_at *at = &m->stage.at[p->first + i];
        memset(at, 0, sizeof *at); /* compared with memcmp */
        memcpy(at->endpoint, p->shards[i].endpoint, strnlen(p->shards[i].endpoint, MSG_MAX_ENDPOINT - 1));
        at->generation = p->shards[i].generation;
    }
    m->stage.count += p->count;
    m->map_at = now;
    if (m->stage.count == m->shards) commit_map(m);
}

/* --- leases */

static bool is_lease(const struct msg_lease *l)
{
    if (l->kind == LEASE_EVAL) return l->id != 0 && l->begin <= l->end;
    return l->kind == LEASE_TRAIN && l->id != 0 && l->begin <= l->end && l->modulus > 0 &&
           l->residue < l->modulus && l->residues > 0 && l->residues <= l->modulus - l->residue;
}

static void receive_lease(struct member *m, uint64_t now, const struct msg_lease *l)
{
    if (!m->asking || l->request != m->request) return;
    if (l->kind != LEASE_WAIT && l->kind != LEASE_HELD && !is_lease(l)) return;
    m->asking = false;
    m->ask_at = now;
    if (l->kind == LEASE_HELD) {
        m->ask_at = now + WAIT_NS; /* or once the hold is over */
        m->waits = false;
        return;
    }
    if (l->kind == LEASE_WAIT) {
        if (!m->fresh) return; /* asked before the wish was last withdrawn: ask anew */
        m->pause = m->waits && m->pause > 0 ? m->pause * 2 : WAIT_NS;
        if (m->pause > m->o.retry_ns) m->pause = m->o.retry_ns;
        m->ask_at = now + m->pause;
        m->waits = true;
        return;
    }
    ASSERT(m->queue_len < m->o.max_leases); /* one request at a time, made when there was room */
    m->queue[(m->queue_head + m->queue_len++) % m->o.max_leases] = *l;
    m->waits = false;
}

bool member_take(struct member *m, struct msg_lease *out)
{
    if (m->queue_len == 0) return false;
    *out = m->queue[m->queue_head];
    m->taken = out->request;
    m->queue_head = (m->queue_head + 1) % m->o.max_leases;
    m->queue_len--;
    return true;
}

void member_want(struct member *m, bool more)
{
    if (!more) m->fresh = m->waits = false;
    if (more && !m->want && !m->asking) m->ask_at = 0;
    m->want = more;
}

void member_report(struct member *m, uint64_t now, const struct msg_used *u)
{
    ASSERT(m->num_reports < MEMBER_MAX_USED);
    m->reports[m->num_reports++] = (struct report){*u, now};
    m->reports[m->num_reports - 1].used.member = m->number;
    member_tick(m, now);
}

static void receive_used_ok(struct member *m, uint64_t id)
{
    for (int i = 0; i < m->num_reports; i++) {
        if (m->reports[i].used.id != id) continue;
        memmove(&m->reports[i], &m->reports[i + 1], (size_t)(--m->num_reports - i) * sizeof *m->reports);
        return;
    }
}

/* --- capsules */

void member_give_capsule(struct member *m, uint64_t now, uint32_t set, const void *data, size_t len)
{
    ASSERT(len > 0 && set != 0);
    if (set != m->hold) return;
    struct give g = {.len = len, .at = now, .seq = m->progress.seq, .request = m->taken, .set = set};
    g.attempt = m->give.attempt + 1;
    g.data = xcalloc(1, len);
    memcpy(g.data, data, len);
    drop_give(m);
    m->give = g;
    m->beat_at = now;
    member_tick(m, now);
}

static void receive_page(struct member *m, uint64_t now, const struct msg_capsule *c, struct frame *payload)
{
    if (!m->joined || !member_fetching(m) || payload == NULL) return;
    size_t len = frame_len(payload);
    if (c->offset != m->capsule_have || c->total != m->capsule_bytes) return;
    if (len == 0 || len > MSG_MAX_PAYLOAD || len > m->capsule_bytes - m->capsule_have) return;
    if (wire_hash(frame_data(payload), len) != c->hash) return;
    memcpy(m->capsule + m->capsule_have, frame_data(payload), len);
    m->capsule_have += len;
    m->capsule_at = now;
}

void member_receive(struct member *m, uint64_t now, const struct msg *msg, struct frame **payload)
{
    struct frame *bytes = payload == NULL ? NULL : *payload;
    if (m->trouble == 0 && !m->left && msg->job == m->o.job) {
        if (msg->type == MSG_JOINED) receive_joined(m, now, &msg->joined);
        if (msg->type == MSG_REFUSED) receive_refused(m, now, &msg->refused);
        if (msg->type == MSG_ORDER) receive_order(m, now, &msg->order);
        if (msg->type == MSG_MAP) receive_map(m, now, &msg->map);
        if (msg->type == MSG_LEASE) receive_lease(m, now, &msg->lease);
        if (msg->type == MSG_USED_OK) receive_used_ok(m, msg->used_ok.id);
        if (msg->type == MSG_CAPSULE) receive_page(m, now, &msg->capsule, bytes);
    }
    if (bytes != NULL) frame_free(payload);
    member_tick(m, now);
}

/* --- what the coordinator said */

double member_momentum(const struct member *m)
{
    return m->momentum;
}
uint64_t member_number(const struct member *m)
{
    return m->number;
}
uint32_t member_rank(const struct member *m)
{
    return m->rank;
}
uint32_t member_job_generation(const struct member *m)
{
    return m->job_generation;
}
int member_trouble(const struct member *m)
{
    return m->trouble;
}
uint32_t member_command(const struct member *m)
{
    return m->command;
}
uint32_t member_map_version(const struct member *m)
{
    return m->map_changes;
}
uint32_t member_shards(const struct member *m)
{
    return m->shards;
}
uint32_t member_hold(const struct member *m)
{
    return m->hold;
}
uint64_t member_capsule_bytes(const struct member *m)
{
    return m->capsule_bytes;
}
const void *member_capsule(const struct member *m)
{
    return member_fetching(m) ? NULL : m->capsule;
}
bool member_waits(const struct member *m)
{
    return m->waits && m->queue_len == 0;
}
bool member_asking(const struct member *m)
{
    return m->asking;
}
int member_unacknowledged(const struct member *m)
{
    return m->num_reports;
}
void member_progress(struct member *m, const struct member_progress *p)
{
    m->progress = *p;
}

const char *member_endpoint(const struct member *m, uint32_t shard)
{
    ASSERT(shard < m->shards);
    return m->map.at[shard].endpoint;
}

uint32_t member_shard_generation(const struct member *m, uint32_t shard)
{
    ASSERT(shard < m->shards);
    return m->map.at[shard].generation;
}
