/* Frames/s of one worker on one thread, forward and backward over windows of 20 frames, beside what sgemm
 * 2048^3 reaches in the same run: the share of it is the figure that travels between machines. Every repeat
 * measures all of them in turn, so that a change of the machine's load falls on all alike. Prints a table and
 * writes build/bench/compute.json. */
#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"
#include "common/model.h"
#include "common/rng.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/net.h"
#include "worker/nnet/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPEATS   5
#define FRAMES    20
#define REPEAT_NS (300 * NS_PER_MS)
#define GEMM_SIZE 2048

struct figure {
    const char *unit;
    double values[REPEATS]; /* sorted by figure_sort */
};

/* 40 inputs each; the sizes of the models that the compute notes compare. */
struct bench_model {
    const char *name;
    uint32_t layers, cells, projection, targets;
};

static const struct bench_model models[] = {
    {"A", 1, 1024, 256, 126}, {"C", 3, 512, 200, 2000}, {"D", 1, 128, 64, 50}};
static const size_t stream_counts[] = {4, 16};

#define NUM_MODELS (sizeof models / sizeof *models)
#define NUM_CASES  (NUM_MODELS * 2)

struct bench_case {
    const struct bench_model *what;
    size_t streams;
    struct model model;
    struct net *net;
    float *params, *grad, *x;
    uint8_t *reset;
    int32_t *target;
    double gflop_per_frame;
    struct figure speed, share;
};

static double time_of_gemm(float *a, float *b, float *c)
{
    uint64_t start = clock_now_ns();
    struct blas_operand left = {a, GEMM_SIZE, PLAIN}, right = {b, GEMM_SIZE, PLAIN};
    blas_gemm(GEMM_SIZE, GEMM_SIZE, GEMM_SIZE, left, right, 0, c, GEMM_SIZE);
    return (double)(clock_now_ns() - start) / 1e9;
}

/* Products alone: 2 per weight forward, twice that backward, less the gradient towards the features. */
static double training_gflop(const struct model_spec *s)
{
    double weights = (double)model_upward(s, s->num_layers - 1) * s->targets, to_features = 0;
    for (size_t l = 0; l < s->num_layers; l++) {
        double c = s->layers[l].cells, r = model_recurrent(s, l), in = model_layer_input(s, l);
        weights += 4 * c * (in + r) + c * r;
        if (l == 0) to_features = 4 * c * in;
    }
    return (6 * weights - 2 * to_features) / 1e9;
}

static void case_init(struct bench_case *k, const struct bench_model *what, size_t streams)
{
    struct model_spec s = {.type = MODEL_LSTMP,
                           .input = 40,
                           .feature_dim = 40,
                           .stack = 1,
                           .skip = 1,
                           .targets = what->targets,
                           .num_layers = what->layers,
                           .peepholes = true,
                           .cell_clip = 50};
    for (size_t l = 0; l < what->layers; l++)
        s.layers[l] = (struct model_layer){what->cells, what->projection, 0};
    size_t rows = FRAMES * streams;
    *k = (struct bench_case){.what = what, .streams = streams, .gflop_per_frame = training_gflop(&s)};
    k->speed.unit = "frames/s";
    k->share.unit = "of sgemm 2048^3";
    ASSERT(model_build(&s, &k->model) == 0);
    k->net =
        net_new(&k->model, &(struct net_options){.window = FRAMES, .streams = (int)streams, .trains = true});
    k->params = xaligned(k->model.params * sizeof(float));
    k->grad = xaligned(k->model.params * sizeof(float));
    k->x = xaligned(rows * 40 * sizeof(float));
    k->reset = xcalloc(rows, 1);
    k->target = xcalloc(rows, sizeof(int32_t));
    model_init(&k->model, &(struct model_init_options){.range = 0.02f, .seed = 1}, k->params);
    struct rng r;
    rng_init(&r, 1);
    for (size_t i = 0; i < rows * 40; i++) k->x[i] = (float)rng_normal(&r);
    for (size_t i = 0; i < rows; i++) k->target[i] = (int32_t)rng_below(&r, what->targets);
}

static void case_fini(struct bench_case *k)
{
    net_free(&k->net);
    model_fini(&k->model);
    free(k->params);
    free(k->grad);
    free(k->x);
    free(k->reset);
    free(k->target);
}

static void run_window(struct bench_case *k)
{
    struct net_result result;
    net_forward(k->net, k->params, k->x, k->reset, k->target, &result);
    net_backward(k->net, k->params, k->x, k->reset, k->grad);
}

