#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "worker/host.h"
#include "worker/train_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_MS      100
#define AHEAD_S      30             /* seconds of work on hand */
#define MAX_UNBEGUN  4              /* leases, beyond what fills the streams */
#define EVAL_WINDOWS 8              /* between two pumps */
#define REPORT_NS    (2 * NS_PER_S) /* TERM: for the last reports to be acknowledged */
#define SPEED_NS     NS_PER_S
#define MAX_THREADS  256 /* as the option table allows */

/* Exchanges that are over. */
static uint64_t seq_ended(const struct train *t)
{
    const struct exchange *x = t->links->exchange;
    return exchange_seq(x) - (!exchange_idle(x) && exchange_seq(x) > 0);
}

static void tell_progress(struct train *t)
{
    const struct exchange_counts *c = exchange_counts(t->links->exchange);
    uint64_t now = clock_now_ns(), passed = now - t->speed_at;
    if (passed >= SPEED_NS) {
        t->frames_per_s = (double)(t->frames - t->speed_frames) * 1e9 / (double)passed;
        t->speed_at = now;
        t->speed_frames = t->frames;
    }
    struct member_progress p = {seq_ended(t), t->frames, t->frames_per_s,
                                c->applied ? (double)c->staleness_sum / (double)c->applied : 0};
    member_progress(t->links->member, &p);
}

/* --- leases */

static void report_used(struct train *t)
{
    struct msg_used used;
    if (t->pending == 0) feed_pushed(t->feed, exchange_seq(t->links->exchange));
    while (feed_take_used(t->feed, seq_ended(t), &used))
        member_report(t->links->member, clock_now_ns(), &used);
}

static void give_back(struct train *t, const struct msg_lease *l)
{
    struct msg_used used = {.id = l->id, .kind = l->kind, .given_back = true};
    member_report(t->links->member, clock_now_ns(), &used);
}

/* How many came; negative: one that makes no sense. */
static int take_leases(struct train *t)
{
    struct msg_lease l;
    int taken = 0;
    while (member_take(t->links->member, &l)) {
        taken++;
        t->given_seq = UINT64_MAX; /* a capsule given before does not have it */
        if (l.kind == LEASE_TRAIN) {
            int rc = feed_add(t->feed, &l);
            if (rc < 0) return rc;
        } else if (t->num_evals < TRAIN_EVALS) {
            t->evals[t->num_evals++] = l;
        } else {
            give_back(t, &l);
        }
    }
    return taken;
}

static double frames_per_utterance(const struct train *t)
{
    const struct data_facts *d = &t->job->facts.train;
    return d->utterances ? (double)d->frames / d->utterances : 0;
}

static bool wants_lease(const struct train *t)
{
    uint64_t waiting = feed_waiting(t->feed), streams = (uint64_t)t->num_streams;
    if (t->job->config.consistency.mode == CONSISTENCY_BSP) return feed_unbegun(t->feed) == 0;
    if (waiting < streams) return true;
    double seconds =
        t->frames_per_s > 0 ? (double)waiting * frames_per_utterance(t) / t->frames_per_s : AHEAD_S;
    return seconds < AHEAD_S && feed_unbegun(t->feed) < MAX_UNBEGUN;
}

/* In step with others a capsule must have every lease that was granted before the step: so all asking is over
 * before the window begins, and none begins during the step. */
static int ask_in_step(struct train *t)
{
    struct member *m = t->links->member;
    bool wants = wants_lease(t);
    member_want(m, wants);
    while (!*t->stop && (member_asking(m) || (wants && !member_waits(m) && !member_hold(m)))) {
        int rc = train_idle(t, TICK_MS);
        if (rc != 0) return rc;
        rc = take_leases(t);
        if (rc < 0) return rc;
        if (wants && !wants_lease(t)) member_want(m, wants = false);
    }
    t->waits = wants && member_waits(m);
    member_want(m, false);
    return 0;
}

