#include "tests/bench/compute/local.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/wire.h"
#include "server/shard.h"

#include <stdlib.h>

#define JOB     0x6a6f62
#define MODEL   0x6d6f64656c
#define CREDIT  4    /* blocks under way, as by default */
#define RATE    1e-7 /* the weights stay what they are, far from numbers that a CPU is slow with */
#define WORKER  1    /* member and peer */
#define WAITING (CREDIT + 1)

/* One that has been sent and not yet received. */
struct mail {
    struct msg m;
    struct frame *payload;
};

struct local {
    struct blocks blocks;
    struct shard *shard;
    struct exchange *exchange;
    struct weights weights;
    struct mail sent[WAITING]; /* to the shard, a ring */
    unsigned first, count;
    struct mail answer;
};

static bool send_to_shard(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    struct local *l = ctx;
    (void)shard;
    ASSERT(l->count < WAITING);
    l->sent[(l->first + l->count++) % WAITING] = (struct mail){*m, *payload};
    *payload = NULL;
    return true;
}

static void keep_answer(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct local *l = ctx;
    (void)peer;
    ASSERT(!l->answer.payload);
    l->answer = (struct mail){*m, payload ? *payload : NULL};
    if (payload) *payload = NULL;
}

/* The oldest message goes to the shard, its answer to the worker. */
static void deliver(struct local *l)
{
    ASSERT(l->count > 0);
    struct mail *one = &l->sent[l->first];
    l->first = (l->first + 1) % WAITING;
    l->count--;
    shard_receive(l->shard, clock_now_ns(), WORKER, &one->m, &one->payload);
    exchange_receive(l->exchange, clock_now_ns(), 0, &l->answer.m, &l->answer.payload);
    frame_free(&l->answer.payload);
}

static void settle(struct local *l)
{
    while (!exchange_idle(l->exchange)) deliver(l);
    ASSERT(exchange_trouble(l->exchange) == 0);
}

static struct shard *new_shard(struct local *l, const struct model *m)
{
    struct shard_options o = {.shards = 1,
                              .job = JOB,
                              .model_hash = MODEL,
                              .job_generation = 1,
                              .generation = 1,
                              .rule = {.type = OPTIMIZER_SGD},
                              .pace = {.rate = RATE},
                              .mode = CONSISTENCY_ASYNC,
                              .max_members = 1,
                              .credit = CREDIT};
    struct shard_state *state = shard_state_new(&l->blocks, 0, l->blocks.count, 0, update_slots(&o.rule));
    model_init(m, &(struct model_init_options){.range = 0.02f, .seed = 1}, state->weights);
    return shard_new(&o, &(struct shard_io){l, keep_answer, NULL, NULL}, &state);
}

static struct exchange *new_exchange(struct local *l)
{
    struct exchange_options o = {.job = JOB,
                                 .model_hash = MODEL,
                                 .blocks = l->blocks,
                                 .shards = 1,
                                 .credit = CREDIT,
                                 .deadline_ns = 3600 * NS_PER_S, /* nothing is ever lost */
                                 .consistency = CONSISTENCY_ASYNC,
                                 .optimizer = OPTIMIZER_SGD};
    return exchange_new(&o, &(struct exchange_io){l, send_to_shard});
}

struct local *local_new(const struct model *m)
{
    struct local *l = xcalloc(1, sizeof *l);
    blocks_cut(m->params, &l->blocks);
    weights_init(&l->weights, &l->blocks);
    l->shard = new_shard(l, m);
    l->exchange = new_exchange(l);
    exchange_set_member(l->exchange, WORKER, 1);
    exchange_connected(l->exchange, clock_now_ns(), 0);
    deliver(l);
    exchange_read(l->exchange, clock_now_ns(), 0, &l->weights);
    settle(l);
    return l;
}

void local_free(struct local **l)
{
    if (!*l) return;
    exchange_free(&(*l)->exchange);
    shard_free(&(*l)->shard);
    weights_fini(&(*l)->weights);
    free(*l);
    *l = NULL;
}

const float *local_params(const struct local *l)
{
    return l->weights.values;
}

void local_push(struct local *l, float *grad, uint64_t frames)
{
    exchange_push(l->exchange, clock_now_ns(), grad, frames, &l->weights, &l->weights, true);
    settle(l);
}
