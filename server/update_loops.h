/* The loops of update.c, compiled once for any CPU (update.c) and once for AVX2 (update_avx2.c), for these
 * two alone. No contraction and lanes that are in the source: both give the same bits. The includer names its
 * table: #define UPDATE_KERNELS. */
#include "server/update.h"

#include <math.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* the same bits with every compiler and CPU; gcc -std=c11 does not contract */
#endif

/* A block is worked off in chunks that stay in the L1 cache, so that a chunk may be gone over more than once
 * and the block is still one pass over memory. Fixed counts become vector code at -O2 as well, square roots
 * too where errno is not asked for (Makefile). */
#define CHUNK      256
#define NORM_LANES 32 /* sums so far apart that none waits for the one before */

/* What the steps of one block share. Adam's two corrections of the bias are in rate and root. */
struct terms {
    float rate, mu;
    float b1, new1, b2, new2; /* new = 1 - b */
    float root, epsilon;
    float decay, shrink; /* of the gradient; of the weights */
    float lambda;
};

/* A piece of a block, CHUNK floats each; the gradient as floats. */
struct chunk {
    float *g, *weights, *momentum, *square;
    const float *backup;
};

struct update_kernels {
    void (*chunk)(enum optimizer_type type, const struct terms *t, const struct chunk *c);
    /* sum[NORM_LANES] += the squares of CHUNK floats: eight to a lane in single precision, the lanes in
     * double. */
    void (*squares)(const float *g, double *sum);
};
extern const struct update_kernels UPDATE_KERNELS;

/* --- one chunk: CHUNK floats each */

static void compensate(float lambda, float *restrict g, const float *restrict w, const float *restrict backup)
{
    for (int k = 0; k < CHUNK; k++) g[k] += lambda * g[k] * g[k] * (w[k] - backup[k]);
}

static void decay(float by, float *restrict g, const float *restrict w)
{
    for (int k = 0; k < CHUNK; k++) g[k] += by * w[k];
}

static void shrink(float by, float *restrict w)
{
    for (int k = 0; k < CHUNK; k++) w[k] -= by * w[k];
}

static void step_sgd(struct terms t, float *restrict g, float *restrict w)
{
    for (int k = 0; k < CHUNK; k++) g[k] = w[k] = w[k] - t.rate * g[k];
}

static void step_momentum(struct terms t, float *restrict g, float *restrict w, float *restrict v)
{
    for (int k = 0; k < CHUNK; k++) {
        v[k] = t.mu * v[k] + g[k];
        g[k] = w[k] = w[k] - t.rate * v[k];
    }
}

static void step_nesterov(struct terms t, float *restrict g, float *restrict w, float *restrict v)
{
    for (int k = 0; k < CHUNK; k++) {
        v[k] = t.mu * v[k] + g[k];
        g[k] = w[k] = w[k] - t.rate * (g[k] + t.mu * v[k]);
    }
}

static void step_adagrad(struct terms t, float *restrict g, float *restrict w, float *restrict q)
{
    for (int k = 0; k < CHUNK; k++) {
        q[k] += g[k] * g[k];
        g[k] = w[k] = w[k] - t.rate * g[k] / (sqrtf(q[k]) + t.epsilon);
    }
}

static void step_rmsprop(struct terms t, float *restrict g, float *restrict w, float *restrict q)
{
    for (int k = 0; k < CHUNK; k++) {
        q[k] = t.b2 * q[k] + t.new2 * g[k] * g[k];
        g[k] = w[k] = w[k] - t.rate * g[k] / (sqrtf(q[k]) + t.epsilon);
    }
}

static void step_adam(struct terms t, float *restrict g, float *restrict w, float *restrict v,
                      float *restrict q)
{
    for (int k = 0; k < CHUNK; k++) {
        v[k] = t.b1 * v[k] + t.new1 * g[k];
        q[k] = t.b2 * q[k] + t.new2 * g[k] * g[k];
        g[k] = w[k] = w[k] - t.rate * v[k] / (t.root * sqrtf(q[k]) + t.epsilon);
    }
}

static void step(enum optimizer_type type, struct terms t, float *g, float *w, float *v, float *q)
{
    switch (type) {
    case OPTIMIZER_SGD:
        step_sgd(t, g, w);
        break;
    case OPTIMIZER_MOMENTUM:
        step_momentum(t, g, w, v);
        break;
    case OPTIMIZER_NESTEROV:
        step_nesterov(t, g, w, v);
        break;
    case OPTIMIZER_ADAGRAD:
        step_adagrad(t, g, w, q);
        break;
    case OPTIMIZER_RMSPROP:
        step_rmsprop(t, g, w, q);
        break;
    case OPTIMIZER_ADAM:
    case OPTIMIZER_ADAMW:
        step_adam(t, g, w, v, q);
        break;
    }
}

static void update_chunk(enum optimizer_type type, const struct terms *terms, const struct chunk *c)
{
    const struct terms t = *terms;
    if (c->backup && t.lambda != 0) compensate(t.lambda, c->g, c->weights, c->backup);
    if (t.decay != 0) decay(t.decay, c->g, c->weights);
    if (t.shrink != 0) shrink(t.shrink, c->weights);
    step(type, t, c->g, c->weights, c->momentum, c->square);
}

static void update_squares(const float *restrict g, double *restrict sum)
{
    float lane[NORM_LANES] = {0};
    for (int i = 0; i < CHUNK; i += NORM_LANES)
        for (int k = 0; k < NORM_LANES; k++) lane[k] += g[i + k] * g[i + k];
    for (int k = 0; k < NORM_LANES; k++) sum[k] += (double)lane[k];
}

const struct update_kernels UPDATE_KERNELS = {update_chunk, update_squares};
