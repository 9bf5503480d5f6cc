/* chorale-serial RUN --out FILE.safetensors [--streams-as-workers K]: what a job must compute, in one process
 * and without a network: the same streams, maths, clip and update, block by block, over all epochs as one
 * worker would get them. K > 1: one worker of K*S streams, which bsp with K workers of S streams must equal
 * but for rounding. Reads RUN/job.yaml, RUN/model.safetensors and checkpoint set 0. */
#include "common/err.h"
#include "common/log.h"
#include "common/snapshot.h"
#include "server/pace.h"
#include "server/update.h"
#include "worker/feed.h"
#include "worker/job.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/clip.h"
#include "worker/nnet/net.h"
#include "worker/velocity.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A copy of the servers' weights, and the version of the blocks then. */
struct pulled {
    float *weights; /* (P) */
    uint64_t version;
};

struct serial {
    struct job job;
    bool bsp;
    int S, overlap, push_every, pull_every;
    struct update_rule rule;
    struct velocity velocity;
    struct pace pace;
    struct shard_state *server; /* all blocks */
    struct pulled seen;         /* what the worker computes with */
    struct pulled next;         /* overlap 1: what it will see a step later */
    float *grad;                /* (P): what is pushed */
    float *one;                 /* (P) of one window, where push_every > 1 adds them up; else NULL */
    double squares;             /* of grad, where that is one window */
    struct net *net;
    struct prefetch *prefetch;
    struct streams *streams;
    struct feed *feed;
    struct minibatch window;
    uint64_t windows, frames, pending_frames, pushes;
    int pending;
    uint32_t epoch, chunk; /* the next lease */
    uint64_t leases;
    double loss; /* of the epoch whose leases end now */
    uint64_t loss_frames, correct, nonfinite;
};

/* --- leases, as the coordinator grants them to one worker */

static bool next_lease(struct serial *s, struct msg_lease *out)
{
    const struct config *c = &s->job.config;
    uint32_t n = s->job.facts.train.utterances, size = (uint32_t)c->train.chunk_utterances;
    if (s->epoch == (uint32_t)c->train.epochs) return false;
    *out = (struct msg_lease){.kind = LEASE_TRAIN, .id = ++s->leases, .epoch = s->epoch};
    out->begin = s->bsp ? 0 : s->chunk * size;
    out->end = s->bsp || n - out->begin < size ? n : out->begin + size;
    out->modulus = out->residues = s->bsp ? (uint32_t)s->S : 1;
    s->chunk++;
    if (out->end == n) {
        s->epoch++;
        s->chunk = 0;
    }
    return true;
}

/* Fills the streams; false at the end of all epochs. */
static bool fill(struct serial *s)
{
    struct msg_lease l;
    for (;;) {
        bool more = s->epoch < (uint32_t)s->job.config.train.epochs;
        enum feed_state state = feed_fill(s->feed, more, true);
        if (state != FEED_NEEDS_LEASE) return state == FEED_READY;
        ASSERT(next_lease(s, &l) && feed_add(s->feed, &l) == 0);
    }
}

static void take_used(struct serial *s)
{
    struct msg_used used;
    feed_pushed(s->feed, s->pushes);
    while (feed_take_used(s->feed, s->pushes, &used)) {
        s->loss += used.loss;
        s->loss_frames += used.frames;
        s->correct += used.correct;
    }
}

/* --- one push: what the servers do to each block */

static float *slot_at(const struct shard_state *v, enum shard_slot k, size_t at)
{
    return v->slot[k] ? v->slot[k] + at : NULL;
}

static void apply_block(struct serial *s, uint32_t b, uint64_t frames)
{
    struct shard_state *v = s->server;
    size_t at = blocks_offset(&v->blocks, b), n = blocks_floats(&v->blocks, b);
    struct update_step step = {.number = v->version[b] + 1};
    struct update_block block = {.g = s->grad + at,
                                 .weights = v->weights + at,
                                 .momentum = slot_at(v, SLOT_MOMENTUM, at),
                                 .square = slot_at(v, SLOT_SQUARE, at),
                                 .backup = s->rule.compensation > 0 ? s->seen.weights + at : NULL,
                                 .n = n};
    pace_step(&s->pace, v->frames[b], v->version[b] - s->seen.version, &step.rate, &step.momentum);
    update_apply(&s->rule, &step, &block);
    v->version[b]++;
    v->frames[b] += frames;
}

static void pull(const struct serial *s, struct pulled *to)
{
    memcpy(to->weights, s->server->weights, s->job.facts.model.params * sizeof(float));
    to->version = s->server->version[0];
}

static void push(struct serial *s)
{
    size_t P = s->job.facts.model.params;
    uint64_t frames = s->pending_frames;
    s->pending = 0;
    s->pending_frames = 0;
    if (frames == 0) return;
    double squares = s->one ? clip_squares(s->grad, P) : s->squares;
    if (!isfinite(clip_norm(s->grad, P, squares, s->job.config.train.norm_clip))) {
        s->nonfinite++;
        net_clear_state(s->net);
        pull(s, &s->seen);
        pull(s, &s->next);
        return;
    }
    velocity_apply(&s->velocity, s->grad);
    for (uint32_t b = 0; b < s->server->blocks.count; b++) apply_block(s, b, frames);
    s->pushes++;
    if (s->overlap) {
        memcpy(s->seen.weights, s->next.weights, P * sizeof(float));
        s->seen.version = s->next.version;
    }
    if (s->pushes % (uint64_t)s->pull_every == 0) pull(s, s->overlap ? &s->next : &s->seen);
}

