#include "server/update.h"

#include "common/err.h"
#include "common/snapshot.h"

#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* the same bits with every compiler and CPU; gcc -std=c11 does not contract */
#endif

/* A block is worked off in chunks that stay in the L1 cache, so that a chunk may be gone over more than once
 * and the block is still one pass over memory. Fixed counts become vector code at -O2 as well, square roots
 * too where errno is not asked for (Makefile). */
#define CHUNK      256
#define LANES      8
#define NORM_LANES 32 /* sums so far apart that none waits for the one before */

void update_rule_from(const struct config *c, struct update_rule *out)
{
    enum optimizer_type type = config_server_optimizer(c);
    *out = (struct update_rule){
        .type = type,
        .beta1 = (float)c->optimizer.beta1,
        .beta2 = (float)c->optimizer.beta2,
        .epsilon = (float)c->optimizer.epsilon,
        .weight_decay = (float)c->optimizer.weight_decay,
    };
    if (type == OPTIMIZER_SGD || type == OPTIMIZER_MOMENTUM || type == OPTIMIZER_NESTEROV)
        out->compensation = (float)c->optimizer.delay_compensation;
}

unsigned update_slots(const struct update_rule *r)
{
    const unsigned momentum = 1u << SLOT_MOMENTUM, square = 1u << SLOT_SQUARE;
    switch (r->type) {
    case OPTIMIZER_SGD:
        return 0;
    case OPTIMIZER_MOMENTUM:
    case OPTIMIZER_NESTEROV:
        return momentum;
    case OPTIMIZER_ADAGRAD:
    case OPTIMIZER_RMSPROP:
        return square;
    case OPTIMIZER_ADAM:
    case OPTIMIZER_ADAMW:
        break;
    }
    return momentum | square;
}

/* What the steps of one block share. Adam's two corrections of the bias are in rate and root. */
struct terms {
    float rate, mu;
    float b1, new1, b2, new2; /* new = 1 - b */
    float root, epsilon;
    float decay, shrink; /* of the gradient; of the weights */
    float lambda;
};

/* By squaring, not by libm, whose last bit depends on the CPU. */
static double power(double base, uint64_t exponent)
{
    double result = 1;
    for (; exponent; exponent >>= 1, base *= base)
        if (exponent & 1) result *= base;
    return result;
}

static struct terms terms_of(const struct update_rule *r, const struct update_step *s)
{
    bool adamw = r->type == OPTIMIZER_ADAMW;
    struct terms t = {.rate = s->rate,
                      .mu = s->momentum,
                      .b1 = r->beta1,
                      .new1 = 1 - r->beta1,
                      .b2 = r->beta2,
                      .new2 = 1 - r->beta2,
                      .epsilon = r->epsilon,
                      .decay = adamw ? 0 : r->weight_decay,
                      .shrink = adamw ? s->rate * r->weight_decay : 0,
                      .lambda = r->compensation};
    if (adamw || r->type == OPTIMIZER_ADAM) {
        ASSERT(s->number > 0);
        t.rate = (float)(s->rate / (1 - power(r->beta1, s->number)));
        t.root = (float)(1 / sqrt(1 - power(r->beta2, s->number)));
    }
    return t;
}

/* --- one chunk: CHUNK floats each */

static void compensate(float lambda, float *restrict g, const float *restrict w, const float *restrict backup)
{
    for (int k = 0; k < CHUNK; k++) g[k] += lambda * g[k] * g[k] * (w[k] - backup[k]);
}

static void decay(float by, float *restrict g, const float *restrict w)
{
    for (int k = 0; k < CHUNK; k++) g[k] += by * w[k];
}

static void shrink(float by, float *restrict w)
{
    for (int k = 0; k < CHUNK; k++) w[k] -= by * w[k];
}

static void step_sgd(struct terms t, float *restrict g, float *restrict w)
{
    for (int k = 0; k < CHUNK; k++) g[k] = w[k] = w[k] - t.rate * g[k];
}

static void step_momentum(struct terms t, float *restrict g, float *restrict w, float *restrict v)
{
    for (int k = 0; k < CHUNK; k++) {
        v[k] = t.mu * v[k] + g[k];
        g[k] = w[k] = w[k] - t.rate * v[k];
    }
}

static void step_nesterov(struct terms t, float *restrict g, float *restrict w, float *restrict v)
{
    for (int k = 0; k < CHUNK; k++) {
        v[k] = t.mu * v[k] + g[k];
        g[k] = w[k] = w[k] - t.rate * (g[k] + t.mu * v[k]);
    }
}

static void step_adagrad(struct terms t, float *restrict g, float *restrict w, float *restrict q)
{
    for (int k = 0; k < CHUNK; k++) {
        q[k] += g[k] * g[k];
        g[k] = w[k] = w[k] - t.rate * g[k] / (sqrtf(q[k]) + t.epsilon);
    }
}

static void step_rmsprop(struct terms t, float *restrict g, float *restrict w, float *restrict q)
{
    for (int k = 0; k < CHUNK; k++) {
        q[k] = t.b2 * q[k] + t.new2 * g[k] * g[k];
        g[k] = w[k] = w[k] - t.rate * g[k] / (sqrtf(q[k]) + t.epsilon);
    }
}

