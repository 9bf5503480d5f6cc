/* The net with every set of kernels that this CPU has: against the golden vector for every number of streams,
 * against a naive double loop over plain rows, and against each other. Scale and sum of squares. */
#include "tests/unit/worker/naive_net.h"
#include "worker/nnet/clip.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Single precision over a few hundred operations of numbers near 1: u = 6e-8 each, adding up at random or
 * nearly so. */
#define NEAR 2e-6

static void near(const char *what, double got, double want, double bound)
{
    if (!(fabs(got - want) <= bound)) fail_msg("%s: got %.9g, want %.9g", what, got, want);
}

/* A random model with its data and weights, for S streams. */
struct fixture {
    struct model model;
    struct window_data data;
    real *params, *grad, *other;
    struct rng rng;
};

static void fixture_init(struct fixture *f, uint64_t seed, size_t frames, size_t streams)
{
    rng_init(&f->rng, seed);
    f->model = random_model(&f->rng);
    f->data = random_window(&f->model, &f->rng, frames, streams);
    f->params = new_reals(f->model.params);
    f->grad = new_reals(f->model.params);
    f->other = new_reals(f->model.params);
    random_params(&f->model, &f->rng, 0.8, f->params);
}

static void fixture_free(struct fixture *f)
{
    window_free(&f->data);
    free(f->params);
    free(f->grad);
    free(f->other);
    model_fini(&f->model);
}

static struct net_options options_of(const struct fixture *f, enum plan_level level)
{
    return (struct net_options){
        .window = (int)f->data.frames, .streams = (int)f->data.streams, .trains = true, .level = level};
}

/* Forward and backward over the fixture's window from zero state; returns what net_backward does. */
static double run(const struct fixture *f, const struct net_options *o, real *grad, struct net_result *r)
{
    struct net *n = net_new(&f->model, o);
    for (size_t i = 0; i < f->model.params; i++) grad[i] = NAN; /* all of it must be overwritten */
    net_forward(n, f->params, f->data.x, f->data.reset, f->data.target, r);
    double squares = net_backward(n, f->params, f->data.x, f->data.reset, grad);
    net_free(&n);
    return squares;
}

/* The golden window in each of S streams. */
static struct window_data golden_streams(size_t streams)
{
    struct window_data one = golden_window(0, GOLDEN_T), all = window_new(GOLDEN_T, streams, 3);
    for (size_t row = 0; row < GOLDEN_T * streams; row++) {
        memcpy(all.x + row * 3, one.x + row / streams * 3, 3 * sizeof *one.x);
        all.target[row] = one.target[row / streams];
    }
    window_free(&one);
    return all;
}

static void check_golden(struct net *n, const struct model *m, const real *params,
                         const struct window_data *w)
{
    real *grad = new_reals(m->params);
    double streams = (double)w->streams;
    near("loss", run_window(n, params, w, grad).loss / streams, 5.710026962949716, NEAR * 5.7);
    near("gradient", norm_of(grad, m->params), 1.285520350761615, NEAR * 1.3);
    near("layer0.w_x", tensor_norm(m, "layer0.w_x", 4, 4, grad), 0.004019505644668247, NEAR * 0.02);
    near("layer0.p_f", tensor_norm(m, "layer0.p_f", 0, 4, grad), 0.0019890451917962708, NEAR * 0.01);
    near("layer1.w_r", tensor_norm(m, "layer1.w_r", 0, 4, grad), 0.07543140202334045, NEAR * 0.4);
    near("output.b", tensor_norm(m, "output.b", 0, 3, grad), 1.0487941688909383, NEAR);
    net_clear_state(n);
    memset(w->reset + 3 * w->streams, 1, w->streams);
    near("loss after a reset", run_window(n, params, w, grad).loss / streams, 5.829552280388579, NEAR * 5.8);
    near("gradient after a reset", norm_of(grad, m->params), 1.2296865113055664, NEAR * 1.2);
    free(grad);
}

/* Rule: the golden vector in each of 1 to 67 streams: their loss and, scaled by 1/S, the gradient of one. The
 * weights and inputs alone are off by u, which the loss of 5 frames repeats; cancellation makes small tensors
 * worse in relation to themselves. */
static void golden_vector_for_every_number_of_streams(void **state)
{
    (void)state;
    struct model m = golden_model();
    real *params = new_reals(m.params);
    golden_params(&m, params);
    EACH_LEVEL(level)
    for (int streams = 1; streams <= 67; streams++) {
        struct window_data w = golden_streams((size_t)streams);
        struct net_options o = {.window = GOLDEN_T,
                                .streams = streams,
                                .trains = true,
                                .level = level,
                                .scale = 1 / (float)streams};
        struct net *n = net_new(&m, &o);
        check_golden(n, &m, params, &w);
        net_free(&n);
        window_free(&w);
    }
    free(params);
    model_fini(&m);
}

/* The gradient along a random direction of each tensor is the slope of the naive loss. A slope is off by the
 * rounding of the whole gradient at most. */
static void check_slopes(struct fixture *f, const double *rows, const real *grad)
{
    double *plain = naive_rows(&f->model, grad), *direction = xcalloc(f->model.params, sizeof *direction);
    double length = norm_of(grad, f->model.params);
    for (size_t i = 0; i < f->model.num_tensors; i++) {
        const struct tensor *t = &f->model.tensors[i];
        size_t size = (size_t)t->rows * t->cols;
        double sum = 0, slope = 0;
        for (size_t k = 0; k < size; k++) sum += pow(direction[t->offset + k] = rng_normal(&f->rng), 2);
        for (size_t k = 0; k < size; k++) direction[t->offset + k] /= sqrt(sum);
        for (size_t k = 0; k < size; k++) slope += plain[t->offset + k] * direction[t->offset + k];
        double want = naive_slope(&f->model, rows, direction, &f->data);
        near(t->name, slope, want, 5 * NEAR * length + 1e-7);
        memset(direction + t->offset, 0, size * sizeof *direction);
    }
    free(direction);
    free(plain);
}

