#include "worker/nnet/loss.h"

#include "common/err.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void loss_init(struct loss *l, const struct gates *g, size_t rows, size_t targets)
{
    *l = (struct loss){.gates = g, .rows = rows, .targets = targets};
    l->z = xaligned(rows * targets * sizeof(real));
    l->max = xaligned(rows * sizeof(real));
    l->factor = xaligned(rows * sizeof(real));
    l->log_sum = xaligned(rows * sizeof(double));
}

void loss_fini(struct loss *l)
{
    free(l->z);
    free(l->max);
    free(l->factor);
    free(l->log_sum);
    memset(l, 0, sizeof *l);
}

/* Whether the target is the first of the largest. */
static bool is_first_max(const struct gates *g, const real *z, size_t target, real max)
{
    return z[target] >= max && !(g->largest(target, z) >= max);
}

/* The row's part of the sums, but for the logarithm, which loss_forward adds. */
static void add_row(const struct loss *l, size_t row, int32_t target, struct loss_sum *sum)
{
    if (target < 0) return;
    size_t k = (size_t)target;
    ASSERT(k < l->targets);
    const real *z = l->z + row * l->targets;
    sum->loss += (double)l->max[row] - (double)z[k];
    sum->frames++;
    sum->correct += is_first_max(l->gates, z, k, l->max[row]);
}

struct loss_sum loss_forward(struct loss *l, const real *b, const int32_t *target)
{
    struct loss_sum sum = {0};
    for (size_t row = 0; row < l->rows; row++) {
        l->log_sum[row] = l->gates->softmax_forward(l->targets, l->z + row * l->targets, b, &l->max[row]);
        add_row(l, row, target[row], &sum);
    }
    for (size_t row = 0; row < l->rows; row++) { /* by themselves, logarithms of several rows overlap */
        l->factor[row] = (real)(1 / l->log_sum[row]);
        l->log_sum[row] = l->gates->log(l->log_sum[row]);
        if (target[row] >= 0) sum.loss += l->log_sum[row];
    }
    return sum;
}

void loss_log_posteriors(struct loss *l)
{
    for (size_t row = 0; row < l->rows; row++) {
        l->gates->softmax_log(l->targets, l->z + row * l->targets, l->max[row], (real)l->log_sum[row]);
        l->max[row] = 0;
        l->log_sum[row] = 0;
        l->factor[row] = 1;
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
        l->gates->softmax_scale(l->targets, z, l->max[row], l->factor[row]);
        z[target[row]] -= 1;
    }
}
