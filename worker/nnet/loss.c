#include "worker/nnet/loss.h"

#include "common/err.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void loss_init(struct loss *l, const struct gates *g, size_t rows, size_t targets)
{
    *l = (struct loss){.gates = g, .rows = rows, .targets = targets};
    l->z = xaligned(rows * targets * sizeof(real));
    l->max = xaligned(rows * sizeof(real));
    l->log_sum = xaligned(rows * sizeof(double));
}

void loss_fini(struct loss *l)
{
    free(l->z);
    free(l->max);
    free(l->log_sum);
    memset(l, 0, sizeof *l);
}

/* Whether the target is the first of the largest. */
static bool is_first_max(const real *z, size_t target, real max)
{
    if (!(z[target] >= max)) return false;
    for (size_t k = 0; k < target; k++)
        if (z[k] >= max) return false;
    return true;
}

struct loss_sum loss_forward(struct loss *l, const real *b, const int32_t *target)
{
    struct loss_sum sum = {0};
    for (size_t row = 0; row < l->rows; row++) {
        real *z = l->z + row * l->targets;
        l->log_sum[row] = log(l->gates->softmax_forward(l->targets, z, b, &l->max[row]));
        if (target[row] < 0) continue;
        size_t k = (size_t)target[row];
        ASSERT(k < l->targets);
        sum.loss += ((double)l->max[row] - (double)z[k]) + l->log_sum[row];
        sum.frames++;
        sum.correct += is_first_max(z, k, l->max[row]);
    }
    return sum;
}

void loss_log_posteriors(struct loss *l)
{
    for (size_t row = 0; row < l->rows; row++) {
        real *z = l->z + row * l->targets, max = l->max[row], log_sum = (real)l->log_sum[row];
        for (size_t k = 0; k < l->targets; k++) z[k] = (z[k] - max) - log_sum;
        l->max[row] = 0;
        l->log_sum[row] = 0;
    }
}

void loss_backward(struct loss *l, const int32_t *target)
{
    for (size_t row = 0; row < l->rows; row++) {
        real *z = l->z + row * l->targets;
        if (target[row] < 0) {
            memset(z, 0, l->targets * sizeof(real));
            continue;
        }
        l->gates->softmax_scale(l->targets, z, l->max[row], (real)exp(-l->log_sum[row]));
        z[target[row]] -= 1;
    }
}
