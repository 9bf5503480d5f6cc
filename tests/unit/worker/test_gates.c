/* Every set of gate kernels that this CPU has, through struct gates alone, against libm in double. Bounds
 * relative to the value, with u = 2^-24 = 6e-8 (half a unit in the last place):
 *   exp      2e-7     fit 2.6e-8, one rounding each of table, value, product and r: about 2.5 u
 *   sigmoid  2.5e-7   exp, 1 + e, division: about 4 u
 *   tanh     3e-7     fit 7e-9, two polynomials of one rounding each near 1, product, division: 5 u */
#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/kernels/gates.h"
#include "worker/nnet/plan.h"

#include <float.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define SWEEP  400000
#define LEVELS 3

/* NULL: this CPU lacks it. */
static const struct gates *set_at(size_t i)
{
    enum plan_level level = (enum plan_level)(PLAN_PORTABLE + i);
    return plan_has(level) ? plan_make(level).gates : NULL;
}

/* As a rule's body sees them: `g` is each set in turn. */
#define FOR_SETS(g)                                                                                          \
    for (size_t set_ = 0; set_ < LEVELS; set_++)                                                             \
        for (const struct gates *g = set_at(set_); g; g = NULL)

static double sigmoid_of(double x)
{
    return 1 / (1 + exp(-x));
}

/* --- the functions inside, read off the cell and softmax --- */

static void exp_of_set(const struct gates *g, size_t n, const float *x, float *out)
{
    memcpy(out, x, n * sizeof *x);
    g->softmax_scale(n, out, 0, 1);
}

/* A cell without biases and peepholes whose four gates see x, from c_prev: out is z (4n), c and m (n each).
 */
static void free_cell(const struct gates *g, size_t n, const float *const x[4], const float *c_prev,
                      float *out)
{
    float *zeros = new_reals(4 * n);
    const struct cell k = {n, zeros, zeros, zeros, zeros, INFINITY, INFINITY};
    for (size_t gate = 0; gate < 4; gate++)
        for (size_t i = 0; i < n; i++) out[gate * n + i] = x[gate] ? x[gate][i] : 90.0f;
    g->cell_forward(&k, out, c_prev ? c_prev : zeros, out + 4 * n, out + 5 * n);
    free(zeros);
}

/* What gate `gate` makes of x. */
static void gate_of_set(const struct gates *g, size_t gate, size_t n, const float *x, float *out)
{
    const float *const in[4] = {x, x, x, x};
    float *all = new_reals(6 * n);
    free_cell(g, n, in, NULL, all);
    memcpy(out, all + gate * n, n * sizeof *x);
    free(all);
}

/* tanh(c): m of a cell with g = 0 and f = o = 1 to which c comes as c_prev. */
static void tanh_c_of_set(const struct gates *g, size_t n, const float *x, float *out)
{
    float *zeros = new_reals(n), *all = new_reals(6 * n);
    const float *const in[4] = {zeros, NULL, NULL, NULL};
    free_cell(g, n, in, x, all);
    memcpy(out, all + 5 * n, n * sizeof *x);
    free(zeros);
    free(all);
}

enum function { EXP, TANH_G, SIGMOID_I, SIGMOID_F, SIGMOID_O, TANH_C, FUNCTIONS };

static void apply(const struct gates *g, enum function f, size_t n, const float *x, float *out)
{
    if (f == EXP)
        exp_of_set(g, n, x, out);
    else if (f == TANH_C)
        tanh_c_of_set(g, n, x, out);
    else
        gate_of_set(g, (size_t)(f - TANH_G), n, x, out);
}

static const struct {
    double (*exact)(double);
    float low, high;
    double bound;
} of_function[FUNCTIONS] = {
    [EXP] = {exp, -87, 88, 2e-7},
    [TANH_G] = {tanh, -20, 20, 3e-7},
    [SIGMOID_I] = {sigmoid_of, -86, 90, 2.5e-7},
    [SIGMOID_F] = {sigmoid_of, -86, 90, 2.5e-7},
    [SIGMOID_O] = {sigmoid_of, -86, 90, 2.5e-7},
    [TANH_C] = {tanh, -20, 20, 3e-7},
};

