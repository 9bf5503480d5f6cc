/* The worker's check of a whole gradient before it is cut by shards: scale, norm, clip. Any thread. */
#ifndef WORKER_NNET_CLIP_H
#define WORKER_NNET_CLIP_H

#include <stddef.h>

/* Multiplies grad[n] by `scale` (1 for a sum over frames, 1 / frames for a mean) and, where its global L2
 * norm is then above max_norm (> 0; 0 = no clip), down to that norm. Returns the norm after scale and before
 * the clip. A norm that is NaN or infinite is returned as it is; grad is then unchanged and must not be used.
 * The norm is summed in double over the whole vector, element i in lane i % 8, so no cut by shards changes
 * it. */
double clip_norm(float *grad, size_t n, double scale, double max_norm);

#endif
