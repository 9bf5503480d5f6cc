/* The float path with the kernels of this CPU: windows, resets, padding, clips, bits. (Every set of kernels,
 * and the golden vector: test_net_levels.c.) */
#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/clip.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Single precision over a few hundred operations of numbers near 1: u = 6e-8 each, adding up at random or
 * nearly so. */
#define NEAR 2e-6

static void near(double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want))) fail_msg("got %.9g, want %.9g", got, want);
}

static void near_vector(const char *what, const real *got, const real *want, size_t n, double relative)
{
    double d = distance(got, want, n);
    if (!(d <= relative)) fail_msg("%s: relative distance %.3g > %.3g", what, d, relative);
}

/* A random model with its data, weights and two gradients. */
struct fixture {
    struct model model;
    struct window_data data;
    struct net *net;
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
    f->net = training_net(&f->model, frames, streams);
}

static void fixture_free(struct fixture *f)
{
    net_free(&f->net);
    window_free(&f->data);
    free(f->params);
    free(f->grad);
    free(f->other);
    model_fini(&f->model);
}

/* Rows of frames first.. of w. */
static struct window_data part_of(const struct window_data *w, size_t input, size_t first, size_t frames)
{
    struct window_data p = window_new(frames, w->streams, input);
    size_t at = first * w->streams, n = frames * w->streams;
    memcpy(p.x, w->x + at * input, n * input * sizeof *p.x);
    memcpy(p.target, w->target + at, n * sizeof *p.target);
    memcpy(p.reset, w->reset + at, n);
    return p;
}

/* Rule: forward over windows of 4 + 4 + 2 frames equals one of 10, wherever the resets are; the state travels
 * through net_get_state and net_set_state unchanged. */
static void split_windows_equal_one(void **state)
{
    (void)state;
    for (uint64_t seed = 40; seed < 48; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct fixture f;
        fixture_init(&f, seed, 10, 3);
        size_t input = f.model.spec.input, first = 0;
        struct net_result whole = run_window(f.net, f.params, &f.data, NULL), sum = {0};
        real *post = new_reals(30 * f.model.spec.targets), *end = new_reals(net_state_size(f.net)),
             *carried = new_reals(net_state_size(f.net));
        memcpy(post, net_log_posteriors(f.net), 30 * f.model.spec.targets * sizeof *post);
        net_get_state(f.net, end);
        for (size_t part = 0; part < 3; part++) {
            size_t frames = part < 2 ? 4 : 2;
            struct window_data w = part_of(&f.data, input, first, frames);
            struct net_options o = {.window = (int)frames, .streams = 3};
            struct net *n = net_new(&f.model, &o);
            net_set_state(n, carried);
            struct net_result r = run_window(n, f.params, &w, NULL);
            near_vector("log posteriors", net_log_posteriors(n), post + first * 3 * f.model.spec.targets,
                        frames * 3 * f.model.spec.targets, NEAR);
            net_get_state(n, carried);
            sum.loss += r.loss;
            sum.frames += r.frames;
            first += frames;
            window_free(&w);
            net_free(&n);
        }
        near(sum.loss, whole.loss, NEAR);
        assert_int_equal(sum.frames, whole.frames);
        near_vector("state", carried, end, net_state_size(f.net), NEAR);
        free(post);
        free(end);
        free(carried);
        fixture_free(&f);
    }
}

/* Rule: a reset in mid-window gives the loss and gradient of two separate runs, the second from zero state.
 */
static void reset_in_mid_window_equals_separate_runs(void **state)
{
    (void)state;
    for (uint64_t seed = 60; seed < 68; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct fixture f;
        fixture_init(&f, seed, 9, 2);
        memset(f.data.reset, 0, 18);
        size_t cut = 1 + rng_below(&f.rng, 8);
        f.data.reset[2 * cut] = f.data.reset[2 * cut + 1] = 1;
        double loss = run_window(f.net, f.params, &f.data, f.grad).loss, apart = 0;
        real *sum = new_reals(f.model.params);
        for (size_t part = 0; part < 2; part++) {
            size_t frames = part ? 9 - cut : cut;
            struct window_data w = part_of(&f.data, f.model.spec.input, part ? cut : 0, frames);
            memset(w.reset, 0, frames * 2);
            struct net *n = training_net(&f.model, frames, 2);
            apart += run_window(n, f.params, &w, f.other).loss;
            for (size_t i = 0; i < f.model.params; i++) sum[i] += f.other[i];
            window_free(&w);
            net_free(&n);
        }
        near(loss, apart, NEAR);
        near_vector("gradient", f.grad, sum, f.model.params, 5 * NEAR);
        free(sum);
        fixture_free(&f);
    }
}

