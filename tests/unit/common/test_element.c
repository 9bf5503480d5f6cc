/* Numbers on the wire: the bits are the ones worked out by hand, the nearest there are, the same with every
 * kernel, and with feedback nothing is lost over time. */
#include "common/element.h"
#include "common/element_kernels.h"
#include "common/err.h"
#include "common/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#define NAN_BITS 0x7fc00000u

static struct rng rng;

static float number(uint32_t bits)
{
    return element_float((int32_t)bits);
}

static uint32_t bits_of(float x)
{
    return (uint32_t)element_bits(x);
}

static int seed_rng(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    rng_init(&rng, seed);
    return 0;
}

/* ------------------------------------------------------------------ by hand */

static uint16_t encode_one(enum element_type t, uint32_t bits)
{
    float x = number(bits);
    _Alignas(8) uint16_t half = 0xaaaa;
    element_encode(t, &x, 1, &half);
    return half;
}

static float decode_one(enum element_type t, uint16_t half)
{
    _Alignas(8) uint16_t h = half;
    float x;
    element_decode(t, &h, 1, &x);
    return x;
}

static void names_and_sizes(void **state)
{
    (void)state;
    assert_string_equal(element_name(ELEMENT_FP32), "fp32");
    assert_string_equal(element_name(ELEMENT_BF16), "bf16");
    assert_string_equal(element_name(ELEMENT_FP16), "fp16");
    assert_string_equal(element_name(ELEMENT_INT8), "int8");
    assert_int_equal(element_bytes(ELEMENT_FP32, 600), 2400);
    assert_int_equal(element_bytes(ELEMENT_BF16, 600), 1200);
    assert_int_equal(element_bytes(ELEMENT_FP16, 600), 1200);
    assert_int_equal(element_bytes(ELEMENT_INT8, 600), 600 + 3 * 4);
    assert_int_equal(element_bytes(ELEMENT_INT8, 512), 512 + 2 * 4);
    assert_int_equal(element_bytes(ELEMENT_INT8, 1), 5);
    for (int t = 0; t < ELEMENT_TYPES; t++) assert_int_equal(element_bytes((enum element_type)t, 0), 0);
}

static void bf16_has_the_bits_worked_out_by_hand(void **state)
{
    (void)state;
    static const struct {
        uint32_t from;
        uint16_t to;
    } cases[] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80}, {0xc0000000, 0xc000},
        {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, /* half way: the even one */
        {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82}, {0xbf818000, 0xbf82}, {0x3fffffff, 0x4000},
        {0x00008000, 0x0000}, {0x00018000, 0x0002}, {0x007fffff, 0x0080}, /* denormal */
        {0x7f7f7fff, 0x7f7f}, {0x7f7fffff, 0x7f80},                       /* beyond its largest number */
        {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0xffbfffff, 0xffff},
        {0x7fffffff, 0x7fff},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(encode_one(ELEMENT_BF16, cases[i].from), cases[i].to);
}

static void fp16_has_the_bits_worked_out_by_hand(void **state)
{
    (void)state;
    static const struct {
        uint32_t from;
        uint16_t to;
    } cases[] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3c00},
        {0xc0000000, 0xc000}, {0x3eaaaaab, 0x3555},                       /* 1/3 */
        {0x3f801000, 0x3c00}, {0x3f801001, 0x3c01}, {0x3f803000, 0x3c02}, /* half way: the even one */
        {0x3fffffff, 0x4000}, {0x38800000, 0x0400},                       /* 2^-14, the smallest normal one */
        {0x387fc000, 0x03ff}, {0x387fe000, 0x0400}, {0x387fdfff, 0x03ff}, /* below it */
        {0x33800000, 0x0001}, {0x33000000, 0x0000}, {0x33000001, 0x0001}, /* 2^-24, 2^-25 and just above */
        {0x33c00000, 0x0002}, {0x34200000, 0x0002}, {0xb4200001, 0x8003}, /* 1.5, 2.5 times 2^-24 */
        {0x00000001, 0x0000}, {0x807fffff, 0x8000},                       /* denormal in fp32 */
        {0x477fe000, 0x7bff}, {0x477fefff, 0x7bff}, {0x477ff000, 0x7bff}, /* 65504, 65520: it saturates */
        {0x49742400, 0x7bff}, {0xff7fffff, 0xfbff},                       /* 1e6, the lowest number */
        {0x7f800000, 0x7c00}, {0xff800000, 0xfc00}, {0x7f800001, 0x7e00},
        {0x7fa02000, 0x7f01}, {0xffffffff, 0xffff},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(encode_one(ELEMENT_FP16, cases[i].from), cases[i].to);
}

