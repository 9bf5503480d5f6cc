/* chorale-emulate RUN --workers N: trains a prepared job with N workers and one server in one process and in
 * virtual time, to see what staleness does to the result when there are more workers than cores. Every worker
 * has its own pace (jitter) and takes as long for a window as that says; what it pushes goes through the real
 * exchange, the real shard and the real net, without sockets and without delay. Prints one JSON line. The
 * same seed gives the same numbers. Source: DESIGN, "Quality under asynchrony". */
#include "common/clock.h"
#include "common/err.h"
#include "common/rng.h"
#include "server/shard.h"
#include "worker/data/streams.h"
#include "worker/evaluate.h"
#include "worker/exchange.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/clip.h"
#include "worker/nnet/net.h"
#include "worker/velocity.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORKERS 256
#define MAX_SETS    64
#define WINDOW_NS   (10 * NS_PER_MS) /* of a worker of pace 1 */
#define MAX_MAIL    4096

struct letter {
    struct msg msg;
    struct frame *payload;
};

struct mail {
    struct letter letters[MAX_MAIL];
    uint32_t head, count;
};

struct worker {
    struct emulation *e;
    uint32_t number; /* from 1: member and peer */
    struct exchange *exchange;
    struct mail *inbox;
    struct net *net;
    struct streams *streams;
    struct weights weights;
    float *grad;
    struct velocity velocity;
    double pace;
    uint64_t due;  /* when its window is computed */
    bool has_work; /* utterances in its streams, or more to come */
    bool computing;
};

struct emulation {
    struct job job;
    struct shard *shard;
    struct pace_rule pace;
    struct mail *to_shard;
    uint32_t from[MAX_MAIL]; /* of the letters to the shard: which worker */
    struct worker workers[MAX_WORKERS];
    uint32_t num_workers, roster;
    uint64_t now, windows, frames, updates;
    uint64_t *staleness; /* (num_updates) */
    double jitter, loss;
    uint64_t loss_frames;
    struct rng rng;
    struct minibatch window;
    uint32_t *order; /* of the epoch */
    uint64_t given, total;
    bool diverged;
};

/* ------------------------------------------------------------------ mail */

static void mail_put(struct mail *m, const struct msg *msg, struct frame **payload)
{
    ASSERT(m->count < MAX_MAIL);
    struct letter *l = &m->letters[(m->head + m->count++) % MAX_MAIL];
    *l = (struct letter){*msg, NULL};
    if (payload && *payload) {
        l->payload = *payload;
        *payload = NULL;
    }
}

static struct letter mail_take(struct mail *m)
{
    struct letter l = m->letters[m->head];
    m->head = (m->head + 1) % MAX_MAIL;
    m->count--;
    return l;
}

/* The shard writes its answer over the gradient; the worker's own must stay. */
static bool send_to_shard(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    struct worker *w = ctx;
    struct emulation *e = w->e;
    (void)shard;
    struct frame *copy = payload && *payload ? frame_copy(frame_data(*payload), frame_len(*payload)) : NULL;
    if (payload) frame_free(payload);
    e->from[(e->to_shard->head + e->to_shard->count) % MAX_MAIL] = w->number;
    mail_put(e->to_shard, m, &copy);
    return true;
}

static void send_to_worker(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct emulation *e = ctx;
    mail_put(e->workers[peer - 1].inbox, m, payload);
}

static void read_inbox(struct worker *w)
{
    while (w->inbox->count) {
        struct letter l = mail_take(w->inbox);
        exchange_receive(w->exchange, w->e->now, 0, &l.msg, &l.payload);
        frame_free(&l.payload);
    }
}

/* Until nobody has anything to say at this moment. */
static void deliver(struct emulation *e)
{
    do {
        while (e->to_shard->count) {
            uint32_t from = e->from[e->to_shard->head];
            struct letter l = mail_take(e->to_shard);
            shard_receive(e->shard, e->now, from, &l.msg, &l.payload);
            frame_free(&l.payload);
        }
        for (uint32_t k = 0; k < e->num_workers && e->workers[k].inbox; k++) read_inbox(&e->workers[k]);
    } while (e->to_shard->count);
}

/* ------------------------------------------------------------------ data */