/* Rule: padding rows (x = 0, no target) after an utterance and before the reset change neither loss nor
 * gradient, and streams do not see each other: stream 0 beside a padded one gives what it gives alone. */
static void padding_adds_nothing(void **state)
{
    (void)state;
    for (uint64_t seed = 80; seed < 88; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct fixture f;
        fixture_init(&f, seed, 7, 1);
        size_t input = f.model.spec.input, used = 4;
        struct window_data part = part_of(&f.data, input, 0, used), padded = window_new(7, 3, input);
        for (size_t t = 0; t < 7; t++)
            for (size_t s = 0; s < 3; s++) {
                size_t row = t * 3 + s;
                bool is_real = s == 1 && t < used;
                padded.target[row] = is_real ? part.target[t] : -1;
                padded.reset[row] = is_real ? part.reset[t] : t % 3 == 0;
                if (is_real) memcpy(padded.x + row * input, part.x + t * input, input * sizeof(real));
            }
        struct net *alone = training_net(&f.model, used, 1), *beside = training_net(&f.model, 7, 3);
        struct net_result a = run_window(alone, f.params, &part, f.grad),
                          b = run_window(beside, f.params, &padded, f.other);
        assert_int_equal(a.frames, b.frames);
        assert_int_equal(a.correct, b.correct);
        assert_true(fabs(a.loss - b.loss) <= NEAR * (1 + a.loss));
        if (a.frames) near_vector("gradient", f.other, f.grad, f.model.params, 5 * NEAR);
        net_free(&alone);
        net_free(&beside);
        window_free(&part);
        window_free(&padded);
        fixture_free(&f);
    }
}

/* Rule: without a target anywhere loss and gradient are exactly zero, whatever grad held. */
static void window_without_error_gives_zero(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 7, 5, 2);
    for (size_t i = 0; i < 10; i++) f.data.target[i] = -1;
    for (size_t i = 0; i < f.model.params; i++) f.grad[i] = NAN;
    struct net_result r = run_window(f.net, f.params, &f.data, NULL);
    assert_true(r.loss == 0 && r.frames == 0 && r.correct == 0);
    assert_true(net_backward(f.net, f.params, f.data.x, f.data.reset, f.grad) == 0);
    for (size_t i = 0; i < f.model.params; i++) assert_true(f.grad[i] == 0);
    fixture_free(&f);
}

/* Rule: the same inputs give the same bits, in one net again and in another net. */
static void same_inputs_give_the_same_bits(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 5, 20, 4);
    struct net *again = training_net(&f.model, 20, 4);
    size_t bytes = f.model.params * sizeof(real);
    double loss = run_window(f.net, f.params, &f.data, f.grad).loss;
    assert_true(run_window(again, f.params, &f.data, f.other).loss == loss);
    assert_memory_equal(f.grad, f.other, bytes);
    net_clear_state(f.net);
    assert_true(run_window(f.net, f.params, &f.data, f.other).loss == loss);
    assert_memory_equal(f.grad, f.other, bytes);
    net_free(&again);
    fixture_free(&f);
}

