/* Where a window's time goes: every product, gate and pass by itself, over the rows of a whole window. */
#include "common/clock.h"
#include "common/err.h"
#include "tests/bench/compute/measure.h"
#include "worker/nnet/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPEATS  5
#define SECONDS  0.01 /* of a part in a repeat */
#define PRODUCTS 40   /* of a model at most */

/* Buffers for the largest part of a model. */
struct parts {
    struct plan plan;
    struct model model;
    size_t frames, streams;
    struct plan_product products[PRODUCTS];
    size_t num_products;
    float *w, *grad, *x, *y, *scratch;
    double sum; /* so that nothing is left out */
};

typedef void part_run(struct parts *p, const void *what);

static double seconds_of(struct parts *p, part_run *run, const void *what)
{
    uint64_t start = clock_now_ns(), now, count = 0;
    do {
        run(p, what);
        count++;
    } while ((double)((now = clock_now_ns()) - start) < SECONDS * (double)NS_PER_S);
    return (double)(now - start) / 1e9 / (double)count;
}

/* --- products: all calls of a window, each with rows of its own */
enum pass { FORWARD, BACKWARD, GRADIENT };

static enum pass pass_of(const struct plan_product *q)
{
    if (strstr(q->what, " gradient")) return GRADIENT;
    return strstr(q->what, " forward") || strstr(q->kernel, "turned once") ? FORWARD : BACKWARD;
}

static void run_product(struct parts *p, const void *what)
{
    const struct plan_product *q = what;
    const struct panel_kernels *k = p->plan.panels;
    size_t ld_x = plan_stride(q->in), ld_y = plan_stride(q->out);
    enum pass pass = pass_of(q);
    for (size_t call = 0; call < q->calls; call++) {
        struct rows x = {p->x + call * q->rows * ld_x, ld_x}, y = {p->y + call * q->rows * ld_y, ld_y};
        struct panels_gradient term = {p->grad, q->in, rows_read(x)};
        if (pass == FORWARD)
            k->forward((struct panels){p->w, q->out, q->in}, q->rows, rows_read(x), false, y);
        else if (pass == BACKWARD)
            k->backward((struct panels){p->w, q->in, q->out}, q->rows, rows_read(x), false, y, p->scratch);
        else
            p->sum += k->gradient(q->out, q->rows, rows_read(y), &term, 1, 1, NULL, p->scratch);
    }
}

/* --- gates: all rows of a window */
static void run_cell(struct parts *p, const void *what)
{
    size_t cells = p->model.spec.layers[0].cells, ld = plan_stride(4 * cells), c = plan_stride(cells);
    struct cell k = {cells, p->w, p->w, p->w, p->w, 50, 1};
    for (size_t row = 0; row < p->frames * p->streams; row++) {
        float *z = p->y + row * ld, *at = p->x + row * 2 * c, *d_c = p->grad;
        if (*(const enum pass *)what == FORWARD)
            p->plan.gates->cell_forward(&k, z, at, at + 2 * c, at + c);
        else
            p->plan.gates->cell_backward(&k, z, at, at + 2 * c, at + c, d_c, d_c + c);
    }
}

static void run_softmax(struct parts *p, const void *what)
{
    size_t n = p->model.spec.targets, ld = plan_stride(n);
    (void)what;
    for (size_t row = 0; row < p->frames * p->streams; row++) {
        float max, *z = p->y + row * ld;
        p->sum += p->plan.gates->softmax_forward(n, z, p->w, &max);
        p->plan.gates->softmax_scale(n, z, max, 1.0f);
    }
}