/* The largest relative error of f over SWEEP values of its range, even and, around zero, by magnitude. */
static double worst_relative(const struct gates *g, enum function f)
{
    size_t n = 2 * SWEEP - 3; /* not a multiple of the vector */
    float *x = new_reals(2 * SWEEP), *y = new_reals(2 * SWEEP);
    for (size_t i = 0; i < SWEEP; i++) {
        x[i] = of_function[f].low + (of_function[f].high - of_function[f].low) * (float)i / (SWEEP - 1);
        float small = expf(-25.0f * (float)i / SWEEP);
        x[SWEEP + i] = i % 2 ? small : -small;
    }
    apply(g, f, n, x, y);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double want = of_function[f].exact((double)x[i]), error = fabs((double)y[i] - want) / fabs(want);
        worst = error <= worst ? worst : error;
    }
    free(x);
    free(y);
    return worst;
}

/* Rule: each function keeps its bound over the range that matters. */
static void functions_keep_their_bounds(void **state)
{
    (void)state;
    FOR_SETS(g)
    {
        for (enum function f = 0; f < FUNCTIONS; f++) {
            double worst = worst_relative(g, f);
            print_message("%-8s function %d: relative error %.3g\n", g->name, (int)f, worst);
            assert_true(worst <= of_function[f].bound);
        }
    }
}

/* Rule: outside, the functions saturate, in a vector without overflow; tanh never passes 1. */
static void extremes_saturate(void **state)
{
    (void)state;
    const float x[] = {1e30f, INFINITY, -1e30f, -INFINITY, 0.0f, -0.0f, 8.1f, 8.8f, 1e-40f, -8.2f, 7.9999f};
    enum { N = sizeof x / sizeof *x };
    FOR_SETS(g)
    {
        float e[N], s[N], t[N];
        exp_of_set(g, N, x, e);
        gate_of_set(g, 1, N, x, s);
        gate_of_set(g, 0, N, x, t);
        for (size_t i = 0; i < N; i++) {
            assert_true(g == &gates_portable || isfinite(e[i]));
            assert_true(e[i] >= 0 && s[i] >= 0 && s[i] <= 1 && fabsf(t[i]) <= 1);
            assert_true(fabs((double)s[i] - sigmoid_of((double)x[i])) <= 2e-7);
            assert_true(fabs((double)t[i] - tanh((double)x[i])) <= 2e-7);
        }
        assert_true(t[4] == 0 && s[4] == 0.5f && e[4] == 1);
    }
}

/* Rule: a NaN of any sign and payload comes out of every function as NaN. */
static void nan_stays(void **state)
{
    (void)state;
    const uint32_t bits[] = {0x7fc00000, 0xffc00000, 0x7fc00001, 0x7fffffff,
                             0xffc12345, 0x7fc003f8, 0xffffffff};
    enum { N = sizeof bits / sizeof *bits };
    float x[N], y[N];
    memcpy(x, bits, sizeof x);
    FOR_SETS(g)
    {
        for (enum function f = 0; f < FUNCTIONS; f++) {
            apply(g, f, N, x, y);
            for (size_t i = 0; i < N; i++) assert_true(isnan(y[i]));
        }
    }
}

/* --- the cell --- */

/* A random layer's row with all that the cell kernels read and write, `shift` floats off a cache line. */
struct cell_case {
    struct cell cell;
    size_t n;
    real *memory, *all, *z, *c_prev, *c, *m, *d_m, *d_c, *peephole;
};

static struct cell_case new_case(size_t n, uint64_t seed, size_t shift, float delta_clip)
{
    struct rng r;
    rng_init(&r, seed);
    struct cell_case k = {.n = n, .memory = new_reals(20 * n + shift)};
    real *p = k.all = k.memory + shift;
    for (size_t i = 0; i < 20 * n; i++) p[i] = (real)(1.5 * rng_normal(&r));
    k.cell = (struct cell){n, p, p + 4 * n, p + 5 * n, p + 6 * n, 1.7f, delta_clip};
    k.z = p + 7 * n;
    k.c_prev = p + 11 * n;
    k.c = p + 12 * n;
    k.m = p + 13 * n;
    k.d_m = p + 14 * n;
    k.d_c = p + 15 * n;
    k.peephole = p + 16 * n; /* the last n are a fence */
    return k;
}