/* Rule: posteriors sum to one, agree with the loss, and asking for them leaves the gradient as it is. */
static void log_posteriors_agree_with_the_loss(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 9, 6, 3);
    size_t targets = f.model.spec.targets;
    struct net_result r = run_window(f.net, f.params, &f.data, f.grad);
    net_clear_state(f.net);
    run_window(f.net, f.params, &f.data, NULL);
    net_log_posteriors(f.net);
    const real *post = net_log_posteriors(f.net);
    double loss = 0;
    for (size_t row = 0; row < 18; row++) {
        double sum = 0;
        for (size_t k = 0; k < targets; k++) sum += exp((double)post[row * targets + k]);
        near(sum, 1, NEAR);
        if (f.data.target[row] >= 0) loss -= (double)post[row * targets + (size_t)f.data.target[row]];
    }
    near(loss, r.loss, NEAR);
    net_backward(f.net, f.params, f.data.x, f.data.reset, f.other);
    near_vector("gradient", f.other, f.grad, f.model.params, 5 * NEAR);
    fixture_free(&f);
}

/* Rule: with all weights zero every target is as probable as any other; only the first counts as the answer.
 */
static void ties_count_for_the_lowest_target(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 11, 4, 2);
    memset(f.params, 0, f.model.params * sizeof(real));
    for (size_t i = 0; i < 8; i++) f.data.target[i] = (int32_t)(i % 2);
    struct net_result r = run_window(f.net, f.params, &f.data, NULL);
    assert_int_equal(r.correct, 4);
    near(r.loss, 8 * log((double)f.model.spec.targets), NEAR);
    fixture_free(&f);
}

/* Rule: a gate delta limit that nothing reaches changes no bit; a small one bounds the bias gradient, which
 * is the sum of the deltas of the window, to limit x frames, and reaches it where all deltas are clipped
 * alike. */
static void gate_delta_clip_limits_each_delta(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 13, 5, 2);
    struct net_options o = {.window = 5, .streams = 2, .trains = true, .gate_delta_clip = 1e6f};
    struct net *wide = net_new(&f.model, &o);
    o.gate_delta_clip = 1e-4f;
    struct net *narrow = net_new(&f.model, &o);
    run_window(f.net, f.params, &f.data, f.grad);
    run_window(wide, f.params, &f.data, f.other);
    assert_memory_equal(f.grad, f.other, f.model.params * sizeof(real));
    run_window(narrow, f.params, &f.data, f.other);
    const struct tensor *b = model_find(&f.model, "layer0.b");
    bool was_larger = false;
    for (size_t i = 0; i < b->rows; i++) {
        assert_true(fabsf(f.other[b->offset + i]) <= 1e-4f * 10 * 1.00001f);
        was_larger |= fabsf(f.grad[b->offset + i]) > 1e-4f * 10;
    }
    assert_true(was_larger);
    net_free(&wide);
    net_free(&narrow);
    fixture_free(&f);
}

/* Rule: the limit of |c| is the model's unless the option overrides it; below 0 is off. */
static void cell_clip_can_be_overridden(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 17, 12, 1);
    f.model.spec.cell_clip = 0.05f;
    memset(f.data.reset, 0, 12);
    static const real overrides[] = {0, 0.2f, -1};
    static const real limits[] = {0.05f, 0.2f, INFINITY};
    for (size_t k = 0; k < 3; k++) {
        struct net_options o = {.window = 12, .streams = 1, .cell_clip_override = overrides[k]};
        struct net *n = net_new(&f.model, &o);
        run_window(n, f.params, &f.data, NULL);
        real *after = new_reals(net_state_size(n)), largest = 0;
        net_get_state(n, after);
        for (size_t i = 0; i < f.model.spec.layers[0].cells; i++) largest = fmaxf(largest, fabsf(after[i]));
        assert_true(k < 2 ? largest == limits[k] : largest > 0.2f);
        free(after);
        net_free(&n);
    }
    fixture_free(&f);
}

/* Rule: a NaN weight makes the loss NaN and the norm of the gradient not finite, so it is noticed. */
static void nan_weight_is_noticed(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 19, 5, 2);
    for (size_t i = 0; i < 10; i++) f.data.target[i] = 0;
    for (size_t i = 0; i < f.model.num_tensors; i++) {
        const struct tensor *t = &f.model.tensors[i];
        real kept = f.params[t->offset];
        f.params[t->offset] = NAN;
        net_clear_state(f.net);
        double loss = run_window(f.net, f.params, &f.data, NULL).loss;
        double squares = net_backward(f.net, f.params, f.data.x, f.data.reset, f.grad);
        /* a NaN peephole meets c = 0 at first: 0 x NaN is NaN all the same */
        assert_true(isnan(loss));
        assert_false(isfinite(clip_norm(f.grad, f.model.params, squares, 1)));
        f.params[t->offset] = kept;
    }
    fixture_free(&f);
}

