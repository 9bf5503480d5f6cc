/* The kernels that are not matrix products: the LSTM cell and softmax, one row at a time. Sets with the same
 * contract: gates_portable (plain C and libm; the only one in double), gates_avx2, gates_avx512. No alignment
 * and no multiple of anything is asked of the sizes. NaN comes out as NaN, never as a number. Any thread.
 *
 * Bound: the multiply-add units. In each lane a cell forward is 47 multiply-adds and 5 divisions, backward 31
 * and 1, softmax 7 forward and 8 to scale; a core that does two vectors of multiply-adds a cycle, and a
 * division in the time of two of them, has 3.6 cycles for a cell forward in 8 lanes and 2.1 backward. Memory:
 * softmax reads and writes every logit forward and again to scale, 16 bytes; the exp that it takes twice
 * could be kept from the first time, but then nobody could ask for log posteriors before the gradient. */
#ifndef WORKER_NNET_KERNELS_GATES_H
#define WORKER_NNET_KERNELS_GATES_H

#include "worker/nnet/real.h"

#include <stddef.h>

/* What all rows of one layer share; C = cells. A limit that is off is INFINITY. */
struct cell {
    size_t cells;
    const real *b;               /* view (4C), gates g i f o */
    const real *p_i, *p_f, *p_o; /* views (C); zeros where the model has no peepholes */
    real cell_clip, delta_clip;
};

struct gates {
    const char *name;
    /* One frame of one stream. z (4C) = W_x x + W_r r comes in, the activations g, i, f, o go out:
     *   g = tanh(z_g + b_g)  i = sigm(z_i + b_i + p_i c')  f = sigm(z_f + b_f + p_f c')
     *   c = clip(g i + f c')  o = sigm(z_o + b_o + p_o c)  m = o tanh(c)          c' = c_prev */
    void (*cell_forward)(const struct cell *k, real *z, const real *c_prev, real *c, real *m);
    /* z (4C): activations in, deltas of the four gates (clipped to delta_clip) out. d_c (C): in what t+1
     * sends back to c_t, out what t sends back to c_{t-1}: d_c f + di p_i + df p_f. peephole (3C: i, f, o) +=
     * their gradients. The cell clip is passed through as identity; d_c takes the unclipped do of t, as Kaldi
     * does. */
    void (*cell_backward)(const struct cell *k, real *z, const real *c_prev, const real *c, const real *d_m,
                          real *d_c, real *peephole);
    /* z (n) += b; *max = its maximum; returns the sum of exp(z - max). */
    double (*softmax_forward)(size_t n, real *z, const real *b, real *max);
    /* z (n) = exp(z - max) * factor */
    void (*softmax_scale)(size_t n, real *z, real max, real factor);
    /* z (n) = (z - max) - log_sum */
    void (*softmax_log)(size_t n, real *z, real max, real log_sum);
    /* The largest of z (n), NaN passed over; -INFINITY where there is none. */
    real (*largest)(size_t n, const real *z);
    /* Natural logarithm of a normal number above 0, within 1e-15 of it; INFINITY and NaN stay. */
    double (*log)(double x);
};

extern const struct gates gates_portable;
#ifndef REAL_DOUBLE
extern const struct gates gates_avx2, gates_avx512; /* x86-64 only; call after asking the CPU (plan.h) */
#endif

#endif
