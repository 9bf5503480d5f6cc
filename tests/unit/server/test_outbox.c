/* The outbox over real sockets: what a peer does not read waits, so much of it and no more; it comes in order
 * once the peer reads again, and meanwhile the others are served at once. */
#include "common/clock.h"
#include "common/err.h"
#include "server/outbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#define JOB      5
#define LIMIT    3u
#define BYTES    (256u << 10)
#define MANY     2000 /* more than the sockets between two processes take */
#define PATIENCE (30 * NS_PER_S)

struct pair {
    struct wire *server, *slow, *quick;
    uint64_t slow_peer, quick_peer;
    struct outbox *outbox;
};

/* The next message of any link; fails if none comes. */
static struct msg next(struct wire *w, uint64_t *peer)
{
    struct msg m = {.job = 0};
    struct frame *f = NULL;
    uint64_t begin = clock_now_ns();
    int link;
    while (wire_receive(w, 1000, &link, peer, &m, &f) < 0) assert_true(clock_now_ns() - begin < PATIENCE);
    frame_free(&f);
    return m;
}

static uint64_t introduce(struct wire *server, struct wire *client, const char *endpoint)
{
    struct msg m = {.type = MSG_HELLO, .job = JOB};
    uint64_t begin = clock_now_ns(), peer = 0;
    int link = wire_connect(client, endpoint);
    assert_true(link >= 0);
    while (wire_send(client, link, 0, &m, NULL) == ERR_AGAIN) assert_true(clock_now_ns() - begin < PATIENCE);
    next(server, &peer);
    return peer;
}

static struct pair new_pair(void)
{
    char endpoint[MSG_MAX_ENDPOINT];
    struct pair p = {wire_new(), wire_new(), wire_new(), 0, 0, NULL};
    assert_int_equal(wire_bind(p.server, "127.0.0.1", endpoint), 0);
    p.slow_peer = introduce(p.server, p.slow, endpoint);
    p.quick_peer = introduce(p.server, p.quick, endpoint);
    p.outbox = outbox_new(p.server, LIMIT);
    return p;
}

static void free_pair(struct pair *p)
{
    outbox_free(&p->outbox);
    wire_free(&p->slow);
    wire_free(&p->quick);
    wire_free(&p->server);
}

static void send_answer(struct pair *p, uint64_t peer, uint64_t seq, size_t bytes)
{
    struct msg m = {.type = MSG_ANSWER, .job = JOB};
    struct frame *f = NULL;
    m.answer.seq = seq;
    if (bytes > 0) {
        f = frame_new(bytes);
        memset(frame_data(f), (int)seq, bytes);
    }
    outbox_send(p->outbox, peer, &m, &f);
    assert_null(f);
}

/* Answers with a payload until the peer is crowded; how many. */
static uint64_t fill(struct pair *p)
{
    uint64_t n = 0;
    while (!outbox_is_crowded(p->outbox, p->slow_peer)) {
        assert_true(n < MANY);
        send_answer(p, p->slow_peer, ++n, BYTES);
    }
    return n;
}

static void a_peer_that_does_not_read_costs_so_much_and_no_more(void **state)
{
    (void)state;
    struct pair p = new_pair();
    uint64_t n = fill(&p), peer;
    assert_true(n > LIMIT && outbox_dropped(p.outbox) == 0);
    send_answer(&p, p.slow_peer, MANY, BYTES);
    assert_int_equal(outbox_dropped(p.outbox), 1);
    for (uint32_t i = 0; i < LIMIT + 2; i++) send_answer(&p, p.slow_peer, n + 1 + i, 0); /* small ones, too */
    assert_int_equal(outbox_dropped(p.outbox), 3);
    assert_false(outbox_is_crowded(p.outbox, p.quick_peer));
    for (uint64_t i = 1; i <= 50; i++) { /* the other one does not notice */
        send_answer(&p, p.quick_peer, i, BYTES);
        assert_int_equal(next(p.quick, &peer).answer.seq, i);
    }
    assert_int_equal(outbox_dropped(p.outbox), 3);
    free_pair(&p);
}

static void what_waited_comes_in_order_once_it_is_read(void **state)
{
    (void)state;
    struct pair p = new_pair();
    uint64_t n = fill(&p), peer;
    for (uint64_t i = 1; i <= n - LIMIT; i++) assert_int_equal(next(p.slow, &peer).answer.seq, i);
    send_answer(&p, p.slow_peer, n + 1, 0); /* there is room now, but others wait before it */
    for (uint64_t i = n - LIMIT + 1; i <= n + 1; i++) {
        outbox_flush(p.outbox);
        assert_int_equal(next(p.slow, &peer).answer.seq, i);
    }
    assert_false(outbox_flush(p.outbox));
    assert_false(outbox_is_crowded(p.outbox, p.slow_peer));
    assert_int_equal(outbox_dropped(p.outbox), 0);
    send_answer(&p, p.slow_peer, 9, BYTES); /* straight through again */
    assert_false(outbox_flush(p.outbox));
    assert_int_equal(next(p.slow, &peer).answer.seq, 9);
    free_pair(&p);
}

static void what_a_peer_that_is_gone_has_coming_is_dropped(void **state)
{
    (void)state;
    struct pair p = new_pair();
    fill(&p);
    wire_free(&p.slow);
    uint64_t begin = clock_now_ns();
    while (outbox_flush(p.outbox)) assert_true(clock_now_ns() - begin < PATIENCE);
    for (uint64_t before = outbox_dropped(p.outbox); outbox_dropped(p.outbox) == before;) {
        assert_true(clock_now_ns() - begin < PATIENCE);
        send_answer(&p, p.slow_peer, 1, BYTES);
        outbox_flush(p.outbox);
    }
    while (outbox_flush(p.outbox)) assert_true(clock_now_ns() - begin < PATIENCE);
    assert_false(outbox_is_crowded(p.outbox, p.slow_peer));
    free_pair(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_peer_that_does_not_read_costs_so_much_and_no_more),
        cmocka_unit_test(what_waited_comes_in_order_once_it_is_read),
        cmocka_unit_test(what_a_peer_that_is_gone_has_coming_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
