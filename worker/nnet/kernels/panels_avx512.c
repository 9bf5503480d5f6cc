/* Two panels side by side: 4 rows x 48 columns are 12 accumulators of 16 lanes. What is left of a matrix
 * after the last whole pair of panels goes through the set avx2. */
#ifdef __AVX512F__

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>

#define TOGETHER 2
#define INLINE   static inline __attribute__((always_inline))

struct cut {
    char whole; /* always */
};

struct strip {
    __m512 first, second, rest; /* 16 columns of each panel; the last 8 of the first, then of the second */
};

INLINE struct strip strip_zero(void)
{
    __m512 zero = _mm512_setzero_ps();
    return (struct strip){zero, zero, zero};
}

INLINE struct strip strip_load(const float *p, size_t second, const struct cut cut)
{
    (void)cut;
    __m512 low = _mm512_castps256_ps512(_mm256_loadu_ps(p + 16));
    return (struct strip){_mm512_loadu_ps(p), _mm512_loadu_ps(p + second),
                          _mm512_insertf32x8(low, _mm256_loadu_ps(p + second + 16), 1)};
}

INLINE void strip_store(float *p, size_t second, struct strip s, const struct cut cut)
{
    (void)cut;
    _mm512_storeu_ps(p, s.first);
    _mm512_storeu_ps(p + second, s.second);
    _mm256_storeu_ps(p + 16, _mm512_castps512_ps256(s.rest));
    _mm256_storeu_ps(p + second + 16, _mm512_extractf32x8_ps(s.rest, 1));
}

/* acc + x w */
INLINE struct strip strip_madd(struct strip acc, const float *x, struct strip w, const struct cut cut)
{
    (void)cut;
    __m512 factor = _mm512_set1_ps(*x);
    return (struct strip){_mm512_fmadd_ps(factor, w.first, acc.first),
                          _mm512_fmadd_ps(factor, w.second, acc.second),
                          _mm512_fmadd_ps(factor, w.rest, acc.rest)};
}

INLINE struct strip strip_mul(struct strip s, float factor)
{
    __m512 f = _mm512_set1_ps(factor);
    return (struct strip){_mm512_mul_ps(s.first, f), _mm512_mul_ps(s.second, f), _mm512_mul_ps(s.rest, f)};
}

INLINE struct strip strip_square(struct strip sum, struct strip s)
{
    return (struct strip){_mm512_fmadd_ps(s.first, s.first, sum.first),
                          _mm512_fmadd_ps(s.second, s.second, sum.second),
                          _mm512_fmadd_ps(s.rest, s.rest, sum.rest)};
}

INLINE double strip_sum(struct strip s)
{
    __m512 all = _mm512_add_ps(_mm512_add_ps(s.first, s.second), s.rest);
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(all)),
                                              _mm512_cvtps_pd(_mm512_extractf32x8_ps(all, 1))));
}

#include "worker/nnet/kernels/panels_loops.h"

static const struct cut whole;

/* Whole panels in whole pairs. */
static size_t paired(size_t out)
{
    return out / PANEL / 2 * 2;
}

static void forward(struct panels w, size_t n, struct const_rows x, bool adds, struct rows y)
{
    for (size_t p = 0; p < paired(w.out); p += 2) forward_at(whole, PANEL, w, p, n, x, adds, y);
    panels_avx2_forward(paired(w.out), w, n, x, adds, y);
}

static void backward(struct panels w, size_t n, struct const_rows d_y, bool adds, struct rows d_x,
                     float *scratch)
{
    for (size_t q = 0; q < paired(w.in); q += 2) backward_at(whole, PANEL, w, q, n, d_y, adds, d_x, scratch);
    panels_avx2_backward(paired(w.in), w, n, d_y, adds, d_x, scratch);
}

static double gradient(size_t out, size_t n, struct const_rows d_y, const struct panels_gradient *terms,
                       size_t num_terms, float scale, float *bias, float *scratch)
{
    struct gradient_job job;
    double sum = 0;
    panels_pack_job(out, n, d_y, terms, num_terms, scale, bias, scratch, &job);
    for (size_t p = 0; p < paired(out); p += 2) sum += gradient_at(whole, PANEL, p, &job);
    return sum + panels_avx2_gradient(paired(out), &job);
}

const struct panel_kernels panels_avx512 = {
    .name = "panels avx512",
    .forward = forward,
    .backward = backward,
    .turn = panels_turn,
    .gradient = gradient,
};

#endif
