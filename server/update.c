#include "server/update.h"

#include "common/err.h"

#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* the same bits with every compiler and CPU; gcc -std=c11 does not contract */
#endif

#define LANES 8 /* a fixed inner count becomes vector code at -O2 as well; 8 floats are one AVX register */
#define CHUNK 64

void update_rule_from(const struct config *c, uint64_t epoch_frames, struct update_rule *out)
{
    *out = (struct update_rule){
        .type = c->optimizer.type,
        .momentum = (float)c->optimizer.momentum,
        .rate = c->optimizer.rate,
        .schedule = c->optimizer.schedule.type,
        .factor = c->optimizer.schedule.factor,
        .per_frames = c->optimizer.schedule.per_frames,
        .epoch_frames = epoch_frames,
    };
    if (out->schedule == SCHEDULE_HALVE) out->from_epoch = (uint32_t)c->optimizer.schedule.from_epoch;
}

/* rate * factor^max(0, epoch - from_epoch + 1), epochs from 1. */
static double rate_by_epoch(const struct update_rule *r, uint64_t frames)
{
    uint64_t epoch = r->epoch_frames ? frames / r->epoch_frames + 1 : 1;
    if (r->from_epoch == 0 || epoch < r->from_epoch) return r->rate;
    return r->rate * pow(r->factor, (double)(epoch - r->from_epoch + 1));
}

double update_rate(const struct update_rule *r, uint64_t frames)
{
    switch (r->schedule) {
    case SCHEDULE_EXPONENTIAL:
        return r->per_frames > 0 ? r->rate * pow(r->factor, (double)frames / r->per_frames) : r->rate;
    case SCHEDULE_HALVE:
    case SCHEDULE_NEWBOB:
        return rate_by_epoch(r, frames);
    case SCHEDULE_CONSTANT:
        break;
    }
    return r->rate;
}

/* Infinities and NaNs are the floats whose exponent is all ones: without the sign, adding one to the exponent
 * then carries into the top bit. Integers, so that no compiler may assume the answer. */
static uint32_t exponent_carry(const float *g, size_t n)
{
    uint32_t bits[CHUNK], seen = 0;
    memcpy(bits, g, n * sizeof *g);
    for (size_t k = 0; k < n; k++) seen |= (bits[k] & 0x7fffffffu) + 0x00800000u;
    return seen;
}

bool update_finite(const float *g, size_t n)
{
    uint32_t seen = 0;
    size_t i = 0;
    for (; i + CHUNK <= n; i += CHUNK) seen |= exponent_carry(g + i, CHUNK);
    seen |= exponent_carry(g + i, n - i);
    return (seen & 0x80000000u) == 0;
}

double update_norm(const float *g, size_t n)
{
    double sum[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += (double)g[i + k] * (double)g[i + k];
    for (; i < n; i++) sum[0] += (double)g[i] * (double)g[i];
    for (int k = 1; k < LANES; k++) sum[0] += sum[k];
    return sqrt(sum[0]);
}

static void step_sgd(float rate, float *restrict g, float *restrict w, int n)
{
    for (int k = 0; k < n; k++) {
        float next = w[k] - rate * g[k];
        w[k] = next;
        g[k] = next;
    }
}

static void step_momentum(float mu, float rate, float *restrict g, float *restrict w, float *restrict v,
                          int n)
{
    for (int k = 0; k < n; k++) {
        float velocity = mu * v[k] + g[k], next = w[k] - rate * velocity;
        v[k] = velocity;
        w[k] = next;
        g[k] = next;
    }
}

void update_apply(const struct update_rule *r, float rate, float *g, float *weights, float *momentum,
                  size_t n)
{
    size_t whole = n - n % LANES;
    int rest = (int)(n % LANES);
    if (r->type == OPTIMIZER_SGD) {
        for (size_t i = 0; i < whole; i += LANES) step_sgd(rate, g + i, weights + i, LANES);
        step_sgd(rate, g + whole, weights + whole, rest);
        return;
    }
    ASSERT(momentum);
    for (size_t i = 0; i < whole; i += LANES)
        step_momentum(r->momentum, rate, g + i, weights + i, momentum + i, LANES);
    step_momentum(r->momentum, rate, g + whole, weights + whole, momentum + whole, rest);
}

void update_add(float *restrict sum, const float *restrict g, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) sum[i + k] += g[i + k];
    for (; i < n; i++) sum[i] += g[i];
}

void update_divide(float *g, float by, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) g[i + k] /= by;
    for (; i < n; i++) g[i] /= by;
}
