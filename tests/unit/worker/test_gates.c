/* The vector kernels against libm in double. Bounds, with u = 2^-24 = 6e-8 (half a unit in the last place):
 *   exp      fit 3e-9, six roundings of terms below 1, one of the sum and one of r:  about 2 u       -> 2e-7
 * relative sigmoid  exp, 1 + e, division:                                                  about 4 u
 * -> 2.5e-7 relative tanh     fit 1.7e-8, two polynomials of one rounding each near 1, product, division:
 * about 5 u -> 3e-7 relative */
#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/kernels/gates.h"
#include "worker/nnet/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define SWEEP 400000

static void skip_without_avx2(void)
{
    if (plan_gates(false) == &gates_portable) {
        print_message("skipped: this CPU has no AVX2 and FMA\n");
        skip();
    }
}

#ifdef __x86_64__
static double sigmoid_of(double x)
{
    return 1 / (1 + exp(-x));
}

/* The largest relative error of f over SWEEP values of [low, high], even and, around zero, by magnitude. */
static double worst_relative(void (*f)(size_t, const float *, float *), double (*exact)(double), float low,
                             float high)
{
    float *x = new_reals(2 * SWEEP), *y = new_reals(2 * SWEEP);
    for (size_t i = 0; i < SWEEP; i++) {
        x[i] = low + (high - low) * (float)i / (SWEEP - 1);
        float small = expf(-25.0f * (float)i / SWEEP);
        x[SWEEP + i] = i % 2 ? small : -small;
    }
    f(2 * SWEEP - 3, x, y); /* not a multiple of the vector */
    double worst = 0;
    for (size_t i = 0; i < 2 * SWEEP - 3; i++) {
        double want = exact((double)x[i]);
        worst = fmax(worst, fabs((double)y[i] - want) / fabs(want));
    }
    free(x);
    free(y);
    return worst;
}

/* Rule: each function keeps its bound over the range that matters. */
static void functions_keep_their_bounds(void **state)
{
    (void)state;
    skip_without_avx2();
    double e = worst_relative(gates_avx2_exp, exp, -87, 88),
           s = worst_relative(gates_avx2_sigmoid, sigmoid_of, -86, 90),
           t = worst_relative(gates_avx2_tanh, tanh, -20, 20);
    print_message("relative error: exp %.3g, sigmoid %.3g, tanh %.3g\n", e, s, t);
    assert_true(e <= 2e-7);
    assert_true(s <= 2.5e-7);
    assert_true(t <= 3e-7);
}

/* Rule: outside, the functions saturate without overflow; NaN comes out as NaN; tanh never passes 1. */
static void extremes_saturate_and_nan_stays(void **state)
{
    (void)state;
    skip_without_avx2();
    const float x[] = {1e30f, INFINITY, -1e30f, -INFINITY, NAN, -NAN, 0.0f, -0.0f, 8.8f, 1e-40f};
    enum { N = sizeof x / sizeof *x };
    float e[N], s[N], t[N];
    gates_avx2_exp(N, x, e);
    gates_avx2_sigmoid(N, x, s);
    gates_avx2_tanh(N, x, t);
    for (size_t i = 0; i < N; i++) {
        if (isnan(x[i])) {
            assert_true(isnan(e[i]) && isnan(s[i]) && isnan(t[i]));
            continue;
        }
        assert_true(isfinite(e[i]) && e[i] >= 0 && s[i] >= 0 && s[i] <= 1 && fabsf(t[i]) <= 1);
        assert_true(fabs((double)s[i] - sigmoid_of((double)x[i])) <= 2e-7);
        assert_true(fabs((double)t[i] - tanh((double)x[i])) <= 2e-7);
    }
    assert_true(t[6] == 0 && s[6] == 0.5f && e[6] == 1);
}

#endif

/* A random layer's row with all that the cell kernels read and write. */
struct cell_case {
    struct cell cell;
    size_t n;
    real *all, *z, *c_prev, *c, *m, *d_m, *d_c, *peephole;
};

static struct cell_case new_case(size_t n, uint64_t seed, float delta_clip)
{
    struct rng r;
    rng_init(&r, seed);
    struct cell_case k = {.n = n, .all = new_reals(20 * n)};
    real *p = k.all;
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

static void check_equal(const real *a, const real *b, size_t n, double bound, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= bound * (1 + fabs((double)b[i]))))
            fail_msg("%s [%zu]: %.9g, want %.9g", what, i, (double)a[i], (double)b[i]);
}

/* Rule: for every number of cells both sets of kernels compute the same cell and touch nothing else. Inputs
 * are up to about 10 and each result is a few products of functions with 3e-7: 2e-6 relative to 1 + |value|.
 * The same activations go into both backward passes; a delta on its clip may differ by rounding only. */
