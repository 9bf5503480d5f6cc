/* Products with a weight tensor [out][in], whatever the order of its floats (LAYOUT_ROWS or LAYOUT_COLUMNS),
 * for n rows at once. A gradient has the layout of its weight. Any thread. */
#ifndef WORKER_NNET_AFFINE_H
#define WORKER_NNET_AFFINE_H

#include "common/model.h"
#include "worker/nnet/real.h"

#include <stddef.h>

/* n rows of a matrix, `ld` numbers from row to row. */
struct rows {
    real *data; /* view */
    size_t ld;
};
struct const_rows {
    const real *data; /* view */
    size_t ld;
};

/* y (n, out) = x (n, in) W' + beta y */
void affine_forward(const struct tensor *w, const real *params, size_t n, struct const_rows x, real beta,
                    struct rows y);
/* d_x (n, in) = d_y (n, out) W + beta d_x */
void affine_backward(const struct tensor *w, const real *params, size_t n, struct const_rows d_y, real beta,
                     struct rows d_x);
/* grad of W (out, in) = d_y' x, summed over the n rows; overwrites that tensor's part of grad[P]. */
void affine_gradient(const struct tensor *w, size_t n, struct const_rows d_y, struct const_rows x,
                     real *grad);

/* Row `row` of a matrix and those below it. */
static inline struct rows rows_from(struct rows m, size_t row)
{
    return (struct rows){m.data + row * m.ld, m.ld};
}
static inline struct const_rows rows_read(struct rows m)
{
    return (struct const_rows){m.data, m.ld};
}

#endif