/* --- life */
static float *filled(size_t n)
{
    float *v = xaligned(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = (float)(i % 13) * 0.001f;
    return v;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void parts_init(struct parts *p, enum bench_model m, enum bench_streams s)
{
    *p = (struct parts){
        .plan = plan_make(PLAN_BEST), .frames = MODELS_FRAMES, .streams = (size_t)models_streams(s)};
    models_build(m, &p->model);
    p->num_products = plan_products(&p->model, &p->plan, p->frames, p->streams, p->products, PRODUCTS);
    ASSERT(p->num_products <= PRODUCTS);
    size_t n = p->frames * p->streams, x = 0, y = 0;
    for (size_t i = 0; i < p->num_products; i++) {
        x = larger(x, plan_stride(p->products[i].in));
        y = larger(y, plan_stride(p->products[i].out));
    }
    p->w = filled(p->model.params);
    p->grad = filled(p->model.params);
    p->x = filled((n + 2) * larger(x, 2 * plan_stride(p->model.spec.layers[0].cells)));
    p->y = filled(n * y);
    p->scratch = filled(larger(panels_gradient_scratch(n, x), PANELS_TURN_SCRATCH));
}

static void parts_fini(struct parts *p)
{
    model_fini(&p->model);
    free(p->w);
    free(p->grad);
    free(p->x);
    free(p->y);
    free(p->scratch);
}

/* --- one model: what is measured, and the table */
static const enum pass passes[] = {FORWARD, BACKWARD};

static void measure_parts(struct figures *f, struct parts *p)
{
    for (size_t i = 0; i < p->num_products; i++)
        figures_add(f, p->products[i].what, "s", seconds_of(p, run_product, &p->products[i]));
    figures_add(f, "cells forward", "s", seconds_of(p, run_cell, &passes[0]));
    figures_add(f, "cells backward", "s", seconds_of(p, run_cell, &passes[1]));
    figures_add(f, "softmax", "s", seconds_of(p, run_softmax, NULL));
}

/* The same in the worker, as a part of a step. */
static void measure_whole(struct figures *f, const struct process *w, enum bench_model m,
                          enum bench_streams s)
{
    double frames = MODELS_FRAMES * models_streams(s);
    struct task t = {WORK_STEP, m, s};
    worker_warm(w, 1, t);
    figures_add(f, "step", "s", frames / worker_rate(w, 1, t, 10 * SECONDS));
    t.work = WORK_TRAIN;
    figures_add(f, "window", "s", frames / worker_rate(w, 1, t, 10 * SECONDS));
    t.work = WORK_PUSH;
    figures_add(f, "push", "s", 1 / worker_rate(w, 1, t, SECONDS));
    t.work = WORK_TURN;
    figures_add(f, "turn", "s", 1 / worker_rate(w, 1, t, SECONDS));
    t.work = WORK_GEMM;
    figures_add(f, "sgemm", "GFLOP/s", worker_rate(w, 1, t, SECONDS));
}

static double print_products(const struct figures *f, const struct parts *p, double sgemm)
{
    double sum = 0;
    printf("%-24s %14s %14s %9s %7s %9s\n", "product", "out x in", "rows x calls", "GFLOP/s", "share", "ms");
    for (size_t i = 0; i < p->num_products; i++) {
        const struct plan_product *q = &p->products[i];
        double s = figures_median(f, q->what), rows = (double)(q->rows * q->calls);
        double rate = 2 * rows * (double)q->out * (double)q->in / 1e9 / s;
        printf("%-24s %6zu x %5zu %8zu x %3zu %9.1f %7.2f %9.3f  %s\n", q->what, q->out, q->in, q->rows,
               q->calls, rate, rate / sgemm, s * 1e3, q->kernel);
        sum += s;
    }
    return sum;
}

/* Gates of one layer; the sum counts all. */
static double print_gates(const struct figures *f, const struct parts *p)
{
    static const char *const names[] = {"cells forward", "cells backward", "softmax"};
    const struct model_spec *s = &p->model.spec;
    double sum = 0, rows = (double)(p->frames * p->streams);
    for (int i = 0; i < 3; i++) {
        double one = figures_median(f, names[i]), layers = i < 2 ? s->num_layers : 1;
        double each = i < 2 ? s->layers[0].cells : s->targets;
        printf("%-24s %40.2f ns each %15.3f\n", names[i], one / rows / each * 1e9, one * layers * 1e3);
        sum += one * layers;
    }
    return sum;
}

static void print_model(const struct figures *f, const struct parts *p, enum bench_model m)
{
    double sgemm = figures_median(f, "sgemm");
    printf("\n%s, S = %zu; sgemm 2048^3 %.1f GFLOP/s\n", models_name(m), p->streams, sgemm);
    double sum = print_products(f, p, sgemm) + print_gates(f, p);
    printf("together %.3f ms; the window in a worker %.3f; push, update and landing %.3f; turning %.3f; "
           "the step %.3f\n",
           sum * 1e3, figures_median(f, "window") * 1e3, figures_median(f, "push") * 1e3,
           figures_median(f, "turn") * 1e3, figures_median(f, "step") * 1e3);
}

int kernels_print(void)
{
    static const enum bench_streams streams[] = {STREAMS_4, STREAMS_16};
    struct process w = worker_start(0);
    process_pin(false); /* the two never run at the same time */
    for (int i = 0; i < MODELS * 2; i++) {
        static struct figures f;
        struct parts p;
        enum bench_model m = (enum bench_model)(i / 2);
        memset(&f, 0, sizeof f);
        parts_init(&p, m, streams[i % 2]);
        for (int k = 0; k < REPEATS; k++) {
            measure_parts(&f, &p);
            measure_whole(&f, &w, m, streams[i % 2]);
        }
        print_model(&f, &p, m);
        parts_fini(&p);
    }
    return process_stop(&w) ? 0 : err_set(ERR_FAIL, "a process of the bench has failed");
}
