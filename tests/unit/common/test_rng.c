/* Random numbers: the same everywhere, in range, and well spread. */
#include "common/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* splitmix64(0) is published with its first outputs; they seed xoshiro256**. */
static void the_seed_goes_through_splitmix64(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 0);
    assert_true(r.s[0] == 0xE220A8397B1DCDAFull);
    assert_true(r.s[1] == 0x6E789E6AA1B965F4ull);
    assert_true(r.s[2] == 0x06C45D188009454Full);
    assert_true(r.s[3] == 0xF88BB8A8724C81ECull);
}

/* Worked by hand from state {1, 2, 3, 4}: rotl(2 * 5, 7) * 9 = 11520, then s[1] = 0 gives 0, then 1509978240.
 */
static void the_generator_is_xoshiro256_starstar(void **state)
{
    (void)state;
    struct rng r = {{1, 2, 3, 4}};
    assert_true(rng_next(&r) == 11520);
    assert_true(rng_next(&r) == 0);
    assert_true(rng_next(&r) == 1509978240);
}

static void numbers_stay_in_their_range_and_fill_it(void **state)
{
    (void)state;
    struct rng r;
    unsigned seen[7] = {0};
    double sum = 0, squares = 0;
    rng_init(&r, 42);
    for (int i = 0; i < 70000; i++) {
        double u = rng_uniform(&r);
        float f = rng_range(&r, -0.02f, 0.02f);
        uint64_t k = rng_below(&r, 7);
        double z = rng_normal(&r);
        assert_true(u >= 0 && u < 1);
        assert_true(f >= -0.02f && f < 0.02f);
        assert_true(k < 7);
        assert_true(isfinite(z));
        seen[k]++;
        sum += z;
        squares += z * z;
    }
    /* 5 standard deviations: of a count sqrt(70000 * 6/49) = 93, of the mean 0.0038, of the variance 0.0054
     */
    for (int k = 0; k < 7; k++) assert_in_range(seen[k], 10000 - 465, 10000 + 465);
    assert_true(fabs(sum / 70000) < 0.019);
    assert_true(fabs(squares / 70000 - 1) < 0.027);
}

static void derived_seeds_differ_by_use_and_by_item(void **state)
{
    (void)state;
    uint64_t seeds[300];
    size_t n = 0;
    for (uint64_t seed = 0; seed < 3; seed++)
        for (uint64_t what = 0; what < 10; what++)
            for (uint64_t item = 0; item < 10; item++) seeds[n++] = rng_derive(seed, what, item);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) assert_true(seeds[i] != seeds[j]);
}

static void the_order_of_an_epoch_is_a_permutation_of_seed_and_epoch_alone(void **state)
{
    (void)state;
    enum { N = 655 };
    uint32_t a[N], b[N];
    unsigned char seen[N] = {0};
    rng_epoch_order(1, 3, a, N);
    rng_epoch_order(1, 3, b, N);
    assert_memory_equal(a, b, sizeof a);
    for (size_t i = 0; i < N; i++) {
        assert_true(a[i] < N && !seen[a[i]]);
        seen[a[i]] = 1;
    }
    rng_epoch_order(1, 4, b, N);
    assert_memory_not_equal(a, b, sizeof a);
    rng_epoch_order(2, 3, b, N);
    assert_memory_not_equal(a, b, sizeof a);
    rng_epoch_order(1, 1, a, 0);
    rng_epoch_order(1, 1, a, 1);
    assert_int_equal(a[0], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_seed_goes_through_splitmix64),
        cmocka_unit_test(the_generator_is_xoshiro256_starstar),
        cmocka_unit_test(numbers_stay_in_their_range_and_fill_it),
        cmocka_unit_test(derived_seeds_differ_by_use_and_by_item),
        cmocka_unit_test(the_order_of_an_epoch_is_a_permutation_of_seed_and_epoch_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
