/* Threads of one worker: beside one net of all streams, and bit for bit beside themselves. */
#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/clip.h"
#include "worker/team.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Sums of a few hundred numbers in another order, single precision. */
#define NEAR 1e-5

/* A random model with windows of `all` streams. */
struct fixture {
    struct model model;
    struct rng rng;
    size_t frames, all;
    float *params, *grad, *other;
    double squares; /* that run_team got last */
};

static void fixture_init(struct fixture *f, uint64_t seed, size_t frames, size_t all)
{
    print_message("seed %u\n", (unsigned)seed);
    rng_init(&f->rng, seed);
    f->model = random_model(&f->rng);
    f->frames = frames;
    f->all = all;
    f->params = new_reals(f->model.params);
    f->grad = new_reals(f->model.params);
    f->other = new_reals(f->model.params);
    random_params(&f->model, &f->rng, 0.8, f->params);
}

static void fixture_free(struct fixture *f)
{
    free(f->params);
    free(f->grad);
    free(f->other);
    model_fini(&f->model);
}

static struct window_data next_window(struct fixture *f)
{
    return random_window(&f->model, &f->rng, f->frames, f->all);
}

static struct team *make_team(const struct fixture *f, int threads)
{
    struct team_options o = {
        .threads = threads,
        .net = {.window = (int)f->frames, .streams = (int)f->all / threads, .trains = true}};
    return team_new(&f->model, &o);
}

static struct net_result run_team(struct team *t, struct fixture *f, const struct window_data *w, float *grad)
{
    struct net_result out;
    struct team_window window = {.x = w->x, .reset = w->reset, .target = w->target};
    f->squares = team_compute(t, f->params, &window, grad, &out);
    return out;
}

static void assert_bits(const struct fixture *f, const float *a, const float *b)
{
    assert_memory_equal(a, b, f->model.params * sizeof *a);
}

/* Rule: a team of one is a net: the same loss, gradient, sum of squares and state, bit for bit. */
static void one_thread_is_one_net(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct fixture f;
        fixture_init(&f, seed, 7, 3);
        struct team *t = make_team(&f, 1);
        struct net *n = training_net(&f.model, 7, 3);
        size_t size = net_state_size(n);
        float *a = new_reals(size), *b = new_reals(size);
        assert_int_equal(team_state_size(t), size);
        for (int i = 0; i < 3; i++) {
            struct window_data w = next_window(&f);
            struct net_result got = run_team(t, &f, &w, f.grad), want = run_window(n, f.params, &w, NULL);
            assert_true(got.loss == want.loss && got.frames == want.frames && got.correct == want.correct);
            assert_true(f.squares == net_backward(n, f.params, w.x, w.reset, f.other));
            assert_bits(&f, f.grad, f.other);
            window_free(&w);
        }
        team_get_state(t, a);
        net_get_state(n, b);
        assert_memory_equal(a, b, size * sizeof *a);
        free(a);
        free(b);
        net_free(&n);
        team_free(&t);
        fixture_free(&f);
    }
}

/* Rule: N members of S streams agree with one net of N*S streams, window after window, resets anywhere; what
 * comes back is the sum of the squares of the summed gradient. */
static void members_agree_with_one_net_of_all_streams(void **state)
{
    (void)state;
    static const int threads[] = {2, 3, 4};
    for (uint64_t seed = 10; seed < 22; seed++) {
        int n = threads[seed % 3];
        struct fixture f;
        fixture_init(&f, seed, 6, (size_t)n * (1 + seed % 2));
        struct team *t = make_team(&f, n);
        struct net *one = training_net(&f.model, f.frames, f.all);
        for (int i = 0; i < 5; i++) {
            struct window_data w = next_window(&f);
            struct net_result got = run_team(t, &f, &w, f.grad),
                              want = run_window(one, f.params, &w, f.other);
            assert_true(fabs(got.loss - want.loss) <= NEAR * want.loss);
            assert_true(got.frames == want.frames && got.correct == want.correct);
            double d = distance(f.grad, f.other, f.model.params);
            if (!(d <= NEAR)) fail_msg("window %d: relative distance %.3g", i, d);
            double squares = clip_squares(f.grad, f.model.params);
            assert_true(fabs(f.squares - squares) <= 1e-12 * squares);
            window_free(&w);
        }
        net_free(&one);
        team_free(&t);
        fixture_free(&f);
    }
}

