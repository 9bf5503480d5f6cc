#include "worker/train.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/log.h"
#include "worker/nnet/clip.h"
#include "worker/train_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TICK_MS    100
#define AWAY_NS    (60 * NS_PER_S)
#define STOP_NS    (10 * NS_PER_S)   /* TERM: the exchange under way may take this long */
#define BLOCKED_NS (200 * NS_PER_MS) /* an exchange that takes longer probably waits for another worker */
#define EMPTY_MS   50                /* between steps to which nobody had anything to add */
#define PUMP_NS    (200 * 1000) /* overlap: between two turns of the sockets while a window is computed */

/* --- waiting */

int train_pump(struct train *t, int timeout_ms)
{
    int rc = links_pump(t->links, timeout_ms);
    if (rc < 0) return rc;
    switch (member_command(t->links->member)) {
    case COMMAND_FINISH:
        return TRAIN_OVER;
    case COMMAND_INTERRUPT:
        return err_set(ERR_INTERRUPTED, "the job was interrupted: start it again to resume");
    case COMMAND_DIVERGED:
        return err_set(ERR_DIVERGED, "the job diverged: lower optimizer.rate or train.norm_clip");
    default:
        return 0;
    }
}

int train_idle(struct train *t, int timeout_ms)
{
    if (links_silence(t->links) > AWAY_NS)
        return err_set(ERR_REACH,
                       "the coordinator of %s has not been heard for a minute: start the job again",
                       t->job->run);
    return train_pump(t, timeout_ms);
}

int train_drain(struct train *t)
{
    const struct exchange *x = t->links->exchange;
    uint64_t start = clock_now_ns();
    while (!exchange_idle(x) || !exchange_drained(x)) {
        uint64_t waited = clock_now_ns() - start;
        if (*t->stop && waited > STOP_NS)
            return err_set(ERR_INTERRUPTED, "stopped while an exchange was under way");
        if (waited > BLOCKED_NS) train_offer(t);
        int rc = waited > AWAY_NS ? train_idle(t, TICK_MS) : train_pump(t, TICK_MS);
        if (rc != 0) return rc;
    }
    if (t->landing >= 0) {
        t->latest = t->landing;
        t->same_weights = false;
    }
    t->landing = -1;
    return 0;
}

static void use_latest(struct train *t)
{
    if (t->base != t->latest) t->same_weights = false;
    t->base = t->latest;
}

int train_settle(struct train *t)
{
    int rc = train_drain(t);
    if (rc == 0) use_latest(t);
    return rc;
}

int train_read(struct train *t)
{
    int rc = train_settle(t);
    if (rc != 0) return rc;
    exchange_read(t->links->exchange, clock_now_ns(), 0, &t->weights[t->base]);
    t->same_weights = false;
    return train_drain(t);
}

/* --- one exchange: what has been added up in grad[g] */

/* The gradient, clipped, with the momentum that is kept here; false: nothing to push. Where all
 * step together everyone must push: zeros then, which add nothing. */
static bool prepare(struct train *t, float *grad, uint64_t *frames)
{
    size_t P = t->job->facts.model.params;
    if (*frames > 0) {
        double squares = t->push_every > 1 ? clip_squares(grad, P) : t->squares;
        double norm = clip_norm(grad, P, squares, t->job->config.train.norm_clip);
        if (isfinite(norm)) {
            double momentum = member_momentum(t->links->member);
            if (velocity_set_momentum(&t->velocity, momentum))
                log_event(LOG_INFO, "momentum_follows", "\"momentum\":%.6g", momentum);
            velocity_apply(&t->velocity, grad);
            return true;
        }
        t->nonfinite++;
        log_event(LOG_WARN, "nonfinite", "\"window\":%" PRIu64 ",\"count\":%" PRIu64, t->windows,
                  t->nonfinite);
        team_clear_state(t->team);
    }
    *frames = 0;
    if (t->together) memset(grad, 0, P * sizeof *grad);
    return t->together;
}

/* 6: the gradient cut by shard ranges; 7: one exchange per shard. 8, 9 and 10 happen on the servers: admit,
 * update, staleness record. */
