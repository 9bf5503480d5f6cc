/* What the main of a worker does around the member and exchange cores, with a trainer whose gradient is all
 * ones: at rate 1 a weight is minus the number of updates that it has had. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LEASES 3
#define QUEUE      8

enum worker_state { JOINING, READING, IDLE, COMPUTING, PUSHING, EVALUATING };

/* Where a worker stands: what its capsule holds. */
struct place {
    struct msg_lease leases[QUEUE]; /* the first one is under way if windows_left > 0 */
    uint32_t num_leases, windows_left;
};

struct sim_worker {
    struct sim *s;
    struct proc *p;
    struct member *member;
    struct exchange *exchange;
    enum worker_state state;
    struct place place, before; /* before: at the start of the window under way */
    struct weights weights, eval_weights;
    float *grad, *zero;
    bool pads; /* bsp, out of data: the window under way is of padding alone, so that the others can go on */
    uint64_t until, window; /* ns */
    uint64_t ended;         /* exchanges */
    uint64_t
        lost_before; /* blocks lost or refused, and steps that did without, before the exchange under way */
    uint64_t left_before;
    uint32_t map;
    uint64_t at[SIM_SHARDS]; /* pids of the servers */
    uint8_t *on_the_way;     /* (blocks): sent and not answered, seen from outside */
    uint8_t heard[SIM_SHARDS]
                 [SIM_HEARD]; /* credit that the last answers granted; 0: as many as the job says */
    uint32_t num_heard[SIM_SHARDS];
    struct msg_lease eval;
    uint32_t gave_set;
    uint64_t gave_ended;
};

/* --- the cores' ways out */
static bool member_send(void *ctx, const struct msg *m, struct frame **payload)
{
    struct sim_worker *w = ctx;
    if (!w->p->found || (sim_faults(w->s) && sim_chance(w->s, 0.01))) return false;
    world_send(w->s, w->p->pid, w->p->found, m, payload);
    return true;
}

/* What answers that came late grant does not hold any more, so one cannot say which of the last ones counts.
 */
static uint32_t credit_of(const struct sim_worker *w, uint32_t shard)
{
    uint32_t most = w->num_heard[shard] ? 1 : w->s->plan.credit;
    for (uint32_t i = 0; i < SIM_HEARD; i++)
        if (w->heard[shard][i] > most) most = w->heard[shard][i];
    return most;
}

static void hear_credit(struct sim_worker *w, uint32_t shard, uint32_t credit)
{
    if (credit > w->s->plan.credit)
        sim_broken(w->s, "no server grants more credit than the job has: %u", credit);
    w->heard[shard][w->num_heard[shard]++ % SIM_HEARD] = (uint8_t)credit;
}

static void check_credit(struct sim_worker *w, uint32_t shard, uint32_t block)
{
    uint32_t first, count, n = 0;
    blocks_of_shard(&w->s->plan.blocks, w->s->plan.shards, shard, &first, &count);
    if (w->on_the_way[block]) return; /* sent again */
    w->on_the_way[block] = 1;
    for (uint32_t b = first; b < first + count; b++) n += w->on_the_way[b];
    if (n > credit_of(w, shard))
        sim_broken(w->s, "the credit is kept: %u blocks are on the way to shard %u, the credit is %u", n,
                   shard, credit_of(w, shard));
}

static void forget_shard(struct sim_worker *w, uint32_t shard)
{
    uint32_t first, count;
    blocks_of_shard(&w->s->plan.blocks, w->s->plan.shards, shard, &first, &count);
    memset(w->on_the_way + first, 0, count);
}

static void forget_all(struct sim_worker *w)
{
    memset(w->on_the_way, 0, w->s->plan.blocks.count);
}

static bool exchange_send(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    struct sim_worker *w = ctx;
    if (!w->at[shard] || (sim_faults(w->s) && sim_chance(w->s, 0.01))) return false;
    if (m->type == MSG_PUSH) check_credit(w, shard, m->push.block);
    if (m->type == MSG_READ) check_credit(w, shard, m->read.block);
    world_send(w->s, w->p->pid, w->at[shard], m, payload);
    return true;
}

