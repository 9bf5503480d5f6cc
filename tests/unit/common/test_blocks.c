/* The cut: equal blocks whose size is a function of P alone, each owned by exactly one shard. */
#include "common/blocks.h"
#include "common/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <cmocka.h>

static void test_blocks_size_is_clamped_and_a_multiple_of_16(void **state)
{
    (void)state;
    static const struct {
        size_t params;
        uint32_t size, count;
    } cases[] = {{1, 16384, 1},
                 {16384, 16384, 1},
                 {16385, 16384, 2},
                 {16 * 16384, 16384, 16},
                 {16 * 16385, 16400, 16},
                 {1000000, 62512, 16},
                 {16 * 262144, 262144, 16},
                 {16 * 262144 + 1, 262144, 17},
                 {13000000, 262144, 50}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct blocks b;
        blocks_cut(cases[i].params, &b);
        assert_int_equal(b.params, cases[i].params);
        assert_int_equal(b.size, cases[i].size);
        assert_int_equal(b.count, cases[i].count);
    }
}

static void check_cut(const struct blocks *b)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < b->count; i++) {
        assert_int_equal(blocks_offset(b, i), sum);
        assert_in_range(blocks_floats(b, i), 1, b->size);
        sum += blocks_floats(b, i);
    }
    assert_int_equal(sum, b->params);
    assert_int_equal(blocks_span(b, 0, b->count), b->params);
    assert_int_equal(blocks_offset(b, b->count), b->params);
}

/* Runs that follow one another, sizes that differ by one at most, and an owner that agrees with them. */
static void check_shards(const struct blocks *b, uint32_t n)
{
    uint32_t next = 0;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t first, count;
        blocks_of_shard(b, n, k, &first, &count);
        assert_int_equal(first, next);
        assert_in_range(count, b->count / n, b->count / n + 1);
        size_t sum = 0;
        for (uint32_t i = first; i < first + count; i++) {
            assert_int_equal(blocks_owner(b, n, i), k);
            assert_int_equal(blocks_span(b, first, i), sum);
            sum += blocks_floats(b, i);
        }
        assert_int_equal(blocks_span(b, first, first + count), sum);
        next += count;
    }
    assert_int_equal(next, b->count);
}

static void test_blocks_every_block_has_exactly_one_owner(void **state)
{
    (void)state;
    struct rng r;
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    for (int i = 0; i < 200; i++) {
        struct blocks b;
        blocks_cut(1 + (size_t)rng_below(&r, i % 2 ? 40000000 : 200000), &b);
        check_cut(&b);
        check_shards(&b, 1 + (uint32_t)rng_below(&r, 80)); /* also more shards than blocks */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_size_is_clamped_and_a_multiple_of_16),
        cmocka_unit_test(test_blocks_every_block_has_exactly_one_owner),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
