#include "tests/bench/exchange/cluster.h"

#include "common/err.h"

#include <string.h>

struct blocks cluster_blocks(size_t floats, uint32_t block)
{
    return (struct blocks){floats, block, (uint32_t)((floats + block - 1) / block)};
}

struct cluster cluster_start(const struct cluster_setup *setup)
{
    struct cluster c = {.setup = *setup};
    for (int k = 0; k < setup->servers; k++) {
        c.setup.number = k;
        c.server[k] = process_start(cluster_serve, &c.setup);
        struct report r = process_report(&c.server[k]);
        memcpy(c.setup.endpoints[k], r.endpoint, sizeof r.endpoint);
    }
    for (int k = 0; k < setup->crowds; k++) {
        c.setup.number = k;
        c.crowd[k] = process_start(cluster_crowd, &c.setup);
    }
    return c;
}

static void look(const struct cluster *c, struct report servers[CLUSTER_SERVERS])
{
    for (int k = 0; k < c->setup.servers; k++) servers[k] = process_do(&c->server[k], ORDER_LOOK, 0, 0);
}

static void add_servers(const struct cluster *c, const struct report *before, struct cluster_run *run)
{
    struct report after[CLUSTER_SERVERS];
    look(c, after);
    run->low = UINT64_MAX;
    for (int k = 0; k < c->setup.servers; k++) {
        double faults = (double)(after[k].faults - before[k].faults) / (double)run->exchanges;
        run->cpu_server += after[k].cpu_s - before[k].cpu_s;
        run->applied += after[k].applied;
        if (faults > run->faults_server) run->faults_server = faults;
        if (after[k].peak_kib > run->peak_kib) run->peak_kib = after[k].peak_kib;
        if (after[k].low < run->low) run->low = after[k].low;
        if (after[k].high > run->high) run->high = after[k].high;
        if (after[k].stale50 > run->stale50) run->stale50 = after[k].stale50;
        if (after[k].stale95 > run->stale95) run->stale95 = after[k].stale95;
    }
}

struct cluster_run cluster_do(const struct cluster *c, const struct order *o)
{
    struct report servers[CLUSTER_SERVERS], before[CLUSTER_CROWDS];
    struct cluster_run run = {0};
    uint64_t begin = UINT64_MAX, end = 0;
    look(c, servers);
    for (int k = 0; k < c->setup.crowds; k++) before[k] = process_do(&c->crowd[k], ORDER_LOOK, 0, 0);
    for (int k = 0; k < c->setup.crowds; k++) process_order(&c->crowd[k], o);
    for (int k = 0; k < c->setup.crowds; k++) {
        struct report r = process_report(&c->crowd[k]);
        double faults = r.count ? (double)(r.faults - before[k].faults) / (double)r.count : 0;
        if (r.begin_ns < begin) begin = r.begin_ns;
        if (r.end_ns > end) end = r.end_ns;
        run.exchanges += r.count;
        run.bytes += r.bytes - before[k].bytes;
        run.cpu_worker += r.cpu_s - before[k].cpu_s;
        if (faults > run.faults_worker) run.faults_worker = faults;
        if (r.p50_us > run.p50_us) run.p50_us = r.p50_us;
    }
    run.seconds = (double)(end - begin) / 1e9;
    add_servers(c, servers, &run);
    return run;
}

struct cluster_run cluster_exchange(const struct cluster *c, uint32_t count)
{
    return cluster_do(c, &(struct order){.type = ORDER_RUN, .count = count});
}

bool cluster_stop(struct cluster *c)
{
    bool ok = true;
    for (int k = 0; k < c->setup.crowds; k++) ok = process_stop(&c->crowd[k]) && ok;
    for (int k = 0; k < c->setup.servers; k++) ok = process_stop(&c->server[k]) && ok;
    return ok;
}