/* --- start and end */
void worker_start(struct sim *s, struct proc *p)
{
    struct sim_worker *w = p->worker = xcalloc(1, sizeof *w);
    w->s = s;
    w->p = p;
    struct member_options o = {.job = SIM_JOB,
                               .model_hash = SIM_MODEL,
                               .pid = p->pid,
                               .max_leases = MAX_LEASES,
                               .beat_ns = NS_PER_S,
                               .retry_ns = NS_PER_S};
    snprintf(o.host, sizeof o.host, "sim");
    struct member_io io = {w, member_send};
    w->member = member_new(&o, &io);
    const struct blocks *b = &s->plan.blocks;
    weights_init(&w->weights, b);
    weights_init(&w->eval_weights, b);
    w->grad = xaligned(b->params * sizeof *w->grad);
    for (size_t i = 0; i < b->params; i++) w->grad[i] = 1.0f;
    w->zero = xaligned(b->params * sizeof *w->zero);
    w->on_the_way = xcalloc(b->count, 1);
    w->window = s->plan.window / 2 + sim_around(s, s->plan.window);
    if (sim_chance(s, s->plan.slow)) w->window *= s->plan.slower;
}

void worker_stop(struct proc *p)
{
    struct sim_worker *w = p->worker;
    member_free(&w->member);
    exchange_free(&w->exchange);
    weights_fini(&w->weights);
    weights_fini(&w->eval_weights);
    free(w->grad);
    free(w->zero);
    free(w->on_the_way);
    free(w);
    p->worker = NULL;
}

/* --- steps */
static void connect(struct sim_worker *w)
{
    if (!w->exchange || member_map_version(w->member) == w->map) return;
    w->map = member_map_version(w->member);
    for (uint32_t k = 0; k < w->s->plan.shards && w->map; k++) {
        unsigned long pid = 0;
        sscanf(member_endpoint(w->member, k), "tcp://sim:%lu", &pid);
        if (pid == w->at[k]) continue;
        w->at[k] = pid;
        forget_shard(w, k);
        w->num_heard[k] = 0;
        memset(w->heard[k], 0, sizeof w->heard[k]);
        exchange_connected(w->exchange, w->s->now, k);
    }
}

static void begin(struct sim_worker *w)
{
    struct sim *s = w->s;
    if (member_number(w->member) == 0 || member_map_version(w->member) == 0) return;
    uint64_t bytes = member_capsule_bytes(w->member);
    const void *capsule = member_capsule(w->member);
    if (bytes > 0 && !capsule) return;
    if (bytes > 0 && bytes != sizeof w->place)
        sim_broken(s, "a capsule comes back whole: %lu bytes", (unsigned long)bytes);
    else if (bytes > 0)
        memcpy(&w->place, capsule, sizeof w->place);
    struct exchange_options o = {.job = SIM_JOB,
                                 .model_hash = SIM_MODEL,
                                 .blocks = s->plan.blocks,
                                 .shards = s->plan.shards,
                                 .credit = s->plan.credit,
                                 .deadline_ns = 500 * NS_PER_MS,
                                 .consistency = plan_consistency(s->plan.mode),
                                 .optimizer = OPTIMIZER_SGD,
                                 .gradients = s->plan.gradients,
                                 .weights = s->plan.weights,
                                 .tickets = s->plan.mode == MODE_BACKUP};
    struct exchange_io io = {w, exchange_send};
    w->exchange = exchange_new(&o, &io);
    w->p->member = member_number(w->member);
    exchange_set_member(w->exchange, member_number(w->member), member_job_generation(w->member));
    connect(w);
    exchange_read(w->exchange, s->now, 0, &w->weights);
    w->state = READING;
}

/* Blocks lost or refused, and steps that went on without us. */
static uint64_t dropped(const struct sim_worker *w)
{
    const struct exchange_counts *c = exchange_counts(w->exchange);
    return c->lost + c->refused + c->left_out;
}

static void remember_use(struct sim_worker *w, const struct msg_lease *l)
{
    struct sim *s = w->s;
    s->uses = realloc(s->uses, (s->num_uses + 1) * sizeof *s->uses);
    ASSERT(s->uses);
    s->uses[s->num_uses++] = (struct use){l->epoch,
                                          l->begin,
                                          l->end,
                                          l->residue,
                                          member_number(w->member),
                                          exchange_seq(w->exchange),
                                          l->id,
                                          dropped(w) > w->lost_before};
}

static void report(struct sim_worker *w, const struct msg_lease *l, bool given_back)
{
    struct msg_used u = {.id = l->id, .kind = l->kind, .given_back = given_back};
    u.last_seq = exchange_seq(w->exchange);
    u.frames = 10;
    u.loss = 5.0;
    u.speech_frames = 5;
    if (l->kind == LEASE_TRAIN) remember_use(w, l);
    member_report(w->member, w->s->now, &u);
}

