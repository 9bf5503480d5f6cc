/* A run directory with facts, and a state of five blocks and three members, for the tests of snapshots. */
#ifndef TESTS_UNIT_COMMON_SNAPSHOT_CASE_H
#define TESTS_UNIT_COMMON_SNAPSHOT_CASE_H

#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/rng.h"
#include "common/snapshot.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char run[64];
static struct facts facts;
static struct blocks cut; /* 5 blocks */
static struct shard_state *whole;

static inline void fill_facts(void)
{
    struct model_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.type = MODEL_LSTMP;
    spec.input = 20;
    spec.feature_dim = 10;
    spec.stack = 2;
    spec.skip = 1;
    spec.targets = 260;
    spec.num_layers = 1;
    spec.layers[0] = (struct model_layer){.cells = 128, .projection = 64};
    spec.peepholes = true;
    spec.cell_clip = 50.1f;
    spec.delay = 5;
    spec.delay_style = DELAY_KALDI;
    memset(&facts, 0, sizeof facts);
    assert_int_equal(model_build(&spec, &facts.model), 0);
    facts.job = 0xfedcba9876543210ull;
    facts.mean = xcalloc(10, sizeof(float));
    facts.scale = xcalloc(10, sizeof(float));
    for (int i = 0; i < 10; i++) {
        facts.mean[i] = 0.1f * (float)i;
        facts.scale[i] = 1.0f / (float)(i + 1);
    }
    facts.cmvn_var = true;
    facts.train = (struct data_facts){.utterances = 7, .frames = 70000, .hash = UINT64_MAX};
    facts.dev = (struct data_facts){.utterances = 2, .frames = 300, .hash = 3};
    facts.num_silence = 2;
    facts.silence = xcalloc(2, sizeof(int32_t));
    facts.silence[0] = 4;
    facts.silence[1] = 59;
    facts.model_hash = model_hash(&facts.model, facts.mean, facts.scale);
}

/* Three members with numbers that need all bits. */
static inline void fill_state(struct shard_state *s)
{
    struct rng r;
    rng_init(&r, 11);
    size_t floats = shard_state_floats(s);
    for (size_t i = 0; i < floats; i++) s->weights[i] = rng_range(&r, -1, 1);
    for (int k = 0; k < SHARD_SLOTS; k++)
        for (size_t i = 0; s->slot[k] && i < floats; i++) s->slot[k][i] = rng_range(&r, -1, 1);
    for (uint32_t b = 0; b < s->count; b++) {
        s->version[b] = rng_next(&r);
        s->frames[b] = rng_next(&r);
        s->since[b] = rng_next(&r);
    }
    s->optimizer = OPTIMIZER_RMSPROP;
    for (uint32_t i = 0; i < s->num_members; i++) {
        s->members[i] = i * 0x100000000000ull + 1;
        for (uint32_t b = 0; b < s->count; b++) {
            s->last_seq[i * s->count + b] = rng_next(&r);
            s->verdict[i * s->count + b] = (uint8_t)(1 + rng_below(&r, 5));
        }
    }
}

static inline int set_up(void **state)
{
    (void)state;
    snprintf(run, sizeof run, "/tmp/chorale-snapshot-XXXXXX");
    if (!mkdtemp(run)) return -1;
    fill_facts();
    blocks_cut(facts.model.params, &cut);
    assert_true(cut.count >= 5);
    whole = shard_state_new(&cut, 0, cut.count, 3, 1u << SLOT_MOMENTUM);
    fill_state(whole);
    assert_int_equal(facts_write(run, &facts), 0);
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    shard_state_free(&whole);
    facts_fini(&facts);
    return files_remove_tree(run);
}

