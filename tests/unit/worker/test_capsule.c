#include "common/err.h"
#include "common/rng.h"
#include "common/wire.h"
#include "worker/capsule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEED 20

static void make(struct capsule *c)
{
    *c = (struct capsule){.model_hash = 0x0123456789abcdef,
                          .windows = 7,
                          .frames = 1234567890123,
                          .nonfinite = 2,
                          .threads = 2,
                          .state_size = 5,
                          .residual_size = 7};
    c->state = xcalloc(5, sizeof *c->state);
    c->velocity_size = 7;
    c->velocity = xcalloc(7, sizeof *c->velocity);
    c->residual = xcalloc(7, sizeof *c->residual);
    for (int i = 0; i < 5; i++) c->state[i] = (float)i / 3.0f - 0.5f;
    for (int i = 0; i < 7; i++) c->residual[i] = 1e-3f / (float)(i + 1), c->velocity[i] = (float)i - 3;
    c->feed = (struct feed_image){.num_leases = 2, .num_queues = 3, .num_cursors = 3};
    c->feed.leases = xcalloc(2, sizeof *c->feed.leases);
    c->feed.queues = xcalloc(3, sizeof *c->feed.queues);
    c->feed.cursors = xcalloc(3, sizeof *c->feed.cursors);
    for (uint32_t i = 0; i < 2; i++)
        c->feed.leases[i] = (struct feed_lease){.lease = {.kind = LEASE_TRAIN,
                                                          .id = 1ull << 40 | i,
                                                          .epoch = i,
                                                          .begin = 3 + i,
                                                          .end = UINT32_MAX,
                                                          .modulus = 6,
                                                          .residue = 3,
                                                          .residues = 3},
                                                .loss = 0.1 + i,
                                                .frames = 10,
                                                .correct = 9,
                                                .left = 8,
                                                .failed = 7};
    for (uint32_t i = 0; i < 3; i++) {
        c->feed.queues[i] = (struct feed_queue){1ull << 40, 11 + i};
        c->feed.cursors[i] = (struct feed_cursor){1ull << 40, 21 + i, 31 + i};
    }
}

