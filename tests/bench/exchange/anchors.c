#include "tests/bench/exchange/anchors.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/wire.h"
#include "tests/bench/exchange/cluster.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#define HEADER 72 /* bytes of a push's header, about */
/* Messages in a queue. libzmq's default of 1000 costs a one-way stream its pages; an echo has no more under
 * way than its credit, but a ROUTER drops what looks full to it. */
#define ONE_WAY   16
#define ECHO      1000
#define BUFFER    (256 << 10) /* of the socket, as in wire.c: an echo takes a third less time with it */
#define MAX_TIMES 65536

struct anchor anchor_start(const struct anchor_setup *setup, anchor_body *server, anchor_body *client)
{
    struct anchor a = {.setup = *setup};
    ASSERT(pipe(a.setup.done) == 0);
    a.server = process_start(server, &a.setup);
    struct report r = process_report(&a.server);
    memcpy(a.setup.endpoint, r.endpoint, sizeof r.endpoint);
    a.client = process_start(client, &a.setup);
    return a;
}

double anchor_run(const struct anchor *a, uint32_t count, double *p50_us)
{
    struct report r = process_do(&a->client, ORDER_RUN, 0, count);
    if (p50_us) *p50_us = r.p50_us;
    return (double)(r.end_ns - r.begin_ns) / 1e9 / count;
}

bool anchor_stop(struct anchor *a)
{
    bool ok = process_stop(&a->client);
    process_kill(&a->server);
    close(a->setup.done[0]);
    close(a->setup.done[1]);
    return ok;
}

/* --- a client does what it is told; run(ctx, setup) moves the vector once */
struct timed {
    double *us; /* of round trips, if the anchor has any */
    size_t num;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void obey(const struct ends *e, const struct anchor_setup *setup, void *ctx,
                 void (*run)(void *ctx, const struct anchor_setup *setup, char *vector, struct timed *t))
{
    char *vector = xaligned(setup->bytes);
    struct timed t = {.us = xcalloc(MAX_TIMES, sizeof(double))};
    memset(vector, 1, setup->bytes);
    struct order o;
    while (process_next(e, true, &o) && o.type == ORDER_RUN) {
        struct report r = {.begin_ns = clock_now_ns()};
        t.num = 0;
        for (uint32_t i = 0; i < o.count; i++) run(ctx, setup, vector, &t);
        r.end_ns = clock_now_ns();
        qsort(t.us, t.num, sizeof *t.us, by_value);
        if (t.num) r.p50_us = t.us[t.num / 2];
        process_tell(e, &r);
    }
    free(vector);
    free(t.us);
}

static size_t piece(const struct anchor_setup *s, size_t at)
{
    return s->bytes - at < s->block ? s->bytes - at : s->block;
}

/* --- bare TCP */
void anchor_tcp_server(const struct ends *e, const void *arg)
{
    const struct anchor_setup *setup = arg;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    if (setup->is_apart) process_pin(false);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    ASSERT(s >= 0 && bind(s, (struct sockaddr *)&at, len) == 0 && listen(s, 1) == 0);
    ASSERT(getsockname(s, (struct sockaddr *)&at, &len) == 0);
    struct report r = {0};
    snprintf(r.endpoint, sizeof r.endpoint, "%d", ntohs(at.sin_port));
    process_tell(e, &r);
    int c = accept(s, NULL, NULL);
    char *block = xaligned(setup->block);
    for (size_t got = 0;;) {
        ssize_t n = read(c, block, piece(setup, got));
        if (n <= 0) return; /* the client has ended */
        got += (size_t)n;
        if (got < setup->bytes) continue;
        ASSERT(write(c, "", 1) == 1);
        got = 0;
    }
}

static void run_tcp(void *ctx, const struct anchor_setup *setup, char *vector, struct timed *t)
{
    (void)t;
    int s = *(int *)ctx;
    char done;
    for (size_t at = 0; at < setup->bytes;) {
        ssize_t n = write(s, vector + at, piece(setup, at));
        ASSERT(n > 0);
        at += (size_t)n;
    }
    ASSERT(read(s, &done, 1) == 1);
}

void anchor_tcp_client(const struct ends *e, const void *arg)
{
    const struct anchor_setup *setup = arg;
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(setup->endpoint)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (setup->is_apart) process_pin(true);
    int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    ASSERT(s >= 0 && connect(s, (struct sockaddr *)&at, sizeof at) == 0);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    obey(e, setup, &s, run_tcp);
}

/* --- bare libzmq, with all that makes it faster */
static void *zmq_open(const struct anchor_setup *setup, int type, bool bound)
{
    if (setup->is_apart) process_pin(!bound);
    wire_keep_pages();
    int high = type == ZMQ_PUSH || type == ZMQ_PULL ? ONE_WAY : ECHO, buffer = BUFFER;
    void *s = zmq_socket(zmq_ctx_new(), type);
    ASSERT(s);
    zmq_setsockopt(s, ZMQ_SNDHWM, &high, sizeof high);
    zmq_setsockopt(s, ZMQ_RCVHWM, &high, sizeof high);
    zmq_setsockopt(s, ZMQ_SNDBUF, &buffer, sizeof buffer);
    if (bound) ASSERT(zmq_bind(s, "tcp://127.0.0.1:*") == 0);
    return s;
}

static void tell_endpoint(const struct ends *e, void *s)
{
    struct report r = {0};
    size_t size = sizeof r.endpoint;
    ASSERT(zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, r.endpoint, &size) == 0);
    process_tell(e, &r);
}

