/* Frames/s of oneDNN's LSTM primitive with peepholes and projection on the bench's models, one thread, fp32:
 * each layer forward and backward over windows of 20 frames whose state is carried, and the three products of
 * the output layer. In oneDNN's favour: no softmax, no update, and weights lie once and for all in the
 * layouts that the library asks for (a trainer would bring them there after every update); it adds to the
 * weights' gradients, which are never zeroed.
 *
 *   onednn_lstmp MODEL STREAMS SECONDS     MODEL A, B, C or D; SECONDS for each of the two figures
 *
 * Prints one line of JSON. C API of oneDNN 2.6 (Debian libdnnl-dev). What it allocates lives as long as it
 * does. */
#include "common/clock.h"
#include "common/err.h"
#include "common/rng.h"

#include <dnnl.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FRAMES     20
#define INPUTS     40
#define MAX_LAYERS 3

/* Layer tensors in the order of dnnl_lstm_forward_desc_init_v3's arguments. */
enum { X, R_FIRST, C_FIRST, W_X, W_R, PEEPHOLES, W_M, BIAS, R, R_LAST, C_LAST, TENSORS };
static const int arg_of[TENSORS] = {
    DNNL_ARG_SRC_LAYER,    DNNL_ARG_SRC_ITER,         DNNL_ARG_SRC_ITER_C,         DNNL_ARG_WEIGHTS_LAYER,
    DNNL_ARG_WEIGHTS_ITER, DNNL_ARG_WEIGHTS_PEEPHOLE, DNNL_ARG_WEIGHTS_PROJECTION, DNNL_ARG_BIAS,
    DNNL_ARG_DST_LAYER,    DNNL_ARG_DST_ITER,         DNNL_ARG_DST_ITER_C};
#define DIFF (DNNL_ARG_DIFF_SRC_LAYER - DNNL_ARG_SRC_LAYER) /* from a tensor's number to its gradient's */

struct bench_model {
    const char *name;
    dnnl_dim_t layers, cells, projection, targets;
};

static const struct bench_model models[] = {
    {"A", 1, 1024, 256, 126}, {"B", 2, 800, 512, 8000}, {"C", 3, 512, 200, 2000}, {"D", 1, 128, 64, 50}};

struct pass {
    dnnl_primitive_t primitive;
    int count;
    dnnl_exec_arg_t args[2 * TENSORS + 1];
};

struct layer {
    dnnl_memory_desc_t plain[TENSORS], any[TENSORS]; /* any: the library chooses how weights lie */
    dnnl_memory_t value[TENSORS], diff[TENSORS], workspace;
    struct pass inference, forward, backward;
};

struct stack {
    const struct bench_model *model;
    dnnl_dim_t streams;
    struct layer layers[MAX_LAYERS];
    float *w, *dw, *y, *dy; /* output layer: [K x R] twice, [T*S x K] twice */
};

static dnnl_engine_t engine;
static dnnl_stream_t stream;
static struct rng noise;

static void check(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return;
    fprintf(stderr, "onednn_lstmp: %s failed with status %d\n", what, (int)status);
    exit(1);
}
#define CHECK(call) check(call, #call)

static void fill(float *values, size_t n)
{
    for (size_t i = 0; i < n; i++) values[i] = 0.05f * (float)rng_normal(&noise);
}

static float *values_of(dnnl_memory_t memory)
{
    void *values;
    CHECK(dnnl_memory_get_data_handle(memory, &values));
    return values;
}

/* Random for a tensor that is read, zeros for one that is only written. */
static dnnl_memory_t memory_new(const dnnl_memory_desc_t *desc, bool random)
{
    dnnl_memory_t memory;
    CHECK(dnnl_memory_create(&memory, desc, engine, DNNL_MEMORY_ALLOCATE));
    size_t bytes = dnnl_memory_desc_get_size(desc);
    memset(values_of(memory), 0, bytes);
    if (random) fill(values_of(memory), bytes / sizeof(float));
    return memory;
}