static int exchange_gradient(struct train *t, float *grad, uint64_t frames)
{
    int rc = train_drain(t); /* overlap 1: the exchange before this one */
    if (rc != 0) return rc;
    bool pull = ++t->pushes % (uint64_t)t->pull_every == 0;
    int into = t->overlap ? 1 - t->latest : t->latest;
    exchange_push(t->links->exchange, clock_now_ns(), grad, frames, &t->weights[t->base], &t->weights[into],
                  pull);
    t->landing = pull ? into : -1;
    use_latest(t);
    if (!t->overlap) return train_settle(t); /* 11: the reply lands where the next forward pass reads it */
    t->g = 1 - t->g;                         /* 11, one step later: train_drain moves `latest` on */
    return links_pump(t->links, 0);
}

static int push(struct train *t)
{
    uint64_t frames = t->pending_frames, nonfinite = t->nonfinite;
    float *grad = t->grad[t->g];
    t->pending = 0;
    t->pending_frames = 0;
    if (prepare(t, grad, &frames)) {
        int rc = exchange_gradient(t, grad, frames);
        if (rc != 0) return rc;
    }
    return t->nonfinite != nonfinite ? train_read(t) : 0;
}

/* --- one window */

/* Between two frames (overlap): answers are taken and the next blocks go out, so that an exchange of many
 * blocks, of which a few are in flight, goes on while we compute. No lock: the exchange lands in another
 * weights vector than the one that is read, and sends another gradient than the one that is written. An idle
 * turn costs 2 us (three connections), so at most one part in a hundred of the window. */
static void between(void *ctx)
{
    struct train *t = ctx;
    if (t->pump_rc < 0 || exchange_idle(t->links->exchange)) return;
    if (clock_now_ns() - t->pumped < PUMP_NS) return;
    t->pump_rc = links_pump(t->links, 0);
    t->pumped = clock_now_ns();
}

static void add_up(struct train *t, float *grad)
{
    float *sum = t->grad[t->g];
    size_t P = t->job->facts.model.params;
    if (grad == sum) return;
    if (t->pending == 0) memset(sum, 0, P * sizeof *sum);
    for (size_t i = 0; i < P; i++) sum[i] += grad[i];
}

static int window(struct train *t)
{
    const struct minibatch *w = &t->window;
    float *grad = t->one ? t->one : t->grad[t->g];
    struct net_result r;
    /* 1, 2: the prefetch thread joined, normalised and delayed what feed_fill gave to the streams */
    feed_cut(t->feed, &t->window); /* 3: N*S streams cut to T frames */
    /* 4, 5: forward, cross entropy, backward through T frames; overlap: the last exchange goes on */
    struct team_window all = {w->x, w->reset, w->target, t->same_weights};
    t->squares = team_compute(t->team, t->weights[t->base].values, &all, grad, &r);
    t->same_weights = true;
    if (t->pump_rc < 0) return t->pump_rc;
    if (r.frames) {
        add_up(t, grad);
    } else if (t->one && t->pending == 0) {
        memset(t->grad[t->g], 0, t->job->facts.model.params * sizeof(float));
    }
    feed_account(t->feed, r.loss, r.frames, r.correct);
    t->windows++;
    t->frames += r.frames;
    t->pending_frames += r.frames;
    return ++t->pending >= t->push_every ? push(t) : 0; /* 6 to 11 */
}

/* No data: what is pending goes out; where all step together the others' steps still need ours. */
static int empty(struct train *t)
{
    uint64_t version = t->weights[t->base].version[0];
    if (t->pending == 0 && !t->together) return train_idle(t, TICK_MS);
    int rc = push(t);
    if (rc == 0 && t->weights[t->base].version[0] == version) rc = train_idle(t, EMPTY_MS);
    return rc;
}

static int step(struct train *t)
{
    switch (feed_fill(t->feed, train_more(t), true)) {
    case FEED_READY:
        return window(t);
    case FEED_EMPTY:
        return empty(t);
    default:
        break; /* a stream waits for a lease */
    }
    if (t->pending && member_hold(t->links->member)) return push(t);
    train_offer(t);
    return train_idle(t, TICK_MS);
}