static int give_data(struct emulation *e, struct worker *w)
{
    uint32_t n = e->job.facts.train.utterances;
    for (int s; (s = streams_need(w->streams)) >= 0 && e->given < e->total;) {
        if (e->given % n == 0)
            rng_epoch_order((uint64_t)e->job.config.train.seed, (uint32_t)(e->given / n), e->order, n);
        struct utterance *u = utterance_new();
        int rc = utterance_load(e->job.train->corpus, e->order[e->given++ % n], &e->job.train->frontend, u);
        if (rc < 0) {
            utterance_free(&u);
            return rc;
        }
        streams_give(w->streams, s, &u);
    }
    return 0;
}

/* ------------------------------------------------------------------ one worker */

static void schedule(struct worker *w)
{
    struct emulation *e = w->e;
    double noise = exp(e->jitter * (double)rng_range(&e->rng, -1, 1));
    w->due = e->now + (uint64_t)(w->pace * noise * (double)WINDOW_NS);
    w->computing = true;
}

/* Who has work, for a bound that waits for the slowest of them, and for the rate. */
static void tell_roster(struct emulation *e)
{
    uint64_t members[MAX_WORKERS];
    uint32_t n = 0;
    for (uint32_t k = 0; k < e->num_workers; k++)
        if (e->workers[k].has_work) members[n++] = e->workers[k].number;
    enum consistency_mode mode = e->job.config.consistency.mode;
    if (mode == CONSISTENCY_SSP) shard_roster(e->shard, e->now, ++e->roster, members, n);
    if (mode == CONSISTENCY_BSP) return;
    shard_workers(e->shard, n ? n : 1);
    double momentum = pace_follow(&e->pace, n).momentum;
    for (uint32_t k = 0; k < e->num_workers; k++) velocity_set_momentum(&e->workers[k].velocity, momentum);
}

/* The window is computed: its gradient goes out. A worker of bsp without data pushes zeros. */
static int compute(struct worker *w)
{
    struct emulation *e = w->e;
    const struct config *c = &e->job.config;
    size_t P = e->job.facts.model.params;
    struct net_result r = {0};
    double squares = 0;
    int rc = give_data(e, w);
    if (rc < 0) return rc;
    bool has_data = streams_cut(w->streams, &e->window);
    w->computing = false;
    if (has_data) {
        const struct minibatch *m = &e->window;
        net_forward(w->net, w->weights.values, m->x, m->reset, m->target, &r);
        if (r.frames) squares = net_backward(w->net, w->weights.values, m->x, m->reset, w->grad);
        for (struct utterance *u; streams_take_finished(w->streams, &u);) utterance_free(&u);
        e->windows++;
        e->loss += r.loss;
        e->loss_frames += r.frames;
        if (r.frames && !isfinite(clip_norm(w->grad, P, squares, c->train.norm_clip))) e->diverged = true;
        if (r.frames) velocity_apply(&w->velocity, w->grad);
    } else if (w->has_work) {
        w->has_work = false;
        tell_roster(e);
    }
    if (!r.frames && c->consistency.mode != CONSISTENCY_BSP) {
        if (has_data) schedule(w);
        return 0;
    }
    if (!r.frames) memset(w->grad, 0, P * sizeof(float));
    exchange_push(w->exchange, e->now, w->grad, r.frames, &w->weights, &w->weights, true);
    return 0;
}

static bool is_warm(const struct emulation *e)
{
    return (double)e->frames >= e->job.config.train.warm_start_frames;
}

/* Idle workers begin their next window with the weights that they have. */
static void begin_windows(struct emulation *e)
{
    bool bsp = e->job.config.consistency.mode == CONSISTENCY_BSP, any = false;
    for (uint32_t k = 0; k < e->num_workers; k++) any |= e->workers[k].has_work;
    for (uint32_t k = 0; k < e->num_workers; k++) {
        struct worker *w = &e->workers[k];
        if (w->computing || !exchange_idle(w->exchange)) continue;
        if (k > 0 && !is_warm(e)) continue;
        if (w->has_work || (bsp && any)) schedule(w);
    }
}

static struct worker *next_due(struct emulation *e)
{
    struct worker *next = NULL;
    for (uint32_t k = 0; k < e->num_workers; k++) {
        struct worker *w = &e->workers[k];
        if (w->computing && (!next || w->due < next->due)) next = w;
    }
    return next;
}

