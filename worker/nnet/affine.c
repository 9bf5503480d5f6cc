#include "worker/nnet/affine.h"

#include "worker/nnet/blas.h"

/* The weight as a BLAS operand. LAYOUT_ROWS holds [out][in], LAYOUT_COLUMNS holds [in][out]. */
static struct blas_operand weight(const struct tensor *w, const real *params, bool as_in_out)
{
    bool is_rows = w->layout == LAYOUT_ROWS;
    bool turn = is_rows == as_in_out;
    return (struct blas_operand){params + w->offset, is_rows ? w->cols : w->rows, turn ? TRANSPOSED : PLAIN};
}

void affine_forward(const struct tensor *w, const real *params, size_t n, struct const_rows x, real beta,
                    struct rows y)
{
    struct blas_operand in = {x.data, x.ld, PLAIN};
    blas_gemm(n, w->rows, w->cols, in, weight(w, params, true), beta, y.data, y.ld);
}

void affine_backward(const struct tensor *w, const real *params, size_t n, struct const_rows d_y, real beta,
                     struct rows d_x)
{
    struct blas_operand out = {d_y.data, d_y.ld, PLAIN};
    blas_gemm(n, w->cols, w->rows, out, weight(w, params, false), beta, d_x.data, d_x.ld);
}

void affine_gradient(const struct tensor *w, size_t n, struct const_rows d_y, struct const_rows x, real *grad)
{
    struct blas_operand out = {d_y.data, d_y.ld, PLAIN}, in = {x.data, x.ld, PLAIN};
    bool is_rows = w->layout == LAYOUT_ROWS;
    struct blas_operand left = is_rows ? out : in, right = is_rows ? in : out;
    left.trans = TRANSPOSED;
    size_t m = is_rows ? w->rows : w->cols, k = is_rows ? w->cols : w->rows;
    blas_gemm(m, k, n, left, right, 0, grad + w->offset, k);
}
