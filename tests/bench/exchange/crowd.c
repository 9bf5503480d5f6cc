/* Emulated workers: the exchange and the wire are real, but a worker sleeps where it should compute, and all
 * of a crowd lend the same gradient and land their answers in one place. */
#include "common/clock.h"
#include "common/err.h"
#include "common/wire.h"
#include "tests/bench/exchange/cluster.h"
#include "tests/bench/exchange/shards.h"
#include "worker/exchange.h"

#include <stdlib.h>

#define TICK_NS     NS_PER_MS
#define MAX_WAIT_MS 100
#define DEADLINE_NS (30 * NS_PER_S)
#define FRAMES      320 /* of one push */
#define MAX_TIMES   65536

struct emulated {
    struct crowd *crowd;
    int first_link; /* to server k: + k */
    struct exchange *exchange;
    struct weights weights; /* values are the crowd's */
    uint64_t wake, began;
    uint32_t left; /* exchanges */
    bool is_busy;
};

struct crowd {
    const struct cluster_setup *setup;
    struct wire *wire;
    struct emulated *workers;
    float *gradient;
    struct order order;
    uint64_t stop_at, ended, busy;
    double *times; /* us, of the first exchanges of a run */
    size_t num_times;
};

static bool send_push(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    struct emulated *w = ctx;
    return wire_send(w->crowd->wire, w->first_link + (int)shard, 0, m, payload) == 0;
}

static void worker_begin(struct crowd *c, struct emulated *w, float *values, uint64_t member)
{
    const struct cluster_setup *setup = c->setup;
    uint32_t blocks = setup->blocks.count;
    struct exchange_options o = {
        .job = SHARDS_JOB,
        .model_hash = SHARDS_MODEL,
        .blocks = setup->blocks,
        .shards = (uint32_t)setup->servers,
        .credit = CLUSTER_CREDIT,
        .deadline_ns = DEADLINE_NS,
        .consistency = CONSISTENCY_ASYNC,
        .optimizer = OPTIMIZER_MOMENTUM,
        .gradients = setup->type,
        .weights = setup->type,
    };
    w->crowd = c;
    w->weights = (struct weights){values, xcalloc(blocks, sizeof(uint64_t)),
                                  xcalloc(blocks, sizeof(uint64_t)), xcalloc(blocks, sizeof(uint32_t))};
    w->exchange = exchange_new(&o, &(struct exchange_io){w, send_push});
    for (int k = 0; k < setup->servers; k++) {
        int link = wire_connect(c->wire, setup->endpoints[k]);
        if (k == 0) w->first_link = link;
        ASSERT(link == w->first_link + k);
    }
    exchange_set_member(w->exchange, member, 1);
    for (int k = 0; k < setup->servers; k++) exchange_connected(w->exchange, clock_now_ns(), (uint32_t)k);
}

static void worker_push(struct crowd *c, struct emulated *w, uint64_t now)
{
    w->is_busy = true;
    w->began = now;
    c->busy++;
    exchange_push(w->exchange, now, c->gradient, FRAMES, &w->weights, &w->weights, true);
}

static void worker_end(struct crowd *c, struct emulated *w, uint64_t now)
{
    w->is_busy = false;
    w->wake = now + c->order.sleep_ms * NS_PER_MS;
    c->busy--;
    c->ended++;
    if (c->order.count) w->left--;
    if (c->num_times < MAX_TIMES) c->times[c->num_times++] = (double)(now - w->began) / 1e3;
}

/* Whatever is to be done by the worker itself; one exchange follows the other at once if it need not sleep.
 */
static void worker_step(struct crowd *c, struct emulated *w, uint64_t now)
{
    ASSERT(exchange_trouble(w->exchange) == 0);
    if (w->is_busy) {
        if (!exchange_idle(w->exchange) || !exchange_drained(w->exchange)) return;
        worker_end(c, w, now);
    }
    bool wants = c->order.count ? w->left > 0 : now < c->stop_at;
    if (wants && now >= w->wake) worker_push(c, w, now);
}