static void *zmq_join(const struct anchor_setup *setup, int type)
{
    void *s = zmq_open(setup, type, false);
    ASSERT(zmq_connect(s, setup->endpoint) == 0);
    return s;
}

static size_t receive_part(void *s)
{
    zmq_msg_t part;
    zmq_msg_init(&part);
    int n = zmq_msg_recv(&part, s, 0);
    ASSERT(n >= 0);
    zmq_msg_close(&part);
    return (size_t)n;
}

static void lend_part(void *s, char *data, size_t len)
{
    zmq_msg_t part;
    zmq_msg_init_data(&part, data, len, NULL, NULL);
    ASSERT(zmq_msg_send(&part, s, 0) >= 0);
}

void anchor_pull_server(const struct ends *e, const void *arg)
{
    const struct anchor_setup *setup = arg;
    void *s = zmq_open(setup, ZMQ_PULL, true);
    tell_endpoint(e, s);
    for (size_t got = 0;;) {
        got += receive_part(s);
        if (got < setup->bytes) continue;
        ASSERT(write(setup->done[1], "", 1) == 1);
        got = 0;
    }
}

static void run_one_way(void *ctx, const struct anchor_setup *setup, char *vector, struct timed *t)
{
    (void)t;
    char done;
    for (size_t at = 0; at < setup->bytes; at += setup->block) lend_part(ctx, vector + at, piece(setup, at));
    ASSERT(read(setup->done[0], &done, 1) == 1);
}

void anchor_push_client(const struct ends *e, const void *arg)
{
    const struct anchor_setup *setup = arg;
    obey(e, setup, zmq_join(setup, ZMQ_PUSH), run_one_way);
}

/* What comes goes back, part by part. */
void anchor_echo_server(const struct ends *e, const void *arg)
{
    void *s = zmq_open(arg, ZMQ_ROUTER, true);
    tell_endpoint(e, s);
    for (;;) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        ASSERT(zmq_msg_recv(&part, s, 0) >= 0);
        int more = zmq_msg_more(&part);
        ASSERT(zmq_msg_send(&part, s, more ? ZMQ_SNDMORE : 0) >= 0);
    }
}

static void run_echo(void *ctx, const struct anchor_setup *setup, char *vector, struct timed *t)
{
    char header[HEADER] = "";
    uint64_t start = clock_now_ns();
    for (size_t next = 0, answered = 0; answered < setup->bytes;) {
        if (next < setup->bytes && next < answered + CLUSTER_CREDIT * setup->block) {
            ASSERT(zmq_send(ctx, header, sizeof header, ZMQ_SNDMORE) == HEADER);
            lend_part(ctx, vector + next, piece(setup, next));
            next += piece(setup, next);
        } else {
            ASSERT(receive_part(ctx) == HEADER);
            answered += receive_part(ctx);
        }
    }
    if (t->num < MAX_TIMES) t->us[t->num++] = (double)(clock_now_ns() - start) / 1e3;
}

void anchor_echo_client(const struct ends *e, const void *arg)
{
    const struct anchor_setup *setup = arg;
    obey(e, setup, zmq_join(setup, ZMQ_DEALER), run_echo);
}
