/* A copy of a shard is all of it: what was applied before it stays a duplicate, what is written is stable,
 * and kept copies can be read. */
#include "tests/unit/server/shard_world.h"

static const float ones[4] = {1, 1, 1, 1};

static struct world *new_world(void)
{
    struct shard_options o = world_options();
    return world_new(&o, NULL);
}

/* The copy holds the table, so what was applied before it is a duplicate after the restore, and what came
 * after it is applied again, to the same bits. */
static void a_restored_copy_goes_on_exactly(void **state)
{
    (void)state;
    struct world *w = new_world();
    const float g2[4] = {0.25f, -3, 0.125f, 7};
    world_hello(w, 1);
    world_hello(w, 2);
    world_push(w, 1, 1, 2, ones);
    world_push(w, 2, 1, 2, g2);
    world_push(w, 1, 1, 5, g2);
    struct shard_state *copy = shard_copy(w->shard);
    world_push(w, 1, 2, 2, g2);
    w->num_said = 0;
    float want[4];
    memcpy(want, world_weights(w, 2), sizeof want);
    struct shard_options o = w->o;
    o.generation = 6;
    struct world *again = world_new(&o, &copy);
    world_push(again, 1, 1, 2, ones);
    const struct said *s = world_last(again);
    world_expect(s, VERDICT_APPLIED, 1, 2);
    assert_int_equal(s->m.answer.stable, 1); /* it came from a snapshot */
    assert_int_equal(again->applied, 0);
    world_push(again, 1, 2, 2, g2);
    s = world_last(again);
    world_expect(s, VERDICT_APPLIED, 2, 3);
    assert_memory_equal(s->payload, want, sizeof want);
    assert_int_equal(shard_look(again->shard)->frames[0], 30);
    world_free(&w);
    world_free(&again);
}

/* A lower member that comes later moves the rows; so does one that goes. */
static void stable_moves_with_its_member(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 20);
    world_push(w, 20, 6, 2, ones);
    world_last(w);
    struct shard_state *copy = shard_copy(w->shard);
    shard_stable(w->shard, copy);
    shard_state_free(&copy);
    world_hello(w, 10);
    world_push(w, 10, 1, 2, ones);
    assert_int_equal(world_last(w)->m.answer.stable, 0);
    world_push(w, 20, 7, 2, ones);
    assert_int_equal(world_last(w)->m.answer.stable, 6);
    shard_oldest_member(w->shard, w->now, 20);
    world_push(w, 20, 8, 2, ones);
    assert_int_equal(world_last(w)->m.answer.stable, 6);
    world_free(&w);
}

static void stable_is_what_a_written_copy_holds(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    world_push(w, 1, 1, 2, ones);
    assert_int_equal(world_last(w)->m.answer.stable, 0);
    struct shard_state *copy = shard_copy(w->shard);
    world_push(w, 1, 2, 2, ones);
    assert_int_equal(world_last(w)->m.answer.stable, 0);
    world_hello(w, 3); /* members that came since do not matter */
    shard_stable(w->shard, copy);
    world_push(w, 1, 3, 2, ones);
    assert_int_equal(world_last(w)->m.answer.stable, 1);
    world_push(w, 1, 3, 3, ones); /* per block */
    assert_int_equal(world_last(w)->m.answer.stable, 0);
    struct shard_state *later = shard_copy(w->shard);
    shard_stable(w->shard, later);
    shard_stable(w->shard, copy); /* never goes back */
    world_push(w, 1, 3, 2, ones);
    assert_int_equal(world_last(w)->m.answer.stable, 3);
    shard_state_free(&copy);
    shard_state_free(&later);
    world_free(&w);
}

static void reads_are_of_the_live_weights_or_of_a_kept_set(void **state)
{
    (void)state;
    struct world *w = new_world();
    world_hello(w, 1);
    struct shard_state *copy = shard_copy(w->shard);
    shard_keep(w->shard, 8, copy);
    world_push(w, 1, 1, 5, ones);
    world_last(w);
    const struct said *s = world_read(w, 5, 0);
    assert_true(s->m.block.found && s->m.block.version == 1 && s->floats == 3);
    assert_true(s->payload[0] == 13 - 0.1f);
    assert_true(s->m.block.hash == wire_hash(s->payload, 12));
    s = world_read(w, 5, 8);
    assert_true(s->m.block.found && s->m.block.version == 0 && s->payload[0] == 13);
    s = world_read(w, 5, 9);
    assert_true(!s->m.block.found && s->floats == 0);
    shard_keep(w->shard, 8, NULL);
    shard_keep(w->shard, 8, NULL);
    assert_false(world_read(w, 5, 8)->m.block.found);
    shard_state_free(&copy);
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_restored_copy_goes_on_exactly),
        cmocka_unit_test(stable_moves_with_its_member),
        cmocka_unit_test(stable_is_what_a_written_copy_holds),
        cmocka_unit_test(reads_are_of_the_live_weights_or_of_a_kept_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