static int train(struct emulation *e)
{
    int rc = 0;
    for (struct worker *w; rc == 0 && !e->diverged && (begin_windows(e), w = next_due(e)) != NULL;) {
        e->now = w->due;
        rc = compute(w);
        deliver(e);
        e->frames = shard_frames(e->shard);
    }
    return rc;
}

/* ------------------------------------------------------------------ life */

static void make_worker(struct emulation *e, uint32_t k)
{
    const struct config *c = &e->job.config;
    struct worker *w = &e->workers[k];
    struct exchange_options xo = {.job = e->job.facts.job,
                                  .model_hash = e->job.facts.model_hash,
                                  .blocks = e->job.blocks,
                                  .shards = 1,
                                  .credit = 4,
                                  .deadline_ns = 3600 * NS_PER_S,
                                  .consistency = c->consistency.mode,
                                  .optimizer = config_server_optimizer(c),
                                  .gradients = c->exchange.gradients,
                                  .weights = c->exchange.weights,
                                  .tickets = c->consistency.backup > 0};
    double rows = (double)c->train.window * c->train.streams;
    struct net_options no = {.window = c->train.window,
                             .streams = c->train.streams,
                             .scale = c->train.gradient == GRADIENT_MEAN ? (float)(1 / rows) : 1,
                             .gate_delta_clip = (float)c->train.gate_clip,
                             .trains = true};
    w->e = e;
    w->number = k + 1;
    w->inbox = xcalloc(1, sizeof *w->inbox);
    w->exchange = exchange_new(&xo, &(struct exchange_io){w, send_to_shard});
    w->net = net_new(&e->job.facts.model, &no);
    w->streams = streams_new(c->train.window, c->train.streams, e->job.facts.model.spec.input);
    w->grad = xaligned(e->job.facts.model.params * sizeof(float));
    velocity_init(&w->velocity, c, e->job.facts.model.params);
    w->pace = exp(e->jitter * (double)rng_range(&e->rng, -1, 1));
    w->has_work = true;
    weights_init(&w->weights, &e->job.blocks);
    exchange_set_member(w->exchange, w->number, 1);
    exchange_connected(w->exchange, e->now, 0);
    deliver(e);
    exchange_read(w->exchange, e->now, 0, &w->weights);
    deliver(e);
    ASSERT(exchange_idle(w->exchange));
}

static void make_shard(struct emulation *e, struct shard_state **state)
{
    const struct config *c = &e->job.config;
    struct shard_options o = {.shards = 1,
                              .job = e->job.facts.job,
                              .model_hash = e->job.facts.model_hash,
                              .job_generation = 1,
                              .generation = 1,
                              .mode = c->consistency.mode,
                              .bound = (uint32_t)c->consistency.bound,
                              .backup = (uint32_t)c->consistency.backup,
                              .max_staleness = (uint32_t)c->consistency.max_staleness,
                              .mean = c->train.gradient == GRADIENT_MEAN,
                              .gradients = c->exchange.gradients,
                              .weights = c->exchange.weights,
                              .max_members = MAX_WORKERS,
                              .credit = 4};
    update_rule_from(c, &o.rule);
    pace_rule_from(c, e->job.facts.train.frames, &o.pace);
    e->pace = o.pace;
    e->shard = shard_new(&o, &(struct shard_io){.ctx = e, .send = send_to_worker}, state);
}

static int make(struct emulation *e)
{
    const struct config *c = &e->job.config;
    struct shard_state *state;
    struct manifest m;
    int rc = snapshot_read_manifest(e->job.run, 0, &m);
    if (rc < 0) return rc;
    rc = snapshot_read_blocks(e->job.run, &m, &e->job.facts, 0, e->job.blocks.count, &state);
    manifest_fini(&m);
    if (rc < 0) return rc;
    rng_init(&e->rng, rng_derive((uint64_t)c->train.seed, 77, e->num_workers));
    e->to_shard = xcalloc(1, sizeof *e->to_shard);
    e->order = xcalloc(e->job.facts.train.utterances, sizeof *e->order);
    e->total = (uint64_t)e->job.facts.train.utterances * (uint64_t)c->train.epochs;
    minibatch_init(&e->window, c->train.window, c->train.streams, e->job.facts.model.spec.input);
    make_shard(e, &state);
    for (uint32_t k = 0; k < e->num_workers; k++) make_worker(e, k);
    uint64_t all[MAX_WORKERS];
    for (uint32_t k = 0; k < e->num_workers; k++) all[k] = k + 1;
    if (c->consistency.mode == CONSISTENCY_BSP)
        shard_roster(e->shard, e->now, ++e->roster, all, e->num_workers);
    tell_roster(e);
    return 0;
}

