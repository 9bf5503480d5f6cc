/* What the exchange is held against, each in processes of its own: bytes over bare TCP and bare libzmq, and
 * the work on memory alone. */
#ifndef BENCH_ANCHORS_H
#define BENCH_ANCHORS_H

#include "tests/bench/process.h"

#include <stddef.h>

struct anchor_setup {
    size_t bytes, block; /* of the vector, of a block */
    char endpoint[MSG_MAX_ENDPOINT];
    bool is_apart; /* see process_pin */
    int done[2];   /* a pipe: the server of a one-way stream says that a vector is there */
};

/* A server, which goes on until it is killed, and a client, a RUN of which moves the vector so many times. */
struct anchor {
    struct anchor_setup setup;
    struct process server, client;
};

typedef void anchor_body(const struct ends *e, const void *setup);

struct anchor anchor_start(const struct anchor_setup *setup, anchor_body *server, anchor_body *client);
/* Seconds for one vector; p50_us (may be NULL) of one round trip of an echo. */
double anchor_run(const struct anchor *a, uint32_t count, double *p50_us);
bool anchor_stop(struct anchor *a);

/* Bare TCP, one write per block. */
anchor_body anchor_tcp_server, anchor_tcp_client;
/* PUSH to PULL, borrowed buffers, pages kept. */
anchor_body anchor_pull_server, anchor_push_client;
/* DEALER to ROUTER and back: a header of a push's length and a block, the exchange's credit in flight. */
anchor_body anchor_echo_server, anchor_echo_client;

/* --- memory: one process, a RUN of which does one of these so many times over 49 blocks of 1 MiB */
enum kernel {
    KERNEL_MEMCPY,  /* vector to vector */
    KERNEL_LANDING, /* four frames in turn to a vector */
    KERNEL_HASH,    /* XXH3 of the vector */
    KERNEL_UPDATE,  /* momentum; gradients in four frames in turn */
    KERNEL_SHARD,   /* the same through shard_receive, no socket */
    KERNEL_CHECKS,  /* what shard_receive does beside the update: two hashes and the norm */
    KERNELS
};
anchor_body anchor_kernels;
/* Seconds for CLUSTER_FLOATS floats. */
double anchor_kernel(const struct process *p, enum kernel k);

/* --- a cache line from the first CPU to the last one and back */
anchor_body anchor_cores;
double anchor_cores_ns(const struct process *p);

#endif
