/* The functions of struct gates, written once for every instruction set. Only the file of a set includes
 * this, after it has defined what LANES floats are in registers:
 *   vec, all(x)                 LANES floats; x in each of them
 *   struct lanes, all_lanes(), first_lanes(n)   which of them are in memory: all, or the first n < LANES
 *   load, store                 of these lanes; load gives zeros elsewhere
 *   keep(x, lanes, other)       x, but `other` in the lanes that are not in memory
 *   add, sub, mul, divide, negate, madd (a b + c), nmadd (c - a b)
 *   largest_of(a, b)            b where a is NaN
 *   largest_lane(x)
 *   clamp(x, low, high)         NaN stays
 *   two_to_eighths(x, table)    2^(n/8) where x = EIGHTHS_SHIFT + n, as below
 *   struct sum, sum_zero, sum_add(sum, vec), sum_total   in double
 * Each element goes through the same roundings in every set that includes this, so they give the same bits,
 * but for the order in which softmax sums. */
#include "worker/nnet/kernels/gates.h"

#include <stdint.h>
#include <string.h>

/* f(element, lanes, ...) for all n elements; `lanes` is a constant where f is inlined, but for the last n %
 * LANES. */
#define FOR_LANES(n, f, ...)                                                                                 \
    do {                                                                                                     \
        size_t n_ = (n), j_ = 0;                                                                             \
        for (; j_ + LANES <= n_; j_ += LANES) f(j_, all_lanes(), __VA_ARGS__);                               \
        if (j_ < n_) f(j_, first_lanes(n_ - j_), __VA_ARGS__);                                               \
    } while (0)

/* EIGHTHS_SHIFT + n has n + 8 * 127 in its low bits; 20 places higher, its eighths are an exponent. The table
 * has the bits of the fraction of 2^(j/8), less the j << 20 that are then below the exponent. */
#define EIGHTHS_SHIFT (0x1.8p23f + 8 * 127)
static const int eighths[8] = {0, -0x46a3e, -0x7c810, -0xa0129, -0xafb0d, -0xa98d6, -0x8bb03, -0x53f39};

/* exp(x) = value * scale. */
struct exponential {
    vec value, scale;
};

/* x = n ln 2 / 8 + r, |r| <= ln 2 / 16; value = exp(r), a cubic fitted for the least maximum relative error
 * (2.6e-8); scale = 2^(n/8), from a table of eight and the exponent's bits. ln 2 / 8 in two parts. x is
 * clamped to where the scale is a normal number: below -87 exp gives 1.6e-38 and above 88 it gives 1.7e38. */
INLINE struct exponential exponential(vec x)
{
    x = clamp(x, all(-87.0f), all(88.0f));
    vec shifted = madd(x, all(11.54156f), all(EIGHTHS_SHIFT)); /* rounds to a whole number */
    vec n = sub(shifted, all(EIGHTHS_SHIFT));
    vec r = nmadd(n, all(0.0866433978f), x);
    r = nmadd(n, all(-2.3808178e-10f), r);
    vec q = madd(all(0.16666858f), r, all(0.50006455f));
    q = madd(q, r, all(1.0f));
    return (struct exponential){madd(q, r, all(1.0f)), two_to_eighths(shifted, eighths)};
}

INLINE vec sigmoid(vec x)
{
    struct exponential e = exponential(negate(x));
    return divide(all(1.0f), madd(e.value, e.scale, all(1.0f)));
}

/* tanh(x) = x P(u) / Q(u), u = x^2, fitted on |x| <= 8.1 for the least maximum relative error (7.3e-9);
 * beyond, tanh is taken at 8.1, which is 1 - 1.2e-7 here. No float gives more than 1 (tried with all). */
INLINE vec tangent(vec x)
{
    x = clamp(x, all(-8.1f), all(8.1f));
    vec u = mul(x, x);
    vec p = madd(all(1.5033892e-8f), u, all(2.176551e-5f));
    p = madd(p, u, all(0.0035641335f));
    p = madd(p, u, all(0.13438308f));
    p = madd(p, u, all(1.0f));
    vec q = madd(all(8.4461004e-7f), u, all(0.00033988405f));
    q = madd(q, u, all(0.026136354f));
    q = madd(q, u, all(0.46771634f));
    q = madd(q, u, all(1.0f));
    return divide(mul(x, p), q);
}

/* The cell goes forward in two loops: the way from z to c and that from c to m are each a chain of some 70
 * cycles, and with both in one iteration a core holds too few iterations in flight to fill its units. */
INLINE void forward_to_c(size_t j, struct lanes l, const struct cell *k, float *z, const float *c_prev,
                         float *c)
{
    size_t n = k->cells;
    const float *b = k->b;
    vec before = load(c_prev + j, l), limit = all(k->cell_clip);
    vec g = tangent(add(load(z + j, l), load(b + j, l)));
    vec i = sigmoid(madd(load(k->p_i + j, l), before, add(load(z + n + j, l), load(b + n + j, l))));
    vec f = sigmoid(madd(load(k->p_f + j, l), before, add(load(z + 2 * n + j, l), load(b + 2 * n + j, l))));
    store(c + j, l, clamp(madd(g, i, mul(f, before)), negate(limit), limit));
    store(z + j, l, g);
    store(z + n + j, l, i);
    store(z + 2 * n + j, l, f);
}

INLINE void forward_to_m(size_t j, struct lanes l, const struct cell *k, float *z, const float *c, float *m)
{
    const float *b = k->b + 3 * k->cells;
    z += 3 * k->cells;
    vec now = load(c + j, l);
    vec o = sigmoid(madd(load(k->p_o + j, l), now, add(load(z + j, l), load(b + j, l))));
    store(m + j, l, mul(o, tangent(now)));
    store(z + j, l, o);
}

