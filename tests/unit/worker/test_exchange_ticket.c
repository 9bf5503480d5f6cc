/* bsp with backup workers: block 0 asks for a ticket, and the step may go on without us. */
#include "tests/unit/worker/exchange_world.h"

static void receive(struct world *w, uint32_t shard, const struct msg_answer *a)
{
    struct msg m = {.type = MSG_ANSWER, .job = JOB, .answer = *a};
    struct frame *none = NULL;
    exchange_receive(w->x, w->now, shard, &m, &none);
}

/* --- the gate */

static void test_only_block_0_goes_before_its_ticket(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(1, QUORUM);
    uint64_t sends = w->sends;
    push(w, true);
    assert_int_equal(w->sends - sends, 1);
    assert_int_equal(w->hash_seq[0], 1);
    while (w->ticket_seq == 0) step(w);
    assert_int_equal(w->sends - sends, 1);
    settle(w); /* the fake checks the quorum of each */
    assert_int_equal(w->sends - sends, BLOCKS);
    assert_same_weights(w);
    assert_int_equal(counts(w)->applied, BLOCKS);
    assert_int_equal(counts(w)->waits, 1);
    assert_int_equal(counts(w)->left_out + counts(w)->unexpected + counts(w)->resent, 0);
    push_and_check(w); /* the next step asks again */
    assert_int_equal(counts(w)->applied, 2 * BLOCKS);
    world_free(w);
}

static void test_applied_is_a_ticket_too(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(2, QUORUM);
    w->no_received = true;
    for (int i = 1; i <= 3; i++) push_and_check(w);
    assert_int_equal(counts(w)->applied, 3 * BLOCKS);
    assert_int_equal(counts(w)->unexpected, 0);
    world_free(w);
}

static void test_any_quorum_is_handed_on_as_it_came(void **state)
{
    (void)state;
    const uint32_t quorum[] = {1, 1000000, UINT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        struct world *w = world_of_tickets(3, quorum[i]);
        push_and_check(w);
        assert_int_equal(counts(w)->applied, BLOCKS);
        world_free(w);
    }
}

/* An update of block 0 that brings no ticket is not believed: block 0 asks again. */
static void test_applied_without_a_ticket_opens_nothing(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(4, QUORUM);
    w->no_ticket = w->no_received = true;
    uint64_t sends = w->sends;
    push(w, true);
    for (uint64_t start = w->now; w->now < start + 120 * NS_PER_MS;) step(w);
    assert_int_equal(w->sends - sends, 3); /* deadlines of 50 and 100 ms */
    assert_int_equal(counts(w)->applied, 0);
    assert_true(counts(w)->unexpected > 0);
    w->no_ticket = false;
    settle(w);
    assert_int_equal(counts(w)->applied, BLOCKS);
    assert_int_equal(w->applied[0], 1);
    assert_same_weights(w);
    world_free(w);
}

/* Words on blocks that have not been sent, and a ticket from elsewhere. */
static void test_only_block_0_of_this_seq_and_life_brings_a_ticket(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(5, QUORUM);
    uint64_t sends = w->sends;
    push(w, true);
    const struct msg_answer bad[] = {
        {.block = 1, .seq = 1, .verdict = VERDICT_RECEIVED, .generation = 1, .quorum = 9, .step = 9},
        {.block = 1, .seq = 1, .verdict = VERDICT_STALE, .generation = 1, .quorum = 9, .step = 9},
        {.block = 0, .seq = 0, .verdict = VERDICT_RECEIVED, .generation = 1, .quorum = 9, .step = 9},
        {.block = 0, .seq = 2, .verdict = VERDICT_RECEIVED, .generation = 1, .quorum = 9, .step = 9},
        {.block = 0, .seq = 1, .verdict = VERDICT_RECEIVED, .generation = 2, .quorum = 9, .step = 9},
        {.block = 0, .seq = 1, .verdict = VERDICT_NONE, .generation = 1, .quorum = 9, .step = 9},
        {.block = 0, .seq = 1, .verdict = VERDICT_STALE, .generation = 2, .quorum = 9, .step = 9},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) receive(w, 0, &bad[i]);
    receive(w, 1, &bad[2]); /* another shard speaks of block 0 */
    assert_int_equal(counts(w)->unexpected, sizeof bad / sizeof bad[0] + 1);
    assert_int_equal(w->sends - sends, 1);
    settle(w);
    assert_int_equal(counts(w)->applied, BLOCKS);
    assert_same_weights(w);
    world_free(w);
}

static void test_without_tickets_a_quorum_means_nothing(void **state)
{
    (void)state;
    struct world *w = world_new(6);
    settle(w);
    push(w, true);
    const struct msg_answer a = {
        .block = 0, .seq = 1, .verdict = VERDICT_RECEIVED, .generation = 1, .quorum = 9, .step = 9};
    receive(w, 0, &a);
    settle(w); /* the fake checks that every push says 0 */
    assert_int_equal(counts(w)->applied, BLOCKS);
    world_free(w);
}

/* --- left out */

static void test_a_late_push_takes_the_weights_of_the_step_after_it(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(7, QUORUM);
    step_of_others(w, 0);
    uint64_t sends = w->sends, reads = w->reads;
    push_and_check(w);
    assert_int_equal(counts(w)->left_out, 1);
    assert_int_equal(counts(w)->exchanges, 1);
    assert_int_equal(counts(w)->applied + counts(w)->refused + counts(w)->lost + counts(w)->torn, 0);
    assert_int_equal(w->sends - sends, BLOCKS); /* block 0's weights came with the answer */
    assert_int_equal(w->reads - reads, BLOCKS - 1);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        assert_int_equal(w->applied[b], 0);
        assert_int_equal(w->w.version[b], 1);
    }
    push_and_check(w); /* and takes part in the next one */
    assert_int_equal(counts(w)->applied, BLOCKS);
    world_free(w);
}

