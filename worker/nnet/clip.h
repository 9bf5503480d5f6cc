/* The worker's check of a whole gradient before it is cut by shards: norm, clip. Any thread. */
#ifndef WORKER_NNET_CLIP_H
#define WORKER_NNET_CLIP_H

#include <stddef.h>

/* Where the norm of grad[n], the root of `squares`, is above max_norm (> 0; 0 = no clip): multiplies it down
 * to that norm. Returns the norm before the clip. A norm that is NaN or infinite is returned as it is; grad
 * is then unchanged and must not be used. */
double clip_norm(float *grad, size_t n, double squares, double max_norm);
/* The sum of the squares of grad[n], in double, element i in lane i % 8; for who changed what net_backward
 * gave. */
double clip_squares(const float *grad, size_t n);

#endif
