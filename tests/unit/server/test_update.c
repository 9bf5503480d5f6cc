/* One pass gives the bits of plain loops, the rate follows from frames alone, and nothing that is not finite
 * is called finite. */
#include "common/err.h"
#include "common/rng.h"
#include "server/update.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define SEED 41

static const size_t sizes[] = {0, 1, 7, 8, 9, 63, 64, 65, 1000, 4096};
#define NUM_SIZES (sizeof sizes / sizeof *sizes)

static float *random_floats(struct rng *r, size_t n)
{
    float *x = xaligned((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(r);
    return x;
}

static float *copy_floats(const float *from, size_t n)
{
    float *x = xaligned((n + 1) * sizeof *x);
    memcpy(x, from, n * sizeof *x);
    return x;
}

/* Every product and sum rounded by itself: volatile forbids a fused multiply-add. */
static void plain_step(const struct update_rule *r, float rate, float *g, float *w, float *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        volatile float step = g[i], product;
        if (r->type == OPTIMIZER_MOMENTUM) {
            product = r->momentum * v[i];
            step = product + g[i];
            v[i] = step;
        }
        product = rate * step;
        w[i] = w[i] - product;
        g[i] = w[i];
    }
}

static void same_as_plain_loops(enum optimizer_type type)
{
    struct rng random;
    rng_init(&random, SEED);
    struct update_rule r = {.type = type, .momentum = 0.9f};
    for (size_t k = 0; k < NUM_SIZES; k++) {
        size_t n = sizes[k];
        float *w = random_floats(&random, n), *v = random_floats(&random, n);
        float *w2 = copy_floats(w, n), *v2 = copy_floats(v, n);
        for (int step = 0; step < 3; step++) {
            float *g = random_floats(&random, n), *g2 = copy_floats(g, n);
            update_apply(&r, 0.037f, g, w, type == OPTIMIZER_SGD ? NULL : v, n);
            plain_step(&r, 0.037f, g2, w2, v2, n);
            assert_memory_equal(g, g2, n * sizeof *g);
            assert_memory_equal(w, w2, n * sizeof *w);
            assert_memory_equal(v, v2, n * sizeof *v);
            assert_memory_equal(g, w, n * sizeof *g);
            free(g);
            free(g2);
        }
        free(w), free(v), free(w2), free(v2);
    }
}

static void sgd_has_the_bits_of_plain_loops(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    same_as_plain_loops(OPTIMIZER_SGD);
}

static void momentum_has_the_bits_of_plain_loops(void **state)
{
    (void)state;
    same_as_plain_loops(OPTIMIZER_MOMENTUM);
}

static void one_number_that_is_not_finite_is_found_anywhere(void **state)
{
    (void)state;
    const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 0xffffffff};
    const uint32_t good[] = {0x7f7fffff, 0xff7fffff, 0x00000001, 0x80000000, 0};
    for (size_t k = 0; k < NUM_SIZES; k++) {
        size_t n = sizes[k];
        float *x = xaligned((n + 1) * sizeof *x);
        for (size_t i = 0; i < n; i++) memcpy(&x[i], &good[i % 5], sizeof *x);
        assert_true(update_finite(x, n));
        for (size_t i = 0; i<n; i += n> 100 ? 13 : 1) {
            float kept = x[i];
            memcpy(&x[i], &bad[i % 6], sizeof *x);
            assert_false(update_finite(x, n));
            x[i] = kept;
        }
        free(x);
    }
}

static void the_norm_is_the_root_of_the_sum_of_squares(void **state)
{
    (void)state;
    float x[21];
    for (int i = 0; i < 21; i++) x[i] = (float)(i + 1);
    assert_true(fabs(update_norm(x, 21) - sqrt(21 * 22 * 43 / 6.0)) < 1e-12); /* n (n+1) (2n+1) / 6 */
    assert_true(update_norm(x, 0) == 0);
}

