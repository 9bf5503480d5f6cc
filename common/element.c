#include "common/element.h"

#include "common/element_kernels.h"
#include "common/err.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* the same bits with every compiler and CPU; gcc -std=c11 does not contract */
#endif

/* Loops here have a fixed count and neither branches nor floats that are chosen between: so they become
 * vector code at -O2. What does not fill a group goes through a copy that does. */

size_t element_bytes(enum element_type t, size_t n)
{
    switch (t) {
    case ELEMENT_FP32:
        return n * sizeof(float);
    case ELEMENT_BF16:
    case ELEMENT_FP16:
        return n * sizeof(uint16_t);
    case ELEMENT_INT8:
        return (n + ELEMENT_GROUP - 1) / ELEMENT_GROUP * sizeof(float) + n;
    case ELEMENT_TYPES:
        break;
    }
    ASSERT(!"an element type");
    return 0;
}

const char *element_name(enum element_type t)
{
    static const char *const names[ELEMENT_TYPES] = {"fp32", "bf16", "fp16", "int8"};
    ASSERT(t < ELEMENT_TYPES);
    return names[t];
}

/* ------------------------------------------------------------------ fp32, bf16 */

static void fp32_encode(const float *from, void *to)
{
    memcpy(to, from, ELEMENT_GROUP * sizeof *from);
}

static void fp32_decode(const void *from, float *to)
{
    memcpy(to, from, ELEMENT_GROUP * sizeof *to);
}

/* Just below half of the last place, and one more if that place is odd: a carry rounds to nearest even. */
static inline uint16_t bf16_from(int32_t bits)
{
    uint32_t b = (uint32_t)bits, rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16, quiet = b >> 16 | 0x40;
    return (uint16_t)((bits & ELEMENT_MAGNITUDE) > ELEMENT_INFINITY ? quiet : rounded);
}

static void bf16_encode(const float *restrict from, void *restrict to)
{
    uint16_t *restrict half = to;
    for (int k = 0; k < ELEMENT_GROUP; k++) half[k] = bf16_from(element_bits(from[k]));
}

static void bf16_decode(const void *restrict from, float *restrict to)
{
    const uint16_t *restrict half = from;
    for (int k = 0; k < ELEMENT_GROUP; k++) to[k] = element_float((int32_t)((uint32_t)half[k] << 16));
}

/* ------------------------------------------------------------------ fp16 */

#define FP16_TINY                                                                                            \
    0x38800000               /* 2^-14, the smallest normal number; below it the last place does not shrink   \
                              */
#define EXPONENTS 0x38000000 /* 112, by which the exponents of fp16 and fp32 differ, at its place in fp32 */

/* Adding 2^13 times the power of two at or below x rounds x to 11 bits, and leaves them as an integer in the
 * last bits of the sum; so the hardware rounds, denormal numbers as well. */
static inline uint16_t fp16_from(int32_t bits)
{
    int32_t x = bits & ELEMENT_MAGNITUDE, in_range = x < ELEMENT_FP16_MAX ? x : ELEMENT_FP16_MAX;
    int32_t power = in_range & ELEMENT_INFINITY;
    power = power > FP16_TINY ? power : FP16_TINY;
    int32_t adder = power + (13 << 23);
    int32_t rounded = element_bits(element_float(in_range) + element_float(adder)) - adder;
    int32_t half = ((power - FP16_TINY) >> 13) + rounded;
    half += x >= ELEMENT_INFINITY ? 1 : 0; /* the one after the largest number is infinity */
    half += x > ELEMENT_INFINITY ? 0x200 | (x >> 13 & 0x1ff) : 0;
    return (uint16_t)(half | (bits >> 16 & 0x8000));
}

static void fp16_encode(const float *restrict from, void *restrict to)
{
    uint16_t *restrict half = to;
    for (int k = 0; k < ELEMENT_GROUP; k++) half[k] = fp16_from(element_bits(from[k]));
}

/* Denormal: its bits as those of a number from 2^-14 on, less 2^-14. The subtraction makes NaNs quiet. */
static inline float fp16_to(uint16_t half)
{
    int32_t x = (half & 0x7fff) << 13, infinity = 0x1f << 23, is_tiny = x < 1 << 23 ? -1 : 0;
    int32_t lift = EXPONENTS + (is_tiny & 1 << 23);
    lift += x >= infinity ? EXPONENTS : 0;
    int32_t bits = element_bits(element_float(x + lift) - element_float(is_tiny & FP16_TINY));
    return element_float(bits | (int32_t)((half & 0x8000u) << 16));
}

static void fp16_decode(const void *restrict from, float *restrict to)
{
    const uint16_t *restrict half = from;
    for (int k = 0; k < ELEMENT_GROUP; k++) to[k] = fp16_to(half[k]);
}

/* ------------------------------------------------------------------ int8 */

#define LANES 16
/* 1.5 * 2^23: added to a small number it leaves the nearest integer in the last bits */
#define ROUNDER 0x4b400000

static int32_t largest_magnitude(const float *from)
{
    int32_t most[LANES] = {0}, largest = 0;
    for (int i = 0; i < ELEMENT_GROUP; i += LANES)
        for (int k = 0; k < LANES; k++) {
            int32_t x = element_bits(from[i + k]) & ELEMENT_MAGNITUDE;
            most[k] = x > most[k] ? x : most[k];
        }
    for (int k = 0; k < LANES; k++) largest = most[k] > largest ? most[k] : largest;
    return largest;
}