/* Rule: however the threads are scheduled, the same windows give the same bits. */
static void threads_give_the_same_bits_again(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 30, 8, 6);
    struct window_data w = next_window(&f);
    double loss = 0;
    for (int again = 0; again < 20; again++) {
        struct team *t = make_team(&f, 3);
        run_team(t, &f, &w, f.grad);
        struct net_result r = run_team(t, &f, &w, f.grad);
        if (again == 0) {
            loss = r.loss;
            memcpy(f.other, f.grad, f.model.params * sizeof(float));
        }
        assert_true(r.loss == loss);
        assert_bits(&f, f.grad, f.other);
        team_free(&t);
    }
    window_free(&w);
    fixture_free(&f);
}

static void silence(struct window_data *w, size_t first, size_t count)
{
    for (size_t t = 0; t < w->frames; t++)
        for (size_t s = first; s < first + count; s++) w->target[t * w->streams + s] = -1;
}

/* Rule: members whose streams carry no error add nothing, also if the first is one of them. */
static void a_member_without_error_adds_nothing(void **state)
{
    (void)state;
    for (size_t quiet = 0; quiet < 3; quiet++) {
        struct fixture f;
        fixture_init(&f, 40 + quiet, 5, 6);
        struct team *t = make_team(&f, 3);
        struct net *one = training_net(&f.model, 5, 6);
        struct window_data w = next_window(&f);
        silence(&w, quiet * 2, 2);
        for (size_t i = 0; i < f.model.params; i++) f.grad[i] = NAN;
        struct net_result got = run_team(t, &f, &w, f.grad), want = run_window(one, f.params, &w, f.other);
        assert_int_equal(got.frames, want.frames);
        assert_true(distance(f.grad, f.other, f.model.params) <= NEAR);
        double squares = clip_squares(f.grad, f.model.params);
        assert_true(fabs(f.squares - squares) <= 1e-12 * squares);
        window_free(&w);
        net_free(&one);
        team_free(&t);
        fixture_free(&f);
    }
}

/* Rule: a window without any error leaves the gradient as it is, returns 0, and moves the state on all the
 * same.
 */
static void a_window_without_error_moves_the_state_alone(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 50, 5, 4);
    struct team *t = make_team(&f, 2);
    struct window_data w = next_window(&f);
    silence(&w, 0, 4);
    memset(w.reset, 0, 20);
    for (size_t i = 0; i < f.model.params; i++) f.grad[i] = f.other[i] = (float)i;
    struct net_result r = run_team(t, &f, &w, f.grad);
    assert_true(r.loss == 0 && r.frames == 0 && r.correct == 0 && f.squares == 0);
    assert_bits(&f, f.grad, f.other);
    float *after = new_reals(team_state_size(t));
    team_get_state(t, after);
    assert_true(norm_of(after, team_state_size(t)) > 0);
    free(after);
    window_free(&w);
    team_free(&t);
    fixture_free(&f);
}

/* Rule: the state is that of the members, one after the other; set into another team it goes on with the same
 * bits; cleared it begins anew. */
static void state_travels_and_is_cleared(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 60, 6, 4);
    struct team *t = make_team(&f, 2), *other = make_team(&f, 2);
    struct net *second = training_net(&f.model, 6, 2);
    struct window_data w = next_window(&f), columns = window_new(6, 2, f.model.spec.input);
    size_t size = team_state_size(t), D = f.model.spec.input;
    float *at = new_reals(size), *of_second = new_reals(size / 2);
    for (size_t row = 0; row < 12; row++) {
        size_t from = row / 2 * 4 + 2 + row % 2;
        memcpy(columns.x + row * D, w.x + from * D, D * sizeof(float));
        columns.target[row] = w.target[from];
        columns.reset[row] = w.reset[from];
    }
    double fresh = run_team(t, &f, &w, f.grad).loss;
    run_window(second, f.params, &columns, NULL);
    team_get_state(t, at);
    net_get_state(second, of_second);
    assert_int_equal(size, 2 * net_state_size(second));
    assert_memory_equal(at + size / 2, of_second, size / 2 * sizeof *at);
    team_set_state(other, at);
    memset(w.reset, 0, 24); /* so that all of the state is used */
    double loss = run_team(t, &f, &w, f.grad).loss;
    assert_true(run_team(other, &f, &w, f.other).loss == loss && loss != fresh);
    assert_bits(&f, f.grad, f.other);
    team_clear_state(t);
    team_get_state(t, at);
    assert_true(norm_of(at, size) == 0);
    free(at);
    free(of_second);
    window_free(&w);
    window_free(&columns);
    net_free(&second);
    team_free(&t);
    team_free(&other);
    fixture_free(&f);
}

