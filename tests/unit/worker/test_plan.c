/* What serves a model: the list of its products beside the calls that a net makes, and beside the arithmetic
 * of the paper's equations. The five functions of worker/nnet/affine.h are defined here and only write down
 * who calls them, so that a net runs without any product. */
#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/affine.h"
#include "worker/nnet/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define MAX_PRODUCTS 256

/* --- the calls of a net */

struct seen {
    char what[48];
    size_t rows, calls;
    bool turned;
};

static struct seen seen[MAX_PRODUCTS]; /* in the order of the first calls */
static size_t num_seen;

static void saw(const struct tensor *w, const char *pass, size_t rows, bool turned)
{
    char what[48];
    snprintf(what, sizeof what, "%s %s", w->name, pass);
    for (size_t i = 0; i < num_seen; i++)
        if (strcmp(seen[i].what, what) == 0) {
            assert_true(seen[i].rows == rows && seen[i].turned == turned);
            seen[i].calls++;
            return;
        }
    assert_true(num_seen < MAX_PRODUCTS);
    seen[num_seen] = (struct seen){.rows = rows, .calls = 1, .turned = turned};
    memcpy(seen[num_seen++].what, what, sizeof what);
}

void workspace_init(struct workspace *s, const struct panel_kernels *k, real scale, size_t n, size_t in)
{
    (void)n, (void)in;
    *s = (struct workspace){k, scale, NULL};
}

void workspace_fini(struct workspace *s)
{
    (void)s;
}

void affine_forward(const struct workspace *s, const struct tensor *w, const real *params, size_t n,
                    struct const_rows x, bool adds, struct rows y)
{
    (void)s, (void)params, (void)x, (void)adds, (void)y;
    saw(w, "forward", n, false);
}

void affine_backward(const struct workspace *s, const struct tensor *w, const real *params,
                     const struct transposed *t, size_t n, struct const_rows d_y, bool adds, struct rows d_x)
{
    (void)s, (void)params, (void)d_y, (void)adds, (void)d_x;
    saw(w, "backward", n, t != NULL);
}

double affine_gradient(const struct workspace *s, const struct affine_input *inputs, size_t num_inputs,
                       const struct tensor *b, size_t n, struct const_rows d_y, real *grad)
{
    (void)s, (void)b, (void)d_y, (void)grad;
    for (size_t i = 0; i < num_inputs; i++) saw(inputs[i].w, "gradient", n, false);
    return 0;
}

/* Rule: the list is what a net does: the same products in the same order, as often, of as many rows, with
 * weights turned once for exactly those that it is given so. */
static void the_list_is_what_a_net_calls(void **state)
{
    (void)state;
    struct plan plan = plan_make(PLAN_BEST);
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct rng rng;
        struct plan_product list[MAX_PRODUCTS];
        print_message("seed %u\n", (unsigned)seed);
        rng_init(&rng, seed);
        struct model m = random_model(&rng);
        size_t T = 1 + (size_t)rng_below(&rng, 5), S = 1 + (size_t)rng_below(&rng, 4);
        struct net *n = training_net(&m, T, S);
        struct window_data w = random_window(&m, &rng, T, S);
        real *params = new_reals(m.params), *grad = new_reals(m.params);
        num_seen = 0;
        run_window(n, params, &w, grad);
        assert_int_equal(plan_products(&m, &plan, T, S, list, MAX_PRODUCTS), num_seen);
        for (size_t i = 0; i < num_seen; i++) {
            assert_string_equal(list[i].what, seen[i].what);
            assert_int_equal(list[i].rows, seen[i].rows);
            assert_int_equal(list[i].calls, seen[i].calls);
            assert_int_equal(strstr(list[i].kernel, "turned once") != NULL, seen[i].turned);
        }
        free(params);
        free(grad);
        window_free(&w);
        net_free(&n);
        model_fini(&m);
    }
}

/* --- the arithmetic */

static struct model make_model(uint32_t layers, uint32_t C, uint32_t R, uint32_t K)
{
    struct model_spec s = {.type = MODEL_LSTMP,
                           .input = 40,
                           .targets = K,
                           .num_layers = layers,
                           .peepholes = true,
                           .feature_dim = 40,
                           .stack = 1,
                           .skip = 1};
    for (uint32_t l = 0; l < layers; l++) s.layers[l] = (struct model_layer){.cells = C, .projection = R};
    struct model m;
    ASSERT(model_build(&s, &m) == 0);
    return m;
}

