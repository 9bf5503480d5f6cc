/* The clocks of ssp: who counts, where a newcomer starts, who is too far ahead. */
#include "common/rng.h"
#include "server/clocks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define SEED   41
#define BLOCKS 2u

static const uint64_t all[] = {30, 10, 20};

static void advance(struct clocks *c, uint64_t member, uint32_t block, int times)
{
    for (int i = 0; i < times; i++) clocks_advance(c, member, block);
}

/* Steps that the member may still make before it is ahead, up to 100. */
static int room(const struct clocks *c, uint64_t member, uint32_t block, uint64_t bound)
{
    int n = 0;
    struct clocks probe = *c;
    uint64_t values[16], least[BLOCKS] = {c->least[0], c->least[1]}, largest[BLOCKS];
    for (uint32_t i = 0; i < c->num_members * BLOCKS; i++) values[i] = c->clock[i];
    largest[0] = c->largest[0], largest[1] = c->largest[1];
    probe.clock = values;
    probe.least = least;
    probe.largest = largest;
    while (n < 100) {
        clocks_advance(&probe, member, block);
        if (clocks_is_ahead(&probe, member, block, bound)) break;
        n++;
    }
    return n;
}

static void the_bound_counts_from_the_slowest_of_each_block(void **state)
{
    (void)state;
    struct clocks c;
    clocks_init(&c, BLOCKS);
    clocks_set(&c, all, 3);
    assert_int_equal(room(&c, 10, 0, 3), 3);
    advance(&c, 10, 0, 4);
    assert_true(clocks_is_ahead(&c, 10, 0, 3));
    assert_false(clocks_is_ahead(&c, 10, 0, 4));
    assert_false(clocks_is_ahead(&c, 10, 1, 3)); /* another block */
    assert_false(clocks_advance(&c, 20, 0));     /* 30 is still behind */
    assert_true(clocks_advance(&c, 30, 0));
    assert_false(clocks_is_ahead(&c, 10, 0, 3));
    clocks_fini(&c);
}

static void the_last_one_of_a_roster_waits_for_nobody(void **state)
{
    (void)state;
    struct clocks c;
    clocks_init(&c, BLOCKS);
    clocks_set(&c, all, 1);
    advance(&c, 30, 0, 50);
    assert_false(clocks_is_ahead(&c, 30, 0, 0));
    clocks_fini(&c);
}

static void who_does_not_count_neither_waits_nor_holds_up(void **state)
{
    (void)state;
    struct clocks c;
    clocks_init(&c, BLOCKS);
    assert_false(clocks_advance(&c, 10, 0)); /* nobody counts yet */
    clocks_set(&c, all, 2);
    for (int i = 0; i < 9; i++) assert_false(clocks_advance(&c, 20, 0));
    assert_false(clocks_is_ahead(&c, 20, 0, 0));
    clocks_set(&c, NULL, 0);
    assert_false(clocks_is_ahead(&c, 30, 0, 0));
    clocks_fini(&c);
}

static void a_newcomer_starts_beside_the_slowest(void **state)
{
    (void)state;
    struct clocks c;
    clocks_init(&c, BLOCKS);
    clocks_set(&c, all, 2); /* 30, 10 */
    advance(&c, 30, 0, 7);
    advance(&c, 10, 0, 5);
    advance(&c, 10, 1, 2);
    clocks_set(&c, all, 3);
    assert_true(c.num_members == 3 && c.members[0] == 10 && c.members[1] == 20 && c.members[2] == 30);
    assert_true(c.clock[BLOCKS] == 5 && c.clock[BLOCKS + 1] == 0); /* of 20: per block */
    assert_true(c.clock[0] == 5 && c.clock[2 * BLOCKS] == 7);      /* those that stay keep theirs */
    clocks_fini(&c);
}

static void where_nobody_stays_newcomers_start_at_the_largest_ever(void **state)
{
    (void)state;
    struct clocks c;
    clocks_init(&c, BLOCKS);
    clocks_set(&c, all, 2);
    advance(&c, 30, 0, 7);
    clocks_set(&c, all + 2, 1); /* 20 alone */
    assert_int_equal(c.clock[0], 7);
    clocks_set(&c, NULL, 0);
    clocks_set(&c, all, 3);
    for (int k = 0; k < 3; k++) assert_int_equal(c.clock[(size_t)k * BLOCKS], 7);
    clocks_fini(&c);
}

static void who_leaves_frees_the_others(void **state)
{
    (void)state;
    struct clocks c;
    clocks_init(&c, BLOCKS);
    clocks_set(&c, all, 3);
    advance(&c, 20, 0, 4);
    advance(&c, 30, 0, 4);
    assert_true(clocks_is_ahead(&c, 20, 0, 3));
    clocks_drop_below(&c, 20);
    assert_int_equal(c.num_members, 2);
    assert_false(clocks_is_ahead(&c, 20, 0, 0));
    clocks_drop_below(&c, UINT64_MAX);
    assert_int_equal(c.num_members, 0);
    clocks_fini(&c);
}

static void a_member_named_twice_counts_once(void **state)
{
    (void)state;
    struct clocks c;
    const uint64_t twice[] = {5, 3, 5, 3, 5};
    clocks_init(&c, BLOCKS);
    clocks_set(&c, twice, 5);
    assert_int_equal(c.num_members, 2);
    advance(&c, 5, 0, 1);
    assert_true(clocks_advance(&c, 3, 0));
    clocks_fini(&c);
}

/* The least that is kept is the least that is there, and it is said to rise exactly when it does. */
static void the_least_is_kept_up_to_date(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    struct rng r;
    rng_init(&r, SEED);
    struct clocks c;
    clocks_init(&c, BLOCKS);
    for (int i = 0; i < 3000; i++) {
        if (i % 50 == 0) {
            uint64_t members[6];
            uint32_t n = (uint32_t)rng_below(&r, 7);
            for (uint32_t k = 0; k < n; k++) members[k] = 1 + rng_below(&r, 8);
            clocks_set(&c, members, n);
        }
        uint32_t block = (uint32_t)rng_below(&r, BLOCKS);
        uint64_t before = c.least[block], least = UINT64_MAX;
        bool rose = clocks_advance(&c, 1 + rng_below(&r, 8), block);
        for (uint32_t k = 0; k < c.num_members; k++)
            if (c.clock[k * BLOCKS + block] < least) least = c.clock[k * BLOCKS + block];
        if (c.num_members > 0) assert_int_equal(c.least[block], least);
        assert_int_equal(rose, c.least[block] > before);
    }
    clocks_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bound_counts_from_the_slowest_of_each_block),
        cmocka_unit_test(the_last_one_of_a_roster_waits_for_nobody),
        cmocka_unit_test(who_does_not_count_neither_waits_nor_holds_up),
        cmocka_unit_test(a_newcomer_starts_beside_the_slowest),
        cmocka_unit_test(where_nobody_stays_newcomers_start_at_the_largest_ever),
        cmocka_unit_test(who_leaves_frees_the_others),
        cmocka_unit_test(a_member_named_twice_counts_once),
        cmocka_unit_test(the_least_is_kept_up_to_date),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