/* A denormal scale may be far from exact: then the clamp is needed. */
static void int8_encode(const float *restrict from, void *restrict to)
{
    float scale = element_scale(largest_magnitude(from));
    int8_t *restrict bytes = (int8_t *)to + sizeof scale;
    memcpy(to, &scale, sizeof scale);
    if (!(scale > 0)) {
        memset(bytes, 0, ELEMENT_GROUP);
        return;
    }
    for (int k = 0; k < ELEMENT_GROUP; k++) {
        int32_t n = element_bits(from[k] / scale + element_float(ROUNDER)) - ROUNDER;
        n = n < 127 ? n : 127;
        bytes[k] = (int8_t)(n > -127 ? n : -127);
    }
}

static void int8_decode(const void *restrict from, float *restrict to)
{
    float scale;
    memcpy(&scale, from, sizeof scale);
    const int8_t *restrict bytes = (const int8_t *)from + sizeof scale;
    for (int k = 0; k < ELEMENT_GROUP; k++) to[k] = scale * (float)bytes[k];
}

/* ------------------------------------------------------------------ blocks */

const struct element_kernel element_plain[ELEMENT_TYPES] = {
    [ELEMENT_FP32] = {fp32_encode, fp32_decode},
    [ELEMENT_BF16] = {bf16_encode, bf16_decode},
    [ELEMENT_FP16] = {fp16_encode, fp16_decode},
    [ELEMENT_INT8] = {int8_encode, int8_decode},
};

/* Room for a group of any type. */
struct group {
    _Alignas(8) uint16_t bytes[ELEMENT_GROUP * 2];
};

/* Not every compiler can ask for F16C; there is no AVX2 without it. */
static const struct element_kernel *kernel(enum element_type t)
{
    ASSERT(t < ELEMENT_TYPES);
#if defined(__x86_64__)
    if (element_avx2[t].encode && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &element_avx2[t];
#endif
    return &element_plain[t];
}

static void encode_groups(enum element_type t, const float *from, size_t n, char *to)
{
    const struct element_kernel *k = kernel(t);
    size_t bytes = element_bytes(t, ELEMENT_GROUP);
    for (; n >= ELEMENT_GROUP; n -= ELEMENT_GROUP, from += ELEMENT_GROUP, to += bytes) k->encode(from, to);
    if (n == 0) return;
    float numbers[ELEMENT_GROUP] = {0};
    struct group part;
    memcpy(numbers, from, n * sizeof *from);
    k->encode(numbers, part.bytes);
    memcpy(to, part.bytes, element_bytes(t, n));
}

void element_encode(enum element_type t, const float *from, size_t n, void *to)
{
    if (t != ELEMENT_FP32)
        encode_groups(t, from, n, to);
    else if (to != from && n)
        memcpy(to, from, n * sizeof *from);
}

/* A NaN or infinity in the sum, or made by rounding, leaves nothing behind. */
static void feedback_group(const struct element_kernel *k, const float *restrict from,
                           float *restrict residual, void *restrict to)
{
    float sum[ELEMENT_GROUP], back[ELEMENT_GROUP];
    for (int i = 0; i < ELEMENT_GROUP; i++) sum[i] = from[i] + residual[i];
    k->encode(sum, to);
    k->decode(to, back);
    for (int i = 0; i < ELEMENT_GROUP; i++) {
        int32_t keep = (element_bits(back[i]) & ELEMENT_MAGNITUDE) < ELEMENT_INFINITY ? -1 : 0;
        residual[i] = element_float(element_bits(sum[i] - back[i]) & keep);
    }
}

void element_encode_feedback(enum element_type t, const float *from, float *residual, size_t n, void *to)
{
    const struct element_kernel *k = kernel(t);
    size_t bytes = element_bytes(t, ELEMENT_GROUP);
    char *at = to;
    for (; n >= ELEMENT_GROUP; n -= ELEMENT_GROUP, at += bytes) {
        feedback_group(k, from, residual, at);
        from += ELEMENT_GROUP;
        residual += ELEMENT_GROUP;
    }
    if (n == 0) return;
    float numbers[ELEMENT_GROUP] = {0}, rest[ELEMENT_GROUP] = {0};
    struct group part;
    memcpy(numbers, from, n * sizeof *from);
    memcpy(rest, residual, n * sizeof *residual);
    feedback_group(k, numbers, rest, part.bytes);
    memcpy(residual, rest, n * sizeof *residual);
    memcpy(at, part.bytes, element_bytes(t, n));
}

static void decode_groups(enum element_type t, const char *from, size_t n, float *to)
{
    const struct element_kernel *k = kernel(t);
    size_t bytes = element_bytes(t, ELEMENT_GROUP);
    for (; n >= ELEMENT_GROUP; n -= ELEMENT_GROUP, from += bytes, to += ELEMENT_GROUP) k->decode(from, to);
    if (n == 0) return;
    float numbers[ELEMENT_GROUP];
    struct group part = {{0}};
    memcpy(part.bytes, from, element_bytes(t, n));
    k->decode(part.bytes, numbers);
    memcpy(to, numbers, n * sizeof *to);
}

void element_decode(enum element_type t, const void *from, size_t n, float *to)
{
    if (t != ELEMENT_FP32)
        decode_groups(t, from, n, to);
    else if (n)
        memcpy(to, from, n * sizeof *to);
}