static double flops(const struct plan_product *p)
{
    return 2.0 * (double)p->out * (double)p->in * (double)p->rows * (double)p->calls;
}

/* Rule: per frame a layer of input I costs 2 [4C (I + R) + C R] forward, the output 2 R K; backward is twice
 * that, less the 2 4C 40 of the features, to which nothing goes back, and less the 2 4C R of each layer's
 * last frame in a window, to which nothing comes back. Known for the four models of the benches, in Mflop a
 * frame (without that last part). */
static void products_add_up_to_the_arithmetic_of_the_equations(void **state)
{
    (void)state;
    static const struct {
        uint32_t layers, C, R, K;
        double forward, backward; /* Mflop per frame */
    } models[] = {{1, 1024, 256, 126, 3.014, 5.700},
                  {2, 800, 512, 8000, 19.917, 39.578},
                  {3, 512, 200, 2000, 5.674, 11.185},
                  {1, 128, 64, 50, 0.129, 0.218}};
    static const size_t windows[][2] = {{20, 4}, {20, 16}, {7, 3}, {1, 1}};
    struct plan plan = plan_make(PLAN_BEST);
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        uint32_t L = models[i].layers, C = models[i].C, R = models[i].R;
        struct model m = make_model(L, C, R, models[i].K);
        double frame = 2.0 * R * models[i].K;
        for (uint32_t l = 0; l < L; l++) frame += 2.0 * (4.0 * C * ((l ? R : 40) + R) + (double)C * R);
        for (size_t k = 0; k < sizeof windows / sizeof windows[0]; k++) {
            struct plan_product list[MAX_PRODUCTS];
            size_t T = windows[k][0], S = windows[k][1];
            size_t n = plan_products(&m, &plan, T, S, list, MAX_PRODUCTS);
            double forward = 0, backward = (double)L * 2 * 4 * C * R * (double)S;
            for (size_t j = 0; j < n; j++)
                *(strstr(list[j].what, " forward") ? &forward : &backward) += flops(&list[j]);
            double frames = (double)(T * S);
            assert_true(forward == frame * frames);
            assert_true(backward == (2 * frame - 2.0 * 4 * C * 40) * frames);
            assert_true(fabs(forward / frames / 1e6 - models[i].forward) <= 0.0005);
            assert_true(fabs(backward / frames / 1e6 - models[i].backward) <= 0.001);
        }
        model_fini(&m);
    }
}

/* --- which kernel */

/* Rule: the kernel of a product is that of the plan; matrices of few rows are turned once, of many on the
 * way, and BLAS needs the second not. */
static void each_product_names_the_kernel_of_its_level(void **state)
{
    (void)state;
    struct model m = make_model(2, 30, 10, 12);
    for (enum plan_level level = PLAN_BEST; level <= PLAN_AVX512; level++) {
        if (!plan_has(level)) continue;
        struct plan_product list[MAX_PRODUCTS];
        struct plan plan = plan_make(level);
        bool is_blas = plan.level == PLAN_PORTABLE;
        size_t n = plan_products(&m, &plan, 20, 4, list, MAX_PRODUCTS);
        assert_int_equal(n, 3 * 2 + 3 + 2 * 5 + 1);
        for (size_t i = 0; i < n; i++) {
            bool back = strstr(list[i].what, " backward") != NULL, few = list[i].rows == 4;
            size_t name = strlen(plan.panels->name);
            const char *turned = !back ? "" : few ? ", turned once" : is_blas ? "" : ", turned on the way";
            assert_memory_equal(list[i].kernel, plan.panels->name, name);
            assert_string_equal(list[i].kernel + name, turned);
        }
    }
    model_fini(&m);
}

