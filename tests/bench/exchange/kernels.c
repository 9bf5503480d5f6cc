/* The work on memory in an exchange, without any socket. */
#include "common/clock.h"
#include "common/err.h"
#include "common/wire.h"
#include "server/update.h"
#include "tests/bench/exchange/anchors.h"
#include "tests/bench/exchange/shards.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK  BLOCKS_MAX_FLOATS
#define BYTES  (BLOCK * sizeof(float))
#define BLOCKS (CLUSTER_FLOATS / BLOCK) /* whole ones */

/* As on a server, gradients arrive in a few frames and weights leave in the same. */
struct kernels {
    float *a, *b, *c; /* (BLOCKS * BLOCK) */
    float *frames[CLUSTER_CREDIT];
    struct shard *shard;
    uint64_t seq, sum;
    struct frame *payload[CLUSTER_CREDIT];
    uint64_t hash[CLUSTER_CREDIT];
};

static float *filled(size_t n, float value)
{
    float *v = xaligned(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = value;
    return v;
}

/* --- the shard without a socket: its answer is the next gradient in that frame */
static void keep_answer(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct kernels *k = ctx;
    (void)peer;
    if (m->type != MSG_ANSWER) return;
    uint32_t at = m->answer.block % CLUSTER_CREDIT;
    ASSERT(m->answer.verdict == VERDICT_APPLIED && payload && *payload);
    k->payload[at] = *payload;
    k->hash[at] = m->answer.hash;
    *payload = NULL;
}

static void begin_shard(struct kernels *k)
{
    static const struct cluster_setup setup = {
        .blocks = {(size_t)BLOCKS * BLOCK, BLOCK, BLOCKS}, .type = ELEMENT_FP32, .servers = 1};
    k->shard = shards_new(&setup, &(struct shard_io){k, keep_answer, NULL, NULL});
    struct msg hello = {.type = MSG_HELLO, .job = SHARDS_JOB};
    hello.hello = (struct msg_hello){.member = 1,
                                     .model_hash = SHARDS_MODEL,
                                     .job_generation = 1,
                                     .consistency = CONSISTENCY_ASYNC,
                                     .optimizer = OPTIMIZER_MOMENTUM};
    shard_receive(k->shard, 0, 1, &hello, NULL);
    for (int i = 0; i < CLUSTER_CREDIT; i++) {
        k->payload[i] = frame_copy(k->a, BYTES);
        k->hash[i] = wire_hash(k->a, BYTES);
    }
}

static void push(struct kernels *k, uint32_t block)
{
    uint32_t at = block % CLUSTER_CREDIT;
    struct msg m = {.type = MSG_PUSH, .job = SHARDS_JOB};
    m.push = (struct msg_push){.member = 1,
                               .seq = k->seq,
                               .job_generation = 1,
                               .generation = 1,
                               .block = block,
                               .base_version = k->seq - 1,
                               .frames = 320,
                               .pull = true,
                               .hash = k->hash[at]};
    shard_receive(k->shard, 0, 1, &m, &k->payload[at]);
}

/* --- one pass */
static void update(struct kernels *k, uint32_t block)
{
    static const struct update_rule rule = {.type = OPTIMIZER_MOMENTUM};
    static const struct update_step step = {.rate = (float)SHARDS_RATE, .momentum = (float)SHARDS_MOMENTUM};
    size_t at = (size_t)block * BLOCK;
    struct update_block b = {
        .g = k->frames[block % CLUSTER_CREDIT], .weights = k->b + at, .momentum = k->c + at, .n = BLOCK};
    update_apply(&rule, &step, &b);
}

static void check(struct kernels *k, uint32_t block)
{
    const float *g = k->frames[block % CLUSTER_CREDIT];
    k->sum += wire_hash(g, BYTES);
    k->sum += update_norm(ELEMENT_FP32, g, BLOCK) > 0;
    k->sum += wire_hash(g, BYTES);
}

static void pass(struct kernels *k, enum kernel what)
{
    k->seq++;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        float *a = k->a + (size_t)block * BLOCK, *b = k->b + (size_t)block * BLOCK;
        if (what == KERNEL_MEMCPY) memcpy(b, a, BYTES);
        if (what == KERNEL_LANDING) memcpy(b, k->frames[block % CLUSTER_CREDIT], BYTES);
        if (what == KERNEL_HASH) k->sum += wire_hash(a, BYTES);
        if (what == KERNEL_UPDATE) update(k, block);
        if (what == KERNEL_SHARD) push(k, block);
        if (what == KERNEL_CHECKS) check(k, block);
    }
}

void anchor_kernels(const struct ends *e, const void *arg)
{
    (void)arg;
    size_t n = (size_t)BLOCKS * BLOCK;
    struct kernels k = {.a = filled(n, 1), .b = filled(n, 1), .c = filled(n, 0)};
    for (int i = 0; i < CLUSTER_CREDIT; i++) k.frames[i] = filled(BLOCK, 1);
    wire_keep_pages();
    begin_shard(&k);
    struct order o;
    while (process_next(e, true, &o) && o.type == ORDER_RUN) {
        struct report r = {.begin_ns = clock_now_ns()};
        for (uint32_t i = 0; i < o.count; i++) pass(&k, (enum kernel)o.what);
        r.end_ns = clock_now_ns();
        r.count = k.sum; /* so that nothing is left out */
        process_tell(e, &r);
    }
}

double anchor_kernel(const struct process *p, enum kernel k)
{
    struct report r = process_do(p, ORDER_RUN, k, 1);
    return (double)(r.end_ns - r.begin_ns) / 1e9 * CLUSTER_FLOATS / ((double)BLOCKS * BLOCK);
}
