#include "worker/nnet/kernels/gates.h"

static real sigmoid(real x)
{
    return 1 / (1 + REAL_EXP(-x));
}

/* NaN fails both comparisons and stays. */
static real clip(real x, real limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

static void cell_forward(const struct cell *k, real *z, const real *c_prev, real *c, real *m)
{
    size_t n = k->cells;
    const real *b = k->b;
    for (size_t j = 0; j < n; j++) {
        real g = REAL_TANH(z[j] + b[j]);
        real i = sigmoid(z[n + j] + b[n + j] + k->p_i[j] * c_prev[j]);
        real f = sigmoid(z[2 * n + j] + b[2 * n + j] + k->p_f[j] * c_prev[j]);
        c[j] = clip(g * i + f * c_prev[j], k->cell_clip);
        real o = sigmoid(z[3 * n + j] + b[3 * n + j] + k->p_o[j] * c[j]);
        m[j] = o * REAL_TANH(c[j]);
        z[j] = g;
        z[n + j] = i;
        z[2 * n + j] = f;
        z[3 * n + j] = o;
    }
}

static void cell_backward(const struct cell *k, real *z, const real *c_prev, const real *c, const real *d_m,
                          real *d_c, real *peephole)
{
    size_t n = k->cells;
    for (size_t j = 0; j < n; j++) {
        real g = z[j], i = z[n + j], f = z[2 * n + j], o = z[3 * n + j], h = REAL_TANH(c[j]);
        real d_o = d_m[j] * h * o * (1 - o);
        real dc = d_m[j] * o * (1 - h * h) + d_c[j] + k->p_o[j] * d_o;
        real d_f = clip(dc * c_prev[j] * f * (1 - f), k->delta_clip);
        real d_i = clip(dc * g * i * (1 - i), k->delta_clip);
        real d_g = clip(dc * i * (1 - g * g), k->delta_clip);
        d_o = clip(d_o, k->delta_clip);
        d_c[j] = dc * f + d_i * k->p_i[j] + d_f * k->p_f[j];
        peephole[j] += d_i * c_prev[j];
        peephole[n + j] += d_f * c_prev[j];
        peephole[2 * n + j] += d_o * c[j];
        z[j] = d_g;
        z[n + j] = d_i;
        z[2 * n + j] = d_f;
        z[3 * n + j] = d_o;
    }
}

static real largest(size_t n, const real *z)
{
    real top = -(real)INFINITY;
    for (size_t k = 0; k < n; k++)
        if (z[k] > top) top = z[k];
    return top;
}

static double softmax_forward(size_t n, real *z, const real *b, real *max)
{
    for (size_t k = 0; k < n; k++) z[k] += b[k];
    *max = largest(n, z);
    double sum = 0;
    for (size_t k = 0; k < n; k++) sum += (double)REAL_EXP(z[k] - *max);
    return sum;
}

static void softmax_scale(size_t n, real *z, real max, real factor)
{
    for (size_t k = 0; k < n; k++) z[k] = REAL_EXP(z[k] - max) * factor;
}

static void softmax_log(size_t n, real *z, real max, real log_sum)
{
    for (size_t k = 0; k < n; k++) z[k] = (z[k] - max) - log_sum;
}

const struct gates gates_portable = {
    .name = "portable",
    .cell_forward = cell_forward,
    .cell_backward = cell_backward,
    .softmax_forward = softmax_forward,
    .softmax_scale = softmax_scale,
    .softmax_log = softmax_log,
    .largest = largest,
    .log = log,
};
