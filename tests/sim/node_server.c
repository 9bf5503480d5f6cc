/* What the main of a server does around the shard core: joins, obeys orders, writes snapshots. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BEAT_NS NS_PER_S
#define MEMBERS 512

struct sim_server {
    struct sim *s;
    struct proc *p;
    struct shard *shard;   /* once joined */
    struct oracle *oracle; /* owned */
    struct watch *watch;   /* owned, as the shard */
    uint64_t base;         /* version that the push under way comes from */
    bool crowded;
    struct shard_state *loaded; /* before it joined, owned */
    bool alone, joined;
    uint32_t set; /* its weights are from */
    uint64_t member;
    uint32_t incarnation, generation, job_generation;
    uint32_t copied, written, failed, halve_from, roster;
    uint64_t file_hash;
    uint64_t next_join, next_beat;
    uint64_t disk_free; /* writes go one after the other */
    struct copies copies;
};

const struct oracle *server_oracle(const struct proc *p)
{
    return p->server->oracle;
}

const struct shard_state *server_state(const struct proc *p)
{
    return p->server->shard ? shard_look(p->server->shard) : NULL;
}

/* --- the core's way out */
static void io_send(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct sim_server *v = ctx;
    bool swallow = false;
    if (peer >= SIM_CROWD) {
        if (payload) frame_free(payload);
        return;
    }
    check_answer(v->s, v->p, peer, m);
    if (m->type == MSG_ANSWER) {
        swallow = v->s->plant == PLANT_KEEP_BACK && watch_is_kept(v->watch, peer, &m->answer);
        if (!swallow) watch_answer(v->watch, peer, &m->answer, payload && *payload);
    }
    if (!swallow)
        world_send(v->s, v->p->pid, peer, m, payload);
    else if (payload)
        frame_free(payload);
}

static void io_applied(void *ctx, uint64_t member, uint64_t seq, uint32_t block, uint64_t version)
{
    struct sim_server *v = ctx;
    const struct plan *plan = &v->s->plan;
    if (!plan_in_step(plan->mode) && plan->max_staleness && version - 1 - v->base > plan->max_staleness)
        sim_broken(
            v->s,
            "what is too stale is refused: block %u applies a gradient %lu versions old, the limit is %u",
            block, (unsigned long)(version - 1 - v->base), plan->max_staleness);
    if (oracle_has(v->oracle, block, member, seq))
        sim_broken(v->s, "a push is applied once: shard %u applies seq %lu of member %lu to block %u again",
                   v->p->slot, (unsigned long)seq, (unsigned long)member, block);
    oracle_add(v->oracle, block, member, seq);
    watch_applied(v->watch, member, seq, block);
}

/* After each call into the core. */
static void look(struct sim_server *v)
{
    watch_check(v->watch, v->oracle);
}

/* --- weights */
static void load(struct sim_server *v, const struct sim_file *f)
{
    shard_state_free(&v->loaded);
    oracle_free(&v->oracle);
    v->set = f->set;
    v->oracle = oracle_copy(f->oracle);
    const struct shard_state *a = f->state;
    struct shard_state *b = shard_state_new(&a->blocks, a->first, a->count, a->num_members, 0); /* sgd */
    memcpy(b->weights, a->weights, shard_state_floats(a) * sizeof(float));
    memcpy(b->version, a->version, a->count * sizeof *a->version);
    memcpy(b->frames, a->frames, a->count * sizeof *a->frames);
    size_t cells = (size_t)a->num_members * a->count;
    if (cells > 0) {
        memcpy(b->members, a->members, a->num_members * sizeof *a->members);
        memcpy(b->last_seq, a->last_seq, cells * sizeof *a->last_seq);
        memcpy(b->verdict, a->verdict, cells);
    }
    if (v->s->plant == PLANT_DROP_TABLE) b->num_members = 0;
    v->loaded = b;
}

