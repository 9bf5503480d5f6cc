/* A shard under test, and what it has said: messages with copies of their payloads, in order. Tiny blocks: 6
 * blocks of 4 floats, the last of 3; the shard owns blocks 2..5. */
#ifndef TESTS_UNIT_SERVER_SHARD_WORLD_H
#define TESTS_UNIT_SERVER_SHARD_WORLD_H

#include "server/shard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define JOB       0x1122334455667788ull
#define MODEL     0xabcdef0102030405ull
#define FIRST     2u
#define COUNT     4u
#define MAX_SAID  256
#define MAX_FLOAT 8

struct said {
    uint64_t peer;
    struct msg m;
    size_t bytes, floats;     /* of the payload, 0: none; floats if it is fp32 */
    float payload[MAX_FLOAT]; /* its bytes, whatever their type */
};

struct world {
    struct shard *shard;
    struct shard_options o;
    struct said said[MAX_SAID];
    int num_said, applied;
    uint64_t now;     /* ns, of what is given next */
    uint64_t crowded; /* a peer that does not read, 0: none */
};

static inline struct blocks world_blocks(void)
{
    return (struct blocks){.params = 23, .size = 4, .count = 6};
}

static inline void world_send(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct world *w = ctx;
    assert_true(w->num_said < MAX_SAID);
    struct said *s = &w->said[w->num_said++];
    *s = (struct said){.peer = peer, .m = *m};
    assert_int_equal(m->job, JOB);
    if (!payload || !*payload) return;
    s->bytes = frame_len(*payload);
    s->floats = s->bytes / sizeof(float);
    assert_true(s->bytes <= sizeof s->payload);
    memcpy(s->payload, frame_data(*payload), frame_len(*payload));
    frame_free(payload);
}

static inline void world_applied(void *ctx, uint64_t member, uint64_t seq, uint32_t block, uint64_t version)
{
    (void)member, (void)seq, (void)block, (void)version;
    ((struct world *)ctx)->applied++;
}

static inline bool world_crowded(void *ctx, uint64_t peer)
{
    return peer == ((struct world *)ctx)->crowded;
}

static inline struct shard_options world_options(void)
{
    return (struct shard_options){
        .shard = 1,
        .shards = 2,
        .job = JOB,
        .model_hash = MODEL,
        .job_generation = 3,
        .generation = 5,
        .rule = {.type = OPTIMIZER_MOMENTUM},
        .pace =
            {.rate = 0.1, .momentum = 0.5, .schedule = SCHEDULE_CONSTANT, .factor = 0.5, .epoch_frames = 100},
        .max_members = 4,
        .credit = 4,
    };
}

/* Weights 1, 2, 3...; takes *state if there is one. */
static inline struct world *world_new(const struct shard_options *o, struct shard_state **state)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->o = *o;
    struct shard_io io = {w, world_send, world_applied, world_crowded};
    struct shard_state *fresh = NULL;
    if (!state) {
        struct blocks b = world_blocks();
        fresh = shard_state_new(&b, FIRST, COUNT, 0, 0);
        for (size_t i = 0; i < shard_state_floats(fresh); i++) fresh->weights[i] = (float)(i + 1);
        state = &fresh;
    }
    w->shard = shard_new(o, &io, state);
    assert_null(*state);
    return w;
}

static inline void world_free(struct world **w)
{
    shard_free(&(*w)->shard);
    free(*w);
    *w = NULL;
}

/* What the shard said last; the only thing since the last call. */
static inline const struct said *world_last(struct world *w)
{
    assert_int_equal(w->num_said, 1);
    w->num_said = 0;
    return &w->said[0];
}

static inline void world_give_bytes(struct world *w, uint64_t peer, const struct msg *m, const void *bytes,
                                    size_t len)
{
    struct frame *f = bytes ? frame_copy(bytes, len) : NULL;
    shard_receive(w->shard, w->now, peer, m, &f);
    assert_null(f);
}

static inline void world_give(struct world *w, uint64_t peer, const struct msg *m, const float *g, size_t n)
{
    world_give_bytes(w, peer, m, g, n * sizeof *g);
}

static inline struct msg world_hello_msg(const struct world *w, uint64_t member)
{
    struct msg m = {.type = MSG_HELLO, .job = JOB};
    m.hello = (struct msg_hello){member,    MODEL,          w->o.shard,     w->o.job_generation,
                                 w->o.mode, w->o.rule.type, w->o.gradients, w->o.weights};
    return m;
}

/* HELLO of a member from peer 100 + member, welcomed. */
static inline void world_hello(struct world *w, uint64_t member)
{
    struct msg m = world_hello_msg(w, member);
    world_give(w, 100 + member, &m, NULL, 0);
    assert_int_equal(world_last(w)->m.type, MSG_WELCOME);
}

static inline uint32_t world_floats(uint32_t block)
{
    struct blocks b = world_blocks();
    return blocks_floats(&b, block);
}

static inline struct msg world_push_msg(const struct world *w, uint64_t member, uint64_t seq, uint32_t block,
                                        const float *g)
{
    struct msg m = {.type = MSG_PUSH, .job = JOB};
    m.push = (struct msg_push){.member = member,
                               .seq = seq,
                               .job_generation = w->o.job_generation,
                               .generation = w->o.generation,
                               .block = block,
                               .frames = 10,
                               .pull = true,
                               .type = w->o.gradients};
    m.push.hash = wire_hash(g, world_floats(block) * sizeof *g);
    return m;
}

/* A good push from peer 100 + member; g has a full block's floats. */
static inline void world_push(struct world *w, uint64_t member, uint64_t seq, uint32_t block, const float *g)
{
    struct msg m = world_push_msg(w, member, seq, block, g);
    world_give(w, 100 + member, &m, g, world_floats(block));
}

/* The weights of a block of the shard. */
static inline const float *world_weights(const struct world *w, uint32_t block)
{
    return shard_look(w->shard)->weights + (size_t)(block - FIRST) * 4;
}

static inline void world_expect(const struct said *s, uint32_t verdict, uint64_t seq, uint64_t version)
{
    assert_int_equal(s->m.type, MSG_ANSWER);
    assert_int_equal(s->m.answer.verdict, verdict);
    assert_int_equal(s->m.answer.seq, seq);
    assert_int_equal(s->m.answer.version, version);
    if (s->floats) assert_true(s->m.answer.hash == wire_hash(s->payload, s->floats * sizeof(float)));
}

/* What the shard answers to a READ of a block of a set (0: the live weights). */
static inline const struct said *world_read(struct world *w, uint32_t block, uint32_t set)
{
    struct msg m = {
        .type = MSG_READ, .job = JOB, .read = {.member = 1, .request = 77, .block = block, .set = set}};
    world_give(w, 7, &m, NULL, 0);
    const struct said *s = world_last(w);
    assert_int_equal(s->m.type, MSG_BLOCK);
    assert_true(s->m.block.request == 77 && s->m.block.block == block && s->m.block.set == set);
    assert_int_equal(s->m.block.generation, w->o.generation);
    return s;
}

#endif
