/* What the tests of the maths share: the golden vector of the paper's equations
 * (shared/golden/lstmp-golden.md, repeated here so that no file is needed) and random nets, in float or in
 * double. */
#ifndef TESTS_UNIT_WORKER_NNET_CASES_H
#define TESTS_UNIT_WORKER_NNET_CASES_H

#include "common/err.h"
#include "common/model.h"
#include "common/rng.h"
#include "worker/nnet/net.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN_T 5

/* A statement for every level of kernels that this CPU has, and for the best, which may be a mixture. */
#define EACH_LEVEL(level)                                                                                    \
    for (enum plan_level level = PLAN_BEST; level <= PLAN_AVX512; level++)                                   \
        if (plan_has(level))

/* A window of data: x (T*S, D), target (T*S), reset (T*S). */
struct window_data {
    size_t frames, streams;
    real *x;
    int32_t *target;
    uint8_t *reset;
};

static inline real *new_reals(size_t n)
{
    return xaligned((n ? n : 1) * sizeof(real));
}

static inline struct window_data window_new(size_t frames, size_t streams, size_t input)
{
    size_t rows = frames * streams;
    return (struct window_data){frames, streams, new_reals(rows * input), xcalloc(rows, sizeof(int32_t)),
                                xcalloc(rows, 1)};
}

static inline void window_free(struct window_data *w)
{
    free(w->x);
    free(w->target);
    free(w->reset);
}

static inline double norm_of(const real *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)v[i] * (double)v[i];
    return sqrt(sum);
}

/* |a - b| / |b| over a vector. */
static inline double distance(const real *a, const real *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sqrt(sum) / (norm_of(b, n) + 1e-300);
}

static inline struct model golden_model(void)
{
    struct model_spec s = {.type = MODEL_LSTMP,
                           .input = 3,
                           .targets = 3,
                           .num_layers = 2,
                           .peepholes = true,
                           .cell_clip = 50,
                           .feature_dim = 3,
                           .stack = 1,
                           .skip = 1};
    s.layers[0] = s.layers[1] = (struct model_layer){.cells = 4, .projection = 2};
    struct model m;
    ASSERT(model_build(&s, &m) == 0);
    return m;
}

/* Tensor q = 1, 2, ... of the golden order into rows first.. of tensor `name`: element k is sin(0.7 k + 1.3
 * q). */
static inline void golden_fill(const struct model *m, const char *name, size_t first, size_t rows, int q,
                               real *params)
{
    const struct tensor *t = model_find(m, name);
    ASSERT(t);
    for (size_t r = 0, k = 0; r < rows; r++)
        for (size_t c = 0; c < t->cols; c++, k++)
            params[model_at(t, first + r, c)] = (real)sin(0.7 * (double)k + 1.3 * q);
}

/* The golden order is i, f, c, o with {W_x, W_r, b} each, then the peepholes and W_rm; ours stacks g, i, f,
 * o. */
static inline void golden_params(const struct model *m, real *params)
{
    static const size_t place[4] = {1, 2, 0, 3}; /* of gates i, f, c (our g), o */
    int q = 1;
    for (int layer = 0; layer < 2; layer++) {
        char name[24];
        static const char *const per_gate[] = {"w_x", "w_r", "b"}, *const rest[] = {"p_i", "p_f", "p_o",
                                                                                    "w_m"};
        for (size_t gate = 0; gate < 4; gate++)
            for (size_t k = 0; k < 3; k++) {
                snprintf(name, sizeof name, "layer%d.%s", layer, per_gate[k]);
                golden_fill(m, name, place[gate] * 4, 4, q++, params);
            }
        for (size_t k = 0; k < 4; k++) {
            snprintf(name, sizeof name, "layer%d.%s", layer, rest[k]);
            golden_fill(m, name, 0, model_find(m, name)->rows, q++, params);
        }
    }
    golden_fill(m, "output.w", 0, 3, q++, params);
    golden_fill(m, "output.b", 0, 3, q++, params);
}

