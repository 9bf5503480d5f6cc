/* The one door to BLAS: row-major products of real matrices, one BLAS thread (a worker is one core; OpenBLAS
 * with two threads is slower at a few streams). Deterministic: the same call on the same machine gives the
 * same bits. Any thread. */
#ifndef WORKER_NNET_BLAS_H
#define WORKER_NNET_BLAS_H

#include "worker/nnet/real.h"

#include <cblas.h>
#include <stdbool.h>
#include <stddef.h>

enum blas_trans { PLAIN = CblasNoTrans, TRANSPOSED = CblasTrans };

/* One row-major operand: a (rows, cols) with `ld` numbers from row to row, used as it is or transposed. */
struct blas_operand {
    const real *data;
    size_t ld;
    enum blas_trans trans;
};

/* c (m, n) = a (m, k) b (k, n) + beta c, sizes after transposition; ldc numbers from row to row of c. */
static inline void blas_gemm(size_t m, size_t n, size_t k, struct blas_operand a, struct blas_operand b,
                             real beta, real *c, size_t ldc)
{
#ifdef REAL_DOUBLE
    cblas_dgemm(
#else
    cblas_sgemm(
#endif
        CblasRowMajor, (CBLAS_TRANSPOSE)a.trans, (CBLAS_TRANSPOSE)b.trans, (blasint)m, (blasint)n, (blasint)k,
        1, a.data, (blasint)a.ld, b.data, (blasint)b.ld, beta, c, (blasint)ldc);
}

/* Once before the first product of a process. */
static inline void blas_use_one_thread(void)
{
    openblas_set_num_threads(1);
}

#endif
