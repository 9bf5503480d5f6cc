#include "tests/bench/exchange/cluster.h"
#include "tests/bench/exchange/parts.h"

#include <stdio.h>

#define REPEATS     5
#define SLEEP_MS    50
#define SECONDS     3
#define CROWD       256
#define COLD_STARTS 20
#define COLD_FLOATS 131072 /* in 16 blocks */

static struct cluster start(int servers, int workers, size_t floats, uint32_t block)
{
    int crowds = workers < CLUSTER_CROWDS ? workers : CLUSTER_CROWDS;
    struct cluster_setup setup = {.blocks = cluster_blocks(floats, block),
                                  .servers = servers,
                                  .crowds = crowds,
                                  .in_crowd = workers / crowds};
    return cluster_start(&setup);
}

/* A fresh server, so that its peak is of this crowd. */
static bool measure(struct figures *f, int workers, const struct order *o)
{
    char name[64];
    struct cluster c = start(1, workers, CLUSTER_FLOATS, BLOCKS_MAX_FLOATS);
    struct cluster_run r = cluster_do(&c, o);
    double rate = (double)r.exchanges * CLUSTER_BYTES / 1e9 / r.seconds, mib = (double)r.peak_kib / 1024;
    snprintf(name, sizeof name, "workers_%d_gb_per_s", workers);
    figures_add(f, name, "GB/s", rate);
    snprintf(name, sizeof name, "workers_%d_stale_p50", workers);
    figures_add(f, name, "versions", r.stale50);
    snprintf(name, sizeof name, "workers_%d_stale_p95", workers);
    figures_add(f, name, "versions", r.stale95);
    snprintf(name, sizeof name, "server_mib_%d_workers", workers);
    figures_add(f, name, "MiB", mib);
    printf("%7d %12.2f %15.0f %14u %6u\n", workers, rate, mib, r.stale50, r.stale95);
    return cluster_stop(&c);
}

bool crowds_measure(struct figures *f)
{
    static const int workers[] = {1, 4, 16, 64};
    bool ok = true;
    printf("\nworkers that sleep %d ms between exchanges with one server\n"
           "workers         GB/s   server's MiB   staleness p50    p95\n",
           SLEEP_MS);
    for (int i = 0; i < 4; i++)
        ok = measure(f, workers[i], &(struct order){ORDER_RUN, 0, 0, SECONDS, SLEEP_MS}) && ok;
    for (int i = 0; i < REPEATS; i++)
        ok = measure(f, CROWD, &(struct order){ORDER_RUN, 0, 1, 0, SLEEP_MS}) && ok;
    return ok;
}

/* All push at once to servers that have only just begun: each push is applied, and once. */
static bool is_exact(const struct cluster *c)
{
    struct cluster_run r = cluster_exchange(c, 1);
    return r.exchanges == CROWD && r.applied == (uint64_t)CROWD * c->setup.blocks.count && r.low == CROWD &&
           r.high == CROWD;
}

bool crowds_cold_starts(struct figures *f)
{
    int good = 0;
    bool ok = true;
    for (int i = 0; i < COLD_STARTS; i++) {
        struct cluster c = start(2, CROWD, COLD_FLOATS, COLD_FLOATS / 16);
        good += is_exact(&c);
        ok = cluster_stop(&c) && ok;
    }
    figures_add(f, "cold_starts_ok", "of 20", good);
    printf("\n%d of %d cold starts of 2 servers with %d workers that push at once: every push applied once\n",
           good, COLD_STARTS, CROWD);
    return ok;
}