static const dnnl_memory_desc_t *desc_of(const_dnnl_primitive_desc_t pd, int arg)
{
    return dnnl_primitive_desc_query_md(pd, dnnl_query_exec_arg_md, arg);
}

/* The same values as the library wants them for this pass. */
static dnnl_memory_t memory_reordered(dnnl_memory_t from, const dnnl_memory_desc_t *as,
                                      const dnnl_memory_desc_t *to)
{
    dnnl_memory_t memory;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t reorder;
    CHECK(dnnl_memory_create(&memory, to, engine, DNNL_MEMORY_ALLOCATE));
    CHECK(dnnl_reorder_primitive_desc_create(&pd, as, engine, to, engine, NULL));
    CHECK(dnnl_primitive_create(&reorder, pd));
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, memory}};
    CHECK(dnnl_primitive_execute(reorder, stream, 2, args));
    CHECK(dnnl_stream_wait(stream));
    return memory;
}

static bool is_weight(int t)
{
    return t >= W_X && t <= BIAS;
}

static void pass_add(struct pass *p, int arg, dnnl_memory_t memory)
{
    p->args[p->count++] = (dnnl_exec_arg_t){arg, memory};
}

static void pass_init(struct pass *p, struct layer *l, dnnl_primitive_desc_t pd)
{
    CHECK(dnnl_primitive_create(&p->primitive, pd));
    for (int t = 0; t < TENSORS; t++) {
        const dnnl_memory_desc_t *wanted = desc_of(pd, arg_of[t]);
        pass_add(p, arg_of[t],
                 is_weight(t) ? memory_reordered(l->value[t], &l->plain[t], wanted) : l->value[t]);
    }
}

static void pass_run(const struct pass *p)
{
    CHECK(dnnl_primitive_execute(p->primitive, stream, p->count, p->args));
}

static void layer_describe(struct layer *l, dnnl_dim_t s, dnnl_dim_t in, dnnl_dim_t c, dnnl_dim_t r)
{
    const struct {
        int ndims;
        dnnl_dims_t dims;
        dnnl_format_tag_t tag;
    } shapes[TENSORS] = {
        [X] = {3, {FRAMES, s, in}, dnnl_tnc},     [R_FIRST] = {4, {1, 1, s, r}, dnnl_ldnc},
        [C_FIRST] = {4, {1, 1, s, c}, dnnl_ldnc}, [W_X] = {5, {1, 1, in, 4, c}, dnnl_ldigo},
        [W_R] = {5, {1, 1, r, 4, c}, dnnl_ldigo}, [PEEPHOLES] = {4, {1, 1, 3, c}, dnnl_ldgo},
        [W_M] = {4, {1, 1, c, r}, dnnl_ldio},     [BIAS] = {4, {1, 1, 4, c}, dnnl_ldgo},
        [R] = {3, {FRAMES, s, r}, dnnl_tnc},      [R_LAST] = {4, {1, 1, s, r}, dnnl_ldnc},
        [C_LAST] = {4, {1, 1, s, c}, dnnl_ldnc},
    };
    for (int t = 0; t < TENSORS; t++) {
        bool free_layout = t == W_X || t == W_R || t == W_M;
        CHECK(dnnl_memory_desc_init_by_tag(&l->plain[t], shapes[t].ndims, shapes[t].dims, dnnl_f32,
                                           shapes[t].tag));
        CHECK(dnnl_memory_desc_init_by_tag(&l->any[t], shapes[t].ndims, shapes[t].dims, dnnl_f32,
                                           free_layout ? dnnl_format_tag_any : shapes[t].tag));
    }
}