static void step_adam(struct terms t, float *restrict g, float *restrict w, float *restrict v,
                      float *restrict q)
{
    for (int k = 0; k < CHUNK; k++) {
        v[k] = t.b1 * v[k] + t.new1 * g[k];
        q[k] = t.b2 * q[k] + t.new2 * g[k] * g[k];
        g[k] = w[k] = w[k] - t.rate * v[k] / (t.root * sqrtf(q[k]) + t.epsilon);
    }
}

static void step(enum optimizer_type type, struct terms t, float *g, float *w, float *v, float *q)
{
    switch (type) {
    case OPTIMIZER_SGD:
        step_sgd(t, g, w);
        break;
    case OPTIMIZER_MOMENTUM:
        step_momentum(t, g, w, v);
        break;
    case OPTIMIZER_NESTEROV:
        step_nesterov(t, g, w, v);
        break;
    case OPTIMIZER_ADAGRAD:
        step_adagrad(t, g, w, q);
        break;
    case OPTIMIZER_RMSPROP:
        step_rmsprop(t, g, w, q);
        break;
    case OPTIMIZER_ADAM:
    case OPTIMIZER_ADAMW:
        step_adam(t, g, w, v, q);
        break;
    }
}

static void update_chunk(enum optimizer_type type, struct terms t, const struct update_block *c)
{
    if (c->backup && t.lambda != 0) compensate(t.lambda, c->g, c->weights, c->backup);
    if (t.decay != 0) decay(t.decay, c->g, c->weights);
    if (t.shrink != 0) shrink(t.shrink, c->weights);
    step(type, t, c->g, c->weights, c->momentum, c->square);
}

/* --- one block */

#define FROM(pointer, i) ((pointer) ? (pointer) + (i) : NULL)

static struct update_block part(const struct update_block *b, size_t from, size_t n)
{
    return (struct update_block){.g = b->g + from,
                                 .weights = b->weights + from,
                                 .momentum = FROM(b->momentum, from),
                                 .square = FROM(b->square, from),
                                 .backup = FROM(b->backup, from),
                                 .n = n};
}

/* Fewer than CHUNK floats: as a chunk padded with zeros. */
static void update_rest(enum optimizer_type type, struct terms t, const struct update_block *rest)
{
    float room[5][CHUNK] = {{0}}, *const arrays[] = {rest->g, rest->weights, rest->momentum, rest->square};
    size_t bytes = rest->n * sizeof(float);
    struct update_block c = {room[0], room[1], room[2], room[3], rest->backup ? room[4] : NULL, CHUNK};
    for (int k = 0; k < 4; k++)
        if (arrays[k]) memcpy(room[k], arrays[k], bytes);
    if (rest->backup) memcpy(room[4], rest->backup, bytes);
    update_chunk(type, t, &c);
    for (int k = 0; k < 4; k++)
        if (arrays[k]) memcpy(arrays[k], room[k], bytes);
}

void update_apply(const struct update_rule *r, const struct update_step *s, const struct update_block *b)
{
    unsigned slots = update_slots(r);
    ASSERT(b->momentum || !(slots & 1u << SLOT_MOMENTUM));
    ASSERT(b->square || !(slots & 1u << SLOT_SQUARE));
    struct terms t = terms_of(r, s);
    size_t whole = b->n - b->n % CHUNK;
    struct update_block c;
    for (size_t i = 0; i < whole; i += CHUNK) c = part(b, i, CHUNK), update_chunk(r->type, t, &c);
    c = part(b, whole, b->n - whole);
    if (c.n > 0) update_rest(r->type, t, &c);
}

/* --- sums */

/* In double precision throughout: a square overflows for no float. */
static double exact_sum_of_squares(const float *g, size_t n)
{
    double sum[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += (double)g[i + k] * (double)g[i + k];
    for (; i < n; i++) sum[0] += (double)g[i] * (double)g[i];
    for (int k = 1; k < LANES; k++) sum[0] += sum[k];
    return sum[0];
}

/* Of CHUNK floats: eight squares a lane in single precision, the lanes in double. */
static void add_squares(const float *restrict g, double *restrict sum)
{
    float lane[NORM_LANES] = {0};
    for (int i = 0; i < CHUNK; i += NORM_LANES)
        for (int k = 0; k < NORM_LANES; k++) lane[k] += g[i + k] * g[i + k];
    for (int k = 0; k < NORM_LANES; k++) sum[k] += (double)lane[k];
}

double update_norm(const float *g, size_t n)
{
    size_t whole = n - n % CHUNK;
    double sum[NORM_LANES] = {exact_sum_of_squares(g + whole, n - whole)};
    for (size_t i = 0; i < whole; i += CHUNK) add_squares(g + i, sum);
    for (int k = 1; k < NORM_LANES; k++) sum[0] += sum[k];
    if (!isfinite(sum[0])) sum[0] = exact_sum_of_squares(g, n); /* or a square too large for a float */
    return sqrt(sum[0]);
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
