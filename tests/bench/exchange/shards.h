/* The job of the bench, as its servers and workers know it. */
#ifndef BENCH_SHARDS_H
#define BENCH_SHARDS_H

#include "server/shard.h"
#include "tests/bench/exchange/cluster.h"

#define SHARDS_JOB      0x6a6f62
#define SHARDS_MODEL    0x6d6f64656c
#define SHARDS_MEMBERS  1024
#define SHARDS_RATE     1e-6 /* weights stay near 1, far from numbers that a CPU is slow with */
#define SHARDS_MOMENTUM 0.9

struct shard_options shards_options(const struct cluster_setup *setup);
/* Weights 1, all pages in place. */
struct shard *shards_new(const struct cluster_setup *setup, const struct shard_io *io);

#endif