static int ask_leases(struct train *t)
{
    if (t->together) return ask_in_step(t);
    member_want(t->links->member, wants_lease(t));
    return 0;
}

bool train_more(const struct train *t)
{
    return t->together ? !t->waits : !member_waits(t->links->member);
}

/* --- evaluation */

static int read_set(struct train *t, uint32_t set)
{
    if (t->eval_known && t->eval_set == set) return 0;
    int rc = train_drain(t);
    if (rc != 0) return rc;
    if (!t->eval_weights.values) weights_init(&t->eval_weights, &t->job->blocks);
    exchange_read(t->links->exchange, clock_now_ns(), set, &t->eval_weights);
    rc = train_drain(t);
    t->eval_known = rc == 0 && !exchange_read_failed(t->links->exchange);
    t->eval_set = set;
    return rc;
}

static void make_evaluate(struct train *t)
{
    const struct facts *f = &t->job->facts;
    struct evaluate_options o = {.window = t->job->config.train.window,
                                 .streams = t->job->config.train.streams,
                                 .silence = f->silence,
                                 .num_silence = f->num_silence};
    t->evaluate = evaluate_new(&f->model, t->job->dev, &o);
}

static int run_evaluation(struct train *t, const struct msg_lease *l)
{
    if (!t->evaluate) make_evaluate(t);
    evaluate_begin(t->evaluate, l->begin, l->end);
    for (int n = 1; evaluate_step(t->evaluate, t->eval_weights.values); n++) {
        int rc = n % EVAL_WINDOWS ? 0 : links_pump(t->links, 0);
        if (rc < 0) return rc;
    }
    const struct evaluation *e = evaluate_sums(t->evaluate);
    struct msg_used used = {.id = l->id,
                            .kind = LEASE_EVAL,
                            .frames = e->frames,
                            .loss = e->loss,
                            .correct = e->correct,
                            .speech_frames = e->speech_frames,
                            .speech_correct = e->speech_correct,
                            .failed = e->failed};
    member_report(t->links->member, clock_now_ns(), &used);
    return 0;
}

static int evaluate_leases(struct train *t)
{
    int rc = 0;
    for (int i = 0; rc == 0 && i < t->num_evals; i++) {
        const struct msg_lease *l = &t->evals[i];
        bool possible = t->job->dev && l->end <= corpus_count(t->job->dev->corpus);
        if (possible) rc = read_set(t, l->set);
        if (rc != 0) break;
        if (possible && t->eval_known)
            rc = run_evaluation(t, l);
        else
            give_back(t, l);
    }
    bool evaluated = t->num_evals > 0;
    t->num_evals = 0;
    /* meanwhile the others went on: do not compute with weights that are hundreds of updates old */
    return rc == 0 && evaluated && !t->together && t->pull_every == 1 ? train_read(t) : rc;
}

/* --- capsules */

/* With several workers in step only rank 0 stands still by itself: the others then cannot end the next step,
 * and hand over what they were before it. So all capsules of a set are of the same step. A step with backup
 * workers ends without some of them, so there every rank stands still at its own boundary, or hands over its
 * last one if it is bound to wait; such a set does not promise identical bits. */
static bool leads(const struct train *t)
{
    return !t->together || t->backup || member_rank(t->links->member) == 0;
}

static bool follows(const struct train *t)
{
    return t->together && (t->backup || member_rank(t->links->member) > 0);
}

