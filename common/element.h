/* Element types of blocks on the wire. The servers keep fp32; what travels may be narrower, and the
 * conversion is the copy into or out of the frame. Little-endian.
 *
 *   fp32  4 bytes
 *   bf16  upper half of fp32, rounded to nearest even
 *   fp16  IEEE binary16, rounded to nearest even; above its range: its largest number
 *   int8  groups of 256 numbers (the last may be shorter): an fp32 scale, then one signed byte each;
 *         value = scale * byte, scale = largest magnitude / 127, rounded to nearest even
 *
 * The same numbers give the same bytes on every CPU. Non-finite numbers: fp32, bf16 and fp16 keep them
 * non-finite (bf16, fp16: NaNs become quiet); a group of int8 that has one gets a NaN as its scale. Plain
 * functions, any thread. Source: QSGD (Alistarh 2017) for the scales, Seide 2014 for the error feedback. */
#ifndef COMMON_ELEMENT_H
#define COMMON_ELEMENT_H

#include <stddef.h>

enum element_type { ELEMENT_FP32, ELEMENT_BF16, ELEMENT_FP16, ELEMENT_INT8, ELEMENT_TYPES };

#define ELEMENT_GROUP 256

/* Bytes of n numbers. */
size_t element_bytes(enum element_type t, size_t n);
const char *element_name(enum element_type t); /* "bf16" */
/* to: element_bytes(t, n), aligned to 4; must not overlap `from`, but for fp32, where it may be `from`. */
void element_encode(enum element_type t, const float *from, size_t n, void *to);
/* Encodes from + residual; what rounding took off is the new residual (fp32: 0). Where the receiver gets no
 * finite number the residual becomes 0. No two of the three may overlap. */
void element_encode_feedback(enum element_type t, const float *from, float *residual, size_t n, void *to);
/* from: element_bytes(t, n), aligned to 4; bytes of a peer: any bits are allowed. */
void element_decode(enum element_type t, const void *from, size_t n, float *to);

#endif