static void tell_leave(const struct train *t)
{
    const struct exchange_counts *c = exchange_counts(t->links->exchange);
    struct feed_rows rows = feed_rows(t->feed);
    double all = rows.all ? (double)rows.all : 1;
    log_event(LOG_INFO, "leave",
              "\"windows\":%" PRIu64 ",\"frames\":%" PRIu64 ",\"rows\":%" PRIu64
              ",\"padded\":%.4f,\"unlabelled\":%.4f,\"nonfinite\":%" PRIu64 ",\"exchanges\":%" PRIu64
              ",\"applied\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"torn\":%" PRIu64
              ",\"resent\":%" PRIu64 ",\"corrupt\":%" PRIu64 ",\"unexpected\":%" PRIu64
              ",\"staleness_max\":%" PRIu64 ",\"waits\":%" PRIu64 ",\"wait_s\":%.3f,\"left_out\":%" PRIu64
              ",\"bytes_out\":%" PRIu64 ",\"bytes_in\":%" PRIu64,
              t->windows, t->frames, rows.all, (double)rows.padded / all, (double)rows.unlabelled / all,
              t->nonfinite, c->exchanges, c->applied, c->refused, c->lost, c->torn, c->resent, c->corrupt,
              c->unexpected, c->staleness_max, c->waits, (double)c->wait_ns / NS_PER_S, c->left_out,
              c->bytes_out, c->bytes_in);
}

int train_run(struct train *t)
{
    int rc = train_begin(t);
    while (rc == 0) {
        rc = *t->stop ? train_farewell(t) : train_turn(t);
        if (rc == 0) rc = step(t);
    }
    tell_leave(t);
    if (rc != ERR_AGAIN) member_leave(t->links->member);
    return rc == TRAIN_OVER ? 0 : rc;
}

/* --- life */

static void make_data(struct train *t)
{
    const struct config *c = &t->job->config;
    const struct job_data *d = t->job->train;
    struct feed_options o = {.seed = (uint64_t)c->train.seed,
                             .streams = t->num_streams,
                             .bsp = c->consistency.mode == CONSISTENCY_BSP,
                             .utterances = (uint32_t)corpus_count(d->corpus)};
    uint32_t dim = t->job->facts.model.spec.input;
    t->prefetch = prefetch_new(d->corpus, &d->frontend, feed_capacity(&o));
    t->streams = streams_new(c->train.window, t->num_streams, dim);
    t->feed = feed_new(&o, t->prefetch, t->streams);
    minibatch_init(&t->window, c->train.window, t->num_streams, dim);
}

static void make_maths(struct train *t)
{
    const struct config *c = &t->job->config;
    size_t P = t->job->facts.model.params;
    double rows = (double)c->train.window * t->num_streams;
    struct team_options o = {.threads = c->train.threads,
                             .net = {.window = c->train.window,
                                     .streams = c->train.streams,
                                     .scale = c->train.gradient == GRADIENT_MEAN ? (float)(1 / rows) : 1,
                                     .gate_delta_clip = (float)c->train.gate_clip,
                                     .trains = true,
                                     .between = t->overlap ? between : NULL,
                                     .between_ctx = t}};
    t->team = team_new(&t->job->facts.model, &o);
    for (int i = 0; i <= t->overlap; i++) {
        weights_init(&t->weights[i], &t->job->blocks);
        t->grad[i] = xaligned(P * sizeof(float));
    }
    if (t->push_every > 1) t->one = xaligned(P * sizeof(float));
    velocity_init(&t->velocity, c, P);
}

struct train *train_new(const struct job *j, struct links *l, const volatile sig_atomic_t *stop)
{
    const struct config *c = &j->config;
    struct train *t = xcalloc(1, sizeof *t);
    t->job = j;
    t->links = l;
    t->stop = stop;
    t->together = c->consistency.mode == CONSISTENCY_BSP && c->cluster.workers > 1;
    t->backup = t->together && c->consistency.backup > 0;
    t->overlap = t->together ? 0 : c->consistency.overlap; /* a step that waits for all hides nothing */
    t->push_every = c->consistency.push_every;
    t->pull_every = c->consistency.pull_every;
    t->num_streams = c->train.threads * c->train.streams;
    t->landing = -1;
    t->given_seq = UINT64_MAX;
    make_data(t);
    make_maths(t);
    return t;
}

void train_free(struct train **t_in)
{
    struct train *t = *t_in;
    if (!t) return;
    evaluate_free(&t->evaluate);
    weights_fini(&t->eval_weights);
    team_free(&t->team);
    pin_free(&t->pin);
    for (int i = 0; i <= t->overlap; i++) {
        weights_fini(&t->weights[i]);
        free(t->grad[i]);
    }
    free(t->one);
    velocity_fini(&t->velocity);
    minibatch_fini(&t->window);
    feed_free(&t->feed);
    streams_free(&t->streams);
    prefetch_free(&t->prefetch);
    capsule_fini(&t->saved);
    free(t);
    *t_in = NULL;
}
