/* bsp with backup workers, where messages, connections and servers are lost. */
#include "tests/unit/worker/exchange_world.h"

static void test_a_resend_of_block_0_asks_again(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(13, QUORUM);
    uint64_t sends = w->sends, start = w->now;
    w->drop = 1;
    push(w, true);
    assert_true(exchange_next(w->x) == start + 50 * NS_PER_MS); /* the others are not asked for */
    w->drop = 0;
    settle(w); /* the fake checks that it says quorum 0 */
    assert_int_equal(w->sends - sends, BLOCKS + 1);
    assert_int_equal(counts(w)->resent, 1);
    assert_same_weights(w);
    world_free(w);
}

static void test_a_connection_lost_while_waiting_for_the_ticket_asks_again(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < SHARDS; k++) {
        struct world *w = world_of_tickets(14, QUORUM);
        push(w, true);
        drain(w);
        w->server[k].known = 0;
        exchange_connected(w->x, w->now, k);
        settle(w);
        assert_int_equal(counts(w)->applied, BLOCKS);
        assert_same_weights(w);
        world_free(w);
    }
}

/* The shard that gives tickets falls: nothing of the gradient can be applied, all is read. */
static void test_a_fall_of_the_first_shard_loses_what_waits_for_a_ticket(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(15, QUORUM);
    push(w, true);
    drain(w);
    fall(w, 0);
    exchange_connected(w->x, w->now, 0);
    settle(w);
    assert_int_equal(counts(w)->lost, BLOCKS);
    assert_int_equal(counts(w)->torn + counts(w)->left_out, 0);
    for (uint32_t b = 0; b < BLOCKS; b++) assert_int_equal(w->applied[b], 0);
    assert_same_weights(w);
    push_and_check(w);
    assert_int_equal(counts(w)->applied, BLOCKS);
    world_free(w);
}

/* Another one falls: its blocks are read at once, the others get their ticket. */
static void test_a_fall_of_another_shard_loses_its_blocks_alone(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(16, QUORUM);
    push(w, true);
    fall(w, 2);
    exchange_connected(w->x, w->now, 2);
    settle(w);
    assert_int_equal(counts(w)->lost, w->server[2].count);
    assert_int_equal(counts(w)->torn, 1);
    assert_int_equal(counts(w)->applied, BLOCKS - w->server[2].count);
    assert_same_weights(w);
    world_free(w);
}

/* More shards than blocks: the first ones are empty, and block 0 is on a later one. */
static void test_shards_without_blocks_are_no_hindrance(void **state)
{
    (void)state;
    for (uint32_t n = 1; n < SHARDS; n++) {
        struct exchange_options o = plain_options();
        o.tickets = true;
        o.blocks = (struct blocks){n * SIZE, SIZE, n};
        struct world *w = world_with(17, &o, QUORUM);
        settle(w);
        assert_int_equal(w->server[0].count, 0);
        uint32_t k = blocks_owner(&w->b, SHARDS, 0);
        push_and_check(w);
        change(w, k, 0, w->server[k].version[0] + 1);
        push_and_check(w);
        assert_int_equal(counts(w)->applied, n);
        assert_int_equal(counts(w)->left_out, 1);
        push(w, true);
        drain(w);
        fall(w, k);
        exchange_connected(w->x, w->now, k);
        settle(w);
        assert_int_equal(counts(w)->lost, n);
        assert_same_weights(w);
        world_free(w);
    }
}

/* --- all of it at random */

static void wander(struct world *w, uint32_t lag)
{
    uint64_t what = rng_below(&w->rng, 40);
    uint32_t k = (uint32_t)rng_below(&w->rng, SHARDS);
    bool early = w->server[0].last[0] < exchange_seq(w->x); /* block 0 has not been there yet */
    if (what == 0 && early) step_of_others(w, lag);
    if (what == 1) w->server[k].known = 0;
    if (what == 2) w->refuse_sends = 3;
    if (what == 3) exchange_connected(w->x, w->now, k);
    if (what == 4) w->server[k].grant = (uint32_t)rng_below(&w->rng, 4);
    if (what == 5) w->no_received = !w->no_received;
}

