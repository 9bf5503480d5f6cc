/* Every optimizer computes what PyTorch does and has the bits of plain loops, in any build; its state is its
 * slots and its step number, no more; and nothing that is not finite has a finite norm. */
#include "common/err.h"
#include "common/rng.h"
#include "common/snapshot.h"
#include "server/update.h"
#include "tests/unit/server/optimizers_golden.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define SEED  41
#define TYPES (OPTIMIZER_ADAMW + 1)

static const size_t sizes[] = {0, 1, 7, 8, 9, 63, 64, 65, 1000, 4096};
#define NUM_SIZES (sizeof sizes / sizeof *sizes)

static float *random_floats(struct rng *r, size_t n)
{
    float *x = xaligned((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_normal(r);
    return x;
}

static float *copy_floats(const float *from, size_t n)
{
    float *x = xaligned((n + 1) * sizeof *x);
    memcpy(x, from, n * sizeof *x);
    return x;
}

/* The same formula as in optimizers.py: in [-1, 1), now and then 0, exact. */
static float hashed(uint32_t step, uint32_t i)
{
    uint32_t h = (step * 64 + i + 1) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    h ^= h >> 13;
    return h % 16 == 0 ? 0 : ((float)(h >> 8) / 8388608.0f - 1) / (float)(1u << i % 4);
}

/* --- one block with all it may need */
struct world {
    size_t n;
    float *g, *w, *v, *q, *backup;
};

static void make_world(struct world *x, struct rng *r, size_t n)
{
    *x = (struct world){n,
                        random_floats(r, n),
                        random_floats(r, n),
                        random_floats(r, n),
                        random_floats(r, n),
                        random_floats(r, n)};
    for (size_t i = 0; i < n; i++) x->q[i] *= x->q[i];
}

static void copy_world(struct world *to, const struct world *x)
{
    size_t n = x->n;
    *to = (struct world){n,
                         copy_floats(x->g, n),
                         copy_floats(x->w, n),
                         copy_floats(x->v, n),
                         copy_floats(x->q, n),
                         copy_floats(x->backup, n)};
}

static void free_world(struct world *x)
{
    free(x->g), free(x->w), free(x->v), free(x->q), free(x->backup);
}

static void assert_same_world(const struct world *a, const struct world *b)
{
    size_t bytes = a->n * sizeof(float);
    assert_memory_equal(a->g, b->g, bytes);
    assert_memory_equal(a->w, b->w, bytes);
    assert_memory_equal(a->v, b->v, bytes);
    assert_memory_equal(a->q, b->q, bytes);
    assert_memory_equal(a->backup, b->backup, bytes);
}

static void apply(const struct update_rule *r, const struct update_step *s, struct world *x)
{
    unsigned slots = update_slots(r);
    struct update_block b = {.g = x->g,
                             .weights = x->w,
                             .momentum = slots & 1u << SLOT_MOMENTUM ? x->v : NULL,
                             .square = slots & 1u << SLOT_SQUARE ? x->q : NULL,
                             .backup = r->compensation > 0 ? x->backup : NULL,
                             .n = x->n};
    update_apply(r, s, &b);
}

static struct update_rule rule_of(enum optimizer_type type, bool decays, bool compensates)
{
    return (struct update_rule){.type = type,
                                .beta1 = 0.9f,
                                .beta2 = 0.999f,
                                .epsilon = 1e-8f,
                                .weight_decay = decays ? 0.013f : 0,
                                .compensation = compensates ? 0.04f : 0};
}

/* --- bits: every operation rounded by itself, volatile forbids anything else */
static float times(float a, float b)
{
    volatile float x = a * b;
    return x;
}

static float plus(float a, float b)
{
    volatile float x = a + b;
    return x;
}

static float over(float a, float b)
{
    volatile float x = a / b;
    return x;
}

static float root(float a)
{
    volatile float x = sqrtf(a);
    return x;
}

/* What is taken off the weight. Updates v and q. */
static float plain_change(const struct update_rule *r, const struct update_step *s, float g, float *v,
                          float *q)
{
    double c1 = 1, c2 = 1;
    for (uint64_t k = 0; k < s->number; k++) c1 *= r->beta1, c2 *= r->beta2;
    switch (r->type) {
    case OPTIMIZER_SGD:
        return times(s->rate, g);
    case OPTIMIZER_MOMENTUM:
        *v = plus(times(s->momentum, *v), g);
        return times(s->rate, *v);
    case OPTIMIZER_NESTEROV:
        *v = plus(times(s->momentum, *v), g);
        return times(s->rate, plus(g, times(s->momentum, *v)));
    case OPTIMIZER_ADAGRAD:
        *q = plus(*q, times(g, g));
        return over(times(s->rate, g), plus(root(*q), r->epsilon));
    case OPTIMIZER_RMSPROP:
        *q = plus(times(r->beta2, *q), times(times(1 - r->beta2, g), g));
        return over(times(s->rate, g), plus(root(*q), r->epsilon));
    case OPTIMIZER_ADAM:
    case OPTIMIZER_ADAMW:
        *v = plus(times(r->beta1, *v), times(1 - r->beta1, g));
        *q = plus(times(r->beta2, *q), times(times(1 - r->beta2, g), g));
        return over(times((float)(s->rate / (1 - c1)), *v),
                    plus(times((float)(1 / sqrt(1 - c2)), root(*q)), r->epsilon));
    }
    return NAN;
}

static void plain_apply(const struct update_rule *r, const struct update_step *s, struct world *x)
{
    for (size_t i = 0; i < x->n; i++) {
        float g = x->g[i], w = x->w[i];
        if (r->compensation > 0)
            g = plus(g, times(times(times(r->compensation, g), g), plus(w, -x->backup[i])));
        if (r->weight_decay > 0 && r->type == OPTIMIZER_ADAMW)
            w = plus(w, -times(times(s->rate, r->weight_decay), w));
        else if (r->weight_decay > 0)
            g = plus(g, times(r->weight_decay, w));
        x->g[i] = x->w[i] = plus(w, -plain_change(r, s, g, &x->v[i], &x->q[i]));
    }
}

static void same_as_plain_loops(const struct update_rule *r, struct rng *random, size_t n)
{
    struct world x, y;
    make_world(&x, random, n);
    copy_world(&y, &x);
    for (uint64_t number = 1; number <= 3; number++) {
        const struct update_step s = {.rate = 0.037f, .momentum = 0.85f, .number = number};
        for (size_t i = 0; i < n; i++) x.g[i] = y.g[i] = (float)rng_normal(random);
        apply(r, &s, &x);
        plain_apply(r, &s, &y);
        assert_same_world(&x, &y);
        assert_memory_equal(x.g, x.w, n * sizeof *x.g);
    }
    free_world(&x), free_world(&y);
}

static void same_for_all_settings(size_t n)
{
    struct rng random;
    rng_init(&random, SEED + n);
    for (int type = 0; type < TYPES; type++) {
        bool may_compensate = type <= OPTIMIZER_NESTEROV;
        for (int setting = 0; setting < (may_compensate ? 4 : 2); setting++) {
            struct update_rule r = rule_of((enum optimizer_type)type, setting & 1, setting & 2);
            same_as_plain_loops(&r, &random, n);
        }
    }
}

static void every_optimizer_has_the_bits_of_plain_loops(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    for (size_t k = 0; k < NUM_SIZES; k++) same_for_all_settings(sizes[k]);
}

static void every_tail_has_the_bits_of_plain_loops(void **state)
{
    (void)state;
    for (size_t n = 0; n <= 67; n++) same_for_all_settings(n);
    for (size_t n = 250; n <= 260; n++) same_for_all_settings(n);
}

/* --- gradients and weights as they travel */
static void same_as_decoded(enum element_type from, enum element_type to, struct rng *random, size_t n)
{
    const struct update_rule r = rule_of(OPTIMIZER_MOMENTUM, true, false);
    const struct update_step s = {.rate = 0.037f, .momentum = 0.85f, .number = 1};
    struct world x, y;
    make_world(&x, random, n);
    size_t g_len = element_bytes(from, n), to_len = element_bytes(to, n);
    char *g = xaligned(g_len), *weights = g_len == to_len ? g : xaligned(to_len),
         *expected = xaligned(to_len);
    element_encode(from, x.g, n, g);
    element_decode(from, g, n, x.g);
    copy_world(&y, &x);
    assert_true(update_norm(from, g, n) == update_norm(ELEMENT_FP32, x.g, n));
    apply(&r, &s, &x);
    element_encode(to, x.w, n, expected);
    struct update_block b = {
        .g = g, .to = weights, .g_type = from, .to_type = to, .weights = y.w, .momentum = y.v};
    b.n = n;
    update_apply(&r, &s, &b);
    assert_memory_equal(y.w, x.w, n * sizeof *x.w);
    assert_memory_equal(y.v, x.v, n * sizeof *x.v);
    assert_memory_equal(weights, expected, to_len);
    if (weights != g) free(weights);
    free(g), free(expected);
    free_world(&x), free_world(&y);
}

static void from_type_to_type_is_decoding_updating_and_encoding(void **state)
{
    (void)state;
    struct rng random;
    rng_init(&random, SEED);
    for (int from = 0; from < ELEMENT_TYPES; from++)
        for (int to = 0; to < ELEMENT_TYPES; to++)
            for (size_t k = 0; k < NUM_SIZES; k++)
                same_as_decoded((enum element_type)from, (enum element_type)to, &random, sizes[k]);
}

/* A fixed run and the hash (FNV-1a) of what it ends in: the same for gcc and clang, -O0 and -O2. */
static uint64_t hash_floats(uint64_t h, const float *x, size_t n)
{
    const unsigned char *bytes = (const unsigned char *)x;
    for (size_t i = 0; i < n * sizeof *x; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hash_of_run(enum optimizer_type type)
{
    enum { N = 300 };
    float g[N], w[N], v[N] = {0}, q[N] = {0}, backup[N];
    struct world x = {N, g, w, v, q, backup};
    struct update_rule r = rule_of(type, true, type <= OPTIMIZER_NESTEROV);
    for (uint32_t i = 0; i < N; i++) backup[i] = w[i] = hashed(1000, i);
    for (uint32_t step = 0; step < 40; step++) {
        for (uint32_t i = 0; i < N; i++) g[i] = hashed(step, i);
        apply(&r, &(struct update_step){.rate = 0.037f, .momentum = 0.9f, .number = step + 1}, &x);
    }
    return hash_floats(hash_floats(hash_floats(0xcbf29ce484222325u, w, N), v, N), q, N);
}

static void every_build_gives_the_same_bits(void **state)
{
    (void)state;
    const uint64_t expected[TYPES] = {0xc8b78f64b65875be, 0x9a6af71f8f4309a4, 0x5646ca6ae6e335c8,
                                      0xc6855a12c8437ec4, 0x9a2eb021923a9019, 0x837f55bc7cd9da6e,
                                      0x4e361b6f6254b112};
    for (int type = 0; type < TYPES; type++) {
        uint64_t h = hash_of_run((enum optimizer_type)type);
        if (h != expected[type]) fail_msg("type %d: 0x%016llx", type, (unsigned long long)h);
    }
}

/* --- what is computed */

/* A step rounds the weight to the nearest float, half an ulp at most and to either side alike; its own few
 * roundings are relative to the step, which is mostly small beside the weight. So after t steps the
 * difference is some sqrt(t) / 2 ulps (seen: up to 0.46 (1 + sqrt(t))); 1 + sqrt(t) are allowed: 11 after 100
 * steps. */
static void assert_close(float got, double expected, int steps)
{
    double ulp = FLT_EPSILON * fmax(1, fabs(expected));
    if (!(fabs(got - expected) <= (1 + sqrt(steps)) * ulp))
        fail_msg("after %d steps %.9g instead of %.9g", steps, (double)got, expected);
}

static void run_golden(const struct golden *golden_run)
{
    float g[GOLDEN_WEIGHTS], w[GOLDEN_WEIGHTS], v[GOLDEN_WEIGHTS] = {0}, q[GOLDEN_WEIGHTS] = {0};
    struct world x = {GOLDEN_WEIGHTS, g, w, v, q, NULL};
    struct update_rule r = {.type = golden_run->type,
                            .beta1 = GOLDEN_BETA1,
                            .beta2 = GOLDEN_BETA2,
                            .epsilon = GOLDEN_EPSILON,
                            .weight_decay = golden_run->decays ? GOLDEN_DECAY : 0};
    for (int i = 0; i < GOLDEN_WEIGHTS; i++) w[i] = ((float)i - 5.5f) / 8;
    for (int step = 0, row = 0; step < 100; step++) {
        struct update_step s = {GOLDEN_RATE, GOLDEN_MOMENTUM, (uint64_t)step + 1};
        for (int i = 0; i < GOLDEN_WEIGHTS; i++) g[i] = hashed((uint32_t)step, (uint32_t)i);
        apply(&r, &s, &x);
        if (step + 1 != golden_steps[row]) continue;
        for (int i = 0; i < GOLDEN_WEIGHTS; i++) assert_close(w[i], golden_run->weights[row][i], step + 1);
        row++;
    }
}

static void every_optimizer_computes_what_pytorch_does(void **state)
{
    (void)state;
    assert_int_equal(sizeof golden / sizeof *golden, 2 * TYPES);
    for (size_t k = 0; k < sizeof golden / sizeof *golden; k++) run_golden(&golden[k]);
}

/* Gradients of the weights of three steps ago, in double precision, from the formula. */
static void run_delayed(enum optimizer_type type, double mu, double d)
{
    enum { N = 12, STEPS = 100, DELAY = 3 };
    const float lambda = 0.5f, rate = 0.05f;
    float g[N], w[N], v[N] = {0}, past[STEPS][N];
    double exact[N], velocity[N] = {0}, exact_past[STEPS][N];
    struct update_rule r = {.type = type, .weight_decay = (float)d, .compensation = lambda};
    for (int i = 0; i < N; i++) exact[i] = w[i] = ((float)i - 5.5f) / 8;
    for (int t = 0; t < STEPS; t++) {
        int seen = t < DELAY ? 0 : t - DELAY;
        struct world x = {N, g, w, v, NULL, past[seen]};
        memcpy(past[t], w, sizeof w);
        memcpy(exact_past[t], exact, sizeof exact);
        for (int i = 0; i < N; i++) {
            double h = g[i] = hashed((uint32_t)t, (uint32_t)i);
            h += lambda * h * h * (exact[i] - exact_past[seen][i]) + d * exact[i];
            velocity[i] = mu * velocity[i] + h;
            exact[i] -= rate * (type == OPTIMIZER_NESTEROV ? h + mu * velocity[i] : velocity[i]);
        }
        apply(&r, &(struct update_step){rate, (float)mu, (uint64_t)t + 1}, &x);
        for (int i = 0; i < N; i++) assert_close(w[i], exact[i], t + 1);
    }
}

static void delay_compensation_is_the_formula_over_100_steps(void **state)
{
    (void)state;
    for (int decays = 0; decays < 2; decays++) {
        double d = decays ? 0.02f : 0;
        run_delayed(OPTIMIZER_SGD, 0, d);
        run_delayed(OPTIMIZER_MOMENTUM, 0.9f, d);
        run_delayed(OPTIMIZER_NESTEROV, 0.9f, d);
    }
}

static void a_gradient_of_the_weights_of_now_is_not_compensated(void **state)
{
    (void)state;
    for (int type = 0; type <= OPTIMIZER_NESTEROV; type++) {
        struct update_rule with = rule_of((enum optimizer_type)type, false, true), without = with;
        struct rng random;
        struct world x, y;
        without.compensation = 0;
        rng_init(&random, SEED);
        make_world(&x, &random, 1000);
        memcpy(x.backup, x.w, 1000 * sizeof *x.w);
        copy_world(&y, &x);
        apply(&with, &(struct update_step){0.037f, 0.9f, 1}, &x);
        apply(&without, &(struct update_step){0.037f, 0.9f, 1}, &y);
        assert_same_world(&x, &y);
        free_world(&x), free_world(&y);
    }
}

/* --- state */
static void run_until(const struct update_rule *r, struct world *x, uint64_t *version, uint64_t end)
{
    while (*version < end) {
        for (uint32_t i = 0; i < x->n; i++) x->g[i] = hashed((uint32_t)*version, i);
        struct update_step s = {.rate = 0.01f, .momentum = 0.9f, .number = ++*version};
        apply(r, &s, x);
    }
}

static void every_optimizer_goes_on_from_its_slots_and_version_alone(void **state)
{
    (void)state;
    for (int type = 0; type < TYPES; type++) {
        struct update_rule r = rule_of((enum optimizer_type)type, true, type <= OPTIMIZER_NESTEROV), again;
        struct rng random;
        struct world x, restored;
        uint64_t version = 0, restored_version;
        rng_init(&random, SEED);
        make_world(&x, &random, 700);
        run_until(&r, &x, &version, 50);
        copy_world(&restored, &x);
        memset(restored.g, 0, 700 * sizeof(float)); /* g is no part of the state */
        restored_version = version;
        again = rule_of((enum optimizer_type)type, true, type <= OPTIMIZER_NESTEROV);
        run_until(&r, &x, &version, 100);
        run_until(&again, &restored, &restored_version, 100);
        assert_same_world(&x, &restored);
        free_world(&x), free_world(&restored);
    }
}

static void an_optimizer_names_the_slots_that_it_needs(void **state)
{
    (void)state;
    const unsigned m = 1u << SLOT_MOMENTUM, q = 1u << SLOT_SQUARE;
    const unsigned expected[TYPES] = {0, m, m, q, q, m | q, m | q};
    for (int type = 0; type < TYPES; type++) {
        struct update_rule r = {.type = (enum optimizer_type)type};
        assert_int_equal(update_slots(&r), expected[type]);
    }
}

static void the_rule_comes_from_the_configuration(void **state)
{
    (void)state;
    struct config c;
    config_default(&c);
    c.optimizer.beta1 = 0.25;
    c.optimizer.beta2 = 0.75;
    c.optimizer.epsilon = 0.125;
    c.optimizer.weight_decay = 0.5;
    c.optimizer.delay_compensation = 2;
    c.optimizer.momentum_at = MOMENTUM_AT_SERVER;
    for (int type = 0; type < TYPES; type++) {
        struct update_rule r;
        c.optimizer.type = (enum optimizer_type)type;
        update_rule_from(&c, &r);
        assert_true(r.type == (enum optimizer_type)type && r.beta1 == 0.25f && r.beta2 == 0.75f);
        assert_true(r.epsilon == 0.125f && r.weight_decay == 0.5f);
        assert_true(r.compensation == (type <= OPTIMIZER_NESTEROV ? 2 : 0));
    }
    config_free(&c);
}

/* --- norms and sums */
static void one_number_that_is_not_finite_is_found_anywhere(void **state)
{
    (void)state;
    const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 0xffffffff};
    const uint32_t good[] = {0x7f7fffff, 0xff7fffff, 0x00000001, 0x80000000, 0};
    for (size_t k = 0; k < NUM_SIZES; k++) {
        size_t n = sizes[k];
        float *x = xaligned((n + 1) * sizeof *x);
        for (size_t i = 0; i < n; i++) memcpy(&x[i], &good[i % 5], sizeof *x);
        assert_true(isfinite(update_norm(ELEMENT_FP32, x, n)));
        for (size_t i = 0; i<n; i += n> 100 ? 13 : 1) {
            float kept = x[i];
            memcpy(&x[i], &bad[i % 6], sizeof *x);
            assert_false(isfinite(update_norm(ELEMENT_FP32, x, n)));
            x[i] = kept;
        }
        free(x);
    }
}

static void the_norm_is_the_root_of_the_sum_of_squares(void **state)
{
    (void)state;
    float x[210];
    for (int i = 0; i < 210; i++) x[i] = (float)(i + 1);
    for (int n = 0; n <= 210; n++) /* n (n+1) (2n+1) / 6 */
        assert_true(fabs(update_norm(ELEMENT_FP32, x, (size_t)n) - sqrt(n * (n + 1.0) * (2 * n + 1.0) / 6)) <
                    1e-12);
    assert_true(update_norm(ELEMENT_FP32, x, 0) == 0);
}

static void a_sum_and_a_division_are_element_by_element(void **state)
{
    (void)state;
    float a[19], b[19];
    for (int i = 0; i < 19; i++) a[i] = (float)i, b[i] = 0.1f;
    update_add(a, b, 19);
    for (int i = 0; i < 19; i++) assert_true(a[i] == (float)i + 0.1f);
    update_divide(a, 3, 19);
    for (int i = 0; i < 19; i++) assert_true(a[i] == ((float)i + 0.1f) / 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_optimizer_has_the_bits_of_plain_loops),
        cmocka_unit_test(every_tail_has_the_bits_of_plain_loops),
        cmocka_unit_test(from_type_to_type_is_decoding_updating_and_encoding),
        cmocka_unit_test(every_build_gives_the_same_bits),
        cmocka_unit_test(every_optimizer_computes_what_pytorch_does),
        cmocka_unit_test(delay_compensation_is_the_formula_over_100_steps),
        cmocka_unit_test(a_gradient_of_the_weights_of_now_is_not_compensated),
        cmocka_unit_test(every_optimizer_goes_on_from_its_slots_and_version_alone),
        cmocka_unit_test(an_optimizer_names_the_slots_that_it_needs),
        cmocka_unit_test(the_rule_comes_from_the_configuration),
        cmocka_unit_test(one_number_that_is_not_finite_is_found_anywhere),
        cmocka_unit_test(the_norm_is_the_root_of_the_sum_of_squares),
        cmocka_unit_test(a_sum_and_a_division_are_element_by_element),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
