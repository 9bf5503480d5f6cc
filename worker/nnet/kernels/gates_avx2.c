#include "worker/nnet/kernels/gates.h"

#ifdef __AVX2__

#include <immintrin.h>
#include <stdbool.h>

#define LANES 8

typedef __m256 v8;

/* The last n % 8 elements of a row go through masked loads and stores: `part` is a constant where these are
 * inlined. */
struct lanes {
    bool part;
    __m256i mask;
};

static inline struct lanes all_lanes(void)
{
    return (struct lanes){false, _mm256_setzero_si256()};
}

static inline struct lanes first_lanes(size_t n)
{
    __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (struct lanes){true, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), index)};
}

static inline v8 load(const float *p, struct lanes l)
{
    return l.part ? _mm256_maskload_ps(p, l.mask) : _mm256_loadu_ps(p);
}

static inline void store(float *p, struct lanes l, v8 x)
{
    if (l.part)
        _mm256_maskstore_ps(p, l.mask, x);
    else
        _mm256_storeu_ps(p, x);
}

static inline v8 all(float x)
{
    return _mm256_set1_ps(x);
}
static inline v8 add(v8 a, v8 b)
{
    return _mm256_add_ps(a, b);
}
static inline v8 sub(v8 a, v8 b)
{
    return _mm256_sub_ps(a, b);
}
static inline v8 mul(v8 a, v8 b)
{
    return _mm256_mul_ps(a, b);
}
static inline v8 madd(v8 a, v8 b, v8 c)
{
    return _mm256_fmadd_ps(a, b, c);
} /* a b + c */
static inline v8 nmadd(v8 a, v8 b, v8 c)
{
    return _mm256_fnmadd_ps(a, b, c);
} /* c - a b */
/* min and max give their second operand where one is NaN, so x stays NaN. */
static inline v8 clamp(v8 x, v8 low, v8 high)
{
    return _mm256_min_ps(high, _mm256_max_ps(low, x));
}

/* exp(x) = 2^n exp(r), |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 q(r); q fitted for the least maximum relative
 * error (3.1e-9). ln 2 in two parts, the first of 10 bits, so that n ln2_high is exact. x is clamped to where
 * 2^n is a normal number: below -87 it gives 1.6e-38 and above 88 it gives 1.7e38. */
