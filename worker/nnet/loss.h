/* Softmax and cross entropy over the rows of a window. One thread. */
#ifndef WORKER_NNET_LOSS_H
#define WORKER_NNET_LOSS_H

#include "worker/nnet/kernels/gates.h"

#include <stddef.h>
#include <stdint.h>

struct loss {
    const struct gates *gates;
    size_t rows, targets; /* T*S, K */
    real *z;              /* (T*S, K) contiguous: logits, then what the functions below leave */
    real *max;            /* (T*S) of the logits */
    real *factor;         /* (T*S) 1 / the sum of exp(z - max) */
    double *log_sum;      /* (T*S) the logarithm of that sum */
};

/* Of the frames that carry error: -log softmax(z)[target] summed in double. A tie counts for the lower index.
 */
struct loss_sum {
    double loss;
    uint64_t frames, correct;
};

void loss_init(struct loss *l, const struct gates *g, size_t rows, size_t targets);
void loss_fini(struct loss *l);
/* z = W y already; adds b (K). target (T*S): below 0 = no error. */
struct loss_sum loss_forward(struct loss *l, const real *b, const int32_t *target);
/* z becomes log softmax(z) (T*S, K). Once after loss_forward, or more often; then loss_backward still works.
 */
void loss_log_posteriors(struct loss *l);
/* z becomes d loss / d z: softmax(z) - onehot(target), a row of zeros where there is no error. */
void loss_backward(struct loss *l, const int32_t *target);

#endif