static void count_call(void *ctx)
{
    ++*(size_t *)ctx;
}

/* Rule: `between` is called at least once per frame of every layer forward and again backward, and changes no
 * bit. */
static void between_is_called_for_every_frame_of_every_layer(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 23, 11, 2);
    size_t calls = 0, least = 11 * f.model.spec.num_layers;
    struct net_options o = {
        .window = 11, .streams = 2, .trains = true, .between = count_call, .between_ctx = &calls};
    struct net *n = net_new(&f.model, &o);
    struct net_result r = run_window(n, f.params, &f.data, NULL);
    assert_in_range(calls, least, 2 * least);
    calls = 0;
    net_backward(n, f.params, f.data.x, f.data.reset, f.grad);
    assert_in_range(calls, least, 2 * least);
    assert_true(run_window(f.net, f.params, &f.data, f.other).loss == r.loss);
    assert_memory_equal(f.grad, f.other, f.model.params * sizeof(real));
    net_free(&n);
    fixture_free(&f);
}

/* Rule: clip_norm reports the norm whose square it is given, clips to the limit if that is above it, and
 * leaves what is not finite. */
static void clip_norm_clips_to_the_limit(void **state)
{
    (void)state;
    float v[21], w[21];
    for (size_t i = 0; i < 21; i++) v[i] = (float)i - 10;
    double norm = sqrt(770);
    memcpy(w, v, sizeof v);
    near(clip_norm(w, 21, 770, 0), norm, 1e-15);
    near(clip_norm(w, 21, 770, norm), norm, 1e-15);
    near(clip_norm(w, 21, 770, 100), norm, 1e-15);
    assert_true(isinf(clip_norm(w, 21, INFINITY, 1)));
    assert_true(isnan(clip_norm(w, 21, NAN, 1)));
    assert_memory_equal(w, v, sizeof v);
    near(clip_norm(w, 21, 770, 3), norm, 1e-15);
    near(norm_of(w, 21), 3, 1e-6);
    assert_true(w[10] == 0 && w[0] < 0 && w[0] == -w[20]);
    assert_true(clip_norm(w, 0, 0, 1) == 0);
}

/* Rule: clip_squares is the sum of the squares in double, of any number of elements, and not finite if one of
 * them is not; what is too large to be squared in float is not. */
static void clip_squares_adds_up_in_double(void **state)
{
    (void)state;
    float v[40] = {0};
    for (size_t n = 0; n <= 40; n++) {
        double want = 0;
        for (size_t i = 0; i < n; i++) {
            v[i] = (float)(i + 1) * (i % 2 ? 1e-30f : 1e25f);
            want += (double)v[i] * (double)v[i];
        }
        near(clip_squares(v, n), want, 1e-14);
        for (size_t i = 0; i < n; i++) {
            float kept = v[i];
            v[i] = i % 2 ? NAN : -INFINITY;
            assert_false(isfinite(clip_squares(v, n)));
            v[i] = kept;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_windows_equal_one),
        cmocka_unit_test(reset_in_mid_window_equals_separate_runs),
        cmocka_unit_test(padding_adds_nothing),
        cmocka_unit_test(window_without_error_gives_zero),
        cmocka_unit_test(same_inputs_give_the_same_bits),
        cmocka_unit_test(log_posteriors_agree_with_the_loss),
        cmocka_unit_test(ties_count_for_the_lowest_target),
        cmocka_unit_test(gate_delta_clip_limits_each_delta),
        cmocka_unit_test(cell_clip_can_be_overridden),
        cmocka_unit_test(nan_weight_is_noticed),
        cmocka_unit_test(between_is_called_for_every_frame_of_every_layer),
        cmocka_unit_test(clip_norm_clips_to_the_limit),
        cmocka_unit_test(clip_squares_adds_up_in_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