static double frames_per_second(struct bench_case *k)
{
    run_window(k); /* warms the caches */
    uint64_t start = clock_now_ns(), windows = 0, now;
    do {
        run_window(k);
        windows++;
    } while ((now = clock_now_ns()) - start < REPEAT_NS);
    return (double)(windows * FRAMES * k->streams) / ((double)(now - start) / 1e9);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void figure_sort(struct figure *f)
{
    qsort(f->values, REPEATS, sizeof *f->values, by_value);
}

static int json_figure(char *out, size_t size, const char *name, const struct figure *f, const char *end)
{
    return snprintf(out, size,
                    "  \"%s\": {\"median\": %.6g, \"min\": %.6g, \"max\": %.6g, \"unit\": \"%s\"}%s\n", name,
                    f->values[REPEATS / 2], f->values[0], f->values[REPEATS - 1], f->unit, end);
}

static int write_json(const struct figure *gemm, const struct bench_case *cases)
{
    char text[4096] = "{\"figures\": {\n", name[64];
    size_t n = strlen(text);
    n += (size_t)json_figure(text + n, sizeof text - n, "sgemm_2048", gemm, ",");
    for (size_t i = 0; i < NUM_CASES; i++) {
        const struct bench_case *k = &cases[i];
        snprintf(name, sizeof name, "train_%s_S%zu", k->what->name, k->streams);
        n += (size_t)json_figure(text + n, sizeof text - n, name, &k->speed, ",");
        snprintf(name, sizeof name, "train_%s_S%zu_share", k->what->name, k->streams);
        n += (size_t)json_figure(text + n, sizeof text - n, name, &k->share, i + 1 < NUM_CASES ? "," : "");
    }
    n += (size_t)snprintf(text + n, sizeof text - n, "}}\n");
    ASSERT(n < sizeof text);
    int err = files_make_dirs("build/bench");
    return err ? err : files_write_atomic("build/bench/compute.json", text, n);
}

static void measure(struct figure *gemm, struct bench_case *cases)
{
    size_t n = (size_t)GEMM_SIZE * GEMM_SIZE;
    float *a = xaligned(n * sizeof *a), *b = xaligned(n * sizeof *b), *c = xaligned(n * sizeof *c);
    for (size_t i = 0; i < n; i++) a[i] = b[i] = (float)(i % 7) * 0.1f;
    time_of_gemm(a, b, c);
    for (size_t repeat = 0; repeat < REPEATS; repeat++) {
        double gflops = 2.0 * GEMM_SIZE * GEMM_SIZE * GEMM_SIZE / 1e9 / time_of_gemm(a, b, c);
        gemm->values[repeat] = gflops;
        for (size_t i = 0; i < NUM_CASES; i++) {
            cases[i].speed.values[repeat] = frames_per_second(&cases[i]);
            cases[i].share.values[repeat] = cases[i].speed.values[repeat] * cases[i].gflop_per_frame / gflops;
        }
    }
    free(a);
    free(b);
    free(c);
}

int main(void)
{
    static struct bench_case cases[NUM_CASES];
    struct figure gemm = {.unit = "GFLOP/s"};
    for (size_t i = 0; i < NUM_CASES; i++) case_init(&cases[i], &models[i / 2], stream_counts[i % 2]);
    measure(&gemm, cases);
    figure_sort(&gemm);
    printf("one worker, one thread, %s kernels, T = %d, median of %d (min .. max)\n", plan_gates(false)->name,
           FRAMES, REPEATS);
    printf("sgemm %d^3: %.1f GFLOP/s (%.1f .. %.1f)\n\n", GEMM_SIZE, gemm.values[REPEATS / 2], gemm.values[0],
           gemm.values[REPEATS - 1]);
    printf("model  S   frames/s  (min .. max)          GFLOP/s  share of sgemm\n");
    for (size_t i = 0; i < NUM_CASES; i++) {
        struct bench_case *k = &cases[i];
        figure_sort(&k->speed);
        figure_sort(&k->share);
        const double *v = k->speed.values;
        printf("%-5s %2zu %10.0f  (%.0f .. %.0f)%*s%8.1f  %6.2f\n", k->what->name, k->streams, v[REPEATS / 2],
               v[0], v[REPEATS - 1], 4, "", v[REPEATS / 2] * k->gflop_per_frame,
               k->share.values[REPEATS / 2]);
    }
    int err = write_json(&gemm, cases);
    for (size_t i = 0; i < NUM_CASES; i++) case_fini(&cases[i]);
    return err ? err_report("compute", err) : 0;
}
