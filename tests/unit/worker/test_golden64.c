/* The maths in double (REAL_DOUBLE) against the golden vector, a naive loop and finite differences. */
#include "tests/unit/worker/naive_net.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void near(double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want))) fail_msg("got %.17g, want %.17g", got, want);
}

struct golden {
    struct model model;
    real *params, *grad;
};

static int setup(void **state)
{
    struct golden *g = xcalloc(1, sizeof *g);
    g->model = golden_model();
    assert_int_equal(g->model.params, 225);
    g->params = new_reals(g->model.params);
    g->grad = new_reals(g->model.params);
    golden_params(&g->model, g->params);
    *state = g;
    return 0;
}

static int teardown(void **state)
{
    struct golden *g = *state;
    free(g->params);
    free(g->grad);
    model_fini(&g->model);
    free(g);
    return 0;
}

static double sum_of(const real *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += v[i];
    return sum;
}

/* Rule: one window of the golden vector gives its loss, its gradient and each norm that it lists. */
static void one_window_meets_the_golden_vector(void **state)
{
    struct golden *g = *state;
    struct window_data w = golden_window(0, GOLDEN_T);
    struct net *n = training_net(&g->model, GOLDEN_T, 1);
    near(run_window(n, g->params, &w, g->grad).loss, 5.710026962949716, 1e-12);
    near(norm_of(g->grad, g->model.params), 1.285520350761615, 1e-12);
    near(sum_of(g->grad, g->model.params), 0.06900200738934759, 1e-12);
    near(tensor_norm(&g->model, "layer0.w_x", 4, 4, g->grad), 0.004019505644668247, 1e-12);
    near(tensor_norm(&g->model, "layer0.p_f", 0, 4, g->grad), 0.0019890451917962708, 1e-12);
    near(tensor_norm(&g->model, "layer0.w_m", 0, 2, g->grad), 0.02703392353965266, 1e-12);
    near(tensor_norm(&g->model, "layer1.p_o", 0, 4, g->grad), 0.06544199503030684, 1e-12);
    near(tensor_norm(&g->model, "layer1.w_r", 0, 4, g->grad), 0.07543140202334045, 1e-12);
    near(tensor_norm(&g->model, "output.w", 0, 3, g->grad), 0.48279647034652406, 1e-12);
    near(tensor_norm(&g->model, "output.b", 0, 3, g->grad), 1.0487941688909383, 1e-12);

    static const double c[] = {0.66237911, 0.95124879, 0.32765349, -0.09354954},
                        r[] = {-0.53249984, 0.45780503};
    real after[12];
    assert_int_equal(net_state_size(n), 12);
    net_get_state(n, after);
    for (size_t i = 0; i < 4; i++) assert_true(fabs(after[6 + i] - c[i]) <= 1e-8);
    for (size_t i = 0; i < 2; i++) assert_true(fabs(after[10 + i] - r[i]) <= 1e-8);
    net_free(&n);
    window_free(&w);
}

/* Rule: windows of 3 and 2 frames with the state carried give the same loss and the truncated gradient. */
static void two_windows_carry_the_state(void **state)
{
    struct golden *g = *state;
    real *second = new_reals(g->model.params), carried[12];
    struct window_data a = golden_window(0, 3), b = golden_window(3, 2);
    struct net *na = training_net(&g->model, 3, 1), *nb = training_net(&g->model, 2, 1);
    double loss = run_window(na, g->params, &a, g->grad).loss;
    net_get_state(na, carried);
    net_set_state(nb, carried);
    loss += run_window(nb, g->params, &b, second).loss;
    for (size_t i = 0; i < g->model.params; i++) g->grad[i] += second[i];
    near(loss, 5.710026962949716, 1e-12);
    near(norm_of(g->grad, g->model.params), 1.2854008436604898, 1e-12);
    near(sum_of(g->grad, g->model.params), 0.25450394957327754, 1e-12);
    net_free(&na);
    net_free(&nb);
    window_free(&a);
    window_free(&b);
    free(second);
}

/* Rule: a reset in mid-window starts from zero state and no gradient crosses it. */
static void reset_in_mid_window_meets_the_golden_vector(void **state)
{
    struct golden *g = *state;
    struct window_data w = golden_window(0, GOLDEN_T);
    w.reset[3] = 1;
    struct net *n = training_net(&g->model, GOLDEN_T, 1);
    near(run_window(n, g->params, &w, g->grad).loss, 5.829552280388579, 1e-12);
    near(norm_of(g->grad, g->model.params), 1.2296865113055664, 1e-12);
    net_free(&n);
    window_free(&w);
}