/* Blocks [first, first + count) of `whole`, all members but the first `without`. */
static inline struct shard_state *part(uint32_t first, uint32_t count, uint32_t without)
{
    struct shard_state *s = shard_state_new(&cut, first, count, 3 - without, shard_state_slots(whole));
    size_t bytes = shard_state_floats(s) * sizeof(float), from = blocks_offset(&cut, first);
    memcpy(s->weights, whole->weights + from, bytes);
    for (int k = 0; k < SHARD_SLOTS; k++)
        if (s->slot[k]) memcpy(s->slot[k], whole->slot[k] + from, bytes);
    memcpy(s->version, whole->version + first, count * sizeof(uint64_t));
    memcpy(s->frames, whole->frames + first, count * sizeof(uint64_t));
    memcpy(s->since, whole->since + first, count * sizeof(uint64_t));
    s->optimizer = whole->optimizer;
    for (uint32_t i = without; i < 3; i++) {
        s->members[i - without] = whole->members[i];
        memcpy(s->last_seq + (size_t)(i - without) * count, whole->last_seq + (size_t)i * cut.count + first,
               count * sizeof(uint64_t));
        memcpy(s->verdict + (size_t)(i - without) * count, whole->verdict + (size_t)i * cut.count + first,
               count);
    }
    return s;
}

static inline void assert_equal_states(const struct shard_state *a, const struct shard_state *b)
{
    size_t cells = (size_t)a->num_members * a->count;
    assert_int_equal(a->first, b->first);
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->num_members, b->num_members);
    assert_memory_equal(a->weights, b->weights, shard_state_floats(a) * sizeof(float));
    assert_int_equal(shard_state_slots(a), shard_state_slots(b));
    for (int k = 0; k < SHARD_SLOTS; k++)
        if (a->slot[k]) assert_memory_equal(a->slot[k], b->slot[k], shard_state_floats(a) * sizeof(float));
    assert_memory_equal(a->version, b->version, a->count * sizeof(uint64_t));
    assert_memory_equal(a->frames, b->frames, a->count * sizeof(uint64_t));
    assert_memory_equal(a->since, b->since, a->count * sizeof(uint64_t));
    assert_int_equal(a->optimizer, b->optimizer);
    assert_memory_equal(a->members, b->members, a->num_members * sizeof(uint64_t));
    assert_memory_equal(a->last_seq, b->last_seq, cells * sizeof(uint64_t));
    assert_memory_equal(a->verdict, b->verdict, cells);
}

static inline void write_set(uint32_t set, uint32_t shards, uint32_t capsules)
{
    struct manifest m = {.set = set,
                         .epoch = set + 1,
                         .done = 0.25,
                         .exact = capsules > 0,
                         .wall = 1700000000,
                         .job = facts.job,
                         .model_hash = facts.model_hash,
                         .num_files = shards,
                         .num_capsules = capsules};
    m.files = xcalloc(shards, sizeof *m.files);
    m.capsules = xcalloc(capsules + 1, sizeof *m.capsules);
    m.state = xstrdup("{\"row\":\"job\"}\n{\"row\":\"lease\"}\n");
    for (uint32_t k = 0; k < shards; k++) {
        uint32_t first, count;
        blocks_of_shard(&cut, shards, k, &first, &count);
        struct shard_state *s = part(first, count, 0);
        assert_int_equal(snapshot_write_shard(run, set, k, shards, &facts, s, &m.files[k]), 0);
        shard_state_free(&s);
    }
    for (uint32_t r = 0; r < capsules; r++)
        assert_int_equal(snapshot_write_capsule(run, set, r, "capsule", 7, &m.capsules[r]), 0);
    assert_int_equal(snapshot_write_manifest(run, &m), 0);
    manifest_fini(&m);
}

static inline char *file_of(uint32_t set, const char *name)
{
    return xprintf("%s/checkpoints/set-%06u/%s", run, set, name);
}

static inline void flip(const char *path, long at, unsigned char with)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, at, SEEK_SET);
    int c = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(c ^ with, f);
    fclose(f);
}

static inline long size_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (long)st.st_size;
}

#endif