static void window(struct serial *s)
{
    size_t P = s->job.facts.model.params;
    const struct minibatch *w = &s->window;
    struct net_result r;
    feed_cut(s->feed, &s->window);
    net_forward(s->net, s->seen.weights, w->x, w->reset, w->target, &r);
    if (s->pending == 0) memset(s->grad, 0, P * sizeof(float));
    if (r.frames)
        s->squares = net_backward(s->net, s->seen.weights, w->x, w->reset, s->one ? s->one : s->grad);
    if (r.frames && s->one)
        for (size_t i = 0; i < P; i++) s->grad[i] += s->one[i];
    feed_account(s->feed, r.loss, r.frames, r.correct);
    s->windows++;
    s->frames += r.frames;
    s->pending_frames += r.frames;
    if (++s->pending == s->push_every) push(s);
}

/* --- start and end */

static void make(struct serial *s, int workers)
{
    const struct config *c = &s->job.config;
    size_t P = s->job.facts.model.params;
    s->S = workers * c->train.streams * c->train.threads;
    s->bsp = workers > 1 || c->consistency.mode == CONSISTENCY_BSP;
    s->overlap = workers > 1 ? 0 : c->consistency.overlap;
    s->push_every = c->consistency.push_every;
    s->pull_every = c->consistency.pull_every;
    double rows = (double)c->train.window * s->S;
    struct pace_rule pace;
    velocity_init(&s->velocity, c, P);
    update_rule_from(c, &s->rule);
    pace_rule_from(c, s->job.facts.train.frames, &pace);
    pace_init(&s->pace, &pace);
    shard_state_set_optimizer(s->server, s->rule.type, update_slots(&s->rule));
    struct net_options o = {.window = c->train.window,
                            .streams = s->S,
                            .scale = c->train.gradient == GRADIENT_MEAN ? (float)(1 / rows) : 1,
                            .gate_delta_clip = (float)c->train.gate_clip,
                            .trains = true};
    struct feed_options f = {.seed = (uint64_t)c->train.seed,
                             .streams = s->S,
                             .bsp = s->bsp,
                             .utterances = s->job.facts.train.utterances};
    uint32_t dim = s->job.facts.model.spec.input;
    s->net = net_new(&s->job.facts.model, &o);
    s->prefetch = prefetch_new(s->job.train->corpus, &s->job.train->frontend, feed_capacity(&f));
    s->streams = streams_new(c->train.window, s->S, dim);
    s->feed = feed_new(&f, s->prefetch, s->streams);
    minibatch_init(&s->window, c->train.window, s->S, dim);
    float **vectors[] = {&s->seen.weights, &s->next.weights, &s->grad, &s->one};
    for (int i = 0; i < (s->push_every > 1 ? 4 : 3); i++) *vectors[i] = xaligned(P * sizeof(float));
    pull(s, &s->seen);
    pull(s, &s->next);
}

static void unmake(struct serial *s)
{
    minibatch_fini(&s->window);
    feed_free(&s->feed);
    streams_free(&s->streams);
    prefetch_free(&s->prefetch);
    velocity_fini(&s->velocity);
    net_free(&s->net);
    free(s->seen.weights);
    free(s->next.weights);
    free(s->grad);
    free(s->one);
    shard_state_free(&s->server);
    job_fini(&s->job);
}

static void train(struct serial *s)
{
    uint32_t told = 0;
    while (fill(s)) {
        window(s);
        if (s->pending == 0) take_used(s);
        if (s->epoch == told || s->loss_frames == 0) continue;
        told = s->epoch;
        fprintf(stderr, "chorale-serial: epoch %u leased, %" PRIu64 " windows, loss %.4f, accuracy %.2f %%\n",
                told, s->windows, s->loss / (double)s->loss_frames,
                100.0 * (double)s->correct / (double)s->loss_frames);
        s->loss = 0;
        s->loss_frames = s->correct = 0;
    }
    push(s);
}

static int load(struct serial *s, const char *run)
{
    struct manifest m;
    int rc = job_load(run, &s->job);
    if (rc < 0) return rc;
    if (s->job.config.optimizer.schedule.type == SCHEDULE_NEWBOB)
        return err_set(ERR_USAGE, "chorale-serial has no dev results, so no newbob schedule");
    rc = snapshot_read_manifest(run, 0, &m);
    if (rc < 0) return rc;
    rc = snapshot_read_blocks(run, &m, &s->job.facts, 0, s->job.blocks.count, &s->server);
    manifest_fini(&m);
    return rc;
}

static int run_serial(const char *run, const char *out, int workers)
{
    struct serial s = {0};
    int rc = load(&s, run);
    if (rc == 0) {
        make(&s, workers);
        train(&s);
        rc = snapshot_save_model(out, &s.job.facts, s.server->weights);
        printf("windows %" PRIu64 ", pushes %" PRIu64 ", frames %" PRIu64 ", nonfinite %" PRIu64 "\n",
               s.windows, s.pushes, s.frames, s.nonfinite);
    }
    unmake(&s);
    return rc;
}

int main(int argc, char **argv)
{
    const char *run = NULL, *out = NULL;
    int workers = 1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--out") == 0 && i + 1 < argc)
            out = argv[++i];
        else if (strcmp(argv[i], "--streams-as-workers") == 0 && i + 1 < argc)
            workers = atoi(argv[++i]);
        else
            run = argv[i];
    }
    if (!run || !out || workers < 1 || workers > 64) {
        fprintf(stderr, "usage: chorale-serial RUN --out FILE.safetensors [--streams-as-workers K]\n");
        return err_exit_code(ERR_USAGE);
    }
    blas_use_one_thread();
    log_open("serial", 0, run, NULL);
    int rc = run_serial(run, out, workers);
    return rc < 0 ? err_report("chorale-serial", rc) : 0;
}