static void forward(const struct gates *g, const struct cell_case *k)
{
    g->cell_forward(&k->cell, k->z, k->c_prev, k->c, k->m);
}
static void backward(const struct gates *g, const struct cell_case *k)
{
    g->cell_backward(&k->cell, k->z, k->c_prev, k->c, k->d_m, k->d_c, k->peephole);
}

static double limit(double x, float bound)
{
    return fmin(fmax(x, -(double)bound), (double)bound);
}

/* The equations of gates.h once more, in double, over all 20n numbers of a case (`v`: in and out). */
static void exact_forward(const struct cell_case *k, double *v)
{
    size_t n = k->n;
    double *b = v, *p_i = v + 4 * n, *p_f = v + 5 * n, *p_o = v + 6 * n, *z = v + 7 * n, *before = v + 11 * n;
    for (size_t j = 0; j < n; j++) {
        double g = tanh(z[j] + b[j]), i = sigmoid_of(z[n + j] + b[n + j] + p_i[j] * before[j]),
               f = sigmoid_of(z[2 * n + j] + b[2 * n + j] + p_f[j] * before[j]),
               c = limit(g * i + f * before[j], k->cell.cell_clip),
               o = sigmoid_of(z[3 * n + j] + b[3 * n + j] + p_o[j] * c);
        z[j] = g, z[n + j] = i, z[2 * n + j] = f, z[3 * n + j] = o;
        v[12 * n + j] = c;
        v[13 * n + j] = o * tanh(c);
    }
}

static void exact_backward(const struct cell_case *k, double *v)
{
    size_t n = k->n;
    float clip = k->cell.delta_clip;
    double *p_i = v + 4 * n, *p_f = v + 5 * n, *p_o = v + 6 * n, *z = v + 7 * n, *before = v + 11 * n,
           *c = v + 12 * n, *d_m = v + 14 * n, *d_c = v + 15 * n, *peephole = v + 16 * n;
    for (size_t j = 0; j < n; j++) {
        double g = z[j], i = z[n + j], f = z[2 * n + j], o = z[3 * n + j], h = tanh(c[j]);
        double d_o = d_m[j] * h * o * (1 - o), dc = d_c[j] + d_m[j] * o * (1 - h * h) + p_o[j] * d_o;
        z[j] = limit(dc * i * (1 - g * g), clip);
        z[n + j] = limit(dc * g * i * (1 - i), clip);
        z[2 * n + j] = limit(dc * before[j] * f * (1 - f), clip);
        z[3 * n + j] = limit(d_o, clip);
        d_c[j] = dc * f + z[n + j] * p_i[j] + z[2 * n + j] * p_f[j];
        peephole[j] += z[n + j] * before[j];
        peephole[n + j] += z[2 * n + j] * before[j];
        peephole[2 * n + j] += z[3 * n + j] * c[j];
    }
}

static void to_double(const real *a, size_t n, double *out)
{
    for (size_t i = 0; i < n; i++) out[i] = (double)a[i];
}

static void check_near(const struct gates *g, const real *a, const double *want, size_t n, double bound,
                       const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - want[i]) <= bound * (1 + fabs(want[i]))))
            fail_msg("%s %s [%zu]: %.9g, want %.9g", g->name, what, i, (double)a[i], want[i]);
}

/* Inputs are up to about 10 and each result is a few products of functions with 3e-7: 2e-6 relative to 1 +
 * |value|. A delta on its clip may differ by rounding only. */
static void check_cell(const struct gates *g, size_t n, uint64_t seed, size_t shift)
{
    float clip = seed % 2 ? 0.3f : INFINITY;
    struct cell_case a = new_case(n, seed, shift, clip), b = new_case(n, seed, 0, clip);
    double *want = xaligned(20 * n * sizeof *want), *portable = xaligned(20 * n * sizeof *portable);
    to_double(a.all, 20 * n, want);
    forward(g, &a);
    forward(&gates_portable, &b);
    exact_forward(&a, want);
    to_double(b.all, 20 * n, portable);
    check_near(g, a.all, portable, 20 * n, 2e-6, "forward, beside the portable set");
    check_near(g, a.all, want, 20 * n, 2e-6, "forward");

    to_double(a.all, 20 * n, want); /* the same activations go into all three backward passes */
    memcpy(b.all, a.all, 20 * n * sizeof(real));
    backward(g, &a);
    backward(&gates_portable, &b);
    exact_backward(&a, want);
    to_double(b.all, 20 * n, portable);
    check_near(g, a.all, portable, 20 * n, 4e-6, "backward, beside the portable set");
    check_near(g, a.all, want, 20 * n, 4e-6, "backward");
    free(want);
    free(portable);
    free(a.memory);
    free(b.memory);
}