/* Encodes a group that begins with these numbers; scale as bits. */
static uint32_t encode_int8(const float *numbers, size_t n, int8_t *bytes)
{
    _Alignas(8) char to[4 + ELEMENT_GROUP];
    uint32_t scale;
    element_encode(ELEMENT_INT8, numbers, n, to);
    memcpy(&scale, to, 4);
    memcpy(bytes, to + 4, n);
    return scale;
}

static void int8_has_the_bytes_worked_out_by_hand(void **state)
{
    (void)state;
    static const float ties[] = {127, -127, 1, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 63.4f, -0.0f};
    static const int8_t rounded[] = {127, -127, 1, 0, 2, 2, 0, -2, 63, 0};
    int8_t bytes[ELEMENT_GROUP];
    assert_int_equal(encode_int8(ties, 10, bytes), 0x3f800000); /* scale 1 */
    assert_memory_equal(bytes, rounded, 10);
    assert_int_equal(encode_int8((float[]){0.5f, -1, 0.25f}, 3, bytes), 0x3c010204); /* 1 / 127 */
    assert_memory_equal(bytes, ((int8_t[]){64, -127, 32}), 3);                       /* 63.5, 31.75 */
    assert_int_equal(encode_int8((float[]){0, -0.0f}, 2, bytes), 0);
    assert_memory_equal(bytes, ((int8_t[]){0, 0}), 2);
    /* denormal: 1 / 127 of the last place is nothing; 190 / 127 of it is one, and 190 too many */
    assert_int_equal(encode_int8((float[]){number(1)}, 1, bytes), 0);
    assert_int_equal(bytes[0], 0);
    assert_int_equal(encode_int8((float[]){number(0x800000be), number(100)}, 2, bytes), 1);
    assert_memory_equal(bytes, ((int8_t[]){-127, 100}), 2);
    assert_int_equal(encode_int8((float[]){1, INFINITY}, 2, bytes), NAN_BITS);
    assert_int_equal(encode_int8((float[]){number(0xffc00001), 1}, 2, bytes), NAN_BITS);
}

/* group g begins at g * 260, the last one is short, and nothing is written behind it */
static void int8_groups_follow_one_another(void **state)
{
    (void)state;
    float from[600], back[600], scale;
    char *to = xcalloc(1, element_bytes(ELEMENT_INT8, 600) + 1);
    for (int i = 0; i < 600; i++) from[i] = (float)((i % 100 + 27) * (1 << i / 256)); /* up to 126 */
    for (int g = 0; g < 3; g++) from[g * 256] = (float)(-127 * (1 << g));
    to[612] = 77;
    element_encode(ELEMENT_INT8, from, 600, to);
    for (int g = 0; g < 3; g++) {
        memcpy(&scale, to + g * 260, 4);
        assert_true(scale == (float)(1 << g));
        assert_int_equal(to[g * 260 + 4], -127);
        assert_int_equal(to[g * 260 + 5], (g * 256 + 1) % 100 + 27);
    }
    assert_int_equal(to[612], 77);
    element_decode(ELEMENT_INT8, to, 600, back);
    assert_memory_equal(from, back, sizeof from);
    to[4] = -128; /* never sent by us */
    element_decode(ELEMENT_INT8, to, 1, back);
    assert_true(back[0] == -128);
    free(to);
}

/* ------------------------------------------------------------------ all patterns */

static void bf16_decodes_to_its_bits_and_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float x = decode_one(ELEMENT_BF16, (uint16_t)h);
        assert_int_equal(bits_of(x), h << 16);
        assert_int_equal(encode_one(ELEMENT_BF16, h << 16), (h & 0x7fff) > 0x7f80 ? h | 0x40 : h);
    }
}