static dnnl_primitive_desc_t describe_forward(const struct layer *l, dnnl_prop_kind_t kind)
{
    const dnnl_memory_desc_t *d = l->any;
    dnnl_rnn_desc_t desc;
    dnnl_primitive_desc_t pd;
    CHECK(dnnl_lstm_forward_desc_init_v3(&desc, kind, dnnl_unidirectional_left2right, d + X, d + R_FIRST,
                                         d + C_FIRST, d + W_X, d + W_R, d + PEEPHOLES, d + W_M, d + BIAS,
                                         d + R, d + R_LAST, d + C_LAST, 0));
    CHECK(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL));
    return pd;
}

static dnnl_primitive_desc_t describe_backward(const struct layer *l, dnnl_primitive_desc_t forward)
{
    const dnnl_memory_desc_t *d = l->any;
    dnnl_rnn_desc_t desc;
    dnnl_primitive_desc_t pd;
    CHECK(dnnl_lstm_backward_desc_init_v3(
        &desc, dnnl_backward, dnnl_unidirectional_left2right, d + X, d + R_FIRST, d + C_FIRST, d + W_X,
        d + W_R, d + PEEPHOLES, d + W_M, d + BIAS, d + R, d + R_LAST, d + C_LAST, d + X, d + R_FIRST,
        d + C_FIRST, d + W_X, d + W_R, d + PEEPHOLES, d + W_M, d + BIAS, d + R, d + R_LAST, d + C_LAST, 0));
    CHECK(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, forward));
    return pd;
}

/* below: the layer whose output this one reads; NULL for the first. */
static void layer_init(struct layer *l, const struct layer *below, dnnl_dim_t streams,
                       const struct bench_model *m)
{
    layer_describe(l, streams, below ? m->projection : INPUTS, m->cells, m->projection);
    for (int t = 0; t < TENSORS; t++) {
        l->value[t] = t == X && below ? below->value[R] : memory_new(&l->plain[t], true);
        l->diff[t] = t == X && below ? below->diff[R] : is_weight(t) ? NULL : memory_new(&l->plain[t], false);
    }
    dnnl_primitive_desc_t forward = describe_forward(l, dnnl_forward_training);
    dnnl_primitive_desc_t backward = describe_backward(l, forward);
    pass_init(&l->inference, l, describe_forward(l, dnnl_forward_inference));
    pass_init(&l->forward, l, forward);
    pass_init(&l->backward, l, backward);
    l->workspace = memory_new(desc_of(forward, DNNL_ARG_WORKSPACE), false);
    pass_add(&l->forward, DNNL_ARG_WORKSPACE, l->workspace);
    pass_add(&l->backward, DNNL_ARG_WORKSPACE, l->workspace);
    for (int t = 0; t < TENSORS; t++) {
        if (is_weight(t)) l->diff[t] = memory_new(desc_of(backward, arg_of[t] + DIFF), false);
        pass_add(&l->backward, arg_of[t] + DIFF, l->diff[t]);
    }
}

static void layer_carry(struct layer *l)
{
    memcpy(values_of(l->value[R_FIRST]), values_of(l->value[R_LAST]),
           dnnl_memory_desc_get_size(&l->plain[R_LAST]));
    memcpy(values_of(l->value[C_FIRST]), values_of(l->value[C_LAST]),
           dnnl_memory_desc_get_size(&l->plain[C_LAST]));
}

static void stack_init(struct stack *k, const struct bench_model *m, dnnl_dim_t streams)
{
    *k = (struct stack){.model = m, .streams = streams};
    for (dnnl_dim_t l = 0; l < m->layers; l++)
        layer_init(&k->layers[l], l ? &k->layers[l - 1] : NULL, streams, m);
    size_t weights = (size_t)(m->targets * m->projection), outputs = (size_t)(FRAMES * streams * m->targets);
    k->w = xaligned(weights * sizeof(float));
    k->dw = xaligned(weights * sizeof(float));
    k->y = xaligned(outputs * sizeof(float));
    k->dy = xaligned(outputs * sizeof(float));
    fill(k->w, weights);
    fill(k->dy, outputs);
}