/* lags: a READ that was resent may have given up waiting for the step, which came when it was too late. */
static void assert_landed(const struct world *w, bool lags)
{
    for (uint32_t k = 0; k < SHARDS; k++)
        for (uint32_t b = w->server[k].first; b < w->server[k].first + w->server[k].count; b++)
            if (w->w.version[b] == w->server[k].version[b])
                assert_same_block(w, b);
            else
                assert_true(lags && b != 0);
}

/* A step has all blocks of our gradient once, or none of them; we end with the weights after it. */
static void test_random_faults_apply_all_or_nothing(void **state)
{
    (void)state;
    uint64_t left_out = 0, applied = 0;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct world *w = world_of_tickets(seed, QUORUM);
        w->drop = w->twice = 0.1;
        w->garble = 0.03;
        w->max_delay = 20 * NS_PER_MS;
        for (int i = 0; i < 6; i++) {
            uint64_t before = w->applied[0];
            uint32_t lag = seed % 2 ? 0 : (uint32_t)rng_below(&w->rng, 4);
            if (rng_below(&w->rng, 4) == 0) step_of_others(w, lag);
            bool pull = rng_below(&w->rng, 5) != 0;
            push(w, pull);
            for (int n = 0; n < 200000 && !exchange_idle(w->x); n++) {
                wander(w, lag);
                step(w);
            }
            settle(w);
            for (uint32_t b = 0; b < BLOCKS; b++)
                if (w->applied[b] != w->applied[0])
                    fail_msg("seed %llu block %u", (unsigned long long)seed, b);
            assert_true(w->applied[0] - before <= 1);
            if (!pull) exchange_read(w->x, w->now, 0, &w->w);
            settle(w);
            assert_landed(w, seed % 2 == 0);
        }
        const struct exchange_counts *c = counts(w);
        assert_int_equal(c->applied + c->left_out * BLOCKS, c->exchanges * BLOCKS);
        assert_int_equal(c->applied, w->applied[0] * BLOCKS);
        left_out += c->left_out;
        applied += w->applied[0];
        world_free(w);
    }
    print_message("seeds 1..300: %llu steps with us, %llu without\n", (unsigned long long)applied,
                  (unsigned long long)left_out);
    assert_true(left_out > 100 && applied > 100);
}

/* With falls: every exchange ends, every block is accounted for, and we have the weights of the new life. */
static void test_random_falls_end_every_exchange(void **state)
{
    (void)state;
    uint64_t lost = 0, left_out = 0;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct world *w = world_of_tickets(seed, QUORUM);
        w->drop = w->twice = 0.1;
        w->max_delay = 20 * NS_PER_MS;
        for (int i = 0; i < 6; i++) {
            push(w, true);
            for (uint64_t n = rng_below(&w->rng, 40); n > 0; n--) {
                if (!exchange_idle(w->x)) wander(w, (uint32_t)rng_below(&w->rng, 4));
                step(w);
            }
            uint32_t k = (uint32_t)rng_below(&w->rng, SHARDS);
            fall(w, k);
            exchange_connected(w->x, w->now, k);
            settle(w);
        }
        w->drop = 0;
        for (int i = 0; i < 2; i++) {
            push(w, true);
            settle(w);
        }
        assert_same_weights(w);
        const struct exchange_counts *c = counts(w);
        assert_int_equal(c->applied + c->refused + c->lost + c->left_out * BLOCKS, c->exchanges * BLOCKS);
        lost += c->lost;
        left_out += c->left_out;
        world_free(w);
    }
    print_message("seeds 1..300: %llu blocks lost, %llu steps without us\n", (unsigned long long)lost,
                  (unsigned long long)left_out);
    assert_true(lost > 0 && left_out > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_resend_of_block_0_asks_again),
        cmocka_unit_test(test_a_connection_lost_while_waiting_for_the_ticket_asks_again),
        cmocka_unit_test(test_a_fall_of_the_first_shard_loses_what_waits_for_a_ticket),
        cmocka_unit_test(test_a_fall_of_another_shard_loses_its_blocks_alone),
        cmocka_unit_test(test_shards_without_blocks_are_no_hindrance),
        cmocka_unit_test(test_random_faults_apply_all_or_nothing),
        cmocka_unit_test(test_random_falls_end_every_exchange),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
