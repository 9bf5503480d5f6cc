/* The server of a bench: what serve.c does for its workers, without a coordinator. */
#include "common/clock.h"
#include "common/err.h"
#include "common/wire.h"
#include "server/outbox.h"
#include "server/shard.h"
#include "tests/bench/exchange/cluster.h"
#include "tests/bench/exchange/shards.h"

#include <string.h>
#include <unistd.h>

#define WAIT_MS 100
#define FULL_MS 1

static void send_answer(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    outbox_send(ctx, peer, m, payload);
}

static bool is_crowded(void *ctx, uint64_t peer)
{
    return outbox_is_crowded(ctx, peer);
}

struct shard_options shards_options(const struct cluster_setup *setup)
{
    return (struct shard_options){
        .shard = (uint32_t)setup->number,
        .shards = (uint32_t)setup->servers,
        .job = SHARDS_JOB,
        .model_hash = SHARDS_MODEL,
        .job_generation = 1,
        .generation = 1,
        .rule = {.type = OPTIMIZER_MOMENTUM},
        .pace = {.rate = SHARDS_RATE, .momentum = SHARDS_MOMENTUM},
        .mode = CONSISTENCY_ASYNC,
        .gradients = setup->type,
        .weights = setup->type,
        .max_members = SHARDS_MEMBERS,
        .credit = CLUSTER_CREDIT,
    };
}

struct shard *shards_new(const struct cluster_setup *setup, const struct shard_io *io)
{
    struct shard_options o = shards_options(setup);
    uint32_t first, count;
    blocks_of_shard(&setup->blocks, o.shards, o.shard, &first, &count);
    struct shard_state *state = shard_state_new(&setup->blocks, first, count, 0, update_slots(&o.rule));
    size_t n = shard_state_floats(state);
    for (size_t i = 0; i < n; i++) state->weights[i] = 1;
    memset(state->slot[SLOT_MOMENTUM], 0, n * sizeof(float)); /* no page is new later on */
    return shard_new(&o, io, &state);
}

static void tell(const struct ends *e, struct shard *s)
{
    const struct shard_state *state = shard_look(s);
    struct staleness_summary stale;
    staleness_summarise(shard_staleness(s), 0, &stale);
    struct report r = {.applied = shard_counts(s)->applied,
                       .low = shard_version(s),
                       .stale50 = stale.p50,
                       .stale95 = stale.p95};
    for (uint32_t b = 0; b < state->count; b++)
        if (state->version[b] > r.high) r.high = state->version[b];
    process_tell(e, &r);
}

/* False: enough. */
static bool obey(const struct ends *e, struct shard *s)
{
    struct order o;
    if (!process_next(e, false, &o)) return true;
    if (o.type == ORDER_LOOK) tell(e, s);
    return o.type != ORDER_STOP;
}

static void serve(const struct ends *e, struct wire *w, struct shard *s, struct outbox *b)
{
    for (bool is_full = false, goes_on = true; goes_on;) {
        struct msg m;
        struct frame *payload = NULL;
        int link;
        uint64_t peer;
        if (wire_receive(w, is_full ? FULL_MS : WAIT_MS, &link, &peer, &m, &payload) == 0)
            shard_receive(s, clock_now_ns(), peer, &m, &payload);
        else
            goes_on = obey(e, s);
        frame_free(&payload);
        is_full = outbox_flush(b);
    }
}

void cluster_serve(const struct ends *e, const void *arg)
{
    const struct cluster_setup *setup = arg;
    struct report r = {0};
    wire_keep_pages();
    if (setup->is_apart) process_pin(false);
    struct wire *w = wire_new();
    ASSERT(wire_bind(w, "127.0.0.1", r.endpoint) == 0);
    struct outbox *b = outbox_new(w, CLUSTER_CREDIT);
    struct shard *s = shards_new(setup, &(struct shard_io){b, send_answer, NULL, is_crowded});
    wire_watch(w, e->orders);
    process_tell(e, &r);
    serve(e, w, s, b);
    outbox_free(&b);
    shard_free(&s);
    wire_free(&w);
}