static void unmake(struct emulation *e)
{
    for (uint32_t k = 0; k < e->num_workers && e->workers[k].e; k++) {
        struct worker *w = &e->workers[k];
        exchange_free(&w->exchange);
        streams_free(&w->streams);
        net_free(&w->net);
        weights_fini(&w->weights);
        velocity_fini(&w->velocity);
        free(w->grad);
        free(w->inbox);
    }
    if (e->shard) shard_free(&e->shard);
    minibatch_fini(&e->window);
    free(e->to_shard);
    free(e->order);
    job_fini(&e->job);
    free(e);
}

/* ------------------------------------------------------------------ telling */

static void tell(struct emulation *e)
{
    const struct config *c = &e->job.config;
    struct evaluation dev = {0};
    if (e->job.dev && !e->diverged) {
        struct evaluate_options o = {c->train.window, c->train.streams, e->job.facts.silence,
                                     e->job.facts.num_silence};
        struct evaluate *ev = evaluate_new(&e->job.facts.model, e->job.dev, &o);
        evaluate_range(ev, shard_look(e->shard)->weights, 0, e->job.facts.dev.utterances, &dev);
        evaluate_free(&ev);
    }
    struct staleness_summary s;
    staleness_summarise(shard_staleness(e->shard), 0, &s);
    const struct shard_counts *n = shard_counts(e->shard);
    double frames = dev.frames ? (double)dev.frames : 1;
    double speech = dev.speech_frames ? (double)dev.speech_frames : 1;
    printf("{\"workers\":%u,\"seed\":%d,\"diverged\":%s,\"dev_accuracy\":%.3f,\"dev_accuracy_speech\":%.3f,"
           "\"dev_loss\":%.4f,\"windows\":%" PRIu64 ",\"updates\":%" PRIu64
           ",\"staleness_mean\":%.2f,\"staleness_p95\":%u,\"staleness_max\":%u,\"waits\":%" PRIu64
           ",\"virtual_s\":%.1f}\n",
           e->num_workers, c->train.seed, e->diverged ? "true" : "false", 100 * (double)dev.correct / frames,
           100 * (double)dev.speech_correct / speech, dev.loss / frames, e->windows, shard_version(e->shard),
           s.mean, s.p95, s.max, n->waits, (double)e->now / NS_PER_S);
}

static int usage(void)
{
    fprintf(stderr, "usage: chorale-emulate RUN --workers N [--jitter 0.2] [--set KEY=VALUE]...\n");
    return err_exit_code(ERR_USAGE);
}

static int parse(struct emulation *e, int argc, char **argv)
{
    int rc = argc > 1 ? job_load(argv[1], &e->job) : ERR_USAGE;
    for (int i = 2; rc == 0 && i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--workers") == 0)
            e->num_workers = (uint32_t)atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--jitter") == 0)
            e->jitter = atof(argv[i + 1]);
        else if (strcmp(argv[i], "--set") == 0)
            rc = config_apply_set(&e->job.config, argv[i + 1]);
        else
            rc = err_set(ERR_USAGE, "cannot use '%.80s'", argv[i]);
    }
    if (rc == 0 && (e->num_workers < 1 || e->num_workers > MAX_WORKERS))
        rc = err_set(ERR_USAGE, "--workers wants 1 to %d", MAX_WORKERS);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc % 2) return usage();
    struct emulation *e = xcalloc(1, sizeof *e);
    e->jitter = 0.2;
    blas_use_one_thread();
    int rc = parse(e, argc, argv);
    if (rc == 0) rc = make(e);
    if (rc == 0) rc = train(e);
    if (rc == 0) tell(e);
    unmake(e);
    return rc < 0 ? err_report("chorale-emulate", rc) : 0;
}