static void drop(struct place *p, uint32_t i)
{
    memmove(&p->leases[i], &p->leases[i + 1], (--p->num_leases - i) * sizeof *p->leases);
}

static void tell_progress(struct sim_worker *w)
{
    struct member_progress progress = {.seq = w->ended, .frames = w->ended, .frames_per_s = 1.0};
    member_progress(w->member, &progress);
}

/* Gives the capsule of where it stood, once for each standing place. */
static void give(struct sim_worker *w, const struct place *at)
{
    uint32_t set = member_hold(w->member);
    if (w->gave_set == set && w->gave_ended == w->ended) return;
    if (member_asking(w->member) || member_unacknowledged(w->member) > 0) return;
    w->gave_set = set;
    w->gave_ended = w->ended;
    tell_progress(w);
    struct place copy = *at;
    for (struct msg_lease l; copy.num_leases < QUEUE && member_take(w->member, &l);) {
        copy.leases[copy.num_leases++] = l;
        w->place.leases[w->place.num_leases++] = l;
    }
    w->before = copy; /* for the next set, if this window lasts */
    member_give_capsule(w->member, w->s->now, set, &copy, sizeof copy);
}

/* An evaluation goes before the next window, as in worker/train_turn.c; false: there is none. */
static bool evaluate(struct sim_worker *w)
{
    struct place *p = &w->place;
    uint32_t i = 0;
    while (i < p->num_leases && p->leases[i].kind != LEASE_EVAL) i++;
    if (i == p->num_leases) return false;
    w->eval = p->leases[i];
    drop(p, i);
    exchange_read(w->exchange, w->s->now, w->eval.set, &w->eval_weights);
    w->state = EVALUATING;
    return true;
}

/* In step rank 0 stands still by itself, and the others where it stops them: there they hand over what they
 * were before that step. A step with backup workers stops nobody in particular: both hold for all. */
static bool follows(const struct sim_worker *w)
{
    const enum sim_mode m = w->s->plan.mode;
    return m == MODE_BACKUP || (m == MODE_BSP && member_rank(w->member) > 0);
}

/* true: something was begun. */
static bool idle(struct sim_worker *w)
{
    struct place *p = &w->place;
    struct msg_lease l;
    while (p->num_leases < QUEUE - MAX_LEASES && member_take(w->member, &l)) {
        p->leases[p->num_leases++] = l;
        w->gave_set = 0; /* a capsule given before does not have it */
    }
    bool nothing = p->num_leases == 0;
    member_want(w->member, p->num_leases < 2);
    if (evaluate(w)) return true;
    bool stands = !follows(w) || w->s->plan.mode == MODE_BACKUP;
    if (member_hold(w->member) && stands) {
        give(w, p);
        return false;
    }
    w->pads = nothing;
    if (nothing && (!plan_in_step(w->s->plan.mode) || !member_waits(w->member))) {
        if (member_hold(w->member)) give(w, p); /* in need of a lease it stands, too */
        return false;
    }
    w->before = *p;
    if (p->windows_left == 0 && !nothing) p->windows_left = plan_windows_of(&p->leases[0]);
    w->until = w->s->now + w->window / 2 + sim_around(w->s, w->window / 2);
    w->state = COMPUTING;
    return true;
}

static void window_done(struct sim_worker *w)
{
    struct place *p = &w->place;
    if (!w->pads) w->s->left_out += exchange_counts(w->exchange)->left_out - w->left_before;
    check_landed(w->s, w->p, w->weights.values);
    w->ended++;
    if (!w->pads && --p->windows_left == 0) {
        report(w, &p->leases[0], false);
        drop(p, 0);
    }
    w->state = IDLE;
}

static void remember_pad(const struct sim_worker *w)
{
    struct sim *s = w->s;
    s->pads = realloc(s->pads, (s->num_pads + 1) * sizeof *s->pads);
    ASSERT(s->pads);
    s->pads[s->num_pads++] = (struct oracle_entry){member_number(w->member), exchange_seq(w->exchange) + 1};
}

static void push(struct sim_worker *w)
{
    if (w->s->plant == PLANT_LOSE_USED && sim_chance(w->s, 0.2)) {
        window_done(w);
        return;
    }
    w->state = PUSHING;
    w->lost_before = dropped(w);
    w->left_before = exchange_counts(w->exchange)->left_out;
    if (w->pads) remember_pad(w);
    exchange_push(w->exchange, w->s->now, w->pads ? w->zero : w->grad, w->pads ? 0 : 1, &w->weights,
                  &w->weights, true);
}

