/* Products with a weight tensor [out][in] of the vector, in panels (LAYOUT_PANELS), for n rows at once. A
 * gradient has the layout of its weight. One workspace per thread. */
#ifndef WORKER_NNET_AFFINE_H
#define WORKER_NNET_AFFINE_H

#include "common/model.h"
#include "worker/nnet/kernels/panels.h"
#include "worker/nnet/real.h"
#include "worker/nnet/transposed.h"

#include <stddef.h>

/* What the products of a net need beside their operands. */
struct workspace {
    const struct panel_kernels *kernels;
    real scale;    /* of all gradients */
    real *scratch; /* owned; for n rows of at most `in` columns */
};

/* For products of n rows, gradients with at most `in` inputs in one call. */
void workspace_init(struct workspace *s, const struct panel_kernels *k, real scale, size_t n, size_t in);
void workspace_fini(struct workspace *s);

/* y (n, out) = x (n, in) W', or adds to it */
void affine_forward(const struct workspace *s, const struct tensor *w, const real *params, size_t n,
                    struct const_rows x, bool adds, struct rows y);
/* d_x (n, in) = d_y (n, out) W, or adds to it. t: has W turned around, for few rows; NULL: done on the way.
 */
void affine_backward(const struct workspace *s, const struct tensor *w, const real *params,
                     const struct transposed *t, size_t n, struct const_rows d_y, bool adds, struct rows d_x);

/* One weight of those that share a delta. */
struct affine_input {
    const struct tensor *w;
    struct const_rows x; /* (n, in) */
};
/* Of every W (out, in): scale * d_y' x, summed over the n rows, and of bias b (out; NULL: none): overwrites
 * those tensors' parts of grad[P]. At most AFFINE_INPUTS. Returns the sum of the squares. */
#define AFFINE_INPUTS 2
double affine_gradient(const struct workspace *s, const struct affine_input *inputs, size_t num_inputs,
                       const struct tensor *b, size_t n, struct const_rows d_y, real *grad);

#endif