static void test_a_block_that_is_behind_is_read_again_after_5_ms(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(8, QUORUM);
    step_of_others(w, 3);
    uint64_t start = w->now;
    push_and_check(w);
    assert_int_equal(w->not_found, 3 * (BLOCKS - 1));
    assert_true(w->now - start >= 15 * NS_PER_MS);
    assert_true(w->now - start < 30 * NS_PER_MS); /* also those that had no credit at first */
    assert_int_equal(counts(w)->resent, 0);
    assert_true(w->max_flying <= CREDIT);
    world_free(w);
}

/* Where a push was torn once, blocks differ in their versions: it is the step that is awaited. */
static void test_blocks_of_other_versions_are_awaited_by_their_step(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(18, QUORUM);
    change(w, 0, 0, 10);
    for (uint32_t k = 0; k < SHARDS; k++)
        for (uint32_t b = w->server[k].first; b < w->server[k].first + w->server[k].count; b++)
            change(w, k, b, b % 2 ? 7 : 10);
    exchange_read(w->x, w->now, 0, &w->w);
    settle(w);
    step_of_others(w, 2);
    uint64_t start = w->now;
    push_and_check(w);
    assert_true(w->now - start < 20 * NS_PER_MS);
    assert_int_equal(w->not_found, 2 * (BLOCKS - 1));
    for (uint32_t b = 0; b < BLOCKS; b++) assert_int_equal(w->w.version[b], b % 2 ? 8 : 11);
    push_and_check(w);
    assert_int_equal(counts(w)->applied, BLOCKS);
    world_free(w);
}

/* Weights from before the step would make a push that is neither of this step nor of the next. */
static void test_however_long_a_step_takes_no_block_is_read_before_it(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(20, QUORUM);
    step_of_others(w, 1000000);
    uint64_t start = w->now;
    push(w, true);
    while (w->now < start + 20 * 50 * NS_PER_MS) step(w); /* deadlines */
    assert_false(exchange_idle(w->x));
    assert_int_equal(w->w.version[0], 1);
    for (uint32_t b = 1; b < BLOCKS; b++) assert_int_equal(w->w.version[b], 0);
    memset(w->lag, 0, sizeof w->lag);
    settle(w);
    for (uint32_t b = 0; b < BLOCKS; b++) assert_int_equal(w->w.version[b], 1);
    assert_int_equal(counts(w)->left_out, 1);
    push_and_check(w);
    assert_int_equal(counts(w)->applied, BLOCKS);
    world_free(w);
}

static void test_a_late_push_without_pull_reads_all_blocks(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(10, QUORUM);
    step_of_others(w, 1);
    uint64_t reads = w->reads;
    push(w, false);
    settle(w);
    assert_same_weights(w);
    assert_int_equal(counts(w)->left_out, 1);
    assert_true(w->reads - reads >= BLOCKS);
    world_free(w);
}

/* Refused for what it is, before any ticket: no part in this step, but no wait for it either. */
static void test_block_0_refused_without_a_ticket_leaves_the_step(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(11, QUORUM);
    w->drop = 1;
    push(w, true);
    w->drop = 0;
    struct frame *f = weights_frame(w, 0, ELEMENT_FP32);
    struct msg m = {.type = MSG_ANSWER, .job = JOB};
    m.answer = (struct msg_answer){.block = 0, .seq = 1, .verdict = VERDICT_NONFINITE, .generation = 1};
    m.answer.hash = wire_hash(frame_data(f), frame_len(f));
    exchange_receive(w->x, w->now, 0, &m, &f);
    settle(w);
    assert_int_equal(counts(w)->left_out, 1);
    assert_int_equal(counts(w)->applied, 0);
    assert_same_weights(w);
    world_free(w);
}

/* With a ticket, another block that is refused is refused, and no more. */
static void test_another_block_that_is_stale_is_refused_alone(void **state)
{
    (void)state;
    struct world *w = world_of_tickets(12, QUORUM);
    w->stale_block = 6;
    push_and_check(w);
    assert_int_equal(counts(w)->refused, 1);
    assert_int_equal(counts(w)->applied, BLOCKS - 1);
    assert_int_equal(counts(w)->left_out, 0);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_block_0_goes_before_its_ticket),
        cmocka_unit_test(test_applied_is_a_ticket_too),
        cmocka_unit_test(test_any_quorum_is_handed_on_as_it_came),
        cmocka_unit_test(test_applied_without_a_ticket_opens_nothing),
        cmocka_unit_test(test_only_block_0_of_this_seq_and_life_brings_a_ticket),
        cmocka_unit_test(test_without_tickets_a_quorum_means_nothing),
        cmocka_unit_test(test_a_late_push_takes_the_weights_of_the_step_after_it),
        cmocka_unit_test(test_a_block_that_is_behind_is_read_again_after_5_ms),
        cmocka_unit_test(test_blocks_of_other_versions_are_awaited_by_their_step),
        cmocka_unit_test(test_however_long_a_step_takes_no_block_is_read_before_it),
        cmocka_unit_test(test_a_late_push_without_pull_reads_all_blocks),
        cmocka_unit_test(test_block_0_refused_without_a_ticket_leaves_the_step),
        cmocka_unit_test(test_another_block_that_is_stale_is_refused_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
