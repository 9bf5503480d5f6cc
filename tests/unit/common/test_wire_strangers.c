/* Sockets over loopback: strangers do no harm. */
#include "tests/unit/common/wire_case.h"

#include "common/rng.h"

#include <stdlib.h>
#include <zmq.h>

struct stranger {
    void *context, *socket;
};

static struct stranger stranger_new(const char *own_id)
{
    struct stranger s = {.context = zmq_ctx_new()};
    s.socket = zmq_socket(s.context, ZMQ_DEALER);
    int linger = 10000, unlimited = 0;
    zmq_setsockopt(s.socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(s.socket, ZMQ_SNDHWM, &unlimited, sizeof unlimited);
    if (own_id) zmq_setsockopt(s.socket, ZMQ_ROUTING_ID, own_id, strlen(own_id));
    assert_int_equal(zmq_connect(s.socket, endpoint), 0);
    return s;
}

static void stranger_free(struct stranger *s)
{
    zmq_close(s->socket);
    zmq_ctx_term(s->context);
}

static void say(struct stranger *s, const void *bytes, size_t len, bool more)
{
    assert_int_equal(zmq_send(s->socket, bytes, len, more ? ZMQ_SNDMORE : 0), len);
}

/* Receives until that many were dropped; a message may come in between. */
static void drop_until(uint64_t dropped)
{
    uint64_t end = clock_now_ns() + LIMIT_NS;
    while (wire_dropped(server) < dropped && clock_now_ns() < end) {
        struct got g = {.payload = NULL};
        int err = wire_receive(server, 50, &g.link, &g.peer, &g.m, &g.payload);
        assert_int_equal(err, ERR_AGAIN);
    }
    assert_int_equal(wire_dropped(server), dropped);
}

/* The service goes on: a worker that comes now gets through. */
static void check_service(void)
{
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    struct msg m = leave_of(4711);
    send_soon(client, link, &m, NULL);
    struct got g;
    receive(server, &g);
    assert_int_equal(g.m.leave.member, 4711);
    wire_free(&client);
}

static void test_wire_garbage_is_counted_and_dropped(void **state)
{
    (void)state;
    struct stranger s = stranger_new(NULL);
    struct rng r;
    rng_init(&r, 1);
    char bytes[5000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)rng_next(&r);
    for (size_t i = 0; i < 200; i++) say(&s, bytes, 25 * i, false); /* the last ones exceed a header */
    drop_until(200);
    say(&s, bytes, 100, true);
    say(&s, bytes, sizeof bytes, false);
    drop_until(201);
    stranger_free(&s);
    check_service();
}

static void test_wire_many_small_parts_are_dropped_as_one(void **state)
{
    (void)state;
    struct stranger s = stranger_new(NULL);
    struct msg m = leave_of(1);
    uint8_t header[MSG_MAX_HEADER];
    size_t len = msg_encode(&m, header);
    for (int i = 0; i < 20000; i++) say(&s, header, len, true);
    say(&s, "", 0, false);
    drop_until(1);
    for (int i = 0; i < 2; i++) say(&s, header, len, true); /* one part too many */
    say(&s, header, len, false);
    drop_until(2);
    say(&s, header, len, false); /* and the next one is understood again */
    struct got g;
    receive(server, &g);
    assert_int_equal(g.m.leave.member, 1);
    stranger_free(&s);
    check_service();
}

static void test_wire_parts_above_the_limit_do_no_harm(void **state)
{
    (void)state;
    struct stranger s = stranger_new(NULL);
    struct msg m = leave_of(1);
    uint8_t header[MSG_MAX_HEADER];
    size_t len = msg_encode(&m, header);
    char *bytes = calloc(1, 64u << 20);
    say(&s, header, len, true);
    say(&s, bytes, MSG_MAX_PAYLOAD + 1, false); /* a little too long: dropped here */
    drop_until(1);
    say(&s, header, len, true);
    say(&s, bytes, 64u << 20, false); /* far too long: libzmq cuts the connection before it takes it */
    check_service();
    assert_int_equal(wire_dropped(server), 1);
    int none = 0;
    zmq_setsockopt(s.socket, ZMQ_LINGER, &none, sizeof none);
    stranger_free(&s);
    free(bytes);
}

static void test_wire_peer_with_an_id_of_its_own_is_dropped(void **state)
{
    (void)state;
    struct stranger s = stranger_new("somebody");
    struct msg m = leave_of(1);
    uint8_t header[MSG_MAX_HEADER];
    say(&s, header, msg_encode(&m, header), false);
    drop_until(1);
    stranger_free(&s);
    check_service();
}

static void test_wire_other_version_is_refused_with_a_sentence(void **state)
{
    (void)state;
    struct stranger s = stranger_new(NULL);
    say(&s, "\x08\x09\x11\x05\0\0\0\0\0\0\0", 11, false); /* major 9, job 5 */
    drop_until(1);
    uint8_t bytes[MSG_MAX_HEADER];
    int wait = 10000;
    zmq_setsockopt(s.socket, ZMQ_RCVTIMEO, &wait, sizeof wait);
    int len = zmq_recv(s.socket, bytes, sizeof bytes, 0);
    assert_true(len > 0);
    struct msg m;
    assert_int_equal(msg_decode(bytes, (size_t)len, &m), 0);
    assert_int_equal(m.type, MSG_REFUSED);
    assert_int_equal(m.job, 5);
    assert_int_equal(m.refused.reason, REFUSAL_MISMATCH);
    assert_non_null(strstr(m.refused.text, "version 9"));
    assert_non_null(strstr(m.refused.text, "version 1"));
    stranger_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_wire_garbage_is_counted_and_dropped),
        TEST(test_wire_many_small_parts_are_dropped_as_one),
        TEST(test_wire_parts_above_the_limit_do_no_harm),
        TEST(test_wire_peer_with_an_id_of_its_own_is_dropped),
        TEST(test_wire_other_version_is_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