/* Rule: for every number of cells, wherever in memory, a set computes the cell of gates.h and touches nothing
 * else. */
static void cell_equals_double_for_every_size(void **state)
{
    (void)state;
    FOR_SETS(g)
    {
        for (size_t n = 1; n <= 67; n++) check_cell(g, n, n, 0);
        struct rng r;
        rng_init(&r, 17);
        for (uint64_t seed = 100; seed < 160; seed++)
            check_cell(g, 1 + rng_below(&r, 1500), seed, 1 + rng_below(&r, 31));
    }
}

/* Rule: the vector sets give the same cell to the last bit, so that machines may differ. */
static void vector_sets_give_the_same_bits(void **state)
{
    (void)state;
    const struct gates *narrow = set_at(1), *wide = set_at(2);
    if (!narrow || !wide) {
        print_message("skipped: this CPU has no AVX-512\n");
        skip();
    }
    for (size_t n = 1; n < 70; n++) {
        struct cell_case a = new_case(n, n, 0, 0.3f), b = new_case(n, n, 0, 0.3f);
        for (size_t pass = 0; pass < 2; pass++) {
            (pass ? backward : forward)(narrow, &a);
            (pass ? backward : forward)(wide, &b);
            assert_memory_equal(a.all, b.all, 20 * n * sizeof(real));
        }
        free(a.memory);
        free(b.memory);
    }
}

/* Rule: a NaN anywhere in what a cell reads reaches what it writes; clips do not turn it into a number. */
static void nan_passes_the_cell(void **state)
{
    (void)state;
    enum { N = 19 };
    FOR_SETS(g)
    {
        for (size_t gate = 0; gate < 4; gate++)
            for (size_t j = 4; j < N - 1; j += 13) {
                struct cell_case k = new_case(N, 3, 0, 0.3f);
                k.z[gate * N + j] = NAN;
                forward(g, &k);
                assert_true(isnan(k.m[j]) && !isnan(k.m[j - 1]) && !isnan(k.m[j + 1]));
                k.d_m[N - 1] = NAN;
                backward(g, &k);
                assert_true(isnan(k.z[N - 1]) && isnan(k.z[3 * N + N - 1]) && isnan(k.d_c[N - 1]));
                assert_true(!isnan(k.d_c[N - 3]));
                free(k.memory);
            }
    }
}

/* --- softmax --- */

/* One row of n logits z + b, `shift` floats off a cache line, with a fence of one. */
static void check_softmax(const struct gates *g, size_t n, uint64_t seed, size_t shift)
{
    struct rng r;
    rng_init(&r, seed);
    float *memory = new_reals(2 * n + 2 + 2 * shift), *z = memory + shift, *b = z + n + 1 + shift,
          *logits = new_reals(n), *scaled = new_reals(n), max;
    for (size_t k = 0; k < n; k++) z[k] = (float)(12 * rng_normal(&r)), b[k] = (float)rng_normal(&r);
    float fence = z[n] = (float)rng_normal(&r);
    double top = -INFINITY, want = 0;
    for (size_t k = 0; k < n; k++) top = fmax(top, (double)(logits[k] = z[k] + b[k]));
    for (size_t k = 0; k < n; k++) want += exp((double)logits[k] - top);
    double sum = g->softmax_forward(n, z, b, &max);
    assert_true((double)max == top && fabs(sum - want) <= 3e-7 * want);
    assert_memory_equal(z, logits, n * sizeof *z);
    memcpy(scaled, z, n * sizeof *z);
    g->softmax_scale(n, z, max, (float)(1 / sum));
    g->softmax_log(n, scaled, max, 0.625f);
    for (size_t k = 0; k < n; k++) {
        /* z - max loses up to |z - max| u: 60 x 6e-8 relative of a posterior that is then below 1e-26 */
        assert_true(fabs((double)z[k] - exp((double)logits[k] - top) / want) <= 5e-7);
        assert_true(scaled[k] == (logits[k] - max) - 0.625f);
    }
    assert_true(z[n] == fence);
    z[rng_below(&r, n)] = NAN;
    assert_true(isnan(g->softmax_forward(n, z, b, &max)));
    free(memory);
    free(logits);
    free(scaled);
}

