#include "server/update.h"

#include "common/err.h"
#include "common/snapshot.h"

#include <math.h>
#include <string.h>

#define UPDATE_KERNELS update_plain
#include "server/update_loops.h"

#define LANES 8 /* a fixed inner count becomes vector code at -O2 as well */

#if defined(__x86_64__)
extern const struct update_kernels update_avx2;
#endif

/* Asked of the CPU at each call, so that there is no state. */
static const struct update_kernels *kernels(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return &update_avx2;
#endif
    return &update_plain;
}

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

/* --- one block */

#define FROM(pointer, i) ((pointer) ? (pointer) + (i) : NULL)

struct update_block update_part(const struct update_block *b, size_t from, size_t n)
{
    return (struct update_block){.g = FROM(b->g, from),
                                 .weights = b->weights + from,
                                 .momentum = FROM(b->momentum, from),
                                 .square = FROM(b->square, from),
                                 .backup = FROM(b->backup, from),
                                 .n = n};
}

/* Fewer than CHUNK floats: as a chunk padded with zeros. */
static void update_rest(const struct update_kernels *k, enum optimizer_type type, const struct terms *t,
                        const struct update_block *rest)
{
    float room[5][CHUNK] = {{0}}, *const arrays[] = {rest->g, rest->weights, rest->momentum, rest->square};
    size_t bytes = rest->n * sizeof(float);
    struct update_block c = {room[0], room[1], room[2], room[3], rest->backup ? room[4] : NULL, CHUNK};
    for (int i = 0; i < 4; i++)
        if (arrays[i]) memcpy(room[i], arrays[i], bytes);
    if (rest->backup) memcpy(room[4], rest->backup, bytes);
    k->chunk(type, t, &c);
    for (int i = 0; i < 4; i++)
        if (arrays[i]) memcpy(arrays[i], room[i], bytes);
}

void update_apply(const struct update_rule *r, const struct update_step *s, const struct update_block *b)
{
    unsigned slots = update_slots(r);
    ASSERT(b->momentum || !(slots & 1u << SLOT_MOMENTUM));
    ASSERT(b->square || !(slots & 1u << SLOT_SQUARE));
    const struct update_kernels *k = kernels();
    struct terms t = terms_of(r, s);
    size_t whole = b->n - b->n % CHUNK;
    struct update_block c;
    for (size_t i = 0; i < whole; i += CHUNK) c = update_part(b, i, CHUNK), k->chunk(r->type, &t, &c);
    c = update_part(b, whole, b->n - whole);
    if (c.n > 0) update_rest(k, r->type, &t, &c);
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

double update_norm(const float *g, size_t n)
{
    size_t whole = n - n % CHUNK;
    double sum[NORM_LANES] = {exact_sum_of_squares(g + whole, n - whole)};
    kernels()->squares(g, whole, sum);
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