/* Rule: whatever the order of the floats in the vector, the net computes what a naive double loop does with
 * the same weights as plain rows that model_at found: the loss, and its slope in a direction of every tensor.
 * Every S from 1 to 67 occurs. */
static void the_net_computes_what_a_naive_loop_does(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 67; seed++) {
        struct fixture f;
        struct net_result r;
        fixture_init(&f, seed, 1 + seed % 4, seed);
        double *rows = naive_rows(&f.model, f.params), want = naive_loss(&f.model, rows, &f.data);
        EACH_LEVEL(level)
        {
            struct net_options o = options_of(&f, level);
            run(&f, &o, f.grad, &r);
            near("loss", r.loss, want, NEAR * (1 + want));
        }
        char text[200];
        model_describe(&f.model, text, sizeof text);
        print_message("seed %u: T %zu S %zu %s\n", (unsigned)seed, f.data.frames, f.data.streams, text);
        if (seed % 3 == 0) check_slopes(&f, rows, f.grad);
        free(rows);
        fixture_free(&f);
    }
}

/* With weights that the caller has turned around, in parts: no bit is another one. */
static void check_given(const struct fixture *f, const struct net_options *o, double squares, double loss)
{
    struct net_options given = *o;
    struct net_result r;
    struct transposed *t = transposed_new(&f->model, plan_make(o->level).panels);
    for (size_t k = 0; k < 3; k++) transposed_load(t, f->params, k, 3);
    given.transposed = t;
    assert_true(run(f, &given, f->other, &r) == squares && r.loss == loss);
    assert_memory_equal(f->other, f->grad, f->model.params * sizeof *f->grad);
    transposed_free(&t);
}

/* Rule: every set of kernels gives the same loss and gradient within rounding, and the turned weights of the
 * caller the same bits as the net's own. */
static void all_levels_agree(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct fixture f;
        struct net_result r, portable;
        fixture_init(&f, seed, 8, 1 + seed % 9);
        real *plain = new_reals(f.model.params);
        struct net_options plain_c = options_of(&f, PLAN_PORTABLE);
        run(&f, &plain_c, plain, &portable);
        EACH_LEVEL(level)
        {
            struct net_options o = options_of(&f, level);
            double squares = run(&f, &o, f.grad, &r);
            near("loss", r.loss, portable.loss, NEAR * portable.loss);
            assert_true(r.frames == portable.frames && r.correct == portable.correct);
            near("gradient", distance(f.grad, plain, f.model.params), 0, 5 * NEAR);
            check_given(&f, &o, squares, r.loss);
        }
        free(plain);
        fixture_free(&f);
    }
}

/* Rule: each element of the gradient is scaled once, at its end: the product in single precision of the scale
 * and the element of scale 1; 0 is 1. The loss is not scaled. */
static void the_gradient_scales_linearly(void **state)
{
    (void)state;
    static const float scales[] = {0, 1, 0.25f, 1 / 60.0f, -3};
    for (uint64_t seed = 30; seed < 36; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct fixture f;
        struct net_result r, plain;
        fixture_init(&f, seed, 5, 3);
        EACH_LEVEL(level)
        {
            struct net_options o = options_of(&f, level);
            run(&f, &o, f.grad, &plain);
            for (size_t k = 0; k < sizeof scales / sizeof *scales; k++) {
                o.scale = scales[k];
                run(&f, &o, f.other, &r);
                assert_true(r.loss == plain.loss);
                float scale = k ? scales[k] : 1;
                for (size_t i = 0; i < f.model.params; i++) assert_true(f.other[i] == scale * f.grad[i]);
            }
        }
        fixture_free(&f);
    }
}

/* Rule: net_backward returns the sum of the squares of what it wrote, scaled, within the few roundings of a
 * kernel's lanes; zero where there is no error. */
static void the_sum_of_squares_is_that_of_what_is_written(void **state)
{
    (void)state;
    for (uint64_t seed = 40; seed < 64; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct fixture f;
        struct net_result r;
        fixture_init(&f, seed, 6, 1 + seed % 7);
        EACH_LEVEL(level)
        {
            struct net_options o = options_of(&f, level);
            o.scale = rng_range(&f.rng, 0.01f, 2);
            double squares = run(&f, &o, f.grad, &r), want = clip_squares(f.grad, f.model.params);
            assert_true(r.frames == 0 || want > 0);
            near("squares", squares, want, 1e-6 * want);
        }
        for (size_t i = 0; i < f.data.frames * f.data.streams; i++) f.data.target[i] = -1;
        EACH_LEVEL(level)
        {
            struct net_options o = options_of(&f, level);
            assert_true(run(&f, &o, f.grad, &r) == 0);
        }
        fixture_free(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_vector_for_every_number_of_streams),
        cmocka_unit_test(the_net_computes_what_a_naive_loop_does),
        cmocka_unit_test(all_levels_agree),
        cmocka_unit_test(the_gradient_scales_linearly),
        cmocka_unit_test(the_sum_of_squares_is_that_of_what_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
