#include "worker/nnet/blas.h"
#include "worker/nnet/kernels/panels.h"

static struct blas_operand plain(const real *data, size_t ld)
{
    return (struct blas_operand){data, ld, PLAIN};
}

static struct blas_operand transposed(const real *data, size_t ld)
{
    return (struct blas_operand){data, ld, TRANSPOSED};
}

static const real *panel_at(struct panels w, size_t p)
{
    return w.data + p * PANEL * w.in;
}

static void forward(struct panels w, size_t n, struct const_rows x, bool adds, struct rows y)
{
    for (size_t p = 0; p < panels_count(w.out); p++) {
        size_t width = panels_width(w.out, p);
        blas_gemm(n, width, w.in, plain(x.data, x.ld), plain(panel_at(w, p), width), adds, y.data + p * PANEL,
                  y.ld);
    }
}

static void backward(struct panels w, size_t n, struct const_rows d_y, bool adds, struct rows d_x,
                     real *scratch)
{
    (void)scratch;
    for (size_t p = 0; p < panels_count(w.out); p++) {
        size_t width = panels_width(w.out, p);
        blas_gemm(n, w.in, width, plain(d_y.data + p * PANEL, d_y.ld), transposed(panel_at(w, p), width),
                  adds || p > 0, d_x.data, d_x.ld);
    }
}

static void turn(struct panels w, size_t begin, size_t end, real *turned)
{
    for (size_t q = begin; q < end; q++) {
        size_t width = panels_width(w.in, q);
        real *to = turned + q * PANEL * w.out;
        for (size_t row = 0; row < w.out; row++) {
            size_t p = row / PANEL;
            const real *from = panel_at(w, p) + row % PANEL;
            for (size_t k = 0; k < width; k++)
                to[row * width + k] = from[(q * PANEL + k) * panels_width(w.out, p)];
        }
    }
}

static double scale_and_square(real *v, size_t n, real scale)
{
    double sum = 0;
    for (size_t k = 0; k < n; k++) {
        v[k] *= scale;
        sum += (double)v[k] * (double)v[k];
    }
    return sum;
}

static double term_gradient(size_t out, size_t n, struct const_rows d_y, const struct panels_gradient *t,
                            real scale)
{
    for (size_t p = 0; p < panels_count(out); p++) {
        size_t width = panels_width(out, p);
        blas_gemm(t->in, width, n, transposed(t->x.data, t->x.ld), plain(d_y.data + p * PANEL, d_y.ld), 0,
                  t->grad + p * PANEL * t->in, width);
    }
    return scale_and_square(t->grad, out * t->in, scale);
}

static double gradient(size_t out, size_t n, struct const_rows d_y, const struct panels_gradient *terms,
                       size_t num_terms, real scale, real *bias, real *scratch)
{
    (void)scratch;
    double sum = 0;
    for (size_t i = 0; i < num_terms; i++) sum += term_gradient(out, n, d_y, &terms[i], scale);
    if (!bias) return sum;
    for (size_t k = 0; k < out; k++) {
        bias[k] = 0;
        for (size_t r = 0; r < n; r++) bias[k] += d_y.data[r * d_y.ld + k];
    }
    return sum + scale_and_square(bias, out, scale);
}

const struct panel_kernels panels_portable = {
    .name = "OpenBLAS",
    .forward = forward,
    .backward = backward,
    .turn = turn,
    .gradient = gradient,
};
