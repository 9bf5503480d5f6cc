/* Inside of the sets for x86-64: what panels_avx2.c and panels_avx512.c share beside the loops. */
#ifndef WORKER_NNET_KERNELS_PANELS_INSIDE_H
#define WORKER_NNET_KERNELS_PANELS_INSIDE_H

#include "worker/nnet/kernels/panels.h"

/* A call of `gradient`, with x of every term in groups of four columns, one term after the other. */
struct gradient_job {
    size_t out, n, num_terms;
    struct const_rows d_y;
    const struct panels_gradient *terms;
    float scale;
    float *bias, *panel, *x; /* panel: (2, n, 24) to work in */
};

/* Fills *job from the arguments of `gradient` and brings x into groups. */
void panels_pack_job(size_t out, size_t n, struct const_rows d_y, const struct panels_gradient *terms,
                     size_t num_terms, float scale, float *bias, float *scratch, struct gradient_job *job);

/* to (cols, rows) = from (rows, cols)', ld numbers from row to row of each. In squares of 8 x 8 in registers:
 * 24 shuffles of two a cycle for 64 numbers, so 5 numbers a cycle in L1; beyond it the cache's bandwidth. */
void panels_turn_matrix(size_t rows, size_t cols, const float *from, size_t ld_from, float *to, size_t ld_to);
/* Of `panels` panels of W (out, in) from p on, the columns of panel q of W': to (their rows, width of q). */
void panels_turn_part(struct panels w, size_t p, size_t panels, size_t q, float *to);
/* As struct panel_kernels has it. */
void panels_turn(struct panels w, size_t begin, size_t end, float *turned);

/* The set avx2, from panel p (of W or, backward, of W') on. */
void panels_avx2_forward(size_t p, struct panels w, size_t n, struct const_rows x, bool adds, struct rows y);
void panels_avx2_backward(size_t q, struct panels w, size_t n, struct const_rows d_y, bool adds,
                          struct rows d_x, float *scratch);
double panels_avx2_gradient(size_t p, const struct gradient_job *job);

#endif