static double fp16_value(uint32_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    double x = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -x : x;
}

static void fp16_decodes_to_its_value_and_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float x = decode_one(ELEMENT_FP16, (uint16_t)h);
        uint32_t bits = bits_of(x), magnitude = h & 0x7fff;
        assert_int_equal(bits >> 31, h >> 15);
        if (magnitude < 0x7c00)
            assert_true((double)x == fp16_value(h));
        else if (magnitude == 0x7c00)
            assert_int_equal(bits & 0x7fffffff, 0x7f800000);
        else
            assert_int_equal(bits & 0x7fffffff, 0x7fc00000 | (h & 0x3ff) << 13);
        assert_int_equal(encode_one(ELEMENT_FP16, bits), magnitude > 0x7c00 ? h | 0x200 : h);
    }
}

/* ------------------------------------------------------------------ rounding */

/* Finite: random sign, mantissa, and an exponent of 2^low .. 2^(high - 1). */
static float random_number(int low, int high)
{
    uint32_t exponent = (uint32_t)(127 + low + (int)rng_below(&rng, (uint64_t)(high - low)));
    return number(exponent << 23 | (uint32_t)(rng_next(&rng) & 0x807fffff));
}

/* Is `half` at least as near to x as its neighbours, and even where one is as near? */
static void assert_nearest(enum element_type t, float x, uint16_t half)
{
    double error = fabs((double)x - (double)decode_one(t, half));
    for (int d = -1; d <= 1; d += 2) {
        uint16_t next = (uint16_t)(half + d);
        if ((next ^ half) & 0x8000 || !isfinite(decode_one(t, next))) continue;
        double other = fabs((double)x - (double)decode_one(t, next));
        assert_true(error < other || (error == other && half % 2 == 0));
    }
}

static void halves_are_the_nearest_numbers(void **state)
{
    (void)state;
    for (int i = 0; i < 100000; i++) {
        float x = random_number(-26, 15), y = random_number(-126, 126);
        if (i % 3 == 0) { /* ties */
            x = number(bits_of(x) & 0xfffff000);
            y = number(bits_of(y) & 0xffff8000);
        }
        uint16_t fp16 = encode_one(ELEMENT_FP16, bits_of(x)), bf16 = encode_one(ELEMENT_BF16, bits_of(y));
        assert_nearest(ELEMENT_FP16, x, fp16);
        assert_nearest(ELEMENT_BF16, y, bf16);
        assert_true(fabs((double)x - (double)decode_one(ELEMENT_FP16, fp16)) <=
                    fmax(ldexp(fabs((double)x), -11), ldexp(1, -25)));
        assert_true(fabs((double)y - (double)decode_one(ELEMENT_BF16, bf16)) <= ldexp(fabs((double)y), -8));
    }
}

static void int8_is_wrong_by_half_a_step_at_most(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++) {
        size_t n = 1 + (size_t)rng_below(&rng, 700);
        float *from = xcalloc(n, sizeof *from), *back = xcalloc(n, sizeof *back);
        char *to = xcalloc(1, element_bytes(ELEMENT_INT8, n));
        int low = (int)rng_below(&rng, 200) - 110;
        for (size_t i = 0; i < n; i++) from[i] = random_number(low, low + 10);
        element_encode(ELEMENT_INT8, from, n, to);
        element_decode(ELEMENT_INT8, to, n, back);
        for (size_t i = 0; i < n; i++) {
            float scale;
            memcpy(&scale, to + i / 256 * 260, 4);
            assert_true(fabs((double)from[i] - (double)back[i]) <= (double)scale * 0.50001);
        }
        free(from);
        free(back);
        free(to);
    }
}

static void fp32_is_a_copy_also_in_place(void **state)
{
    (void)state;
    float from[300], to[300], back[300];
    for (int i = 0; i < 300; i++) from[i] = number((uint32_t)rng_next(&rng)); /* NaNs as well */
    element_encode(ELEMENT_FP32, from, 300, to);
    element_decode(ELEMENT_FP32, to, 300, back);
    assert_memory_equal(from, back, sizeof from);
    element_encode(ELEMENT_FP32, to, 300, to);
    assert_memory_equal(from, to, sizeof from);
}