/* Rule: every member's gradient is scaled: by a power of two, all of it is, bit for bit. */
static void the_gradient_is_scaled(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        struct fixture f;
        fixture_init(&f, 80, 5, 6);
        struct team_options o = {
            .threads = threads,
            .net = {.window = 5, .streams = 6 / threads, .trains = true, .scale = 0.0625f}};
        struct team *t = make_team(&f, threads), *scaled = team_new(&f.model, &o);
        struct window_data w = next_window(&f);
        run_team(t, &f, &w, f.grad);
        double squares = f.squares;
        run_team(scaled, &f, &w, f.other);
        assert_true(squares > 0 && f.squares == squares / 256);
        for (size_t i = 0; i < f.model.params; i++) assert_true(f.other[i] == f.grad[i] / 16);
        window_free(&w);
        team_free(&t);
        team_free(&scaled);
        fixture_free(&f);
    }
}

/* Rule: a team that is told which weights stayed computes the same bits as one that is not; also if the first
 * window with them carried no error. */
static void weights_that_stay_need_no_word(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        struct fixture f;
        fixture_init(&f, 90, 5, 6);
        struct team *careful = make_team(&f, threads), *told = make_team(&f, threads);
        for (int i = 0; i < 9; i++) {
            struct window_data w = next_window(&f);
            struct net_result r;
            if (i % 3 == 0) random_params(&f.model, &f.rng, 0.8, f.params);
            if (i == 3) silence(&w, 0, 6);
            double loss = run_team(careful, &f, &w, f.grad).loss;
            double squares = team_compute(
                told, f.params, &(struct team_window){w.x, w.reset, w.target, .same_weights = i % 3 != 0},
                f.other, &r);
            assert_true(r.loss == loss && squares == f.squares);
            assert_bits(&f, f.grad, f.other);
            window_free(&w);
        }
        team_free(&careful);
        team_free(&told);
        fixture_free(&f);
    }
}

struct calls {
    pthread_t caller;
    size_t count, elsewhere;
};

static void count_call(void *ctx)
{
    struct calls *c = ctx;
    c->count++;
    c->elsewhere += !pthread_equal(pthread_self(), c->caller);
}

/* Rule: `between` runs on the caller's thread alone, as often as in one net. */
static void between_is_called_by_the_caller_alone(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, 70, 6, 3);
    struct calls alone = {pthread_self(), 0, 0}, three = alone;
    struct team_options o = {
        .threads = 1,
        .net = {.window = 6, .streams = 3, .trains = true, .between = count_call, .between_ctx = &alone}};
    struct team *one = team_new(&f.model, &o);
    o.threads = 3;
    o.net.streams = 1;
    o.net.between_ctx = &three;
    struct team *t = team_new(&f.model, &o);
    struct window_data w = next_window(&f);
    w.target[0] = 0; /* so that member 0 has something to go back with */
    run_team(one, &f, &w, f.other);
    run_team(t, &f, &w, f.grad);
    assert_true(alone.count >= 2 * 6 * f.model.spec.num_layers);
    assert_int_equal(three.count, alone.count);
    assert_int_equal(three.elsewhere, 0);
    window_free(&w);
    team_free(&one);
    team_free(&t);
    fixture_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_thread_is_one_net),
        cmocka_unit_test(members_agree_with_one_net_of_all_streams),
        cmocka_unit_test(threads_give_the_same_bits_again),
        cmocka_unit_test(a_member_without_error_adds_nothing),
        cmocka_unit_test(a_window_without_error_moves_the_state_alone),
        cmocka_unit_test(state_travels_and_is_cleared),
        cmocka_unit_test(the_gradient_is_scaled),
        cmocka_unit_test(weights_that_stay_need_no_word),
        cmocka_unit_test(between_is_called_by_the_caller_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
