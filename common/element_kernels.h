/* What the files of element share; for them and their test alone. Contract: common/element.h. */
#ifndef COMMON_ELEMENT_KERNELS_H
#define COMMON_ELEMENT_KERNELS_H

#include "common/element.h"

#include <stdint.h>
#include <string.h>

/* fp32 as integers: the order of magnitudes is the order of their bits, and no compiler may assume that there
 * are no NaNs. */
#define ELEMENT_MAGNITUDE 0x7fffffff
#define ELEMENT_INFINITY  0x7f800000 /* magnitudes above it: NaN */
#define ELEMENT_FP16_MAX  0x477fe000 /* 65504 */

static inline int32_t element_bits(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float element_float(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Scale of a group of int8 whose largest magnitude has these bits. */
static inline float element_scale(int32_t largest)
{
    return largest < ELEMENT_INFINITY ? element_float(largest) / 127 : element_float(0x7fc00000);
}

/* Both for exactly ELEMENT_GROUP numbers. NaNs become quiet, sign and upper payload stay. */
struct element_kernel {
    void (*encode)(const float *from, void *to);
    void (*decode)(const void *from, float *to);
};

extern const struct element_kernel element_plain[ELEMENT_TYPES];
#if defined(__x86_64__)
extern const struct element_kernel element_avx2[ELEMENT_TYPES]; /* with NULLs where plain C is as good */
#endif

#endif