/* y [T*S x K] = r [T*S x R] w' */
static void output_forward(struct stack *k)
{
    dnnl_dim_t rows = FRAMES * k->streams, r = k->model->projection, n = k->model->targets;
    const float *below = values_of(k->layers[k->model->layers - 1].value[R]);
    CHECK(dnnl_sgemm('N', 'T', rows, n, r, 1, below, r, k->w, r, 0, k->y, n));
}

/* dr = dy w, dw = dy' r */
static void output_backward(struct stack *k)
{
    dnnl_dim_t rows = FRAMES * k->streams, r = k->model->projection, n = k->model->targets;
    struct layer *top = &k->layers[k->model->layers - 1];
    CHECK(dnnl_sgemm('N', 'N', rows, r, n, 1, k->dy, n, k->w, r, 0, values_of(top->diff[R]), r));
    CHECK(dnnl_sgemm('T', 'N', n, r, rows, 1, k->dy, n, values_of(top->value[R]), r, 0, k->dw, r));
}

static void run_forward(struct stack *k)
{
    for (dnnl_dim_t l = 0; l < k->model->layers; l++) pass_run(&k->layers[l].inference);
    output_forward(k);
    for (dnnl_dim_t l = 0; l < k->model->layers; l++) layer_carry(&k->layers[l]);
}

static void run_train(struct stack *k)
{
    for (dnnl_dim_t l = 0; l < k->model->layers; l++) pass_run(&k->layers[l].forward);
    output_forward(k);
    output_backward(k);
    for (dnnl_dim_t l = k->model->layers - 1; l >= 0; l--) pass_run(&k->layers[l].backward);
    for (dnnl_dim_t l = 0; l < k->model->layers; l++) layer_carry(&k->layers[l]);
}

static double frames_per_second(struct stack *k, void (*run)(struct stack *), double seconds)
{
    run(k);
    run(k);
    uint64_t start = clock_now_ns(), windows = 0, now;
    do {
        run(k);
        windows++;
    } while ((double)((now = clock_now_ns()) - start) < seconds * 1e9);
    return (double)(windows * FRAMES) * (double)k->streams * 1e9 / (double)(now - start);
}

static const struct bench_model *model_named(const char *name)
{
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (strcmp(models[i].name, name) == 0) return &models[i];
    return NULL;
}

/* One thread, and memory that products allocate stays with the process, as for the other peers. OpenMP reads
 * its setting before main. */
static void settle(char **argv)
{
    mallopt(M_MMAP_THRESHOLD, 2000000000);
    mallopt(M_TRIM_THRESHOLD, 2000000000);
    if (getenv("OMP_NUM_THREADS")) return;
    setenv("OMP_NUM_THREADS", "1", 1);
    execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    const struct bench_model *m = argc == 4 ? model_named(argv[1]) : NULL;
    int streams = m ? atoi(argv[2]) : 0;
    double seconds = m ? atof(argv[3]) : 0;
    if (streams < 1 || seconds <= 0) {
        fprintf(stderr, "usage: onednn_lstmp A|B|C|D STREAMS SECONDS\n");
        return 2;
    }
    settle(argv);
    rng_init(&noise, 1);
    CHECK(dnnl_engine_create(&engine, dnnl_cpu, 0));
    CHECK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    struct stack k;
    stack_init(&k, m, streams);
    double forward = frames_per_second(&k, run_forward, seconds),
           train = frames_per_second(&k, run_train, seconds);
    const dnnl_version_t *v = dnnl_version();
    printf("{\"peer\": \"onednn\", \"version\": \"%d.%d.%d\", \"model\": \"%s\", \"streams\": %d, "
           "\"threads\": %s, "
           "\"forward\": %.1f, \"train\": %.1f}\n",
           v->major, v->minor, v->patch, m->name, streams, getenv("OMP_NUM_THREADS"), forward, train);
    return 0;
}
