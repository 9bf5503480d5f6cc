/* The cell and softmax in 16 lanes. */
#ifdef __AVX512F__

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES  16

typedef __m512 vec;

struct lanes {
    bool is_part;
    __mmask16 mask;
};

INLINE struct lanes all_lanes(void)
{
    return (struct lanes){false, 0xffff};
}
INLINE struct lanes first_lanes(size_t n)
{
    return (struct lanes){true, (__mmask16)((1u << n) - 1)};
}

INLINE vec all(float x)
{
    return _mm512_set1_ps(x);
}
INLINE vec load(const float *p, struct lanes l)
{
    return l.is_part ? _mm512_maskz_loadu_ps(l.mask, p) : _mm512_loadu_ps(p);
}
INLINE void store(float *p, struct lanes l, vec x)
{
    if (l.is_part)
        _mm512_mask_storeu_ps(p, l.mask, x);
    else
        _mm512_storeu_ps(p, x);
}
INLINE vec keep(vec x, struct lanes l, float other)
{
    return l.is_part ? _mm512_mask_blend_ps(l.mask, all(other), x) : x;
}

INLINE vec add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
INLINE vec sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vec mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vec divide(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}
INLINE vec madd(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vec nmadd(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
INLINE vec negate(vec x)
{
    return _mm512_xor_ps(x, all(-0.0f));
}

/* min and max give their second operand where one is NaN. */
INLINE vec largest_of(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
INLINE vec clamp(vec x, vec low, vec high)
{
    return _mm512_min_ps(high, _mm512_max_ps(low, x));
}
INLINE float largest_lane(vec x)
{
    return _mm512_reduce_max_ps(x);
}

/* `table` of gates_loops.h, of whose 16 places the low four bits of n choose one: it is there twice. */
INLINE vec two_to_eighths(vec x, const int *table)
{
    __m512i eight = _mm512_broadcast_i32x8(_mm256_loadu_si256((const __m256i *)table)),
            bits = _mm512_castps_si512(x);
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_permutexvar_epi32(bits, eight), _mm512_slli_epi32(bits, 20)));
}

struct sum {
    __m512d lanes;
};

INLINE struct sum sum_zero(void)
{
    return (struct sum){_mm512_setzero_pd()};
}
INLINE struct sum sum_add(struct sum s, vec x)
{
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x)),
            high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return (struct sum){_mm512_add_pd(s.lanes, _mm512_add_pd(low, high))};
}
INLINE double sum_total(struct sum s)
{
    return _mm512_reduce_add_pd(s.lanes);
}

#include "worker/nnet/kernels/gates_loops.h"

const struct gates gates_avx512 = GATES_OF_LOOPS("avx512");

#endif
