/* The model once more, as the equations stand: one frame of one stream at a time, sums as loops, all in
 * double, weights as plain rows. Sak, Senior, Beaufays, Interspeech 2014, equations 1 to 8. For comparison
 * with the nets of worker/nnet; it shares model_at with them and nothing else. */
#ifndef TESTS_UNIT_WORKER_NAIVE_NET_H
#define TESTS_UNIT_WORKER_NAIVE_NET_H

#include "tests/unit/worker/nnet_cases.h"

/* The vector with every tensor as plain rows at its offset, whatever its layout. To be freed. */
static inline double *naive_rows(const struct model *m, const real *params)
{
    double *rows = xcalloc(m->params, sizeof *rows);
    for (size_t i = 0; i < m->num_tensors; i++)
        for (size_t r = 0; r < m->tensors[i].rows; r++)
            for (size_t c = 0; c < m->tensors[i].cols; c++)
                rows[m->tensors[i].offset + r * m->tensors[i].cols + c] =
                    (double)params[model_at(&m->tensors[i], r, c)];
    return rows;
}

/* Tensor `name` of a layer, or of the output where layer is below 0; NULL if the model has none. */
static inline const double *naive_tensor(const struct model *m, const double *rows, int layer,
                                         const char *name)
{
    char full[40];
    if (layer >= 0)
        snprintf(full, sizeof full, "layer%d.%s", layer, name);
    else
        snprintf(full, sizeof full, "output.%s", name);
    const struct tensor *t = model_find(m, full);
    return t ? rows + t->offset : NULL;
}

static inline double naive_dot(const double *row, const double *x, size_t n)
{
    double sum = 0;
    for (size_t k = 0; k < n; k++) sum += row[k] * x[k];
    return sum;
}

static inline double naive_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* y (rows) = W x */
static inline void naive_multiply(const double *w, size_t rows, size_t cols, const double *x, double *y)
{
    for (size_t j = 0; j < rows; j++) y[j] = naive_dot(w + j * cols, x, cols);
}

/* One frame of layer l: c (C) and r (R) move on; up = [r; p]. */
static inline void naive_layer(const struct model *m, const double *rows, int l, const double *x, double *c,
                               double *r, double *up)
{
    const struct model_layer *y = &m->spec.layers[l];
    size_t C = y->cells, D = model_layer_input(&m->spec, (size_t)l), R = model_recurrent(&m->spec, (size_t)l);
    const double *w_x = naive_tensor(m, rows, l, "w_x"), *w_r = naive_tensor(m, rows, l, "w_r"),
                 *b = naive_tensor(m, rows, l, "b"), *p_i = naive_tensor(m, rows, l, "p_i"),
                 *p_f = naive_tensor(m, rows, l, "p_f"), *p_o = naive_tensor(m, rows, l, "p_o"),
                 *w_m = naive_tensor(m, rows, l, "w_m"), *w_p = naive_tensor(m, rows, l, "w_p");
    double *out = xcalloc(C, sizeof *out), z[4];
    for (size_t j = 0; j < C; j++) {
        for (size_t gate = 0; gate < 4; gate++) {
            size_t row = gate * C + j;
            z[gate] = b[row] + naive_dot(w_x + row * D, x, D) + naive_dot(w_r + row * R, r, R);
        }
        double i = naive_sigmoid(z[1] + (p_i ? p_i[j] * c[j] : 0)),
               f = naive_sigmoid(z[2] + (p_f ? p_f[j] * c[j] : 0));
        c[j] = i * tanh(z[0]) + f * c[j];
        c[j] = fmin(fmax(c[j], -(double)m->spec.cell_clip), (double)m->spec.cell_clip);
        out[j] = naive_sigmoid(z[3] + (p_o ? p_o[j] * c[j] : 0)) * tanh(c[j]);
    }
    if (w_m)
        naive_multiply(w_m, R, C, out, up);
    else
        memcpy(up, out, C * sizeof *up);
    memcpy(r, up, R * sizeof *r);
    if (w_p) naive_multiply(w_p, y->nonrecurrent, C, out, up + R);
    free(out);
}

/* -log softmax(W x + b)[target] */
static inline double naive_cross_entropy(const struct model *m, const double *rows, const double *x,
                                         int32_t target)
{
    size_t n = model_upward(&m->spec, m->spec.num_layers - 1);
    const double *w = naive_tensor(m, rows, -1, "w"), *b = naive_tensor(m, rows, -1, "b");
    double sum = 0, of_target = b[target] + naive_dot(w + (size_t)target * n, x, n);
    for (size_t k = 0; k < m->spec.targets; k++) sum += exp(b[k] + naive_dot(w + k * n, x, n));
    return log(sum) - of_target;
}

#define NAIVE_WIDEST 256 /* inputs, cells or outputs of a layer */

/* Stream s of w from zero state. */
static inline double naive_stream(const struct model *m, const double *rows, const struct window_data *w,
                                  size_t s)
{
    double c[MODEL_MAX_LAYERS][NAIVE_WIDEST] = {{0}}, r[MODEL_MAX_LAYERS][NAIVE_WIDEST] = {{0}};
    double x[NAIVE_WIDEST], up[NAIVE_WIDEST], loss = 0;
    for (size_t t = 0; t < w->frames; t++) {
        size_t row = t * w->streams + s;
        if (w->reset[row]) memset(c, 0, sizeof c), memset(r, 0, sizeof r);
        for (size_t k = 0; k < m->spec.input; k++) x[k] = (double)w->x[row * m->spec.input + k];
        for (size_t l = 0; l < m->spec.num_layers; l++) {
            naive_layer(m, rows, (int)l, x, c[l], r[l], up);
            memcpy(x, up, model_upward(&m->spec, l) * sizeof *x);
        }
        if (w->target[row] >= 0) loss += naive_cross_entropy(m, rows, x, w->target[row]);
    }
    return loss;
}

/* The summed cross entropy of a window from zero state. */
static inline double naive_loss(const struct model *m, const double *rows, const struct window_data *w)
{
    double loss = 0;
    for (size_t s = 0; s < w->streams; s++) loss += naive_stream(m, rows, w, s);
    return loss;
}

/* Its derivative along `direction`, a vector of unit length in plain rows: a central difference of fourth
 * order. With the step h = 2e-3 the error is about h^4 = 2e-11 of the fifth derivative, and rounding adds
 * 1e-16 loss / h. */
static inline double naive_slope(const struct model *m, const double *rows, const double *direction,
                                 const struct window_data *w)
{
    static const double steps[] = {1, -1, 2, -2}, factors[] = {8, -8, -1, 1};
    double h = 2e-3, sum = 0, *moved = xcalloc(m->params, sizeof *moved);
    for (size_t k = 0; k < 4; k++) {
        for (size_t i = 0; i < m->params; i++) moved[i] = rows[i] + steps[k] * h * direction[i];
        sum += factors[k] * naive_loss(m, moved, w);
    }
    free(moved);
    return sum / (12 * h);
}

#endif
