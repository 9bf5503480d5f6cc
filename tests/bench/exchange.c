/* GB/s of one exchange: a worker process pushes a vector of 13 M floats in blocks of 1 MiB, four in flight,
 * to a server process that checks and applies each block and sends the new weights back. Beside it, in the
 * same run, what bare libzmq reaches with the same frames when the server only sends them back: the share of
 * it is the figure that travels between machines. Bytes count both ways; one exchange of each kind in turn.
 * Prints a table and writes build/bench/exchange.json. */
#include "common/blocks.h"
#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"
#include "common/wire.h"
#include "server/update.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define FLOATS    13000000
#define BLOCK     BLOCKS_MAX_FLOATS
#define BLOCKS    ((FLOATS + BLOCK - 1) / BLOCK)
#define CREDIT    4
#define REPEATS   5
#define EXCHANGES 3 /* in one repeat */
#define WARM_UP   3
#define HEADER    48 /* bytes of a push, about */

static size_t block_bytes(uint32_t block)
{
    return (block + 1 < BLOCKS ? BLOCK : FLOATS - (size_t)block * BLOCK) * sizeof(float);
}

static uint64_t page_faults(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)u.ru_minflt;
}

static float *filled_vector(float value)
{
    float *v = xaligned(FLOATS * sizeof *v);
    for (size_t i = 0; i < FLOATS; i++) v[i] = value;
    return v;
}

/* --- our exchange: server */
struct bench_shard {
    struct update_rule rule;
    float *weights, *momentum;
};

/* The answer goes out in the frame that came; it carries the page faults of this process, too. */
static void serve_push(struct wire *w, struct bench_shard *s, uint64_t peer, const struct msg_push *p,
                       struct frame **payload)
{
    ASSERT(*payload && p->block < BLOCKS && frame_len(*payload) == block_bytes(p->block));
    float *g = frame_data(*payload);
    size_t bytes = frame_len(*payload), n = bytes / sizeof *g, at = (size_t)p->block * BLOCK;
    ASSERT(wire_hash(g, bytes) == p->hash && update_finite(g, n));
    update_apply(&s->rule, 1e-6f, g, s->weights + at, s->momentum + at, n);
    struct msg a = {.type = MSG_ANSWER,
                    .answer = {.block = p->block,
                               .seq = p->seq,
                               .verdict = VERDICT_APPLIED,
                               .stable = page_faults(),
                               .hash = wire_hash(g, bytes)}};
    ASSERT(wire_send(w, WIRE_ROUTER, peer, &a, payload) == 0);
}

static void serve(int endpoint_to)
{
    struct bench_shard s = {.rule = {.type = OPTIMIZER_MOMENTUM, .momentum = 0.9f},
                            .weights = filled_vector(0),
                            .momentum = filled_vector(0)};
    char endpoint[MSG_MAX_ENDPOINT] = "";
    struct wire *w = wire_new();
    ASSERT(wire_bind(w, "127.0.0.1", endpoint) == 0);
    ASSERT(write(endpoint_to, endpoint, sizeof endpoint) == sizeof endpoint);
    for (;;) {
        int link;
        uint64_t peer;
        struct msg m;
        struct frame *payload = NULL;
        if (wire_receive(w, 1000, &link, &peer, &m, &payload)) continue;
        if (m.type != MSG_PUSH) break;
        serve_push(w, &s, peer, &m.push, &payload);
    }
    wire_free(&w);
}

/* --- our exchange: worker */
struct bench_worker {
    struct wire *wire;
    int link;
    float *grad, *params;
    uint64_t seq, server_faults;
};

static void push_block(struct bench_worker *k, uint32_t block)
{
    float *g = k->grad + (size_t)block * BLOCK;
    size_t bytes = block_bytes(block);
    struct msg m = {.type = MSG_PUSH,
                    .push = {.member = 1,
                             .seq = k->seq,
                             .block = block,
                             .frames = 320,
                             .pull = true,
                             .hash = wire_hash(g, bytes)}};
    struct frame *f = frame_lend(g, bytes, NULL, NULL);
    int err;
    while ((err = wire_send(k->wire, k->link, 0, &m, &f)) == ERR_AGAIN) continue; /* until connected */
    ASSERT(err == 0);
}

