#include "worker/velocity.h"

#include "common/err.h"

#include <stdlib.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* the same bits as the servers', with every compiler and CPU */
#endif

void velocity_init(struct velocity *v, const struct config *c, size_t n)
{
    *v = (struct velocity){.n = n,
                           .momentum = (float)c->optimizer.momentum,
                           .nesterov = c->optimizer.type == OPTIMIZER_NESTEROV};
    if (config_momentum_is_on_worker(c)) v->values = xaligned(n * sizeof(float));
}

void velocity_fini(struct velocity *v)
{
    free(v->values);
    *v = (struct velocity){0};
}

bool velocity_set_momentum(struct velocity *v, double momentum)
{
    if (!v->values || momentum <= 0 || v->momentum == (float)momentum) return false;
    v->momentum = (float)momentum;
    return true;
}

static void step_nesterov(float mu, float *restrict g, float *restrict v, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        v[k] = mu * v[k] + g[k];
        g[k] = g[k] + mu * v[k];
    }
}

static void step_momentum(float mu, float *restrict g, float *restrict v, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        v[k] = mu * v[k] + g[k];
        g[k] = v[k];
    }
}

void velocity_apply(struct velocity *v, float *grad)
{
    if (!v->values) return;
    void (*step)(float, float *, float *, size_t) = v->nesterov ? step_nesterov : step_momentum;
    step(v->momentum, grad, v->values, v->n);
}
