/* A worker of the bench: a process on a core of its own that does one task over and over for as long as it is
 * told to, and says how much it has done. */
#ifndef BENCH_COMPUTE_WORKER_H
#define BENCH_COMPUTE_WORKER_H

#include "tests/bench/compute/models.h"
#include "tests/bench/process.h"

enum work {
    WORK_FORWARD, /* a window forward, by a net that does not train */
    WORK_TRAIN,   /* forward and backward, the weights turned around beforehand */
    WORK_STEP,    /* the whole step: forward, backward, norm, push, update, landing, turning */
    WORK_PUSH,    /* of a step: push, update, landing; not of `streams`, as all below */
    WORK_TURN,    /* of a step: turning the weights around */
    WORK_SCORE,   /* forward, one frame of one stream at a time */
    WORK_GEMM,    /* OpenBLAS sgemm 2048^3; not of a model */
    WORK_READ,    /* the parameters, nothing but read */
    WORKS
};

struct task {
    enum work work;
    enum bench_model model;
    enum bench_streams streams;
};

/* Worker k of those that run at the same time: 0 on the first CPU, any other on the last. */
struct process worker_start(int k);
/* Does it once, so that everything is in its place. */
void worker_warm(const struct process *workers, int n, struct task t);
/* The first n workers at the same time: the sum of their frames/s, of PUSH and TURN times/s, GFLOP/s, GB/s.
 * Once more where something else had a CPU of theirs, a hundred times in all. */
double worker_rate(const struct process *workers, int n, struct task t, double seconds);
/* The smallest share of the time of a worker_rate that a worker had its CPU, since the last call. */
double worker_busy(void);

#endif
