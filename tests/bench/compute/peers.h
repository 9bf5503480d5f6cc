/* Other people's LSTMs, by the programs under tests/bench/peers. */
#ifndef BENCH_COMPUTE_PEERS_H
#define BENCH_COMPUTE_PEERS_H

#include "tests/bench/compute/models.h"

enum peer { PEER_TORCH, PEER_ONEDNN, PEERS };

const char *peers_name(enum peer which);
/* frames/s of one thread, this long measured: oneDNN forward and backward, PyTorch with its update as well.
 * NaN: it is not installed. */
double peers_rate(enum peer which, enum bench_model model, enum bench_streams streams, double seconds);

#endif