static void a_sum_and_a_division_are_element_by_element(void **state)
{
    (void)state;
    float a[19], b[19];
    for (int i = 0; i < 19; i++) a[i] = (float)i, b[i] = 0.1f;
    update_add(a, b, 19);
    for (int i = 0; i < 19; i++) assert_true(a[i] == (float)i + 0.1f);
    update_divide(a, 3, 19);
    for (int i = 0; i < 19; i++) assert_true(a[i] == ((float)i + 0.1f) / 3);
}

static void a_constant_rate_stays(void **state)
{
    (void)state;
    struct update_rule r = {.rate = 0.05, .schedule = SCHEDULE_CONSTANT, .factor = 0.5, .epoch_frames = 10};
    assert_true(update_rate(&r, 0) == 0.05 && update_rate(&r, 1000000) == 0.05);
}

/* 100 frames an epoch: epoch 3 begins with frame 200. */
static void halving_begins_with_its_epoch(void **state)
{
    (void)state;
    struct update_rule r = {.rate = 0.8, .schedule = SCHEDULE_HALVE, .factor = 0.5, .epoch_frames = 100};
    r.from_epoch = 3;
    assert_true(update_rate(&r, 0) == 0.8);
    assert_true(update_rate(&r, 199) == 0.8);
    assert_true(update_rate(&r, 200) == 0.4);
    assert_true(update_rate(&r, 299) == 0.4);
    assert_true(update_rate(&r, 300) == 0.2);
    assert_true(update_rate(&r, 1000) == 0.8 * pow(0.5, 9));
}

static void newbob_waits_until_it_is_told(void **state)
{
    (void)state;
    struct update_rule r = {.rate = 0.8, .schedule = SCHEDULE_NEWBOB, .factor = 0.5, .epoch_frames = 100};
    assert_true(update_rate(&r, 5000) == 0.8);
    r.from_epoch = 4;
    assert_true(update_rate(&r, 299) == 0.8);
    assert_true(update_rate(&r, 300) == 0.4);
}

static void an_exponential_rate_is_smooth_in_frames(void **state)
{
    (void)state;
    struct update_rule r = {.rate = 1, .schedule = SCHEDULE_EXPONENTIAL, .factor = 0.25, .per_frames = 1000};
    assert_true(update_rate(&r, 0) == 1);
    assert_true(fabs(update_rate(&r, 500) - 0.5) < 1e-15);
    assert_true(fabs(update_rate(&r, 1000) - 0.25) < 1e-15);
    assert_true(fabs(update_rate(&r, 2000) - 0.0625) < 1e-15);
}

static void the_rule_comes_from_the_configuration(void **state)
{
    (void)state;
    struct config c;
    config_default(&c);
    c.optimizer.type = OPTIMIZER_MOMENTUM;
    c.optimizer.rate = 0.25;
    c.optimizer.momentum = 0.75;
    c.optimizer.schedule.type = SCHEDULE_HALVE;
    c.optimizer.schedule.from_epoch = 7;
    c.optimizer.schedule.factor = 0.5;
    struct update_rule r;
    update_rule_from(&c, 1234, &r);
    assert_true(r.type == OPTIMIZER_MOMENTUM && r.rate == 0.25 && r.momentum == 0.75f);
    assert_true(r.from_epoch == 7 && r.factor == 0.5 && r.epoch_frames == 1234);
    c.optimizer.schedule.type = SCHEDULE_NEWBOB;
    update_rule_from(&c, 1234, &r);
    assert_int_equal(r.from_epoch, 0);
    config_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sgd_has_the_bits_of_plain_loops),
        cmocka_unit_test(momentum_has_the_bits_of_plain_loops),
        cmocka_unit_test(one_number_that_is_not_finite_is_found_anywhere),
        cmocka_unit_test(the_norm_is_the_root_of_the_sum_of_squares),
        cmocka_unit_test(a_sum_and_a_division_are_element_by_element),
        cmocka_unit_test(a_constant_rate_stays),
        cmocka_unit_test(halving_begins_with_its_epoch),
        cmocka_unit_test(newbob_waits_until_it_is_told),
        cmocka_unit_test(an_exponential_rate_is_smooth_in_frames),
        cmocka_unit_test(the_rule_comes_from_the_configuration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
