/* What a worker is held against: OpenBLAS at its best size, and memory that is only read. */
#ifndef BENCH_COMPUTE_ANCHORS_H
#define BENCH_COMPUTE_ANCHORS_H

#include <stddef.h>

struct gemm;

/* sgemm 2048^3 on one thread. */
struct gemm *gemm_new(void);
/* Returns its flop. */
double gemm_once(struct gemm *g);

/* The sum of n floats (aligned to 16 bytes; a few at the end may be left out): plain loads in eight sums, as
 * an addition takes longer than the loads; no prefetch instruction, which only hinders here. */
float read_once(const float *data, size_t n);

#endif
