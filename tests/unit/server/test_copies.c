/* Copies of a shard: what evaluations still read is there, what nobody needs is not, and a disk that is slow
 * or an evaluation that never ends costs no more memory than a few copies. */
#include "server/copies.h"
#include "tests/unit/server/shard_world.h"

#include <string.h>

static struct world *w;
static struct copies copies;
static const struct shard_state *written[2]; /* in use */

static bool is_written(void *ctx, const struct shard_state *state)
{
    (void)ctx;
    return state == written[0] || state == written[1];
}

static int set_up(void **state)
{
    (void)state;
    struct shard_options o = world_options();
    w = world_new(&o, NULL);
    world_hello(w, 1);
    copies = (struct copies){.shard = w->shard, .in_use = is_written};
    written[0] = written[1] = NULL;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    world_free(&w);
    copies_fini(&copies);
    return 0;
}

static bool can_read(uint32_t set)
{
    return world_read(w, FIRST, set)->m.block.found;
}

/* Sets 1..n, each let go by an order that keeps what is read from keep_set on. */
static void take_sets(uint32_t n, uint32_t keep_set)
{
    for (uint32_t set = 1; set <= n; set++) {
        copies_add(&copies, set);
        copies_drop(&copies, keep_set);
    }
}

static void the_newest_stays_alone_where_nothing_is_evaluated(void **state)
{
    (void)state;
    take_sets(3, 0);
    assert_true(can_read(3));
    assert_false(can_read(2) || can_read(1));
    assert_null(copies_find(&copies, 2));
    assert_int_equal(copies.num, 1);
}

static void what_is_evaluated_stays_with_the_few_after_it(void **state)
{
    (void)state;
    take_sets(5, 2);
    assert_false(can_read(1));
    for (uint32_t set = 2; set <= 5; set++) assert_true(can_read(set));
    copies_drop(&copies, 4);
    assert_false(can_read(2) || can_read(3));
    assert_true(can_read(4) && can_read(5));
    copies_drop(&copies, 0);
    assert_false(can_read(4));
    assert_true(can_read(5));
}

/* One worker that holds an evaluation for hours: its set stays, the oldest of those after it go. */
static void an_evaluation_that_does_not_end_costs_a_few_copies(void **state)
{
    (void)state;
    take_sets(200, 2);
    assert_true(can_read(2) && can_read(200) && can_read(199));
    assert_false(can_read(3) || can_read(150));
    assert_in_range(copies.num, 3, COPIES_KEPT);
}

static void a_copy_that_is_being_written_is_not_read_and_goes_after_that(void **state)
{
    (void)state;
    written[0] = copies_add(&copies, 1);
    copies_drop(&copies, 0);
    written[1] = copies_add(&copies, 2);
    copies_drop(&copies, 0);
    copies_add(&copies, 3);
    copies_drop(&copies, 0);
    assert_false(can_read(1) || can_read(2));
    assert_ptr_equal(copies_find(&copies, 1), written[0]);
    assert_ptr_equal(copies_find(&copies, 2), written[1]);
    written[0] = written[1];
    copies_drop(&copies, 0);
    assert_null(copies_find(&copies, 1));
    assert_non_null(copies_find(&copies, 2));
}

/* The worst case: the disk holds two that nobody reads, an evaluation lags far behind. */
static void there_is_room_for_all_that_is_wanted_or_written(void **state)
{
    (void)state;
    take_sets(20, 2);
    written[0] = copies_find(&copies, 16);
    written[1] = copies_find(&copies, 17);
    assert_true(written[0] && written[1]);
    for (uint32_t set = 21; set < 60; set++) {
        copies_add(&copies, set);
        copies_drop(&copies, 2);
    }
    assert_ptr_equal(copies_find(&copies, 16), written[0]);
    assert_true(can_read(2) && can_read(59));
    assert_false(can_read(16));
}

static void a_copy_is_what_the_shard_was(void **state)
{
    (void)state;
    const float ones[4] = {1, 1, 1, 1};
    copies_add(&copies, 1);
    world_push(w, 1, 1, FIRST, ones);
    world_last(w);
    const struct said *s = world_read(w, FIRST, 1);
    assert_true(s->m.block.found && s->m.block.version == 0 && s->payload[0] == 1);
}

int main(void)
{
#define RULE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        RULE(the_newest_stays_alone_where_nothing_is_evaluated),
        RULE(what_is_evaluated_stays_with_the_few_after_it),
        RULE(an_evaluation_that_does_not_end_costs_a_few_copies),
        RULE(a_copy_that_is_being_written_is_not_read_and_goes_after_that),
        RULE(there_is_room_for_all_that_is_wanted_or_written),
        RULE(a_copy_is_what_the_shard_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