static void cell_forward(const struct cell *k, float *z, const float *c_prev, float *c, float *m)
{
    FOR_LANES(k->cells, forward_to_c, k, z, c_prev, c);
    FOR_LANES(k->cells, forward_to_m, k, z, c, m);
}

INLINE void backward_lanes(size_t j, struct lanes l, const struct cell *k, float *z, const float *c_prev,
                           const float *c, const float *d_m, float *d_c, float *peephole)
{
    size_t n = k->cells;
    vec one = all(1.0f), high = all(k->delta_clip), low = negate(high);
    vec g = load(z + j, l), i = load(z + n + j, l), f = load(z + 2 * n + j, l), o = load(z + 3 * n + j, l);
    vec now = load(c + j, l), before = load(c_prev + j, l), dm_o = mul(load(d_m + j, l), o), h = tangent(now);
    vec d_o = mul(mul(dm_o, h), sub(one, o));
    vec dc = add(load(d_c + j, l), madd(load(k->p_o + j, l), d_o, mul(dm_o, nmadd(h, h, one))));
    vec d_f = clamp(mul(mul(dc, before), mul(f, sub(one, f))), low, high);
    vec d_i = clamp(mul(mul(dc, g), mul(i, sub(one, i))), low, high);
    vec d_g = clamp(mul(mul(dc, i), nmadd(g, g, one)), low, high);
    d_o = clamp(d_o, low, high);
    store(d_c + j, l, madd(d_f, load(k->p_f + j, l), madd(d_i, load(k->p_i + j, l), mul(dc, f))));
    float *p = peephole + j;
    store(p, l, madd(d_i, before, load(p, l)));
    store(p + n, l, madd(d_f, before, load(p + n, l)));
    store(p + 2 * n, l, madd(d_o, now, load(p + 2 * n, l)));
    store(z + j, l, d_g);
    store(z + n + j, l, d_i);
    store(z + 2 * n + j, l, d_f);
    store(z + 3 * n + j, l, d_o);
}

static void cell_backward(const struct cell *k, float *z, const float *c_prev, const float *c,
                          const float *d_m, float *d_c, float *peephole)
{
    FOR_LANES(k->cells, backward_lanes, k, z, c_prev, c, d_m, d_c, peephole);
}

INLINE void add_bias(size_t j, struct lanes l, float *z, const float *b, vec *top)
{
    vec x = add(load(z + j, l), load(b + j, l));
    store(z + j, l, x);
    *top = largest_of(keep(x, l, -INFINITY), *top);
}

INLINE void add_exp(size_t j, struct lanes l, const float *z, vec max, vec *sum)
{
    struct exponential e = exponential(sub(load(z + j, l), max));
    *sum = madd(e.value, keep(e.scale, l, 0), *sum);
}

/* Eight terms of a lane are added in float, the rest in double. */
static double softmax_forward(size_t n, float *z, const float *b, float *max)
{
    vec top = all(-INFINITY);
    FOR_LANES(n, add_bias, z, b, &top);
    *max = largest_lane(top);
    struct sum total = sum_zero();
    for (size_t first = 0, block = 8 * LANES; first < n; first += block) {
        vec sum = all(0);
        FOR_LANES(n - first < block ? n - first : block, add_exp, z + first, all(*max), &sum);
        total = sum_add(total, sum);
    }
    return sum_total(total);
}

INLINE void scale_exp(size_t j, struct lanes l, float *z, vec max, vec factor)
{
    struct exponential e = exponential(sub(load(z + j, l), max));
    store(z + j, l, mul(mul(e.value, e.scale), factor));
}

static void softmax_scale(size_t n, float *z, float max, float factor)
{
    FOR_LANES(n, scale_exp, z, all(max), all(factor));
}

INLINE void subtract_two(size_t j, struct lanes l, float *z, vec a, vec b)
{
    store(z + j, l, sub(sub(load(z + j, l), a), b));
}

static void softmax_log(size_t n, float *z, float max, float log_sum)
{
    FOR_LANES(n, subtract_two, z, all(max), all(log_sum));
}

INLINE void keep_largest(size_t j, struct lanes l, const float *z, vec *top)
{
    *top = largest_of(keep(load(z + j, l), l, -INFINITY), *top);
}

static float largest(size_t n, const float *z)
{
    vec top = all(-INFINITY);
    FOR_LANES(n, keep_largest, z, &top);
    return largest_lane(top);
}

/* x = 2^k m, m from sqrt(1/2) to sqrt(2): log x = k ln 2 + 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
 * Ten terms of atanh(s) = s (1 + s^2/3 + s^4/5 + ...) leave 2e-17 of it; five roundings: 6e-16. */
static double logarithm(double x)
{
    static const double term[] = {1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9,
                                  1.0 / 7,  1.0 / 5,  1.0 / 3,  1};
    const uint64_t root_half = 0x3fe6a09e667f3bcd;
    if (!(x < INFINITY)) return x; /* infinite or NaN */
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t k = (int64_t)(bits - root_half) >> 52;
    bits -= (uint64_t)k << 52;
    memcpy(&x, &bits, sizeof x);
    double s = (x - 1) / (x + 1), p = 1.0 / 19;
    for (size_t i = 0; i < sizeof term / sizeof *term; i++) p = p * (s * s) + term[i];
    return (double)k * 0.69314718055994531 + 2 * s * p;
}

#define GATES_OF_LOOPS(set)                                                                                  \
    {                                                                                                        \
        .name = set, .cell_forward = cell_forward, .cell_backward = cell_backward,                           \
        .softmax_forward = softmax_forward, .softmax_scale = softmax_scale, .softmax_log = softmax_log,      \
        .largest = largest, .log = logarithm,                                                                \
    }