static inline v8 exp8(v8 x)
{
    x = clamp(x, all(-87.0f), all(88.0f));
    v8 n = _mm256_round_ps(mul(x, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    v8 r = nmadd(n, all(0.693359375f), x);
    r = nmadd(n, all(-2.12194440e-4f), r);
    v8 q = madd(all(0.0013814602f), r, all(0.008368716f));
    q = madd(q, r, all(0.04166839f));
    q = madd(q, r, all(0.16666521f));
    q = madd(q, r, all(0.49999994f));
    v8 y = add(madd(mul(r, r), q, r), all(1.0f));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return mul(y, _mm256_castsi256_ps(power));
}

static inline v8 sigmoid8(v8 x)
{
    v8 e = exp8(_mm256_xor_ps(x, all(-0.0f)));
    return _mm256_div_ps(all(1.0f), add(all(1.0f), e));
}

/* tanh(x) = x P(u) / Q(u), u = x^2, fitted on |x| <= 8.8 for the least maximum relative error (1.7e-8);
 * beyond, tanh is 1 within 4.6e-8. */
static inline v8 tanh8(v8 x)
{
    x = clamp(x, all(-8.8f), all(8.8f));
    v8 u = mul(x, x);
    v8 p = madd(all(1.37146285e-8f), u, all(2.0865364e-5f));
    p = madd(p, u, all(0.003511052f));
    p = madd(p, u, all(0.13394019f));
    p = madd(p, u, all(1.0f));
    v8 q = madd(all(7.922772e-7f), u, all(0.00033109947f));
    q = madd(q, u, all(0.025935724f));
    q = madd(q, u, all(0.46727338f));
    q = madd(q, u, all(1.0f));
    return clamp(_mm256_div_ps(mul(x, p), q), all(-1.0f), all(1.0f)); /* rounding may pass 1 by 1e-7 */
}

static inline void forward8(const struct cell *k, size_t j, struct lanes l, float *z, const float *c_prev,
                            float *c, float *m)
{
    size_t n = k->cells;
    const float *b = k->b;
    v8 before = load(c_prev + j, l), limit = all(k->cell_clip);
    v8 g = tanh8(add(load(z + j, l), load(b + j, l)));
    v8 i = sigmoid8(madd(load(k->p_i + j, l), before, add(load(z + n + j, l), load(b + n + j, l))));
    v8 f = sigmoid8(madd(load(k->p_f + j, l), before, add(load(z + 2 * n + j, l), load(b + 2 * n + j, l))));
    v8 now = clamp(madd(g, i, mul(f, before)), sub(all(0.0f), limit), limit);
    v8 o = sigmoid8(madd(load(k->p_o + j, l), now, add(load(z + 3 * n + j, l), load(b + 3 * n + j, l))));
    store(c + j, l, now);
    store(m + j, l, mul(o, tanh8(now)));
    store(z + j, l, g);
    store(z + n + j, l, i);
    store(z + 2 * n + j, l, f);
    store(z + 3 * n + j, l, o);
}

static void cell_forward(const struct cell *k, float *z, const float *c_prev, float *c, float *m)
{
    size_t j = 0;
    for (; j + LANES <= k->cells; j += LANES) forward8(k, j, all_lanes(), z, c_prev, c, m);
    if (j < k->cells) forward8(k, j, first_lanes(k->cells - j), z, c_prev, c, m);
}

static inline void backward8(const struct cell *k, size_t j, struct lanes l, float *z, const float *c_prev,
                             const float *c, const float *d_m, float *d_c, float *peephole)
{
    size_t n = k->cells;
    v8 one = all(1.0f), high = all(k->delta_clip), low = sub(all(0.0f), high);
    v8 g = load(z + j, l), i = load(z + n + j, l), f = load(z + 2 * n + j, l), o = load(z + 3 * n + j, l);
    v8 now = load(c + j, l), before = load(c_prev + j, l), dm = load(d_m + j, l);
    v8 h = tanh8(now);
    v8 dm_o = mul(dm, o);
    v8 d_o = mul(mul(dm_o, h), sub(one, o));
    v8 dc = add(load(d_c + j, l), madd(load(k->p_o + j, l), d_o, mul(dm_o, nmadd(h, h, one))));
    v8 d_f = clamp(mul(mul(dc, before), mul(f, sub(one, f))), low, high);
    v8 d_i = clamp(mul(mul(dc, g), mul(i, sub(one, i))), low, high);
    v8 d_g = clamp(mul(mul(dc, i), nmadd(g, g, one)), low, high);
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
    size_t j = 0;
    for (; j + LANES <= k->cells; j += LANES) backward8(k, j, all_lanes(), z, c_prev, c, d_m, d_c, peephole);
    if (j < k->cells) backward8(k, j, first_lanes(k->cells - j), z, c_prev, c, d_m, d_c, peephole);
}

/* The largest lane; NaN if any lane is NaN. */
static float max_of_lanes(v8 x)
{
    float lane[LANES], top = -INFINITY;
    _mm256_storeu_ps(lane, x);
    for (size_t k = 0; k < LANES; k++) top = lane[k] <= top ? top : lane[k];
    return top;
}

/* z += b; the running maximum by lanes. Unused lanes stay at -inf; a NaN is lost here but not in the sum of
 * exp. */
static inline v8 add_bias8(float *z, const float *b, struct lanes l, v8 top)
{
    v8 x = add(load(z, l), load(b, l));
    store(z, l, x);
    if (l.part) x = _mm256_blendv_ps(all(-INFINITY), x, _mm256_castsi256_ps(l.mask));
    return _mm256_max_ps(x, top);
}

/* Adds eight floats to four plus four doubles. */
static inline void add_double(__m256d sum[2], v8 x)
{
    sum[0] = _mm256_add_pd(sum[0], _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    sum[1] = _mm256_add_pd(sum[1], _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
}

static double softmax_forward(size_t n, float *z, const float *b, float *max)
{
    struct lanes rest = first_lanes(n % LANES);
    size_t whole = n - n % LANES;
    v8 top8 = all(-INFINITY);
    for (size_t k = 0; k < whole; k += LANES) top8 = add_bias8(z + k, b + k, all_lanes(), top8);
    if (whole < n) top8 = add_bias8(z + whole, b + whole, rest, top8);
    float top = max_of_lanes(top8);

    __m256d sum[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    for (size_t k = 0; k < whole; k += LANES) add_double(sum, exp8(sub(_mm256_loadu_ps(z + k), all(top))));
    if (whole < n)
        add_double(sum,
                   _mm256_and_ps(exp8(sub(load(z + whole, rest), all(top))), _mm256_castsi256_ps(rest.mask)));
    double lane[4];
    _mm256_storeu_pd(lane, _mm256_add_pd(sum[0], sum[1]));
    *max = top;
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

static void softmax_scale(size_t n, float *z, float max, float factor)
{
    struct lanes rest = first_lanes(n % LANES);
    size_t k = 0;
    for (; k + LANES <= n; k += LANES)
        _mm256_storeu_ps(z + k, mul(exp8(sub(_mm256_loadu_ps(z + k), all(max))), all(factor)));
    if (k < n) store(z + k, rest, mul(exp8(sub(load(z + k, rest), all(max))), all(factor)));
}

/* Four rows at a time: `out` is read and written once for four. */
static inline void add_rows8(const float *a, size_t ld, float *out, struct lanes l)
{
    v8 x = add(load(a, l), load(a + ld, l)), y = add(load(a + 2 * ld, l), load(a + 3 * ld, l));
    store(out, l, add(load(out, l), add(x, y)));
}

static void add_rows(size_t rows, size_t cols, const float *a, size_t ld, float *out)
{
    struct lanes rest = first_lanes(cols % LANES);
    size_t whole = cols - cols % LANES, r = 0;
    for (; r + 4 <= rows; r += 4, a += 4 * ld) {
        for (size_t k = 0; k < whole; k += LANES) add_rows8(a + k, ld, out + k, all_lanes());
        if (whole < cols) add_rows8(a + whole, ld, out + whole, rest);
    }
    for (; r < rows; r++, a += ld)
        for (size_t k = 0; k < cols; k++) out[k] += a[k];
}

static inline void map(v8 (*f)(v8), size_t n, const float *x, float *out)
{
    size_t k = 0;
    for (; k + LANES <= n; k += LANES) _mm256_storeu_ps(out + k, f(_mm256_loadu_ps(x + k)));
    if (k < n) store(out + k, first_lanes(n - k), f(load(x + k, first_lanes(n - k))));
}

void gates_avx2_sigmoid(size_t n, const float *x, float *out)
{
    map(sigmoid8, n, x, out);
}
void gates_avx2_tanh(size_t n, const float *x, float *out)
{
    map(tanh8, n, x, out);
}
void gates_avx2_exp(size_t n, const float *x, float *out)
{
    map(exp8, n, x, out);
}

const struct gates gates_avx2 = {
    .name = "avx2",
    .cell_forward = cell_forward,
    .cell_backward = cell_backward,
    .softmax_forward = softmax_forward,
    .softmax_scale = softmax_scale,
    .add_rows = add_rows,
};

#endif
