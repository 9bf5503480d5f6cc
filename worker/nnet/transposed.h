/* The matrices that a backward pass reads once per frame (w_r, w_m, w_p of every layer), turned around: the
 * same numbers as in params[P], in the order in which few rows are fast. To be loaded after every change of
 * the weights and before net_backward. Several threads may load parts of one and then read it together.
 * Between loads: any thread. */
#ifndef WORKER_NNET_TRANSPOSED_H
#define WORKER_NNET_TRANSPOSED_H

#include "common/model.h"
#include "worker/nnet/kernels/panels.h"

struct transposed;

/* m and k are borrowed until transposed_free. */
struct transposed *transposed_new(const struct model *m, const struct panel_kernels *k);
/* Accepts NULL. */
void transposed_free(struct transposed **t);
/* Part `part` of `parts`, of about equal size. */
void transposed_load(struct transposed *t, const real *params, size_t part, size_t parts);
/* W' (in, out) of that tensor of m; data NULL: it is not among them. */
struct panels transposed_of(const struct transposed *t, const struct tensor *w);

#endif
