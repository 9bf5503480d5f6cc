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

/* The numbers from..from + n of a gradient, n <= CHUNK: where they are if they are floats. */
static float *floats_of(enum element_type type, const void *g, size_t from, size_t n, float room[CHUNK])
{
    if (type == ELEMENT_FP32) return (float *)g + from;
    element_decode(type, (const char *)g + element_bytes(type, from), n, room);
    return room;
}

#define FROM(pointer, i) ((pointer) ? (pointer) + (i) : NULL)

/* Fewer than CHUNK numbers: padded with zeros. */
static void chunk_rest(const struct update_kernels *k, enum optimizer_type type, const struct terms *t,
                       const struct chunk *rest, size_t n)
{
    float room[5][CHUNK] = {{0}}, *const arrays[] = {rest->g, rest->weights, rest->momentum, rest->square};
    struct chunk c = {room[0], room[1], room[2], room[3], rest->backup ? room[4] : NULL};
    for (int i = 0; i < 4; i++)
        if (arrays[i]) memcpy(room[i], arrays[i], n * sizeof(float));
    if (rest->backup) memcpy(room[4], rest->backup, n * sizeof(float));
    k->chunk(type, t, &c);
    for (int i = 0; i < 4; i++)
        if (arrays[i]) memcpy(arrays[i], room[i], n * sizeof(float));
}

/* The new weights are in g, and that is where they go. */
static bool is_there(const struct update_block *b)
{
    return b->to == b->g && b->g_type == ELEMENT_FP32;
}

/* From decoding to encoding while it is in the L1 cache; and so short that a CPU looks ahead into the memory
 * of the next one meanwhile. */
static void apply_chunk(const struct update_kernels *k, enum optimizer_type type, const struct terms *t,
                        const struct update_block *b, size_t i)
{
    _Alignas(64) float room[CHUNK];
    size_t n = b->n - i < CHUNK ? b->n - i : CHUNK;
    float *g = floats_of(b->g_type, b->g, i, n, room);
    struct chunk c = {g, b->weights + i, FROM(b->momentum, i), FROM(b->square, i), FROM(b->backup, i)};
    if (n == CHUNK)
        k->chunk(type, t, &c);
    else
        chunk_rest(k, type, t, &c, n);
    if (b->to && !is_there(b)) element_encode(b->to_type, g, n, (char *)b->to + element_bytes(b->to_type, i));
}

void update_apply(const struct update_rule *r, const struct update_step *s, const struct update_block *b)
{
    unsigned slots = update_slots(r);
    ASSERT(b->momentum || !(slots & 1u << SLOT_MOMENTUM));
    ASSERT(b->square || !(slots & 1u << SLOT_SQUARE));
    const struct update_kernels *k = kernels();
    struct terms t = terms_of(r, s);
    for (size_t i = 0; i < b->n; i += CHUNK) apply_chunk(k, r->type, &t, b, i);
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

/* Of the numbers from..n. */
static double exact_sum(enum element_type type, const void *g, size_t from, size_t n)
{
    float room[CHUNK];
    double sum = 0;
    for (size_t i = from; i < n; i += CHUNK) {
        size_t here = n - i < CHUNK ? n - i : CHUNK;
        sum += exact_sum_of_squares(floats_of(type, g, i, here, room), here);
    }
    return sum;
}

double update_norm(enum element_type type, const void *g, size_t n)
{
    _Alignas(64) float room[CHUNK];
    const struct update_kernels *k = kernels();
    size_t whole = n - n % CHUNK;
    double sum[NORM_LANES] = {exact_sum(type, g, whole, n)};
    for (size_t i = 0; i < whole; i += CHUNK) k->squares(floats_of(type, g, i, CHUNK, room), sum);
    for (int i = 1; i < NORM_LANES; i++) sum[0] += sum[i];
    if (!isfinite(sum[0])) sum[0] = exact_sum(type, g, 0, n); /* or a square too large for a float */
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