/* Rule: where the columns of a product go: a weight turned around takes outputs in and gives inputs. */
static void sizes_are_those_that_the_kernel_reads(void **state)
{
    (void)state;
    struct model m = make_model(2, 30, 10, 12);
    struct plan plan = plan_make(PLAN_BEST);
    struct plan_product list[MAX_PRODUCTS];
    size_t n = plan_products(&m, &plan, 20, 4, list, MAX_PRODUCTS), found = 0;
    static const struct {
        const char *what;
        size_t out, in, rows, calls;
    } rows[] = {{"layer0.w_x forward", 120, 40, 80, 1},  {"layer1.w_r forward", 120, 10, 4, 20},
                {"layer1.w_m backward", 30, 10, 4, 20},  {"layer1.w_r backward", 10, 120, 4, 19},
                {"layer1.w_x backward", 10, 120, 80, 1}, {"layer0.w_r gradient", 120, 10, 80, 1},
                {"output.w gradient", 12, 10, 80, 1},    {"output.w backward", 10, 12, 80, 1}};
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++)
        for (size_t i = 0; i < n; i++) {
            const struct plan_product *p = &list[i];
            if (strcmp(p->what, rows[k].what) != 0) continue;
            assert_true(p->out == rows[k].out && p->in == rows[k].in);
            assert_true(p->rows == rows[k].rows && p->calls == rows[k].calls);
            found++;
        }
    assert_int_equal(found, sizeof rows / sizeof rows[0]);
    model_fini(&m);
}

/* Rule: no more than `max` are written, all are counted. */
static void a_short_list_is_cut_and_counted_whole(void **state)
{
    (void)state;
    struct model m = make_model(2, 30, 10, 12);
    struct plan plan = plan_make(PLAN_PORTABLE);
    struct plan_product list[8], full[MAX_PRODUCTS];
    memset(list, 0x5a, sizeof list);
    size_t n = plan_products(&m, &plan, 20, 4, full, MAX_PRODUCTS);
    assert_int_equal(plan_products(&m, &plan, 20, 4, NULL, 0), n);
    assert_int_equal(plan_products(&m, &plan, 20, 4, list, 7), n);
    for (size_t i = 0; i < 7; i++) assert_string_equal(list[i].what, full[i].what);
    for (size_t i = 0; i < sizeof list[7]; i++) assert_int_equal(((const uint8_t *)&list[7])[i], 0x5a);
    model_fini(&m);
}

/* Rule: the portable level is always there, and best only where there is no other; each level has its name.
 * Which one is best is measured, not the highest. */
static void best_is_a_level_that_this_cpu_has(void **state)
{
    (void)state;
    static const char *const names[] = {"best", "portable", "avx2", "avx512"};
    assert_true(plan_has(PLAN_PORTABLE) && plan_has(PLAN_BEST));
    if (plan_has(PLAN_AVX512)) assert_true(plan_has(PLAN_AVX2));
    for (enum plan_level level = PLAN_BEST; level <= PLAN_AVX512; level++) {
        assert_string_equal(plan_level_name(level), names[level]);
        if (level == PLAN_BEST || !plan_has(level)) continue;
        struct plan plan = plan_make(level);
        assert_int_equal(plan.level, level);
        assert_true(plan.gates && plan.panels);
        assert_int_equal(plan.panels == &panels_portable, level == PLAN_PORTABLE);
    }
    struct plan best = plan_make(PLAN_BEST);
    print_message("best here: %s, gates %s, products %s\n", plan_level_name(best.level), best.gates->name,
                  best.panels->name);
    assert_true(best.level != PLAN_BEST && plan_has(best.level));
    assert_int_equal(best.level == PLAN_PORTABLE, !plan_has(PLAN_AVX2));
}

/* Rule: a row of a buffer begins with a cache line, and its length is no multiple of 2 KiB. */
static void rows_of_buffers_are_whole_lines_and_never_multiples_of_2_kib(void **state)
{
    (void)state;
    for (size_t n = 1; n <= 9000; n++) {
        size_t ld = plan_stride(n);
        assert_true(ld >= n && ld < n + 2 * 64 / sizeof(real));
        assert_int_equal(ld * sizeof(real) % 64, 0);
        assert_true(ld * sizeof(real) % 2048 != 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(best_is_a_level_that_this_cpu_has),
        cmocka_unit_test(rows_of_buffers_are_whole_lines_and_never_multiples_of_2_kib),
        cmocka_unit_test(products_add_up_to_the_arithmetic_of_the_equations),
        cmocka_unit_test(the_list_is_what_a_net_calls),
        cmocka_unit_test(each_product_names_the_kernel_of_its_level),
        cmocka_unit_test(sizes_are_those_that_the_kernel_reads),
        cmocka_unit_test(a_short_list_is_cut_and_counted_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