/* Rule: softmax over any number of targets, wherever in memory, equals libm's in double, far logits included.
 */
static void softmax_agrees_with_double(void **state)
{
    (void)state;
    FOR_SETS(g)
    {
        for (size_t n = 1; n <= 300; n++) check_softmax(g, n, n, n % 5);
        struct rng r;
        rng_init(&r, 23);
        for (uint64_t seed = 400; seed < 420; seed++)
            check_softmax(g, 1 + rng_below(&r, 14000), seed, rng_below(&r, 31));
    }
}

/* Rule: the sum over a long row keeps 3e-7 where each term alone would be lost beside the largest. */
static void softmax_sum_loses_no_small_terms(void **state)
{
    (void)state;
    enum { N = 14001 };
    float *z = new_reals(N), *b = new_reals(N), max;
    FOR_SETS(g)
    {
        for (size_t k = 0; k < N; k++)
            z[k] = k == 7 ? 0 : -17.0f; /* exp(-17) = 4e-8 is lost beside 1 in float */
        double want = 1 + (N - 1) * exp(-17);
        assert_true(fabs(g->softmax_forward(N, z, b, &max) - want) <= 3e-7 * want);
    }
    free(z);
    free(b);
}

/* Rule: the largest of any number of logits, NaN passed over; of none, minus infinity. */
static void largest_is_found_anywhere(void **state)
{
    (void)state;
    float z[75];
    FOR_SETS(g)
    {
        assert_true(g->largest(0, z) == -INFINITY);
        for (size_t n = 1; n < 74; n++)
            for (size_t at = 0; at < n; at++) {
                for (size_t k = 0; k < 75; k++) z[k] = k < n ? -(float)(k + 3) : 99;
                z[at] = -2;
                if (n > 1) z[(at + 1) % n] = NAN;
                assert_true(g->largest(n, z) == -2);
            }
    }
}

/* --- the logarithm --- */

static void check_log(const struct gates *g, double x)
{
    double got = g->log(x), want = log(x);
    if (!(fabs(got - want) <= 1e-15 * fabs(want))) fail_msg("%s log %a: %a, want %a", g->name, x, got, want);
}

/* Rule: log is libm's within 1e-15 of itself over all normal numbers, close to 1 too; infinity and NaN stay.
 */
static void log_agrees_with_libm(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 5);
    FOR_SETS(g)
    {
        assert_true(g->log(1) == 0 && g->log(INFINITY) == INFINITY && isnan(g->log(NAN)) &&
                    isnan(g->log(-NAN)));
        check_log(g, DBL_MIN);
        check_log(g, DBL_MAX);
        for (int k = -1021; k < 1023; k++) {
            check_log(g, ldexp(1, k));
            check_log(g, ldexp(sqrt(0.5), k));
            check_log(g, ldexp(1 + rng_uniform(&r), k));
        }
        for (int k = 1; k < 2000; k++)
            check_log(g, 1 + k * DBL_EPSILON), check_log(g, 1 - k * DBL_EPSILON / 2);
        for (int k = 0; k < 200000; k++) {
            check_log(g, 1 + 14000 * rng_uniform(&r)); /* what sums of exp are */
            check_log(g, 1 + exp(-36 * rng_uniform(&r)));
            check_log(g, exp(1400 * (rng_uniform(&r) - 0.5)));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(functions_keep_their_bounds),
        cmocka_unit_test(extremes_saturate),
        cmocka_unit_test(nan_stays),
        cmocka_unit_test(cell_equals_double_for_every_size),
        cmocka_unit_test(vector_sets_give_the_same_bits),
        cmocka_unit_test(nan_passes_the_cell),
        cmocka_unit_test(softmax_agrees_with_double),
        cmocka_unit_test(softmax_sum_loses_no_small_terms),
        cmocka_unit_test(largest_is_found_anywhere),
        cmocka_unit_test(log_agrees_with_libm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
