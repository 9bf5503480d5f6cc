/* Softmax and cross entropy with every set of kernels that this CPU has, against double. The sum of a row is
 * within 3e-7 of itself (test_gates), so the loss of a frame is too; a posterior within 5e-7. */
#include "worker/nnet/loss.h"

#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* A loss over random logits on a grid of 1/4, exact in float and full of ties, and what double makes of them.
 */
struct bed {
    struct loss loss;
    float *bias;
    int32_t *target;  /* (rows) */
    double *log_post; /* (rows, targets) */
    struct loss_sum want;
};

static float on_grid(struct rng *r, double range)
{
    return (float)(floor(4 * range * rng_normal(r)) / 4);
}

/* Of one row: its log posteriors, and its share of the sums. */
static void expect_row(struct bed *b, size_t row)
{
    size_t n = b->loss.targets, best = 0;
    const float *z = b->loss.z + row * n;
    double *log_post = b->log_post + row * n, sum = 0;
    for (size_t k = 0; k < n; k++) {
        log_post[k] = (double)(z[k] + b->bias[k]);
        if (log_post[k] > log_post[best]) best = k;
    }
    double top = log_post[best];
    for (size_t k = 0; k < n; k++) sum += exp(log_post[k] - top);
    for (size_t k = 0; k < n; k++) log_post[k] -= top + log(sum);
    if (b->target[row] < 0) return;
    b->want.loss -= log_post[b->target[row]];
    b->want.frames++;
    b->want.correct += best == (size_t)b->target[row];
}

/* A target in three is one of the largest, so that ties decide; one in five is without error. */
static int32_t choose_target(struct rng *r, const float *z, const float *bias, size_t n)
{
    size_t at = rng_below(r, n);
    if (rng_below(r, 5) == 0) return -1;
    if (rng_below(r, 3)) return (int32_t)at;
    for (size_t k = 0; k < n; k++)
        if (z[k] + bias[k] > z[at] + bias[at] || (z[k] + bias[k] == z[at] + bias[at] && rng_below(r, 2)))
            at = k;
    return (int32_t)at;
}

static struct bed bed_new(const struct gates *g, size_t rows, size_t targets, uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    struct bed b = {.bias = new_reals(targets), .target = xcalloc(rows, sizeof *b.target)};
    b.log_post = xaligned(rows * targets * sizeof *b.log_post);
    loss_init(&b.loss, g, rows, targets);
    for (size_t k = 0; k < targets; k++) b.bias[k] = on_grid(&r, 1);
    for (size_t i = 0; i < rows * targets; i++) b.loss.z[i] = on_grid(&r, 4);
    for (size_t row = 0; row < rows; row++) {
        b.target[row] = choose_target(&r, b.loss.z + row * targets, b.bias, targets);
        expect_row(&b, row);
    }
    return b;
}

static void bed_free(struct bed *b)
{
    loss_fini(&b->loss);
    free(b->bias);
    free(b->target);
    free(b->log_post);
}

static void check_forward(struct bed *b)
{
    struct loss_sum sum = loss_forward(&b->loss, b->bias, b->target);
    assert_int_equal(sum.frames, b->want.frames);
    assert_int_equal(sum.correct, b->want.correct);
    assert_true(fabs(sum.loss - b->want.loss) <= 3e-7 * (double)b->want.frames);
}

/* Numbers of up to 40 in float. */
static void check_log_posteriors(struct bed *b)
{
    loss_log_posteriors(&b->loss);
    for (size_t i = 0; i < b->loss.rows * b->loss.targets; i++)
        assert_true(fabs((double)b->loss.z[i] - b->log_post[i]) <= 4e-6);
}

static void check_backward(struct bed *b, double bound)
{
    loss_backward(&b->loss, b->target);
    for (size_t row = 0; row < b->loss.rows; row++)
        for (size_t k = 0; k < b->loss.targets; k++) {
            size_t i = row * b->loss.targets + k;
            double want = b->target[row] < 0 ? 0 : exp(b->log_post[i]) - (b->target[row] == (int32_t)k);
            assert_true(fabs((double)b->loss.z[i] - want) <= (b->target[row] < 0 ? 0 : bound));
        }
}

/* f over random shapes, with each set of kernels. */
static void for_beds(void (*f)(struct bed *b))
{
    for (enum plan_level level = PLAN_PORTABLE; level <= PLAN_AVX512; level++) {
        if (!plan_has(level)) continue;
        for (uint64_t seed = 1; seed <= 60; seed++) {
            struct rng r;
            rng_init(&r, 1000 + seed);
            size_t rows = 1 + rng_below(&r, 40), targets = 1 + rng_below(&r, seed % 10 ? 90 : 9000);
            struct bed b = bed_new(plan_make(level).gates, rows, targets, seed);
            f(&b);
            bed_free(&b);
        }
    }
}

static void forward_and_backward(struct bed *b)
{
    check_forward(b);
    check_backward(b, 5e-7);
}

/* Rule: loss, frames and correct answers are double's, a tie going to the lowest target; the gradient is
 * posterior - target, and zero where there is no error. */
static void loss_and_gradient_equal_double(void **state)
{
    (void)state;
    for_beds(forward_and_backward);
}

static void ask_twice(struct bed *b)
{
    check_forward(b);
    check_log_posteriors(b);
    check_log_posteriors(b);
    check_backward(b, 4e-6);
}

/* Rule: log posteriors are double's, however often they are asked for, and the gradient may still be taken.
 */
static void log_posteriors_leave_the_gradient(void **state)
{
    (void)state;
    for_beds(ask_twice);
}

static void repeat_windows(struct bed *b)
{
    float *logits = new_reals(b->loss.rows * b->loss.targets);
    size_t bytes = b->loss.rows * b->loss.targets * sizeof *logits;
    memcpy(logits, b->loss.z, bytes);
    ask_twice(b);
    memcpy(b->loss.z, logits, bytes);
    forward_and_backward(b);
    free(logits);
}

/* Rule: a window leaves nothing behind that the next one sees. */
static void windows_are_independent(void **state)
{
    (void)state;
    for_beds(repeat_windows);
}

static void spoil(struct bed *b)
{
    size_t row = b->loss.rows / 2, n = b->loss.targets;
    b->target[row] = 0;
    b->loss.z[row * n + n - 1] = NAN;
    assert_true(isnan(loss_forward(&b->loss, b->bias, b->target).loss));
    loss_backward(&b->loss, b->target);
    for (size_t k = 0; k < n; k++) assert_true(isnan(b->loss.z[row * n + k]));
    for (size_t i = 0; i < row * n; i++) assert_true(isfinite(b->loss.z[i]));
}

/* Rule: a NaN among the logits makes the loss and the gradient of its frame NaN, and no other frame's. */
static void nan_reaches_loss_and_gradient(void **state)
{
    (void)state;
    for_beds(spoil);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_and_gradient_equal_double),
        cmocka_unit_test(log_posteriors_leave_the_gradient),
        cmocka_unit_test(windows_are_independent),
        cmocka_unit_test(nan_reaches_loss_and_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