static void make_shard(struct sim_server *v, const struct msg_joined *j)
{
    struct sim *s = v->s;
    if (!v->loaded || (v->set != j->set && s->plant != PLANT_NO_REOPEN)) {
        const struct sim_file *f = disk_file(&s->disk, v->p->slot, j->set);
        if (!f) {
            sim_broken(s, "a server is told to restore a set that is there: shard %u, set %u", v->p->slot,
                       j->set);
            return;
        }
        load(v, f);
    }
    struct shard_options o = {.shard = v->p->slot,
                              .shards = s->plan.shards,
                              .job = SIM_JOB,
                              .model_hash = SIM_MODEL,
                              .job_generation = j->job_generation,
                              .generation = v->generation,
                              .mode = plan_consistency(s->plan.mode),
                              .bound = s->plan.bound,
                              .backup = plan_backup(s->plan.mode),
                              .max_staleness = s->plan.max_staleness,
                              .gradients = s->plan.gradients,
                              .weights = s->plan.weights,
                              .max_members = MEMBERS,
                              .credit = s->plan.credit};
    if (s->plant == PLANT_NO_BOUND && v->p->slot == 0) o.bound = 1000;
    o.rule = (struct update_rule){.type = OPTIMIZER_SGD};
    o.pace = (struct pace_rule){
        .rate = 1.0, .factor = 1.0, .schedule = SCHEDULE_CONSTANT, .epoch_frames = 1000, .per_frames = 1e9};
    struct shard_io io = {.ctx = v, .send = io_send, .applied = io_applied};
    v->copied = v->written = v->set;
    uint32_t first = v->loaded->first, count = v->loaded->count;
    v->shard = shard_new(&o, &io, &v->loaded);
    v->copies.shard = v->shard;
    v->watch = watch_new(s, v->p, first, count);
    check_restored(s, v->p);
}

/* --- the coordinator */
static void tell(struct sim_server *v, const struct msg *m)
{
    if (v->p->found) world_send(v->s, v->p->pid, v->p->found, m, NULL);
}

static void join(struct sim_server *v)
{
    struct msg m = {.type = MSG_JOIN, .job = SIM_JOB};
    m.join = (struct msg_join){.role = ROLE_SERVER,
                               .member = v->member,
                               .pid = v->p->pid,
                               .shard = v->p->slot,
                               .generation = v->generation,
                               .model_hash = SIM_MODEL,
                               .restored_set = v->set};
    snprintf(m.join.host, sizeof m.join.host, "sim");
    snprintf(m.join.endpoint, sizeof m.join.endpoint, "tcp://sim:%lu", (unsigned long)v->p->pid);
    if (v->s->plant == PLANT_NO_REOPEN && v->set > 0) m.join.restored_set = 1u << 20;
    tell(v, &m);
    v->next_join = v->s->now + NS_PER_S;
}

static void beat(struct sim_server *v)
{
    struct msg m = {.type = MSG_BEAT, .job = SIM_JOB};
    m.beat = (struct msg_beat){.role = ROLE_SERVER,
                               .member = v->member,
                               .incarnation = v->incarnation,
                               .copied = v->copied,
                               .written = v->written,
                               .failed_set = v->failed,
                               .file_bytes = 100,
                               .file_hash = v->file_hash,
                               .roster = v->roster,
                               .halve_from = v->halve_from};
    m.beat.version = shard_version(v->shard);
    m.beat.applied = shard_counts(v->shard)->applied;
    tell(v, &m);
    v->next_beat = v->s->now + BEAT_NS;
}

static void joined(struct sim_server *v, const struct msg_joined *j)
{
    if (j->incarnation < v->incarnation) return;
    v->incarnation = j->incarnation;
    v->member = j->member;
    v->joined = true;
    if (!v->shard) {
        v->generation = j->generation;
        if (v->s->plant == PLANT_OLD_GENERATION && v->alone && j->generation > 1) v->generation--;
        v->job_generation = j->job_generation;
        make_shard(v, j);
    } else if (j->generation != v->generation) {
        sim_broken(v->s,
                   "a server that was only cut off keeps its generation: shard %u had %u and is given %u",
                   v->p->slot, v->generation, j->generation);
    }
    if (v->shard) beat(v);
}