/* At every step of a follower: copies alone, into buffers that stay; bytes are made when they are wanted. */
static void remember(struct train *t)
{
    struct capsule *c = &t->saved;
    const float *residual = exchange_residual(t->links->exchange);
    if (!c->state) {
        c->model_hash = t->job->facts.model_hash;
        c->threads = (uint32_t)t->job->config.train.threads;
        c->state_size = team_state_size(t->team);
        c->state = xcalloc((unsigned long)c->state_size, sizeof *c->state);
        c->residual_size = residual ? t->velocity.n : 0;
        if (residual) c->residual = xaligned(c->residual_size * sizeof *residual);
        c->velocity_size = t->velocity.values ? t->velocity.n : 0;
        if (t->velocity.values) c->velocity = xaligned(c->velocity_size * sizeof *c->velocity);
    }
    c->windows = t->windows;
    c->frames = t->frames;
    c->nonfinite = t->nonfinite;
    team_get_state(t->team, c->state);
    if (residual) memcpy(c->residual, residual, c->residual_size * sizeof *residual);
    if (c->velocity) memcpy(c->velocity, t->velocity.values, c->velocity_size * sizeof *c->velocity);
    feed_image_fini(&c->feed);
    feed_save(t->feed, &c->feed);
    t->saved_seq = seq_ended(t);
}

static void give_saved(struct train *t)
{
    struct member *m = t->links->member;
    uint32_t set = member_hold(m);
    if (set == 0 || !t->saved.state || member_unacknowledged(m) > 0 || member_asking(m)) return;
    if (t->given_set == set && t->given_seq == t->saved_seq) return;
    if (t->saved_seq != seq_ended(t)) return; /* the step is over: the next boundary saves its own */
    size_t len;
    void *bytes = capsule_write(&t->saved, &len);
    tell_progress(t);
    member_give_capsule(m, clock_now_ns(), set, bytes, len);
    free(bytes);
    t->given_set = set;
    t->given_seq = t->saved_seq;
}

void train_offer(struct train *t)
{
    if (follows(t)) give_saved(t);
}

/* An exact set: nothing is under way, all that ended is acknowledged, and nothing moves until the set is
 * taken. */
static int stand_still(struct train *t)
{
    struct member *m = t->links->member;
    uint32_t set = member_hold(m);
    int rc = train_settle(t);
    member_want(m, false);
    while (rc == 0 && member_hold(m) == set && !*t->stop) {
        rc = take_leases(t);
        if (rc < 0) return rc;
        report_used(t);
        if (member_unacknowledged(m) == 0 && !member_asking(m) &&
            (t->given_set != set || t->given_seq != seq_ended(t))) {
            remember(t);
            give_saved(t);
        }
        rc = train_idle(t, TICK_MS);
    }
    t->given_seq = UINT64_MAX;
    if (rc != 0 || t->pull_every == 1) return rc;
    t->pushes = 0; /* as a job that resumes from here does */
    return train_read(t);
}

/* --- the turn */

static int hold(struct train *t)
{
    if (follows(t)) remember(t);
    return member_hold(t->links->member) && leads(t) ? stand_still(t) : 0;
}

int train_turn(struct train *t)
{
    int rc = train_pump(t, 0);
    if (rc != 0) return rc;
    rc = take_leases(t);
    if (rc < 0) return rc;
    tell_progress(t);
    report_used(t);
    rc = ask_leases(t);
    if (rc != 0 || t->pending) return rc;
    report_used(t); /* a lease of which we have no utterance has ended as it came */
    rc = evaluate_leases(t);
    return rc != 0 ? rc : hold(t);
}

int train_farewell(struct train *t)
{
    uint64_t start = clock_now_ns();
    int rc = train_settle(t);
    if (rc != 0) return rc;
    report_used(t);
    while (member_unacknowledged(t->links->member) && clock_now_ns() - start < REPORT_NS) {
        rc = train_pump(t, TICK_MS);
        if (rc != 0) return rc;
    }
    return err_set(ERR_INTERRUPTED, "stopped by a signal");
}

/* --- the beginning */

static int wait_for_job(struct train *t)
{
    const struct member *m = t->links->member;
    while (member_number(m) == 0 || member_map_version(m) == 0 ||
           (member_capsule_bytes(m) && !member_capsule(m))) {
        if (*t->stop) return err_set(ERR_INTERRUPTED, "stopped before it had joined");
        int rc = train_idle(t, TICK_MS);
        if (rc != 0) return rc;
    }
    return 0;
}

