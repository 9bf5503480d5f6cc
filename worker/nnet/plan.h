/* Which kernels this process runs: asked of the CPU once per net, never per step. Any thread. */
#ifndef WORKER_NNET_PLAN_H
#define WORKER_NNET_PLAN_H

#include "worker/nnet/kernels/gates.h"

#include <stdbool.h>
#include <stddef.h>

/* The fastest set that this CPU has; `portable`: the plain one in any case (tests compare the two). */
const struct gates *plan_gates(bool portable);
/* Numbers from row to row of a buffer of n columns: whole cache lines, and never a multiple of 2 KiB, where
 * every row would fall on the same few cache sets. */
size_t plan_stride(size_t n);

#endif
