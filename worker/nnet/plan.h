/* Which kernels serve a model on this CPU: decided once per net, never per step. Any thread. */
#ifndef WORKER_NNET_PLAN_H
#define WORKER_NNET_PLAN_H

#include "common/model.h"
#include "worker/nnet/kernels/gates.h"
#include "worker/nnet/kernels/panels.h"

#include <stddef.h>

enum plan_level { PLAN_BEST, PLAN_PORTABLE, PLAN_AVX2, PLAN_AVX512 };

struct plan {
    enum plan_level level; /* not PLAN_BEST */
    const struct gates *gates;
    const struct panel_kernels *panels;
};

/* PLAN_BEST: the fastest that this CPU has. Another level must be one that plan_has. */
struct plan plan_make(enum plan_level level);
bool plan_has(enum plan_level level);
/* "portable", "avx2", "avx512"; PLAN_BEST: "best". */
const char *plan_level_name(enum plan_level level);

/* One product of a model: which kernel serves it. */
struct plan_product {
    char what[48];      /* "layer0.w_r backward" */
    size_t out, in;     /* of the matrix as the kernel reads it */
    size_t rows;        /* of one call */
    size_t calls;       /* per window */
    const char *kernel; /* "panels avx512", "panels avx2, turned once", "OpenBLAS": a constant */
};
/* All products of one window of T frames of S streams, forward, backward, gradients, in the order in which
 * they run. Returns how many there are; writes at most `max` of them. */
size_t plan_products(const struct model *m, const struct plan *p, size_t frames, size_t streams,
                     struct plan_product *out, size_t max);

/* Numbers from row to row of a buffer of n columns: whole cache lines, and never a multiple of 2 KiB, where
 * every row would fall on the same few cache sets. */
size_t plan_stride(size_t n);

#endif