/* One step of the loop; false: nothing to do but wait. */
static bool step(struct sim_worker *w)
{
    switch (w->state) {
    case JOINING:
        begin(w);
        return w->state != JOINING;
    case IDLE:
        return idle(w);
    case COMPUTING:
        if (w->s->now < w->until) return false;
        push(w);
        return true;
    case READING:
        if (!exchange_idle(w->exchange)) return false;
        w->state = IDLE;
        return true;
    case PUSHING:
        if (exchange_idle(w->exchange) && exchange_drained(w->exchange)) {
            window_done(w);
            return true;
        }
        if (member_hold(w->member) && follows(w)) give(w, &w->before);
        return false;
    case EVALUATING:
        if (!exchange_idle(w->exchange)) return false;
        report(w, &w->eval, exchange_read_failed(w->exchange));
        w->state = IDLE;
        return true;
    }
    return false;
}

static bool leaves(struct sim_worker *w)
{
    int trouble = member_trouble(w->member);
    if (trouble == 0 && w->exchange) trouble = exchange_trouble(w->exchange);
    if (trouble == ERR_AGAIN) {
        world_kill(w->s, w->p->pid, err_text());
        return true;
    }
    if (trouble != 0) sim_broken(w->s, "a worker of this job is not refused: %s", err_text());
    if (trouble != 0 || member_command(w->member) == COMMAND_RUN) return trouble != 0;
    member_leave(w->member);
    world_kill(w->s, w->p->pid, NULL);
    return true;
}

static void go_on(struct sim_worker *w)
{
    struct sim *s = w->s;
    struct proc *p = w->p;
    if (leaves(w)) return;
    connect(w);
    while (step(w)) {
    }
    tell_progress(w);
    if (leaves(w)) return;
    uint64_t next = member_next(w->member);
    uint64_t x = w->exchange ? exchange_next(w->exchange) : UINT64_MAX;
    if (x < next) next = x;
    if (w->state == COMPUTING && w->until < next) next = w->until;
    world_wake(s, p, next);
}

/* --- events */
void worker_tick(struct sim *s, struct proc *p)
{
    struct sim_worker *w = p->worker;
    member_tick(w->member, s->now);
    if (w->exchange) exchange_tick(w->exchange, s->now);
    go_on(w);
}

void worker_found(struct sim *s, struct proc *p)
{
    member_reconnected(p->worker->member, s->now);
    worker_tick(s, p);
}

void worker_receive(struct sim *s, struct proc *p, const struct msg *m, uint64_t from, struct frame **payload)
{
    struct sim_worker *w = p->worker;
    uint32_t shard = 0;
    while (shard < s->plan.shards && w->at[shard] != from) shard++;
    if (from == p->found) {
        member_receive(w->member, s->now, m, payload);
    } else if (shard < s->plan.shards && w->exchange) {
        if (m->type == MSG_ANSWER && m->answer.block < s->plan.blocks.count)
            w->on_the_way[m->answer.block] = 0;
        if (m->type == MSG_BLOCK && m->block.block < s->plan.blocks.count) w->on_the_way[m->block.block] = 0;
        if (m->type == MSG_REFUSED || m->type == MSG_WELCOME) forget_shard(w, shard);
        struct msg heard = *m;
        if (m->type == MSG_WELCOME) hear_credit(w, shard, m->welcome.credit);
        if (m->type == MSG_ANSWER) hear_credit(w, shard, m->answer.credit);
        if (s->plant == PLANT_NO_CREDIT && m->type == MSG_WELCOME) heard.welcome.credit = s->plan.credit;
        if (s->plant == PLANT_NO_CREDIT && m->type == MSG_ANSWER) heard.answer.credit = s->plan.credit;
        exchange_receive(w->exchange, s->now, shard, &heard, payload);
        if (exchange_idle(w->exchange)) forget_all(w); /* a read that failed ends early */
    }
    go_on(w);
}

uint64_t worker_member(const struct proc *p)
{
    return member_number(p->worker->member);
}

void worker_describe(struct sim *s, const struct proc *p)
{
    static const char *const states[] = {"joining", "reading", "idle", "computing", "pushing", "evaluating"};
    const struct sim_worker *w = p->worker;
    sim_say(
        s,
        "worker %u (%lu): member %lu, %s, map %u, %u leases, %u windows left, hold %u, gave %u, %d reports",
        p->slot, (unsigned long)p->pid, (unsigned long)member_number(w->member), states[w->state], w->map,
        w->place.num_leases, w->place.windows_left, member_hold(w->member), w->gave_set,
        member_unacknowledged(w->member));
}
