/* Sockets over loopback: frames travel whole, nothing blocks. */
#include "tests/unit/common/wire_case.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_wire_payload_goes_there_and_back_in_one_frame(void **state)
{
    (void)state;
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    assert_true(link >= 0);
    uint32_t *numbers = malloc(MSG_MAX_PAYLOAD);
    for (uint32_t i = 0; i < MSG_MAX_PAYLOAD / 4; i++) numbers[i] = i * 2654435761u;
    struct frame *f = frame_copy(numbers, MSG_MAX_PAYLOAD);
    struct msg m = {.type = MSG_PUSH,
                    .job = 77,
                    .push = {.seq = 5, .hash = wire_hash(numbers, MSG_MAX_PAYLOAD), .pull = true}};
    send_soon(client, link, &m, &f);
    assert_null(f);
    struct got g;
    receive(server, &g);
    assert_int_equal(g.link, WIRE_ROUTER);
    assert_true(g.peer != 0);
    assert_int_equal(g.m.type, MSG_PUSH);
    assert_int_equal(g.m.job, 77);
    assert_int_equal(frame_len(g.payload), MSG_MAX_PAYLOAD);
    assert_true(wire_hash(frame_data(g.payload), frame_len(g.payload)) == g.m.push.hash);
    ((uint32_t *)frame_data(g.payload))[9] = 1234; /* the new weights overwrite the gradient */
    struct msg a = {.type = MSG_ANSWER, .answer = {.seq = 5}};
    assert_int_equal(wire_send(server, WIRE_ROUTER, g.peer, &a, &g.payload), 0);
    assert_null(g.payload);
    receive(client, &g);
    assert_int_equal(g.link, link);
    assert_true(g.peer == 0);
    assert_int_equal(g.m.type, MSG_ANSWER);
    numbers[9] = 1234;
    assert_memory_equal(frame_data(g.payload), numbers, MSG_MAX_PAYLOAD);
    frame_free(&g.payload);
    uint64_t sent, received;
    wire_traffic(client, &sent, &received);
    assert_int_equal(sent, MSG_MAX_PAYLOAD);
    assert_int_equal(received, MSG_MAX_PAYLOAD);
    free(numbers);
    wire_free(&client);
}

static void test_wire_short_payloads_are_aligned(void **state)
{
    (void)state;
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    for (size_t len = 0; len < 300; len++) {
        struct msg m = leave_of(1ull << (len % 60)); /* headers of different lengths */
        struct frame *f = frame_new(len);
        memset(frame_data(f), (int)len, len);
        send_soon(client, link, &m, &f);
        struct got g;
        receive(server, &g);
        assert_non_null(g.payload);
        assert_int_equal(frame_len(g.payload), len);
        assert_int_equal((uintptr_t)frame_data(g.payload) % 4, 0);
        for (size_t i = 0; i < len; i++)
            assert_int_equal(((uint8_t *)frame_data(g.payload))[i], (uint8_t)len);
        frame_free(&g.payload);
    }
    wire_free(&client);
}