static void assert_same(const struct capsule *a, const struct capsule *b)
{
    size_t n, m;
    char *x = capsule_write(a, &n), *y = capsule_write(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static void test_a_capsule_comes_back_as_it_was_written(void **state)
{
    (void)state;
    struct capsule c, back;
    size_t len;
    make(&c);
    void *bytes = capsule_write(&c, &len);
    assert_int_equal(capsule_read(bytes, len, &back), 0);
    assert_same(&c, &back);
    assert_true(back.model_hash == c.model_hash && back.frames == c.frames && back.windows == 7);
    assert_int_equal(back.nonfinite, 2);
    assert_int_equal(back.threads, 2);
    assert_int_equal(back.residual_size, 7);
    assert_memory_equal(back.residual, c.residual, 7 * sizeof *c.residual);
    assert_int_equal(back.velocity_size, 7);
    assert_memory_equal(back.velocity, c.velocity, 7 * sizeof *c.velocity);
    assert_memory_equal(back.state, c.state, 5 * sizeof *c.state);
    assert_memory_equal(&back.feed.leases[1], &c.feed.leases[1], sizeof(struct feed_lease));
    assert_int_equal(back.feed.queues[2].position, 13);
    assert_int_equal(back.feed.cursors[2].next_frame, 33);
    free(bytes);
    capsule_fini(&c);
    capsule_fini(&back);
}

static void put_hash(uint8_t *bytes, size_t len);

/* A checkpoint of an earlier version: the sentence says so, and nothing is read. */
static void test_a_capsule_of_the_version_before_is_refused_by_name(void **state)
{
    (void)state;
    struct capsule c, back;
    size_t len;
    make(&c);
    uint8_t *bytes = capsule_write(&c, &len);
    assert_memory_equal(bytes, "CHORALE3", 8);
    bytes[7] = '2';
    put_hash(bytes, len);
    assert_int_equal(capsule_read(bytes, len, &back), ERR_DATA);
    assert_non_null(strstr(err_text(), "another version"));
    free(bytes);
    capsule_fini(&c);
}

/* Sizes are compared with what is there before anything is allocated: a length near 2^64 is refused. */
static void test_a_size_beyond_the_bytes_is_refused(void **state)
{
    (void)state;
    struct capsule c = {.model_hash = 1}, back;
    size_t len;
    for (size_t at = 5; at <= 7; at++) { /* word, 4 counters, threads, then the sizes of three vectors */
        uint8_t *bytes = capsule_write(&c, &len);
        for (int n = 0; n < 3; n++) {
            uint64_t size = n == 0 ? UINT64_MAX : n == 1 ? UINT64_MAX / 4 + 1 : len / 4;
            memcpy(bytes + 8 + 8 * at, &size, 8);
            put_hash(bytes, len);
            assert_int_equal(capsule_read(bytes, len, &back), ERR_DATA);
        }
        free(bytes);
    }
}

static void test_an_empty_feed_and_no_state_are_a_capsule_too(void **state)
{
    (void)state;
    struct capsule c = {.model_hash = 1}, back;
    size_t len;
    void *bytes = capsule_write(&c, &len);
    assert_int_equal(capsule_read(bytes, len, &back), 0);
    assert_int_equal(back.feed.num_leases + back.feed.num_queues + back.state_size, 0);
    assert_int_equal(back.residual_size + back.velocity_size, 0);
    free(bytes);
    capsule_fini(&back);
}

static void test_a_truncated_capsule_is_refused(void **state)
{
    (void)state;
    struct capsule c, back;
    size_t len;
    make(&c);
    char *bytes = capsule_write(&c, &len);
    for (size_t n = 0; n < len; n++) {
        char *part = malloc(n + 1); /* of its own, so that a sanitizer sees a read beyond it */
        memcpy(part, bytes, n);
        part = realloc(part, n ? n : 1);
        assert_int_equal(capsule_read(part, n, &back), ERR_DATA);
        free(part);
    }
    free(bytes);
    capsule_fini(&c);
}

static void test_a_capsule_with_a_flipped_bit_is_refused(void **state)
{
    (void)state;
    struct capsule c, back;
    size_t len;
    make(&c);
    uint8_t *bytes = capsule_write(&c, &len);
    for (size_t bit = 0; bit < 8 * len; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(capsule_read(bytes, len, &back), ERR_DATA);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    free(bytes);
    capsule_fini(&c);
}

static void put_hash(uint8_t *bytes, size_t len)
{
    uint64_t hash = wire_hash(bytes, len - 8);
    for (int i = 0; i < 8; i++) bytes[len - 8 + (size_t)i] = (uint8_t)(hash >> (8 * i));
}

/* Whatever the bytes, with a hash that is right: read or refused, nothing else (run under the sanitizers). */
static void test_random_numbers_with_a_good_hash_never_read_beyond_the_end(void **state)
{
    (void)state;
    struct capsule c, back;
    size_t len;
    struct rng r;
    rng_init(&r, SEED);
    printf("seed %d\n", SEED);
    make(&c);
    uint8_t *bytes = capsule_write(&c, &len);
    for (int n = 0; n < 20000; n++) {
        uint8_t *copy = xcalloc(len, 1);
        memcpy(copy, bytes, len);
        size_t at = 8 + rng_below(&r, (len - 24) / 8) * 8;
        uint64_t v = rng_below(&r, 2) ? rng_next(&r) >> rng_below(&r, 64) : rng_below(&r, 70);
        memcpy(copy + at, &v, 8);
        put_hash(copy, len);
        if (capsule_read(copy, len, &back) == 0) capsule_fini(&back);
        free(copy);
    }
    free(bytes);
    capsule_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_capsule_comes_back_as_it_was_written),
        cmocka_unit_test(test_a_capsule_of_the_version_before_is_refused_by_name),
        cmocka_unit_test(test_a_size_beyond_the_bytes_is_refused),
        cmocka_unit_test(test_an_empty_feed_and_no_state_are_a_capsule_too),
        cmocka_unit_test(test_a_truncated_capsule_is_refused),
        cmocka_unit_test(test_a_capsule_with_a_flipped_bit_is_refused),
        cmocka_unit_test(test_random_numbers_with_a_good_hash_never_read_beyond_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
