/* Percentiles are those of the sorted records, an interval begins anew with its line, the line is JSON. */
#include "common/rng.h"
#include "server/staleness.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define SEED 17

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: element ceil(n p / 100), counted from 1. */
static uint32_t sorted_percentile(const uint32_t *sorted, size_t n, size_t percent)
{
    return sorted[(n * percent + 99) / 100 - 1];
}

static void add(struct staleness *s, uint64_t member, uint64_t versions)
{
    struct staleness_record r = {member, versions, versions * 320, 250000, 2};
    staleness_add(s, &r);
}

static void percentiles_are_those_of_a_sorted_array(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    struct rng random;
    rng_init(&random, SEED);
    for (size_t n = 1; n < 3000; n = n * 2 + 1) {
        struct staleness *s = staleness_new();
        uint32_t *all = calloc(n, sizeof *all);
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            all[i] = (uint32_t)rng_below(&random, rng_below(&random, 4) ? 12 : 1024);
            sum += all[i];
            add(s, 1 + i % 3, all[i]);
        }
        qsort(all, n, sizeof *all, by_value);
        struct staleness_summary m;
        staleness_summarise(s, 0, &m);
        assert_int_equal(m.count, n);
        assert_int_equal(m.p50, sorted_percentile(all, n, 50));
        assert_int_equal(m.p95, sorted_percentile(all, n, 95));
        assert_int_equal(m.max, all[n - 1]);
        assert_true(fabs(m.mean - sum / (double)n) < 1e-9);
        assert_true(fabs(m.mean_frames - 320 * m.mean) < 1e-6 && fabs(m.mean_seconds - 0.25) < 1e-12);
        assert_true(m.mean_skew == 2);
        free(all);
        staleness_free(&s);
    }
}

/* From 1024 on a bin is 1/512 of its value wide. */
static void large_values_are_told_within_their_bin(void **state)
{
    (void)state;
    for (uint64_t v = 1024; v <= 1ull << 33; v = v * 5 / 3 + 1) {
        struct staleness *s = staleness_new();
        add(s, 1, v);
        struct staleness_summary m;
        staleness_summarise(s, 0, &m);
        uint64_t told = v < UINT32_MAX ? v : UINT32_MAX;
        assert_true(m.p50 <= told && told - m.p50 <= told / 512);
        assert_int_equal(m.max, told);
        staleness_free(&s);
    }
}

static void a_line_is_json_and_ends_the_interval(void **state)
{
    (void)state;
    struct staleness *s = staleness_new();
    assert_null(staleness_line(s, 1, 0, 2));
    for (uint32_t i = 0; i < 10; i++) add(s, i < 4 ? 7 : 3, i);
    char *line = staleness_line(s, 1, 8123, 3);
    json_error_t e;
    json_t *j = json_loads(line, 0, &e);
    assert_non_null(j);
    const char *ts, *ev;
    int shard, ver, n, p50, p95, max, n3, max7;
    double mean, frames, seconds, per_worker, skew, mean3;
    assert_int_equal(
        json_unpack(j, "{s:s s:s s:i s:i s:i s:i s:i s:i s:F s:F s:F s:F s:F s:{s:{s:i s:F} s:{s:i}}}", "ts",
                    &ts, "ev", &ev, "shard", &shard, "ver", &ver, "n", &n, "p50", &p50, "p95", &p95, "max",
                    &max, "mean", &mean, "frames", &frames, "seconds", &seconds, "skew", &skew, "per_worker",
                    &per_worker, "by_worker", "3", "n", &n3, "mean", &mean3, "7", "max", &max7),
        0);
    assert_string_equal(ev, "staleness");
    assert_true(shard == 1 && ver == 8123 && n == 10 && p50 == 4 && p95 == 9 && max == 9);
    assert_true(mean == 4.5 && frames == 1440 && seconds == 0.25 && per_worker == 2.25 && skew == 2);
    assert_true(n3 == 6 && mean3 == 6.5 && max7 == 3);
    json_decref(j);
    free(line);
    assert_null(staleness_line(s, 1, 8123, 3));
    add(s, 9, 100);
    struct staleness_summary life, interval;
    staleness_summarise(s, 0, &life);
    staleness_summarise(s, 1, &interval);
    assert_true(life.count == 11 && life.max == 100 && interval.count == 1 && interval.p50 == 100);
    staleness_free(&s);
}

/* Version v of a block stands after 10 + 20 + ... + 10 v frames. */
static void frames_in_between_are_exact_for_recent_versions(void **state)
{
    (void)state;
    struct staleness_history h = {0};
    staleness_history_begin(&h, 5, 1000);
    assert_int_equal(staleness_history_since(&h, 5), 0);
    uint64_t frames = 1000;
    for (uint64_t v = 6; v < 700; v++) {
        frames += 10 * v;
        staleness_history_add(&h, frames);
        uint64_t base = v > 205 ? v - 200 : 5;
        assert_int_equal(staleness_history_since(&h, base), 5 * (v * (v + 1) - base * (base + 1)));
        assert_int_equal(staleness_history_since(&h, v + 3), 0);
    }
    uint64_t known = staleness_history_since(&h, 699 - 255);
    assert_int_equal(staleness_history_since(&h, 699 - 510), 2 * known);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_those_of_a_sorted_array),
        cmocka_unit_test(large_values_are_told_within_their_bin),
        cmocka_unit_test(a_line_is_json_and_ends_the_interval),
        cmocka_unit_test(frames_in_between_are_exact_for_recent_versions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