/* ------------------------------------------------------------------ the kernels */

/* Any bits; finite numbers of a few sizes; denormal ones; one that is not finite among others. */
static void random_group(float *x)
{
    static const uint32_t odd[] = {0x7f800000, 0xff800000, 0x7f800001, 0xffc12345, 0x7f7fffff};
    uint64_t kind = rng_below(&rng, 5);
    int low = (int)rng_below(&rng, 230) - 126;
    for (int i = 0; i < ELEMENT_GROUP; i++) {
        uint32_t any = (uint32_t)rng_next(&rng);
        x[i] = kind == 0   ? number(any)
               : kind == 1 ? number(any & 0x800001ff)
               : kind == 2 ? number(any & 0x807fffff)
                           : random_number(low, low + 20);
    }
    if (kind == 4) x[rng_below(&rng, ELEMENT_GROUP)] = number(odd[rng_below(&rng, 5)]);
}

static void avx2_gives_the_bytes_of_plain_c(void **state)
{
    (void)state;
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2")) skip();
    for (int round = 0; round < 3000; round++)
        for (int t = ELEMENT_BF16; t < ELEMENT_TYPES; t++) {
            float from[ELEMENT_GROUP], x[ELEMENT_GROUP], y[ELEMENT_GROUP];
            _Alignas(8) uint16_t a[ELEMENT_GROUP], b[ELEMENT_GROUP];
            size_t bytes = element_bytes((enum element_type)t, ELEMENT_GROUP);
            random_group(from);
            element_plain[t].encode(from, a);
            element_avx2[t].encode(from, b);
            assert_memory_equal(a, b, bytes);
            if (round % 2)
                for (size_t i = 0; i < bytes / 2; i++) a[i] = (uint16_t)rng_next(&rng); /* a peer's bytes */
            element_plain[t].decode(a, x);
            element_avx2[t].decode(a, y);
            assert_memory_equal(x, y, sizeof x);
        }
#else
    skip();
#endif
}

/* what does not fill a group has the bytes of the same numbers in a group, and nothing is touched around it
 */
static void any_length_is_encoded_like_whole_groups(void **state)
{
    (void)state;
    for (int round = 0; round < 400; round++)
        for (int k = 0; k < ELEMENT_TYPES; k++) {
            enum element_type t = (enum element_type)k;
            size_t n = (size_t)rng_below(&rng, 700), whole = (n + 255) / 256 * 256;
            float *padded = xcalloc(whole, sizeof *padded), *from = malloc(n * sizeof *from + 1);
            float *back = malloc(n * sizeof *back + 1), *expected = xcalloc(whole, sizeof *expected);
            char *a = xcalloc(1, element_bytes(t, whole)), *b = malloc(element_bytes(t, n) + 1);
            for (size_t i = 0; i < n; i++) padded[i] = random_number(-20, 20);
            memcpy(from, padded, n * sizeof *from);
            element_encode(t, padded, whole, a);
            element_encode(t, from, n, b);
            assert_memory_equal(a, b, element_bytes(t, n));
            element_decode(t, a, whole, expected);
            element_decode(t, b, n, back);
            assert_memory_equal(expected, back, n * sizeof *back);
            free(padded);
            free(from);
            free(back);
            free(expected);
            free(a);
            free(b);
        }
}

/* ------------------------------------------------------------------ feedback */