static void take_answer(struct bench_worker *k)
{
    int link;
    uint64_t peer;
    struct msg m;
    struct frame *f = NULL;
    ASSERT(wire_receive(k->wire, 60000, &link, &peer, &m, &f) == 0 && m.type == MSG_ANSWER && f);
    ASSERT(frame_len(f) == block_bytes(m.answer.block) &&
           wire_hash(frame_data(f), frame_len(f)) == m.answer.hash);
    memcpy(k->params + (size_t)m.answer.block * BLOCK, frame_data(f), frame_len(f));
    k->server_faults = m.answer.stable;
    frame_free(&f);
}

static void exchange_ours(struct bench_worker *k)
{
    k->seq++;
    for (uint32_t next = 0, answered = 0; answered < BLOCKS;) {
        if (next < BLOCKS && next < answered + CREDIT) {
            push_block(k, next++);
        } else {
            take_answer(k);
            answered++;
        }
    }
}

/* --- bare libzmq: the same frames, sent back as they are */
static void echo(int endpoint_to)
{
    void *context = zmq_ctx_new(), *s = zmq_socket(context, ZMQ_ROUTER);
    char endpoint[MSG_MAX_ENDPOINT] = "";
    size_t size = sizeof endpoint;
    ASSERT(zmq_bind(s, "tcp://127.0.0.1:*") == 0);
    ASSERT(zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, endpoint, &size) == 0);
    ASSERT(write(endpoint_to, endpoint, sizeof endpoint) == sizeof endpoint);
    for (bool payload = true; payload;) {
        int parts = 0, more = 1;
        for (zmq_msg_t part; more; parts++) {
            zmq_msg_init(&part);
            ASSERT(zmq_msg_recv(&part, s, 0) >= 0);
            more = zmq_msg_more(&part);
            ASSERT(zmq_msg_send(&part, s, more ? ZMQ_SNDMORE : 0) >= 0);
        }
        payload = parts == 3;
    }
    zmq_close(s);
    zmq_ctx_term(context);
}

static void exchange_bare(void *s, float *grad)
{
    char header[HEADER] = "";
    for (uint32_t next = 0, answered = 0; answered < BLOCKS;) {
        zmq_msg_t part;
        if (next < BLOCKS && next < answered + CREDIT) {
            ASSERT(zmq_send(s, header, sizeof header, ZMQ_SNDMORE) == HEADER);
            zmq_msg_init_data(&part, grad + (size_t)next * BLOCK, block_bytes(next), NULL, NULL);
            ASSERT(zmq_msg_send(&part, s, 0) >= 0);
            next++;
        } else {
            ASSERT(zmq_recv(s, header, sizeof header, 0) == HEADER);
            zmq_msg_init(&part);
            ASSERT(zmq_msg_recv(&part, s, 0) == (int)block_bytes(answered));
            zmq_msg_close(&part);
            answered++;
        }
    }
}

/* --- measuring */
struct child {
    pid_t pid;
    char endpoint[MSG_MAX_ENDPOINT];
};

/* Before any thread of ours: the child dies with us. */
static struct child child_start(void (*body)(int endpoint_to))
{
    struct child c;
    int ends[2];
    ASSERT(pipe(ends) == 0);
    c.pid = fork();
    ASSERT(c.pid >= 0);
    if (c.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        body(ends[1]);
        _exit(0);
    }
    ASSERT(read(ends[0], c.endpoint, sizeof c.endpoint) == sizeof c.endpoint);
    close(ends[0]);
    close(ends[1]);
    return c;
}

struct figure {
    const char *name, *unit;
    double values[REPEATS];
};

enum { OURS, BARE, SHARE, FAULTS_WORKER, FAULTS_SERVER, NUM_FIGURES };

static double gigabytes_per_second(uint64_t ns)
{
    return 2.0 * FLOATS * sizeof(float) * EXCHANGES / (double)ns;
}

