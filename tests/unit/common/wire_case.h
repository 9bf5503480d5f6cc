/* A server wire that is bound, and what tests of the wire do with it; for test_wire*.c alone. */
#ifndef TESTS_WIRE_CASE_H
#define TESTS_WIRE_CASE_H

#include "common/clock.h"
#include "common/err.h"
#include "common/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#define LIMIT_NS (10 * NS_PER_S) /* for what happens within milliseconds */

static struct wire *server;
static char endpoint[MSG_MAX_ENDPOINT];

struct got {
    int link;
    uint64_t peer;
    struct msg m;
    struct frame *payload;
};

static inline int set_up(void **state)
{
    (void)state;
    server = wire_new();
    return wire_bind(server, "127.0.0.1", endpoint);
}

static inline int tear_down(void **state)
{
    (void)state;
    wire_free(&server);
    return 0;
}

static inline struct msg leave_of(uint64_t member)
{
    return (struct msg){.type = MSG_LEAVE, .job = 77, .leave = {.member = member}};
}

static inline void receive(struct wire *w, struct got *g)
{
    memset(g, 0, sizeof *g);
    assert_int_equal(wire_receive(w, 10000, &g->link, &g->peer, &g->m, &g->payload), 0);
}

/* A DEALER takes nothing until it is connected. */
static inline void send_soon(struct wire *w, int link, const struct msg *m, struct frame **payload)
{
    uint64_t end = clock_now_ns() + LIMIT_NS;
    int err;
    while ((err = wire_send(w, link, 0, m, payload)) == ERR_AGAIN && clock_now_ns() < end) continue;
    assert_int_equal(err, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