/* Loss of params + step * direction from the given state. */
static double loss_along(struct net *n, const struct model *m, const real *params, const real *direction,
                         double step, const real *from, const struct window_data *w)
{
    real *moved = new_reals(m->params);
    for (size_t i = 0; i < m->params; i++) moved[i] = params[i] + step * direction[i];
    net_set_state(n, from);
    double loss = run_window(n, moved, w, NULL).loss;
    free(moved);
    return loss;
}

/* The gradient along a random direction of one tensor against a central difference of fourth order. With step
 * h = 2e-3 its error is about h^4 = 2e-11 of the fifth derivative, and rounding adds 1e-16 loss / h = 1e-12.
 */
static void check_direction(struct net *n, const struct model *m, const real *params, const struct tensor *t,
                            struct rng *r, const struct window_data *w)
{
    size_t size = (size_t)t->rows * t->cols;
    real *direction = new_reals(m->params), *grad = new_reals(m->params),
         *from = new_reals(net_state_size(n));
    for (size_t i = 0; i < net_state_size(n); i++) from[i] = 0.5 * rng_normal(r);
    for (size_t i = 0; i < size; i++) direction[t->offset + i] = rng_normal(r);
    double scale = norm_of(direction, m->params), slope = 0, h = 2e-3;
    for (size_t i = 0; i < m->params; i++) direction[i] /= scale;

    for (size_t i = 0; i < m->params; i++) grad[i] = NAN; /* all of it must be overwritten */
    net_set_state(n, from);
    run_window(n, params, w, grad);
    for (size_t i = 0; i < m->params; i++) slope += grad[i] * direction[i];
    double near_by =
        loss_along(n, m, params, direction, h, from, w) - loss_along(n, m, params, direction, -h, from, w);
    double far = loss_along(n, m, params, direction, 2 * h, from, w) -
                 loss_along(n, m, params, direction, -2 * h, from, w);
    double measured = (8 * near_by - far) / (12 * h);
    if (!(fabs(slope - measured) <= 1e-8 * (1 + fabs(slope))))
        fail_msg("%s: slope %.12g, measured %.12g", t->name, slope, measured);
    free(direction);
    free(grad);
    free(from);
}

/* Rule: on random shapes the loss is that of the naive loop over plain rows, whose sums have another order.
 */
static void the_loss_is_that_of_a_naive_loop(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct rng r;
        rng_init(&r, seed);
        struct model m = random_model(&r);
        size_t frames = 1 + rng_below(&r, 7), streams = 1 + rng_below(&r, 67);
        struct window_data w = random_window(&m, &r, frames, streams);
        struct net *n = training_net(&m, frames, streams);
        real *params = new_reals(m.params);
        random_params(&m, &r, 0.8, params);
        double *rows = naive_rows(&m, params);
        near(run_window(n, params, &w, NULL).loss, naive_loss(&m, rows, &w), 1e-12);
        net_free(&n);
        window_free(&w);
        model_fini(&m);
        free(params);
        free(rows);
    }
}

/* Rule: on random shapes, types, resets and padding each tensor's gradient is the derivative of the
 * loss. */
static void gradients_are_derivatives_on_random_shapes(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        struct rng r;
        rng_init(&r, seed);
        struct model m = random_model(&r);
        size_t frames = 1 + rng_below(&r, 7), streams = 1 + rng_below(&r, 4);
        struct window_data w = random_window(&m, &r, frames, streams);
        struct net *n = training_net(&m, frames, streams);
        real *params = new_reals(m.params);
        random_params(&m, &r, 0.8, params);
        char text[200];
        model_describe(&m, text, sizeof text);
        print_message("seed %u: T %zu S %zu %s%s\n", (unsigned)seed, frames, streams, text,
                      m.spec.peepholes ? "" : ", no peepholes");
        for (size_t i = 0; i < m.num_tensors; i++) check_direction(n, &m, params, &m.tensors[i], &r, &w);
        net_free(&n);
        window_free(&w);
        model_fini(&m);
        free(params);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_window_meets_the_golden_vector, setup, teardown),
        cmocka_unit_test_setup_teardown(two_windows_carry_the_state, setup, teardown),
        cmocka_unit_test_setup_teardown(reset_in_mid_window_meets_the_golden_vector, setup, teardown),
        cmocka_unit_test(the_loss_is_that_of_a_naive_loop),
        cmocka_unit_test(gradients_are_derivatives_on_random_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
