#include "common/element_kernels.h"

/* The kernels of element.c with AVX2 and F16C: the same bytes. Files of this name are built for these
 * instructions; element.c asks the CPU first. */
#if defined(__x86_64__)

#include <immintrin.h>

#define LANES 8

static inline __m256i bits_at(const float *from)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

static inline __m256i magnitude(__m256i bits)
{
    return _mm256_and_si256(bits, _mm256_set1_epi32(ELEMENT_MAGNITUDE));
}

/* ------------------------------------------------------------------ bf16 */

/* Each in the lower half of its 32 bits. */
static inline __m256i bf16_from(__m256i bits)
{
    __m256i upper = _mm256_srli_epi32(bits, 16), odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    __m256i almost_half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, almost_half), 16);
    __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_cmpgt_epi32(magnitude(bits), _mm256_set1_epi32(ELEMENT_INFINITY));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}

static void bf16_encode(const float *from, void *to)
{
    uint16_t *half = to;
    for (int i = 0; i < ELEMENT_GROUP; i += 2 * LANES) {
        __m256i a = bf16_from(bits_at(from + i)), b = bf16_from(bits_at(from + i + LANES));
        /* packing goes by halves of a register: a0 b0 a1 b1 */
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(half + i), packed);
    }
}

static void bf16_decode(const void *from, float *to)
{
    const uint16_t *half = from;
    for (int i = 0; i < ELEMENT_GROUP; i += LANES) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(half + i)));
        _mm256_storeu_si256((__m256i *)(void *)(to + i), _mm256_slli_epi32(wide, 16));
    }
}

/* ------------------------------------------------------------------ fp16 */

static void fp16_encode(const float *from, void *to)
{
    uint16_t *half = to;
    for (int i = 0; i < ELEMENT_GROUP; i += LANES) {
        __m256i bits = bits_at(from + i), x = magnitude(bits), sign = _mm256_xor_si256(bits, x);
        __m256i in_range = _mm256_min_epi32(x, _mm256_set1_epi32(ELEMENT_FP16_MAX));
        __m256i finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(ELEMENT_INFINITY), x);
        __m256i y = _mm256_or_si256(_mm256_blendv_epi8(x, in_range, finite), sign);
        __m128i h = _mm256_cvtps_ph(_mm256_castsi256_ps(y), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128((__m128i *)(void *)(half + i), h);
    }
}

static void fp16_decode(const void *from, float *to)
{
    const uint16_t *half = from;
    for (int i = 0; i < ELEMENT_GROUP; i += LANES)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(half + i))));
}

/* ------------------------------------------------------------------ int8 */

static int32_t largest_magnitude(const float *from)
{
    __m256i a = _mm256_setzero_si256(), b = a;
    for (int i = 0; i < ELEMENT_GROUP; i += 2 * LANES) {
        a = _mm256_max_epi32(a, magnitude(bits_at(from + i)));
        b = _mm256_max_epi32(b, magnitude(bits_at(from + i + LANES)));
    }
    a = _mm256_max_epi32(a, b);
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1));
    return _mm_cvtsi128_si32(x);
}

static inline __m256i quotient(const float *from, __m256 scale)
{
    return _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(from), scale));
}

static void int8_encode(const float *from, void *to)
{
    float scale = element_scale(largest_magnitude(from));
    int8_t *bytes = (int8_t *)to + sizeof scale;
    memcpy(to, &scale, sizeof scale);
    if (!(scale > 0)) {
        memset(bytes, 0, ELEMENT_GROUP);
        return;
    }
    const __m256 s = _mm256_set1_ps(scale);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* undoes packing by halves, twice */
    for (int i = 0; i < ELEMENT_GROUP; i += 4 * LANES) {
        const float *x = from + i;
        __m256i ab = _mm256_packs_epi32(quotient(x, s), quotient(x + LANES, s));
        __m256i cd = _mm256_packs_epi32(quotient(x + 2 * LANES, s), quotient(x + 3 * LANES, s));
        __m256i abcd = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
        abcd = _mm256_max_epi8(abcd, _mm256_set1_epi8(-127));
        _mm256_storeu_si256((__m256i *)(void *)(bytes + i), abcd);
    }
}

static void int8_decode(const void *from, float *to)
{
    float scale;
    memcpy(&scale, from, sizeof scale);
    const int8_t *bytes = (const int8_t *)from + sizeof scale;
    const __m256 s = _mm256_set1_ps(scale);
    for (int i = 0; i < ELEMENT_GROUP; i += LANES) {
        __m256i n = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes + i)));
        _mm256_storeu_ps(to + i, _mm256_mul_ps(s, _mm256_cvtepi32_ps(n)));
    }
}

const struct element_kernel element_avx2[ELEMENT_TYPES] = {
    [ELEMENT_BF16] = {bf16_encode, bf16_decode},
    [ELEMENT_FP16] = {fp16_encode, fp16_decode},
    [ELEMENT_INT8] = {int8_encode, int8_decode},
};

#endif
