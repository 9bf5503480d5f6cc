/* The program chorale-server against a coordinator and a worker that this test plays over loopback: it joins,
 * restores, applies, checkpoints, finds a new coordinator, comes back after kill -9, leaves when told. */
#include "tests/unit/server/serve_bench.h"

static int set_up(void **state)
{
    (void)state;
    return make_run(64);
}

/* Orders until a beat says `written`. */
static struct msg_beat order_set(struct wire *w, uint64_t peer, uint32_t incarnation, uint32_t set)
{
    for (;;) {
        struct msg m = {.type = MSG_ORDER, .job = JOB};
        m.order = (struct msg_order){.incarnation = incarnation, .set = set};
        assert_int_equal(wire_send(w, WIRE_ROUTER, peer, &m, NULL), 0);
        m = expect(w, MSG_BEAT, &peer, NULL);
        if (m.beat.written == set) return m.beat;
    }
}

/* HELLO, then one push of ones to block 0; returns the first new weight. */
static float push_once(const char *endpoint, uint32_t generation, uint64_t seq, struct msg_answer *answer)
{
    struct wire *w = wire_new();
    struct frame *payload = NULL;
    uint64_t peer;
    int link = wire_connect(w, endpoint);
    assert_int_equal(join_shard(w, link, 9), generation);
    assert_true(send_push(w, link, 9, seq, generation, 0, 0.01f));
    *answer = expect(w, MSG_ANSWER, &peer, &payload).answer;
    assert_non_null(payload);
    float first = ((float *)frame_data(payload))[0];
    frame_free(&payload);
    wire_free(&w);
    return first;
}

/* kill -9 after a set: what came later is lost, what is in the set is not applied twice */
static void a_server_comes_back_with_what_it_wrote(void **state)
{
    (void)state;
    struct msg_answer a;
    struct msg join;
    uint64_t peer;
    struct wire *w = play_coordinator(1);
    start_server(NULL);
    answer_join(w, 1, 1, 0, &join, &peer);
    assert_int_equal(join.join.role, ROLE_SERVER);
    assert_true(join.join.member == 0 && join.join.restored_set == 0 && join.join.generation == 0);
    float one = push_once(join.join.endpoint, 1, 1, &a);
    assert_true(a.verdict == VERDICT_APPLIED && a.version == 1 && one == 1 - 0.5f * 0.01f);
    struct msg_beat beat = order_set(w, peer, 1, 1);
    assert_int_equal(beat.copied, 1);
    push_once(join.join.endpoint, 1, 2, &a);
    assert_true(a.version == 2 && a.stable == 1);
    kill(child, SIGKILL);
    end_of_server();

    start_server("--recover");
    answer_join(w, 1, 2, 1, &join, &peer);
    assert_int_equal(join.join.restored_set, 1);
    float again = push_once(join.join.endpoint, 2, 1, &a); /* already in the set */
    assert_true(a.version == 1 && again == one);
    push_once(join.join.endpoint, 2, 2, &a);
    assert_true(a.verdict == VERDICT_APPLIED && a.version == 2);
    order_set(w, peer, 1, 1); /* nobody completed it: it is written once more */
    end_server(w, peer, 1, COMMAND_FINISH, 0);
    wire_free(&w);
}

/* a worker whose message is quicker than the coordinator's JOINED */
static void a_hello_before_joined_is_answered_not_lost(void **state)
{
    (void)state;
    struct msg join;
    uint64_t peer;
    struct wire *w = play_coordinator(1), *worker = wire_new();
    start_server(NULL);
    join = expect(w, MSG_JOIN, &peer, NULL);
    int link = wire_connect(worker, join.join.endpoint);
    say_hello(worker, link, 9);
    assert_int_equal(expect(worker, MSG_REFUSED, &peer, NULL).refused.reason, REFUSAL_NOT_READY);
    answer_join(w, 1, 1, 0, &join, &peer); /* it is said again */
    assert_int_equal(join_shard(worker, link, 9), 1);
    end_server(w, peer, 1, COMMAND_FINISH, 0);
    wire_free(&worker);
    wire_free(&w);
}

static void a_new_coordinator_is_found_and_an_old_one_ignored(void **state)
{
    (void)state;
    struct msg join;
    uint64_t peer;
    struct wire *old = play_coordinator(3);
    start_server(NULL);
    answer_join(old, 3, 1, 0, &join, &peer);
    order_command(old, peer, 2, COMMAND_INTERRUPT); /* superseded */
    expect(old, MSG_BEAT, &peer, NULL);
    kill(child, SIGTERM); /* alone it changes nothing */
    kill(child, SIGTERM);
    expect(old, MSG_BEAT, &peer, NULL);
    wire_free(&old);
    struct wire *w = play_coordinator(4);
    answer_join(w, 4, 1, 0, &join, &peer);
    assert_true(join.join.member == 5 && join.join.generation == 1);
    assert_int_equal(expect(w, MSG_BEAT, &peer, NULL).beat.incarnation, 4);
    end_server(w, peer, 4, COMMAND_INTERRUPT, 75);
    wire_free(&w);
}

static void a_refusal_ends_it_with_the_sentence(void **state)
{
    (void)state;
    uint64_t peer;
    struct wire *w = play_coordinator(1);
    start_server(NULL);
    expect(w, MSG_JOIN, &peer, NULL);
    struct msg m = {.type = MSG_REFUSED, .job = JOB};
    m.refused.reason = REFUSAL_MISMATCH;
    snprintf(m.refused.text, sizeof m.refused.text, "another model");
    assert_int_equal(wire_send(w, WIRE_ROUTER, peer, &m, NULL), 0);
    assert_int_equal(end_of_server(), 5);
    wire_free(&w);
}

int main(void)
{
#define RULE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        RULE(a_server_comes_back_with_what_it_wrote),
        RULE(a_hello_before_joined_is_answered_not_lost),
        RULE(a_new_coordinator_is_found_and_an_old_one_ignored),
        RULE(a_refusal_ends_it_with_the_sentence),
    };
    if (!find_program()) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