static void open_log(struct train *t)
{
    uint64_t number = member_number(t->links->member);
    char name[64];
    snprintf(name, sizeof name, "logs/worker-%" PRIu64 ".jsonl", number);
    char *path = files_join(t->job->run, name);
    log_open("worker", number, t->job->run, path);
    log_event(LOG_INFO, "joined", "\"member\":%" PRIu64 ",\"rank\":%u,\"capsule_bytes\":%" PRIu64, number,
              member_rank(t->links->member), member_capsule_bytes(t->links->member));
    host_log_plan();
    free(path);
}

static void log_pinned(const struct train *t, const int *cores, int count)
{
    char list[16 * 256] = "";
    size_t at = 0;
    for (int k = 0; k < count; k++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%d", k ? "," : "", cores[k]);
    log_event(pin_cores(t->pin) < count ? LOG_WARN : LOG_INFO, "pinned", "\"cores\":[%s],\"allowed\":%d",
              list, pin_cores(t->pin));
}

/* Workers of one host have different ranks: each takes its own run of cores. */
static int pin(struct train *t)
{
    int count = t->job->config.train.threads, cores[MAX_THREADS];
    uint64_t first = (uint64_t)member_rank(t->links->member) * (uint64_t)count;
    if (!t->job->config.train.pin) return 0;
    ASSERT(count <= MAX_THREADS);
    if (t->job->dev) make_evaluate(t); /* its prefetch thread would inherit our core if it were made later */
    int rc = pin_threads(team_threads(t->team), count, first, cores, &t->pin);
    if (rc == 0) log_pinned(t, cores, count);
    return rc;
}

/* Its sizes are those of this job? */
static int check_capsule(const struct train *t, const struct capsule *c)
{
    if (c->model_hash != t->job->facts.model_hash || c->state_size != team_state_size(t->team) ||
        c->threads != (uint32_t)t->job->config.train.threads)
        return err_set(ERR_MODEL, "the capsule of the checkpoint is of another model, or another number of "
                                  "threads or streams, than job.yaml says");
    size_t P = t->velocity.n;
    if ((c->residual_size != 0 && c->residual_size != P) || (c->velocity_size != 0 && c->velocity_size != P))
        return err_set(ERR_MODEL,
                       "the capsule of the checkpoint has a residual or a velocity of another model");
    return 0;
}

/* What has no use any more (gradients travel as fp32 now, the servers have the momentum) is dropped; what was
 * not kept starts at zero. */
static void restore_vectors(struct train *t, const struct capsule *c)
{
    float *residual = exchange_residual(t->links->exchange), *velocity = t->velocity.values;
    if (residual && c->residual_size) memcpy(residual, c->residual, c->residual_size * sizeof *residual);
    if (velocity && c->velocity_size) memcpy(velocity, c->velocity, c->velocity_size * sizeof *velocity);
}

static int restore_capsule(struct train *t)
{
    const struct member *m = t->links->member;
    struct capsule c;
    if (member_capsule_bytes(m) == 0) return 0;
    int rc = capsule_read(member_capsule(m), (size_t)member_capsule_bytes(m), &c);
    if (rc < 0) return rc;
    rc = check_capsule(t, &c);
    if (rc == 0) rc = feed_restore(t->feed, &c.feed);
    if (rc == 0) {
        team_set_state(t->team, c.state);
        restore_vectors(t, &c);
        t->windows = c.windows;
        t->frames = t->speed_frames = c.frames;
        t->nonfinite = c.nonfinite;
    }
    capsule_fini(&c);
    return rc;
}

int train_begin(struct train *t)
{
    int rc = wait_for_job(t);
    if (rc != 0) return rc;
    open_log(t);
    rc = pin(t);
    if (rc == 0) rc = restore_capsule(t);
    t->speed_at = clock_now_ns();
    return rc < 0 ? rc : train_read(t);
}