/* --- checkpoint sets */
static void take_copy(struct sim_server *v, uint32_t set)
{
    struct sim *s = v->s;
    struct sim_file *f = xcalloc(1, sizeof *f);
    *f = (struct sim_file){set, v->p->slot, shard_copy(v->shard), oracle_copy(v->oracle)};
    v->copied = set;
    if (s->plant == PLANT_STABLE_EARLY) shard_stable(v->shard, f->state);
    copies_add(&v->copies, set);
    if (v->disk_free < s->now) v->disk_free = s->now;
    v->disk_free += sim_around(s, s->plan.write);
    world_push(
        s, (struct event){.at = v->disk_free, .kind = EVENT_WRITTEN, .pid = v->p->pid, .a = set, .data = f});
}

void server_written(struct sim *s, struct proc *p, struct event *e)
{
    struct sim_server *v = p->server;
    struct sim_file *f = e->data;
    if (sim_faults(s) && sim_chance(s, 0.05)) { /* the disk is full */
        v->failed = e->a;
        beat(v);
        return;
    }
    shard_stable(v->shard, f->state);
    s->disk.files = realloc(s->disk.files, (s->disk.num_files + 1) * sizeof *f);
    ASSERT(s->disk.files);
    s->disk.files[s->disk.num_files++] = *f;
    free(f);
    e->data = NULL;
    v->written = e->a;
    v->file_hash = e->a * 31ull + p->slot;
    beat(v);
    world_wake(s, p, v->next_beat);
}

static void take_roster(struct sim_server *v, uint32_t id, struct frame *payload)
{
    const uint64_t *members = frame_data(payload);
    uint32_t n = (uint32_t)(frame_len(payload) / sizeof *members);
    if (v->s->plan.mode == MODE_SSP) watch_roster(v->watch, members, n);
    shard_roster(v->shard, v->s->now, id, members, n);
    look(v);
    v->roster = id;
    v->next_beat = v->s->now;
}

static void obey(struct sim_server *v, const struct msg_order *o, struct frame *payload)
{
    if (o->incarnation < v->incarnation || !v->shard) return;
    v->incarnation = o->incarnation;
    if (o->command != COMMAND_RUN) {
        struct msg m = {.type = MSG_LEAVE, .job = SIM_JOB};
        m.leave.member = v->member;
        tell(v, &m);
        world_kill(v->s, v->p->pid, NULL);
        return;
    }
    if (o->roster > v->roster && payload) take_roster(v, o->roster, payload);
    if (o->oldest_member > v->s->oldest) v->s->oldest = o->oldest_member;
    watch_oldest(v->watch, o->oldest_member);
    shard_oldest_member(v->shard, v->s->now, o->oldest_member);
    look(v);
    if (o->halve_from && o->halve_from != v->halve_from)
        shard_halve_from(v->shard, v->halve_from = o->halve_from);
    if (o->set > v->copied) {
        take_copy(v, o->set);
        v->next_beat = v->s->now;
    }
    copies_drop(&v->copies, o->keep_set);
}

void server_describe(struct sim *s, const struct proc *p)
{
    const struct sim_server *v = p->server;
    sim_say(s, "server %u (%lu): member %lu, %s, generation %u, copied %u, written %u, failed %u, roster %u",
            p->slot, (unsigned long)p->pid, (unsigned long)v->member, v->joined ? "joined" : "not joined",
            v->generation, v->copied, v->written, v->failed, v->roster);
}

/* --- events */
void server_start(struct sim *s, struct proc *p, bool alone)
{
    struct sim_server *v = p->server = xcalloc(1, sizeof *v);
    v->s = s;
    v->p = p;
    v->alone = alone;
    if (alone) load(v, disk_file(&s->disk, p->slot, -1));
}

void server_stop(struct proc *p)
{
    struct sim_server *v = p->server;
    shard_free(&v->shard);
    shard_state_free(&v->loaded);
    oracle_free(&v->oracle);
    watch_free(&v->watch);
    copies_fini(&v->copies);
    free(v);
    p->server = NULL;
}

void server_found(struct sim *s, struct proc *p)
{
    (void)s;
    p->server->joined = false;
    p->server->next_join = 0;
    server_tick(s, p);
}

