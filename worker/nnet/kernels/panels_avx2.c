/* Panels in 8 lanes: 4 rows x 24 columns are 12 accumulators, 3 registers of weights and 1 of x: all 16. */
#ifdef __AVX2__

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>

#define TOGETHER 1
#define LANES    8
#define INLINE   static inline __attribute__((always_inline))

/* Vectors of a strip, and whether the last one is in part, by a mask. */
struct cut {
    int vectors;
    bool part;
    __m256i mask;
};

struct strip {
    __m256 v[3];
};

INLINE struct cut cut_of(const int vectors, const bool part, size_t width)
{
    __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    int last = (int)width - (vectors - 1) * LANES;
    return (struct cut){vectors, part, part ? _mm256_cmpgt_epi32(_mm256_set1_epi32(last), index) : index};
}

INLINE bool is_part(const struct cut cut, int j)
{
    return cut.part && j == cut.vectors - 1;
}

INLINE struct strip strip_zero(void)
{
    __m256 zero = _mm256_setzero_ps();
    return (struct strip){{zero, zero, zero}};
}

INLINE struct strip strip_load(const float *p, size_t second, const struct cut cut)
{
    (void)second;
    struct strip s = strip_zero();
    for (int j = 0; j < cut.vectors; j++)
        s.v[j] =
            is_part(cut, j) ? _mm256_maskload_ps(p + j * LANES, cut.mask) : _mm256_loadu_ps(p + j * LANES);
    return s;
}

INLINE void strip_store(float *p, size_t second, struct strip s, const struct cut cut)
{
    (void)second;
    for (int j = 0; j < cut.vectors; j++)
        if (is_part(cut, j))
            _mm256_maskstore_ps(p + j * LANES, cut.mask, s.v[j]);
        else
            _mm256_storeu_ps(p + j * LANES, s.v[j]);
}

/* acc + x w */
INLINE struct strip strip_madd(struct strip acc, const float *x, struct strip w, const struct cut cut)
{
    __m256 factor = _mm256_broadcast_ss(x);
    for (int j = 0; j < cut.vectors; j++) acc.v[j] = _mm256_fmadd_ps(factor, w.v[j], acc.v[j]);
    return acc;
}

INLINE struct strip strip_mul(struct strip s, float factor)
{
    for (int j = 0; j < 3; j++) s.v[j] = _mm256_mul_ps(s.v[j], _mm256_set1_ps(factor));
    return s;
}

INLINE struct strip strip_square(struct strip sum, struct strip s)
{
    for (int j = 0; j < 3; j++) sum.v[j] = _mm256_fmadd_ps(s.v[j], s.v[j], sum.v[j]);
    return sum;
}

INLINE double strip_sum(struct strip s)
{
    __m256 all = _mm256_add_ps(_mm256_add_ps(s.v[0], s.v[1]), s.v[2]);
    __m256d wide = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(all)),
                                 _mm256_cvtps_pd(_mm256_extractf128_ps(all, 1)));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(wide), _mm256_extractf128_pd(wide, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

#include "worker/nnet/kernels/panels_loops.h"

/* f(cut, width, ...) with a cut that is a constant but for its mask. */
#define WITH_CUT(columns, f, ...)                                                                            \
    ((columns) == 24  ? f(cut_of(3, false, 24), 24, __VA_ARGS__)                                             \
     : (columns) > 16 ? f(cut_of(3, true, columns), columns, __VA_ARGS__)                                    \
     : (columns) > 8  ? f(cut_of(2, true, columns), columns, __VA_ARGS__)                                    \
                      : f(cut_of(1, true, columns), columns, __VA_ARGS__))

void panels_avx2_forward(size_t p, struct panels w, size_t n, struct const_rows x, bool adds, struct rows y)
{
    for (; p < panels_count(w.out); p++) WITH_CUT(panels_width(w.out, p), forward_at, w, p, n, x, adds, y);
}

void panels_avx2_backward(size_t q, struct panels w, size_t n, struct const_rows d_y, bool adds,
                          struct rows d_x, float *scratch)
{
    for (; q < panels_count(w.in); q++)
        WITH_CUT(panels_width(w.in, q), backward_at, w, q, n, d_y, adds, d_x, scratch);
}

double panels_avx2_gradient(size_t p, const struct gradient_job *job)
{
    double sum = 0;
    for (; p < panels_count(job->out); p++) sum += WITH_CUT(panels_width(job->out, p), gradient_at, p, job);
    return sum;
}

static void forward(struct panels w, size_t n, struct const_rows x, bool adds, struct rows y)
{
    panels_avx2_forward(0, w, n, x, adds, y);
}

static void backward(struct panels w, size_t n, struct const_rows d_y, bool adds, struct rows d_x,
                     float *scratch)
{
    panels_avx2_backward(0, w, n, d_y, adds, d_x, scratch);
}

static double gradient(size_t out, size_t n, struct const_rows d_y, const struct panels_gradient *terms,
                       size_t num_terms, float scale, float *bias, float *scratch)
{
    struct gradient_job job;
    panels_pack_job(out, n, d_y, terms, num_terms, scale, bias, scratch, &job);
    return panels_avx2_gradient(0, &job);
}

const struct panel_kernels panels_avx2 = {
    .name = "panels avx2",
    .forward = forward,
    .backward = backward,
    .turn = panels_turn,
    .gradient = gradient,
};

#endif
