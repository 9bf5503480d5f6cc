/* Servers and workers of the real cores in processes of their own: a server is a shard, its outbox and a
 * wire, served as serve.c does; a crowd is one or more exchange cores on one wire, each with a connection of
 * its own to every server and a gradient that never changes. Nobody computes. */
#ifndef BENCH_CLUSTER_H
#define BENCH_CLUSTER_H

#include "common/blocks.h"
#include "common/element.h"
#include "tests/bench/process.h"

#define CLUSTER_FLOATS  13000000
#define CLUSTER_SERVERS 2 /* at most */
#define CLUSTER_CROWDS  8
#define CLUSTER_CREDIT  4
#define CLUSTER_BYTES   (CLUSTER_FLOATS * sizeof(float))

struct cluster_setup {
    struct blocks blocks;
    enum element_type type;        /* on the wire, both ways */
    int servers, crowds, in_crowd; /* processes, processes, workers in each */
    char endpoints[CLUSTER_SERVERS][MSG_MAX_ENDPOINT];
    bool is_apart; /* see process_pin */
    int number;    /* of this process among its kind */
};

struct cluster {
    struct cluster_setup setup;
    struct process server[CLUSTER_SERVERS], crowd[CLUSTER_CROWDS];
};

/* What one run took, over all processes of a kind. */
struct cluster_run {
    double seconds, cpu_server, cpu_worker;
    uint64_t exchanges, bytes;
    double faults_server, faults_worker; /* per exchange of one worker and of one server */
    double p50_us;
    uint32_t stale50, stale95;
    uint64_t peak_kib;           /* the largest server */
    uint64_t applied, low, high; /* of all servers */
};

/* A vector of `floats` cut into blocks of `block` floats. */
struct blocks cluster_blocks(size_t floats, uint32_t block);
struct cluster cluster_start(const struct cluster_setup *setup);
struct cluster_run cluster_do(const struct cluster *c, const struct order *o);
/* So many exchanges of every worker, one after the other without a pause. */
struct cluster_run cluster_exchange(const struct cluster *c, uint32_t count);
/* False: a process has failed. */
bool cluster_stop(struct cluster *c);

/* Bodies of the processes. */
void cluster_serve(const struct ends *e, const void *setup);
void cluster_crowd(const struct ends *e, const void *setup);

#endif
