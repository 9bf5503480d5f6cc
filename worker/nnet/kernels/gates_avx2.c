/* The cell and softmax in 8 lanes. */
#ifdef __AVX2__

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES  8

typedef __m256 vec;

struct lanes {
    bool is_part;
    __m256i mask;
};

INLINE struct lanes all_lanes(void)
{
    return (struct lanes){false, _mm256_setzero_si256()};
}

INLINE struct lanes first_lanes(size_t n)
{
    __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (struct lanes){true, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), index)};
}

INLINE vec all(float x)
{
    return _mm256_set1_ps(x);
}
INLINE vec load(const float *p, struct lanes l)
{
    return l.is_part ? _mm256_maskload_ps(p, l.mask) : _mm256_loadu_ps(p);
}
INLINE void store(float *p, struct lanes l, vec x)
{
    if (l.is_part)
        _mm256_maskstore_ps(p, l.mask, x);
    else
        _mm256_storeu_ps(p, x);
}
INLINE vec keep(vec x, struct lanes l, float other)
{
    return l.is_part ? _mm256_blendv_ps(all(other), x, _mm256_castsi256_ps(l.mask)) : x;
}

INLINE vec add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
INLINE vec sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}
INLINE vec mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
INLINE vec divide(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}
INLINE vec madd(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vec nmadd(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
INLINE vec negate(vec x)
{
    return _mm256_xor_ps(x, all(-0.0f));
}

/* min and max give their second operand where one is NaN. */
INLINE vec largest_of(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
INLINE vec clamp(vec x, vec low, vec high)
{
    return _mm256_min_ps(high, _mm256_max_ps(low, x));
}
INLINE float largest_lane(vec x)
{
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

/* `table` of gates_loops.h. */
INLINE vec two_to_eighths(vec x, const int *table)
{
    __m256i eight = _mm256_loadu_si256((const __m256i *)table), bits = _mm256_castps_si256(x);
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_permutevar8x32_epi32(eight, bits), _mm256_slli_epi32(bits, 20)));
}

struct sum {
    __m256d lanes;
};

INLINE struct sum sum_zero(void)
{
    return (struct sum){_mm256_setzero_pd()};
}
INLINE struct sum sum_add(struct sum s, vec x)
{
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x)),
            high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    return (struct sum){_mm256_add_pd(s.lanes, _mm256_add_pd(low, high))};
}
INLINE double sum_total(struct sum s)
{
    __m128d y = _mm_add_pd(_mm256_castpd256_pd128(s.lanes), _mm256_extractf128_pd(s.lanes, 1));
    return _mm_cvtsd_f64(_mm_add_sd(y, _mm_unpackhi_pd(y, y)));
}

#include "worker/nnet/kernels/gates_loops.h"

const struct gates gates_avx2 = GATES_OF_LOOPS("avx2");

#endif