/* One stream of the golden input, frames from `first`. */
static inline struct window_data golden_window(size_t first, size_t frames)
{
    struct window_data w = window_new(frames, 1, 3);
    for (size_t t = 0; t < frames; t++) {
        for (size_t j = 0; j < 3; j++)
            w.x[t * 3 + j] = (real)cos(0.9 * (double)(first + t) + 0.4 * (double)j);
        w.target[t] = (int32_t)((first + t) % 3);
    }
    return w;
}

/* L2 norm of rows first.. of a tensor of a gradient. */
static inline double tensor_norm(const struct model *m, const char *name, size_t first, size_t rows,
                                 const real *grad)
{
    const struct tensor *t = model_find(m, name);
    double sum = 0;
    for (size_t r = first; r < first + rows; r++)
        for (size_t c = 0; c < t->cols; c++)
            sum += (double)grad[model_at(t, r, c)] * (double)grad[model_at(t, r, c)];
    return sqrt(sum);
}

/* A random small model: LSTM or LSTMP, 1 to 3 layers of different sizes, below and above the width of a
 * panel. Undo with model_fini. */
static inline struct model random_model(struct rng *r)
{
    struct model_spec s = {.type = rng_below(r, 3) ? MODEL_LSTMP : MODEL_LSTM,
                           .peepholes = rng_below(r, 3) != 0,
                           .cell_clip = 50,
                           .stack = 1,
                           .skip = 1};
    s.input = s.feature_dim = 1 + (uint32_t)rng_below(r, 9);
    s.targets = 2 + (uint32_t)rng_below(r, rng_below(r, 2) ? 60 : 12);
    s.num_layers = 1 + (uint32_t)rng_below(r, 3);
    for (size_t l = 0; l < s.num_layers; l++) {
        s.layers[l].cells = 1 + (uint32_t)rng_below(r, rng_below(r, 2) ? 40 : 13);
        if (s.type == MODEL_LSTM) continue;
        s.layers[l].projection = 1 + (uint32_t)rng_below(r, rng_below(r, 2) ? 30 : 7);
        s.layers[l].nonrecurrent = (uint32_t)(rng_below(r, 2) * rng_below(r, rng_below(r, 2) ? 30 : 6));
    }
    struct model m;
    ASSERT(model_build(&s, &m) == 0);
    return m;
}

/* Uniform in (-range, range). */
static inline void random_params(const struct model *m, struct rng *r, double range, real *params)
{
    for (size_t i = 0; i < m->params; i++) params[i] = (real)(range * (2 * rng_uniform(r) - 1));
}

/* Normal inputs; about one target in five without error, one frame in six a reset, at any t. */
static inline struct window_data random_window(const struct model *m, struct rng *r, size_t frames,
                                               size_t streams)
{
    struct window_data w = window_new(frames, streams, m->spec.input);
    for (size_t i = 0; i < frames * streams * m->spec.input; i++) w.x[i] = (real)rng_normal(r);
    for (size_t i = 0; i < frames * streams; i++) {
        w.target[i] = rng_below(r, 5) ? (int32_t)rng_below(r, m->spec.targets) : -1;
        w.reset[i] = rng_below(r, 6) == 0;
    }
    return w;
}

/* Forward over w and, where grad is not NULL, backward. */
static inline struct net_result run_window(struct net *n, const real *params, const struct window_data *w,
                                           real *grad)
{
    struct net_result out;
    net_forward(n, params, w->x, w->reset, w->target, &out);
    if (grad) net_backward(n, params, w->x, w->reset, grad);
    return out;
}

static inline struct net *training_net(const struct model *m, size_t frames, size_t streams)
{
    struct net_options o = {.window = (int)frames, .streams = (int)streams, .trains = true};
    return net_new(m, &o);
}

#endif