static void tick(struct crowd *c, uint64_t now)
{
    for (int i = 0; i < c->setup->in_crowd; i++) {
        exchange_tick(c->workers[i].exchange, now);
        worker_step(c, &c->workers[i], now);
    }
}

static bool is_over(const struct crowd *c, uint64_t now)
{
    if (c->busy > 0) return false;
    if (!c->order.count) return now >= c->stop_at;
    for (int i = 0; i < c->setup->in_crowd; i++)
        if (c->workers[i].left > 0) return false;
    return true;
}

/* The timer of a short wait costs a virtual machine more than a message does. */
static int wait_ms(const struct crowd *c, uint64_t now)
{
    const struct emulated *w = c->workers;
    uint64_t next = exchange_next(w->exchange);
    if (c->setup->in_crowd > 1 || !w->is_busy || exchange_idle(w->exchange) || next <= now + TICK_NS)
        return 1;
    return next < now + MAX_WAIT_MS * NS_PER_MS ? (int)((next - now) / NS_PER_MS) : MAX_WAIT_MS;
}

static void receive(struct crowd *c, uint64_t now)
{
    struct msg m;
    struct frame *payload = NULL;
    int link;
    uint64_t peer;
    if (wire_receive(c->wire, wait_ms(c, now), &link, &peer, &m, &payload)) return;
    now = clock_now_ns();
    struct emulated *w = &c->workers[link / c->setup->servers];
    exchange_receive(w->exchange, now, (uint32_t)(link - w->first_link), &m, &payload);
    frame_free(&payload);
    if (exchange_idle(w->exchange)) worker_step(c, w, clock_now_ns());
}

static void run(struct crowd *c)
{
    uint64_t now = clock_now_ns(), ticked = 0;
    c->stop_at = now + (uint64_t)(c->order.seconds * 1e9);
    c->ended = c->num_times = 0;
    for (int i = 0; i < c->setup->in_crowd; i++) {
        c->workers[i].left = c->order.count;
        c->workers[i].wake = now; /* all push at once */
    }
    for (; !is_over(c, now); now = clock_now_ns()) {
        if (now >= ticked + TICK_NS) tick(c, ticked = now);
        receive(c, now);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void tell(const struct ends *e, struct crowd *c, struct report *r)
{
    for (int i = 0; i < c->setup->in_crowd; i++) {
        const struct exchange_counts *n = exchange_counts(c->workers[i].exchange);
        r->bytes += n->bytes_out + n->bytes_in;
        r->resent += n->resent;
    }
    qsort(c->times, c->num_times, sizeof *c->times, by_value);
    if (c->num_times) r->p50_us = c->times[c->num_times / 2];
    process_tell(e, r);
}

static float *vector(size_t n, float value)
{
    float *v = xaligned(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = value;
    return v;
}

void cluster_crowd(const struct ends *e, const void *arg)
{
    struct crowd c = {.setup = arg};
    wire_keep_pages();
    if (c.setup->is_apart) process_pin(true);
    c.wire = wire_new();
    c.gradient = vector(c.setup->blocks.params, 1e-3f);
    c.times = xcalloc(MAX_TIMES, sizeof *c.times);
    c.workers = xcalloc((size_t)c.setup->in_crowd, sizeof *c.workers);
    float *values = vector(c.setup->blocks.params, 1);
    uint64_t member = 1 + (uint64_t)c.setup->number * (uint64_t)c.setup->in_crowd;
    for (int i = 0; i < c.setup->in_crowd; i++) worker_begin(&c, &c.workers[i], values, member + (uint64_t)i);
    for (;;) {
        struct report r = {0};
        process_next(e, true, &c.order);
        if (c.order.type == ORDER_STOP) return; /* the process ends here, and with it all that is in it */
        r.begin_ns = clock_now_ns();
        if (c.order.type == ORDER_RUN) run(&c);
        r.end_ns = clock_now_ns();
        r.count = c.ended;
        tell(e, &c, &r);
    }
}