static void count_release(void *data, void *ctx)
{
    (void)data;
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static void test_wire_lent_frame_is_released_once(void **state)
{
    (void)state;
    static float numbers[1000];
    atomic_int released = 0;
    struct frame *f = frame_lend(numbers, sizeof numbers, count_release, &released);
    assert_ptr_equal(frame_data(f), numbers);
    frame_free(&f);
    assert_null(f);
    assert_int_equal(atomic_load(&released), 1);

    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    f = frame_lend(numbers, sizeof numbers, count_release, &released);
    struct msg m = leave_of(1);
    send_soon(client, link, &m, &f);
    struct got g;
    receive(server, &g);
    assert_int_equal(frame_len(g.payload), sizeof numbers);
    frame_free(&g.payload);
    wire_free(&client); /* the I/O thread has ended, so what it held is released */
    assert_int_equal(atomic_load(&released), 2);
    frame_free(&f); /* NULL */
}

static void test_wire_unconnected_dealer_says_again_and_keeps_the_payload(void **state)
{
    (void)state;
    wire_free(&server); /* nobody listens there now */
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    struct msg m = leave_of(1);
    struct frame *f = frame_new(10), *same = f;
    assert_int_equal(wire_send(client, link, 0, &m, &f), ERR_AGAIN);
    assert_ptr_equal(f, same);
    assert_int_equal(frame_len(f), 10);
    frame_free(&f);
    wire_free(&client);
}

static void test_wire_gone_peer_is_out_of_reach(void **state)
{
    (void)state;
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    struct msg m = leave_of(1);
    send_soon(client, link, &m, NULL);
    struct got g;
    receive(server, &g);
    assert_null(g.payload);
    wire_free(&client);
    uint64_t end = clock_now_ns() + LIMIT_NS;
    int err;
    struct frame *f = frame_new(100);
    do {
        if (!f) f = frame_new(100); /* until the disconnect is seen, messages are taken and lost */
        err = wire_send(server, WIRE_ROUTER, g.peer, &m, &f);
        /* a peer that left with a full queue is gone only when its messages have been asked for */
        assert_int_equal(wire_receive(server, 0, &g.link, &g.peer, &g.m, &g.payload), ERR_AGAIN);
    } while (err != ERR_REACH && clock_now_ns() < end);
    assert_int_equal(err, ERR_REACH);
    assert_non_null(f);
    assert_int_equal(wire_send(server, WIRE_ROUTER, g.peer ^ 0x5555, &m, &f), ERR_REACH);
    frame_free(&f);
}

/* libzmq's own heartbeats abort in this case, about 4 s after the death */
static void test_wire_peer_that_dies_with_unread_messages_does_no_harm(void **state)
{
    (void)state;
    int connected[2];
    assert_int_equal(pipe(connected), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct wire *client = wire_new();
        int link = wire_connect(client, endpoint);
        struct msg m = leave_of(1);
        for (int i = 0; i < 40; i++) send_soon(client, link, &m, NULL);
        if (write(connected[1], "", 1) == 1) pause();
        _exit(1);
    }
    char byte;
    close(connected[1]); /* a child that falls ends the read */
    assert_int_equal(read(connected[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    close(connected[0]);
    struct wire *idle = wire_new(); /* the server stands still for 5 s */
    struct got g;
    memset(&g, 0, sizeof g);
    assert_int_equal(wire_receive(idle, 5000, &g.link, &g.peer, &g.m, &g.payload), ERR_AGAIN);
    wire_free(&idle);
}

/* A receiver that stands still: the sender is told so, and what was taken arrives whole. */
static void test_wire_full_queue_says_again_and_loses_nothing(void **state)
{
    (void)state;
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint), taken = 1;
    struct msg m = leave_of(0);
    struct frame *f = frame_new(MSG_MAX_PAYLOAD);
    send_soon(client, link, &m, &f);
    uint64_t end = clock_now_ns() + LIMIT_NS, refused_since = 0;
    while (clock_now_ns() < end) {
        if (!f) f = frame_new(MSG_MAX_PAYLOAD);
        m.leave.member = (uint64_t)taken;
        uint64_t now = clock_now_ns();
        if (wire_send(client, link, 0, &m, &f) == 0) {
            taken++;
            refused_since = 0;
        } else if (!refused_since) {
            refused_since = now;
        } else if (now - refused_since > 200 * NS_PER_MS) {
            break;
        }
    }
    assert_non_null(f);
    assert_in_range(taken, 8, 64); /* the queues of both, and what the kernel holds */
    frame_free(&f);
    for (int i = 0; i < taken; i++) {
        struct got g;
        receive(server, &g);
        assert_int_equal(g.m.leave.member, i);
        assert_non_null(g.payload);
        frame_free(&g.payload);
    }
    wire_free(&client);
}

static void test_wire_receive_ends_after_its_time(void **state)
{
    (void)state;
    struct got g;
    assert_int_equal(wire_receive(server, 0, &g.link, &g.peer, &g.m, &g.payload), ERR_AGAIN);
    uint64_t start = clock_now_ns();
    assert_int_equal(wire_receive(server, 30, &g.link, &g.peer, &g.m, &g.payload), ERR_AGAIN);
    assert_true(clock_now_ns() - start >= 25 * NS_PER_MS);
}

static void test_wire_watched_descriptor_ends_the_wait(void **state)
{
    (void)state;
    int fd = eventfd(1, 0);
    wire_watch(server, fd);
    struct got g;
    uint64_t start = clock_now_ns();
    assert_int_equal(wire_receive(server, 60000, &g.link, &g.peer, &g.m, &g.payload), ERR_AGAIN);
    assert_true(clock_now_ns() - start < LIMIT_NS);
    wire_watch(server, -1);
    assert_int_equal(wire_receive(server, 1, &g.link, &g.peer, &g.m, &g.payload), ERR_AGAIN);
    close(fd);
}

/* With one flooded socket the other still gets every second turn. */
static void test_wire_sockets_are_asked_in_turn(void **state)
{
    (void)state;
    struct wire *other = wire_new();
    char there[MSG_MAX_ENDPOINT];
    assert_int_equal(wire_bind(other, "127.0.0.1", there), 0);
    struct wire *client = wire_new();
    int links[2] = {wire_connect(client, endpoint), wire_connect(client, there)};
    assert_int_not_equal(links[0], links[1]);
    struct wire *sides[2] = {server, other};
    uint64_t peers[2];
    struct msg m = leave_of(1);
    struct got g;
    for (int i = 0; i < 2; i++) {
        send_soon(client, links[i], &m, NULL);
        receive(sides[i], &g);
        peers[i] = g.peer;
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 2; k++) assert_int_equal(wire_send(sides[k], WIRE_ROUTER, peers[k], &m, NULL), 0);
    int from[2] = {0, 0};
    for (int i = 0; i < 8; i++) {
        receive(client, &g);
        from[g.link == links[1]]++;
    }
    assert_int_equal(from[0], 4);
    assert_int_equal(from[1], 4);
    wire_close(client, links[0]);
    for (int k = 0; k < 2; k++) send_soon(client, links[1], &m, NULL);
    assert_int_equal(wire_connect(client, endpoint), links[0]); /* the number is free again */
    wire_free(&client);
    wire_free(&other);
}

static uint64_t say_hello(struct wire *from, int link, struct wire *to)
{
    struct msg m = leave_of(1);
    struct got g;
    send_soon(from, link, &m, NULL);
    receive(to, &g);
    return g.peer;
}

static void let_it_arrive(void)
{
    uint64_t there = clock_now_ns() + 10 * NS_PER_MS;
    while (clock_now_ns() < there) continue;
}

static void answer_soon(struct wire *w, uint64_t peer)
{
    struct msg m = leave_of(1);
    uint64_t end = clock_now_ns() + LIMIT_NS;
    while (wire_send(w, WIRE_ROUTER, peer, &m, NULL) == ERR_AGAIN && clock_now_ns() < end) continue;
}

/* A socket that was empty is left alone only until it has something: what waits at another hides nothing. A
 * busy machine may bring the message late: then once more. */
static void test_wire_quiet_socket_is_heard_beside_a_flooded_one(void **state)
{
    (void)state;
    struct wire *other = wire_new(), *client = wire_new();
    char there[MSG_MAX_ENDPOINT];
    assert_int_equal(wire_bind(other, "127.0.0.1", there), 0);
    int flooded = wire_connect(client, endpoint), quiet = wire_connect(client, there);
    uint64_t quiet_peer = say_hello(client, quiet, other), peer = say_hello(client, flooded, server);
    int after = 0, tries = 0;
    for (struct got g; after == 0 && tries < 20; tries++) {
        for (int k = 0; k < 28; k++) answer_soon(server, peer);
        for (int k = 0; k < 2; k++) receive(client, &g); /* the quiet one was asked, too */
        answer_soon(other, quiet_peer);
        let_it_arrive();
        for (int k = 0; k < 27; k++) {
            receive(client, &g);
            if (g.link == quiet) after = 26 - k; /* so many came later */
        }
    }
    assert_in_range(after, 1, 26);
    wire_free(&client);
    wire_free(&other);
}

/* Sending may take in what says that something has come. */
static void test_wire_send_does_not_make_it_deaf(void **state)
{
    (void)state;
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    uint64_t peer = say_hello(client, link, server);
    struct msg m = leave_of(1);
    struct got g;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(wire_receive(client, 0, &g.link, &g.peer, &g.m, &g.payload), ERR_AGAIN);
        assert_int_equal(wire_send(server, WIRE_ROUTER, peer, &m, NULL), 0);
        let_it_arrive();
        assert_int_equal(wire_send(client, link, 0, &m, NULL), 0);
        receive(client, &g);
        receive(server, &g);
    }
    wire_free(&client);
}

/* Four under way at most: a queue of eight is never full, however quickly it goes. */
static void test_wire_queue_with_room_is_never_called_full(void **state)
{
    (void)state;
    struct wire *client = wire_new();
    int link = wire_connect(client, endpoint);
    uint64_t peer = say_hello(client, link, server);
    struct msg m = leave_of(1);
    struct got g;
    for (int i = 0; i < 20000; i++) {
        for (int k = 0; k < 4; k++) assert_int_equal(wire_send(server, WIRE_ROUTER, peer, &m, NULL), 0);
        for (int k = 0; k < 4; k++) receive(client, &g);
    }
    wire_free(&client);
}

/* Whatever registers the CPU has: the hash goes over the wire and into files. */
static void test_wire_hash_is_xxh3(void **state)
{
    (void)state;
    static const struct {
        size_t len;
        uint64_t hash;
    } known[] = {{0, 0x2d06800538d394c2},    {1, 0xc44bdff4074eecdb},   {16, 0x9da23836adf2be1e},
                 {100, 0x6dbb812cf19d012e},  {240, 0x4917a75c0ef8eed7}, {241, 0x541b19226f0052e8},
                 {1024, 0xdc5acf0b043c445b}, {5000, 0x6abe8be5abcb2760}};
    uint8_t bytes[5000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 7);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(wire_hash(bytes, known[i].len), known[i].hash);
}

static void test_wire_addresses_of_no_use_are_errors(void **state)
{
    (void)state;
    struct wire *w = wire_new();
    char where[MSG_MAX_ENDPOINT] = "unchanged", far_too_long[400];
    static const char *const addresses[] = {"0.0.0.0", "192.168.1.1",        "*",
                                            "nowhere", "127.0.0.1:99999999", ""};
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        if (wire_bind(w, addresses[i], where) != ERR_REACH) fail_msg("%s was accepted", addresses[i]);
        assert_string_equal(where, "unchanged");
    }
    memset(far_too_long, 'a', sizeof far_too_long);
    memcpy(far_too_long, "tcp://", 6);
    far_too_long[sizeof far_too_long - 1] = 0;
    const char *endpoints[] = {"",           "tcp://",       "tcp://127.0.0.1",          "ipc:///tmp/x",
                               "inproc://x", "127.0.0.1:80", "tcp://127.0.0.1:99999999", far_too_long};
    for (size_t i = 0; i < sizeof endpoints / sizeof *endpoints; i++)
        if (wire_connect(w, endpoints[i]) != ERR_REACH) fail_msg("%s was accepted", endpoints[i]);
    wire_free(&w);
    assert_null(w);
    wire_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_wire_payload_goes_there_and_back_in_one_frame),
        TEST(test_wire_short_payloads_are_aligned),
        TEST(test_wire_lent_frame_is_released_once),
        TEST(test_wire_unconnected_dealer_says_again_and_keeps_the_payload),
        TEST(test_wire_gone_peer_is_out_of_reach),
        TEST(test_wire_peer_that_dies_with_unread_messages_does_no_harm),
        TEST(test_wire_full_queue_says_again_and_loses_nothing),
        TEST(test_wire_receive_ends_after_its_time),
        TEST(test_wire_watched_descriptor_ends_the_wait),
        TEST(test_wire_sockets_are_asked_in_turn),
        TEST(test_wire_quiet_socket_is_heard_beside_a_flooded_one),
        TEST(test_wire_send_does_not_make_it_deaf),
        TEST(test_wire_queue_with_room_is_never_called_full),
        TEST(test_wire_hash_is_xxh3),
        TEST(test_wire_addresses_of_no_use_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