static void cell_kernels_agree_for_every_size(void **state)
{
    (void)state;
    skip_without_avx2();
    const struct gates *vector = plan_gates(false);
    for (size_t n = 1; n <= 41; n++) {
        struct cell_case a = new_case(n, n, n % 2 ? 0.3f : INFINITY),
                         b = new_case(n, n, n % 2 ? 0.3f : INFINITY);
        vector->cell_forward(&a.cell, a.z, a.c_prev, a.c, a.m);
        gates_portable.cell_forward(&b.cell, b.z, b.c_prev, b.c, b.m);
        check_equal(a.all, b.all, 20 * n, 2e-6, "forward");
        memcpy(a.all, b.all, 20 * n * sizeof(real));
        vector->cell_backward(&a.cell, a.z, a.c_prev, a.c, a.d_m, a.d_c, a.peephole);
        gates_portable.cell_backward(&b.cell, b.z, b.c_prev, b.c, b.d_m, b.d_c, b.peephole);
        check_equal(a.all, b.all, 20 * n, 4e-6, "backward");
        free(a.all);
        free(b.all);
    }
}

/* Rule: a NaN anywhere in what a cell reads reaches what it writes; clips do not turn it into a number. */
static void nan_passes_the_cell(void **state)
{
    (void)state;
    const struct gates *sets[] = {&gates_portable, plan_gates(false)};
    for (size_t set = 0; set < 2; set++)
        for (size_t gate = 0; gate < 4; gate++) {
            struct cell_case k = new_case(9, 3, 0.3f);
            k.z[gate * 9 + 4] = NAN;
            sets[set]->cell_forward(&k.cell, k.z, k.c_prev, k.c, k.m);
            assert_true(isnan(k.m[4]) && !isnan(k.m[3]) && !isnan(k.m[5]));
            k.d_m[8] = NAN;
            sets[set]->cell_backward(&k.cell, k.z, k.c_prev, k.c, k.d_m, k.d_c, k.peephole);
            assert_true(isnan(k.z[8]) && isnan(k.z[3 * 9 + 8]) && isnan(k.d_c[8]) && !isnan(k.d_c[7]));
            free(k.all);
        }
}

/* Rule: softmax over any number of targets equals libm's in double within 3e-7, far logits included. */
static void softmax_agrees_with_double(void **state)
{
    (void)state;
    const struct gates *sets[] = {&gates_portable, plan_gates(false)};
    for (size_t n = 1; n <= 70; n++)
        for (size_t set = 0; set < 2; set++) {
            struct rng r;
            rng_init(&r, n);
            float z[72], b[72], logits[72], max;
            for (size_t k = 0; k < n + 1; k++)
                z[k] = (float)(12 * rng_normal(&r)), b[k] = (float)rng_normal(&r);
            float fence = z[n];
            double top = -INFINITY, want = 0;
            for (size_t k = 0; k < n; k++) top = fmax(top, (double)(logits[k] = z[k] + b[k]));
            for (size_t k = 0; k < n; k++) want += exp((double)logits[k] - top);
            double sum = sets[set]->softmax_forward(n, z, b, &max);
            assert_true((double)max == top && fabs(sum - want) <= 3e-7 * want);
            sets[set]->softmax_scale(n, z, max, (float)(1 / sum));
            /* z - max loses up to |z - max| u: 60 x 6e-8 relative of a posterior that is then below 1e-26 */
            for (size_t k = 0; k < n; k++)
                assert_true(fabs((double)z[k] - exp((double)logits[k] - top) / want) <= 5e-7);
            assert_true(z[n] == fence);
            z[n - 1] = NAN;
            assert_true(isnan(sets[set]->softmax_forward(n, z, b, &max)));
        }
}

/* Rule: column sums add to what is there, for any shape and stride. */
static void add_rows_sums_columns(void **state)
{
    (void)state;
    const struct gates *sets[] = {&gates_portable, plan_gates(false)};
    float a[11 * 40], out[40];
    for (size_t i = 0; i < sizeof a / sizeof *a; i++)
        a[i] = (float)(i % 17); /* small integers: sums are exact */
    for (size_t rows = 0; rows <= 11; rows++)
        for (size_t cols = 1; cols < 40; cols++)
            for (size_t set = 0; set < 2; set++) {
                for (size_t k = 0; k < 40; k++) out[k] = 1;
                sets[set]->add_rows(rows, cols, a, 40, out);
                for (size_t k = 0; k < 40; k++) {
                    float want = 1;
                    for (size_t r = 0; r < rows && k < cols; r++) want += a[r * 40 + k];
                    assert_true(out[k] == want);
                }
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef __x86_64__
        cmocka_unit_test(functions_keep_their_bounds),
        cmocka_unit_test(extremes_saturate_and_nan_stays),
#endif
        cmocka_unit_test(cell_kernels_agree_for_every_size),
        cmocka_unit_test(nan_passes_the_cell),
        cmocka_unit_test(softmax_agrees_with_double),
        cmocka_unit_test(add_rows_sums_columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
