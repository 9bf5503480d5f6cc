/* The parts of the bench. */
#ifndef BENCH_COMPUTE_MEASURE_H
#define BENCH_COMPUTE_MEASURE_H

#include "tests/bench/compute/worker.h"
#include "tests/bench/figures.h"

#include <stdbool.h>

#define MEASURE_WORKERS 2

/* Everything in turn, REPEATS times, so that a change of the machine's load falls on all alike: every ratio
 * is one inside a repeat. is_quick: only what the named figures need. False: a process has failed. */
bool measure_all(struct figures *f, bool is_quick);
/* "train_A_s4", "train_A_s4_two": a figure in frames/s. */
void measure_name(char out[64], struct task t, int workers);
void measure_print(const struct figures *f);

/* What each product, gate and pass takes, by itself. 0 or an error. */
int kernels_print(void);

#endif