static void measure_repeat(struct bench_worker *k, void *bare, struct figure *f, int repeat)
{
    uint64_t ours = 0, plain = 0, mine = 0, theirs = k->server_faults;
    for (int i = 0; i < EXCHANGES; i++) {
        uint64_t faults = page_faults(), start = clock_now_ns();
        exchange_ours(k);
        uint64_t middle = clock_now_ns();
        mine += page_faults() - faults;
        exchange_bare(bare, k->grad);
        ours += middle - start;
        plain += clock_now_ns() - middle;
    }
    f[OURS].values[repeat] = gigabytes_per_second(ours);
    f[BARE].values[repeat] = gigabytes_per_second(plain);
    f[SHARE].values[repeat] = (double)plain / (double)ours;
    f[FAULTS_WORKER].values[repeat] = (double)mine / EXCHANGES;
    f[FAULTS_SERVER].values[repeat] = (double)(k->server_faults - theirs) / EXCHANGES;
}

static void measure(const struct child *server, const struct child *echoer, struct figure *f)
{
    struct bench_worker k = {.wire = wire_new(), .grad = filled_vector(1e-3f), .params = filled_vector(0)};
    k.link = wire_connect(k.wire, server->endpoint);
    ASSERT(k.link >= 0);
    void *context = zmq_ctx_new(), *bare = zmq_socket(context, ZMQ_DEALER);
    ASSERT(zmq_connect(bare, echoer->endpoint) == 0);
    for (int i = 0; i < WARM_UP; i++) {
        exchange_ours(&k);
        exchange_bare(bare, k.grad);
    }
    for (int repeat = 0; repeat < REPEATS; repeat++) measure_repeat(&k, bare, f, repeat);
    struct msg leave = {.type = MSG_LEAVE};
    ASSERT(wire_send(k.wire, k.link, 0, &leave, NULL) == 0);
    ASSERT(zmq_send(bare, "", 0, 0) == 0);
    wire_free(&k.wire);
    zmq_close(bare);
    zmq_ctx_term(context);
    free(k.grad);
    free(k.params);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int write_json(const struct figure *figures)
{
    char text[2048] = "{\"figures\": {\n";
    size_t n = strlen(text);
    for (int i = 0; i < NUM_FIGURES; i++) {
        const struct figure *f = &figures[i];
        n += (size_t)snprintf(
            text + n, sizeof text - n,
            "  \"%s\": {\"median\": %.6g, \"min\": %.6g, \"max\": %.6g, \"unit\": \"%s\"}%s\n", f->name,
            f->values[REPEATS / 2], f->values[0], f->values[REPEATS - 1], f->unit,
            i + 1 < NUM_FIGURES ? "," : "");
    }
    n += (size_t)snprintf(text + n, sizeof text - n, "}}\n");
    ASSERT(n < sizeof text);
    int err = files_make_dirs("build/bench");
    return err ? err : files_write_atomic("build/bench/exchange.json", text, n);
}

int main(void)
{
    struct figure figures[NUM_FIGURES] = {{.name = "exchange", .unit = "GB/s"},
                                          {.name = "bare_libzmq", .unit = "GB/s"},
                                          {.name = "exchange_share", .unit = "of bare libzmq"},
                                          {.name = "page_faults_worker", .unit = "per exchange"},
                                          {.name = "page_faults_server", .unit = "per exchange"}};
    wire_keep_pages();
    struct child server = child_start(serve), echoer = child_start(echo);
    measure(&server, &echoer, figures);
    int status[2] = {1, 1};
    waitpid(server.pid, &status[0], 0);
    waitpid(echoer.pid, &status[1], 0);
    if (status[0] || status[1])
        return err_report("exchange", err_set(ERR_FAIL, "a server process of the bench has failed"));
    printf(
        "one exchange of %d floats in %d blocks, credit %d, loopback, update included, median of %d (min .. "
        "max)\n\n",
        FLOATS, BLOCKS, CREDIT, REPEATS);
    for (int i = 0; i < NUM_FIGURES; i++) {
        struct figure *f = &figures[i];
        qsort(f->values, REPEATS, sizeof *f->values, by_value);
        printf("%-20s %8.2f  (%.2f .. %.2f)  %s\n", f->name, f->values[REPEATS / 2], f->values[0],
               f->values[REPEATS - 1], f->unit);
    }
    int err = write_json(figures);
    return err ? err_report("exchange", err) : 0;
}
