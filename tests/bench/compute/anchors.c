#include "tests/bench/compute/anchors.h"

#include "common/err.h"
#include "worker/nnet/blas.h"

#define SIZE 2048

struct gemm {
    float *a, *b, *c; /* (SIZE, SIZE) */
};

struct gemm *gemm_new(void)
{
    size_t n = (size_t)SIZE * SIZE;
    struct gemm *g = xcalloc(1, sizeof *g);
    blas_use_one_thread();
    *g = (struct gemm){xaligned(n * sizeof(float)), xaligned(n * sizeof(float)), xaligned(n * sizeof(float))};
    for (size_t i = 0; i < n; i++) g->a[i] = g->b[i] = (float)(i % 7) * 0.1f;
    return g;
}

double gemm_once(struct gemm *g)
{
    struct blas_operand left = {g->a, SIZE, PLAIN}, right = {g->b, SIZE, PLAIN};
    blas_gemm(SIZE, SIZE, SIZE, left, right, 0, g->c, SIZE);
    return 2.0 * SIZE * SIZE * SIZE;
}

/* --- reading */

#define STEP 32 /* floats of two cache lines */
typedef float four __attribute__((vector_size(16), may_alias));

float read_once(const float *data, size_t n)
{
    four s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0};
    for (const four *p = (const four *)data, *end = p + n / STEP * (STEP / 4); p < end; p += 8) {
        s0 += p[0], s1 += p[1], s2 += p[2], s3 += p[3];
        s4 += p[4], s5 += p[5], s6 += p[6], s7 += p[7];
    }
    s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7;
    return s0[0] + s0[1] + s0[2] + s0[3];
}
