/* A worker's exchange and the shard that serves it, in one process and without any socket: what one costs the
 * core beside the computing. Plain SGD, fp32 both ways, one shard. The shard works in the bytes of the
 * gradient itself, as no message is ever sent twice. */
#ifndef BENCH_COMPUTE_LOCAL_H
#define BENCH_COMPUTE_LOCAL_H

#include "common/model.h"
#include "worker/exchange.h"

struct local;

/* The shard begins with random weights. */
struct local *local_new(const struct model *m);
void local_free(struct local **l);
/* The weights as they last landed. */
const float *local_params(const struct local *l);
/* Pushes grad (P) block by block; every block's new weights land. grad is then lost. */
void local_push(struct local *l, float *grad, uint64_t frames);

#endif
