/* The parts of the bench of one exchange. Each adds its figures and prints a table. */
#ifndef BENCH_PARTS_H
#define BENCH_PARTS_H

#include "tests/bench/figures.h"

#include <stdbool.h>

/* One server, one worker, 1 MiB blocks, beside everything it is held against; the wire types; the smallest
 * exchange. False (of any part): a process has failed. */
bool ratios_measure(struct figures *f);
/* Servers and workers by block size. */
bool shapes_measure(struct figures *f);
/* 1 to 256 workers that sleep instead of computing: throughput, memory, staleness; and cold starts. */
bool crowds_measure(struct figures *f);
bool crowds_cold_starts(struct figures *f);

#endif