/* Many members that do nothing else: the credit of each shrinks. */
static void crowd_in(struct sim_server *v)
{
    const struct plan *plan = &v->s->plan;
    struct msg m = {.type = MSG_HELLO, .job = SIM_JOB};
    m.hello = (struct msg_hello){.model_hash = SIM_MODEL,
                                 .shard = v->p->slot,
                                 .job_generation = v->job_generation,
                                 .consistency = plan_consistency(plan->mode),
                                 .optimizer = OPTIMIZER_SGD,
                                 .gradients = plan->gradients,
                                 .weights = plan->weights};
    for (uint32_t i = 0; i < plan->crowd; i++) {
        struct frame *none = NULL;
        m.hello.member = SIM_CROWD + i;
        shard_receive(v->shard, v->s->now, m.hello.member, &m, &none);
    }
    v->crowded = true;
}

void server_tick(struct sim *s, struct proc *p)
{
    struct sim_server *v = p->server;
    if (!v->joined && s->now >= v->next_join) join(v);
    if (v->shard && s->plan.crowd && !v->crowded && s->now >= s->plan.crowd_at) crowd_in(v);
    if (v->joined && v->shard && s->now >= v->next_beat) {
        if (s->plan.mode == MODE_SSP) watch_check_roster(v->watch);
        beat(v);
    }
    world_wake(s, p, v->joined ? v->next_beat : v->next_join);
}

static void forget_seq(struct sim_server *v)
{
    const struct shard_state *st = shard_look(v->shard);
    if (st->num_members > 0 && sim_chance(v->s, 0.3))
        memset(st->last_seq, 0, st->count * sizeof *st->last_seq);
}

/* The last seq of a member, and its verdict. */
static uint64_t last_seq(const struct shard_state *st, uint64_t member, uint32_t block, uint32_t *verdict)
{
    *verdict = VERDICT_NONE;
    if (block < st->first || block - st->first >= st->count) return 0;
    for (uint32_t i = 0; i < st->num_members; i++) {
        size_t cell = (size_t)i * st->count + block - st->first;
        if (st->members[i] != member) continue;
        *verdict = st->verdict[cell];
        return st->last_seq[cell];
    }
    return 0;
}

static void push(struct sim_server *v, const struct msg *in, uint64_t from, struct frame **payload)
{
    struct msg m = *in;
    uint64_t member = m.push.member, before;
    uint32_t verdict;
    bool last = v->p->slot > 0 && v->p->slot == v->s->plan.shards - 1;
    if (v->s->plant == PLANT_FORGET_SEQ) forget_seq(v);
    if (v->s->plant == PLANT_OWN_SET && last && m.push.quorum > 1) m.push.quorum--;
    before = last_seq(shard_look(v->shard), member, m.push.block, &verdict);
    v->base = m.push.base_version;
    shard_receive(v->shard, v->s->now, from, &m, payload);
    if (last_seq(shard_look(v->shard), member, m.push.block, &verdict) != before)
        watch_used(v->watch, member, m.push.seq, m.push.block, verdict);
    look(v);
}

void server_receive(struct sim *s, struct proc *p, const struct msg *m, uint64_t from, struct frame **payload)
{
    struct sim_server *v = p->server;
    if (m->type == MSG_JOINED) {
        if (from == p->found) joined(v, &m->joined);
    } else if (m->type == MSG_ORDER) {
        if (from == p->found) obey(v, &m->order, *payload);
    } else if (m->type == MSG_REFUSED) {
        if (m->refused.reason == REFUSAL_HELLO_FIRST) v->joined = false;
        if (m->refused.reason == REFUSAL_RETIRED) world_kill(s, p->pid, "it is retired");
        if (m->refused.reason == REFUSAL_MISMATCH)
            sim_broken(s, "a server is not refused: %s", m->refused.text);
    } else if (v->shard && m->type == MSG_PUSH) {
        push(v, m, from, payload);
    } else if (v->shard) {
        shard_receive(v->shard, s->now, from, m, payload);
    }
    if (p->dead) return;
    if (v->shard) check_shard(s, p);
    server_tick(s, p);
}