/* what arrives and what is kept add up to what was there, to the last bit */
static void feedback_keeps_exactly_what_rounding_took(void **state)
{
    (void)state;
    for (int round = 0; round < 500; round++)
        for (int k = 0; k < ELEMENT_TYPES; k++) {
            enum element_type t = (enum element_type)k;
            size_t n = 1 + (size_t)rng_below(&rng, 600);
            float *from = xcalloc(n, sizeof *from), *residual = xcalloc(n, sizeof *residual);
            float *sum = xcalloc(n, sizeof *sum), *back = xcalloc(n, sizeof *back);
            char *to = xcalloc(1, element_bytes(t, n)), *same = xcalloc(1, element_bytes(t, n));
            for (size_t i = 0; i < n; i++) {
                from[i] = random_number(-12, 18); /* fp16: some above its range, some denormal */
                residual[i] = random_number(-20, 0);
                sum[i] = from[i] + residual[i];
            }
            element_encode_feedback(t, from, residual, n, to);
            element_encode(t, sum, n, same);
            assert_memory_equal(to, same, element_bytes(t, n));
            element_decode(t, to, n, back);
            for (size_t i = 0; i < n; i++) {
                assert_true((double)back[i] + (double)residual[i] == (double)sum[i]);
                if (t == ELEMENT_FP32) assert_true(residual[i] == 0);
            }
            free(from);
            free(residual);
            free(sum);
            free(back);
            free(to);
            free(same);
        }
}

static void what_is_not_finite_leaves_no_residual(void **state)
{
    (void)state;
    for (int k = 0; k < ELEMENT_TYPES; k++) {
        enum element_type t = (enum element_type)k;
        float from[8] = {1.001f, INFINITY, -INFINITY, NAN, 3e38f, 3.4e38f, 2.003f, 1}, back[8];
        float residual[8] = {0, 0, INFINITY, 1, 3e38f, 0, NAN, 1e-5f};
        _Alignas(8) char to[32];
        element_encode_feedback(t, from, residual, 8, to);
        element_decode(t, to, 8, back);
        for (int i = 0; i < 8; i++) {
            assert_true(isfinite(residual[i]));
            if (!isfinite(back[i])) assert_true(residual[i] == 0);
        }
        for (int i = 1; i < 7; i++) assert_true(i == 5 || !isfinite(back[i]));
    }
}

/* A small gradient, a thousand times, beside a large one (which sets the scale of int8). Returns by how many
 * quanta what arrived is off. */
static double drift(enum element_type t, bool feedback)
{
    const float from[2] = {1, 0.00123f};
    float residual[2] = {0, 0}, back[2];
    double quantum = t == ELEMENT_INT8 ? 1 / 127. : ldexp(1, t == ELEMENT_BF16 ? -17 : -20), arrived = 0;
    _Alignas(8) char to[16];
    for (int step = 0; step < 1000; step++) {
        if (feedback)
            element_encode_feedback(t, from, residual, 2, to);
        else
            element_encode(t, from, 2, to);
        element_decode(t, to, 2, back);
        arrived += (double)back[1];
    }
    return fabs(arrived - 1000 * (double)from[1]) / quantum;
}

static void with_feedback_nothing_is_lost_over_a_thousand_steps(void **state)
{
    (void)state;
    for (int t = ELEMENT_BF16; t < ELEMENT_TYPES; t++) {
        assert_true(drift((enum element_type)t, true) <= 1);
        assert_true(drift((enum element_type)t, false) > 50); /* and that is what it is for */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_sizes),
        cmocka_unit_test(bf16_has_the_bits_worked_out_by_hand),
        cmocka_unit_test(fp16_has_the_bits_worked_out_by_hand),
        cmocka_unit_test(int8_has_the_bytes_worked_out_by_hand),
        cmocka_unit_test(int8_groups_follow_one_another),
        cmocka_unit_test(bf16_decodes_to_its_bits_and_back),
        cmocka_unit_test(fp16_decodes_to_its_value_and_back),
        cmocka_unit_test(halves_are_the_nearest_numbers),
        cmocka_unit_test(int8_is_wrong_by_half_a_step_at_most),
        cmocka_unit_test(fp32_is_a_copy_also_in_place),
        cmocka_unit_test(avx2_gives_the_bytes_of_plain_c),
        cmocka_unit_test(any_length_is_encoded_like_whole_groups),
        cmocka_unit_test(feedback_keeps_exactly_what_rounding_took),
        cmocka_unit_test(what_is_not_finite_leaves_no_residual),
        cmocka_unit_test(with_feedback_nothing_is_lost_over_a_thousand_steps),
    };
    return cmocka_run_group_tests(tests, seed_rng, NULL);
}
