#include "tests/bench/compute/worker.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/rng.h"
#include "common/wire.h"
#include "tests/bench/compute/anchors.h"
#include "tests/bench/compute/local.h"
#include "worker/nnet/clip.h"
#include "worker/nnet/net.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#define MAX_NORM 1e9  /* never above it */
#define BUSY     0.97 /* below it something else was running: once more, */
#define AGAIN    100  /* but no more than so often in all */

/* What is needed of one model. Nets are made at their first task. */
struct seat {
    struct model model;
    struct local *local;
    struct transposed *transposed;
    float *grad, *x; /* (P), (T*S, 40); S = MODELS_STREAMS here and below */
    uint8_t *reset;  /* (T*S) */
    int32_t *target; /* (T*S) */
    struct net *trains[STREAMS], *forward[STREAMS], *score;
    float sum; /* of what was read, so that nothing is left out */
};

struct bench {
    struct seat *seats[MODELS];
    struct gemm *gemm;
};

static double turn(struct seat *s)
{
    transposed_load(s->transposed, local_params(s->local), 0, 1);
    return 1;
}

static struct seat *seat_new(enum bench_model which)
{
    struct seat *s = xcalloc(1, sizeof *s);
    size_t rows = (size_t)MODELS_FRAMES * MODELS_STREAMS;
    struct rng r;
    models_build(which, &s->model);
    s->local = local_new(&s->model);
    s->transposed = transposed_new(&s->model, plan_make(PLAN_BEST).panels);
    turn(s);
    s->grad = xaligned(s->model.params * sizeof *s->grad);
    s->x = xaligned(rows * MODELS_INPUT * sizeof *s->x);
    s->reset = xcalloc(rows, sizeof *s->reset);
    s->target = xcalloc(rows, sizeof *s->target);
    rng_init(&r, 1);
    for (size_t i = 0; i < rows * MODELS_INPUT; i++) s->x[i] = (float)rng_normal(&r);
    for (size_t i = 0; i < rows; i++) s->target[i] = (int32_t)rng_below(&r, s->model.spec.targets);
    return s;
}

static struct seat *seat_of(struct bench *b, enum bench_model which)
{
    if (!b->seats[which]) b->seats[which] = seat_new(which);
    return b->seats[which];
}

static struct net *net_of(struct seat *s, struct net **net, int window, int streams, bool trains)
{
    struct net_options o = {
        .window = window, .streams = streams, .trains = trains, .transposed = s->transposed};
    if (!*net) *net = net_new(&s->model, &o);
    return *net;
}

/* --- each kind of work, once; returns what it was worth: frames, times, flop, bytes */

static double forward(struct seat *s, struct net *net, int frames)
{
    struct net_result r;
    net_forward(net, local_params(s->local), s->x, s->reset, s->target, &r);
    return frames;
}

static double push(struct seat *s)
{
    local_push(s->local, s->grad, 1);
    return 1;
}

static double train(struct seat *s, enum bench_streams which, bool is_whole)
{
    int streams = models_streams(which), frames = MODELS_FRAMES * streams;
    struct net *net = net_of(s, &s->trains[which], MODELS_FRAMES, streams, true);
    const float *params = local_params(s->local);
    forward(s, net, frames);
    double squares = net_backward(net, params, s->x, s->reset, s->grad);
    if (!is_whole) return frames;
    ASSERT(isfinite(clip_norm(s->grad, s->model.params, squares, MAX_NORM)));
    push(s);
    turn(s);
    return frames;
}

/* The very vector that scoring reads: the same pages in the same cache. */
static double read_params(struct seat *s)
{
    s->sum += read_once(local_params(s->local), s->model.params);
    return (double)(s->model.params * sizeof(float));
}

static double do_once(struct bench *b, struct task t)
{
    if (t.work == WORK_GEMM && !b->gemm) b->gemm = gemm_new();
    if (t.work == WORK_GEMM) return gemm_once(b->gemm);
    struct seat *s = seat_of(b, t.model);
    int streams = models_streams(t.streams);
    switch (t.work) {
    case WORK_FORWARD:
        return forward(s, net_of(s, &s->forward[t.streams], MODELS_FRAMES, streams, false),
                       MODELS_FRAMES * streams);
    case WORK_PUSH:
        return push(s);
    case WORK_TURN:
        return turn(s);
    case WORK_SCORE:
        return forward(s, net_of(s, &s->score, 1, 1, false), 1);
    case WORK_READ:
        return read_params(s);
    default:
        return train(s, t.streams, t.work == WORK_STEP);
    }
}

/* --- the process */

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct report run(struct bench *b, struct task t, double seconds)
{
    struct report r = {.begin_ns = clock_now_ns()};
    double sum = 0, cpu = cpu_seconds();
    do {
        sum += do_once(b, t);
        r.end_ns = clock_now_ns();
    } while ((double)(r.end_ns - r.begin_ns) < seconds * (double)NS_PER_S);
    r.count = (uint64_t)sum;
    r.busy = (cpu_seconds() - cpu) / ((double)(r.end_ns - r.begin_ns) / 1e9);
    return r;
}

static int pack(struct task t)
{
    return ((int)t.work * MODELS + (int)t.model) * STREAMS + (int)t.streams;
}

static struct task unpack(int what)
{
    return (struct task){what / STREAMS / MODELS, what / STREAMS % MODELS, what % STREAMS};
}

static void body(const struct ends *e, const void *arg)
{
    struct bench b = {.gemm = NULL};
    struct order o;
    process_pin(*(const int *)arg > 0);
    wire_keep_pages();
    while (process_next(e, true, &o) && o.type == ORDER_RUN) {
        struct report r = run(&b, unpack(o.what), o.seconds);
        process_tell(e, &r);
    }
}

struct process worker_start(int k)
{
    return process_start(body, &k);
}

/* The sum of what the workers did per second, and the smallest share of the time that one had its CPU. */
struct run {
    double rate, busy;
};

static struct run run_all(const struct process *workers, int n, struct task t, double seconds)
{
    struct run all = {0, 1};
    struct order o = {.type = ORDER_RUN, .what = pack(t), .seconds = seconds};
    for (int k = 0; k < n; k++) process_order(&workers[k], &o);
    for (int k = 0; k < n; k++) {
        struct report r = process_report(&workers[k]);
        all.rate += (double)r.count / ((double)(r.end_ns - r.begin_ns) / 1e9);
        all.busy = fmin(all.busy, r.busy);
    }
    return all;
}

void worker_warm(const struct process *workers, int n, struct task t)
{
    run_all(workers, n, t, 0);
}

static double least_busy = 1;
static int again = AGAIN;

double worker_rate(const struct process *workers, int n, struct task t, double seconds)
{
    struct run all = run_all(workers, n, t, seconds);
    for (; all.busy < BUSY && again > 0; again--) all = run_all(workers, n, t, seconds);
    least_busy = fmin(least_busy, all.busy);
    return t.work == WORK_GEMM || t.work == WORK_READ ? all.rate / 1e9 : all.rate;
}

double worker_busy(void)
{
    double least = least_busy;
    least_busy = 1;
    return least;
}
