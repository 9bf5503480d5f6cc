/* A training step once it runs: forward, backward, sum over threads, clip, weights turned anew. It allocates
 * nothing, touches no new page and calls no scalar function of libm. The functions counted are defined here,
 * so every call in this process comes by, also one from OpenBLAS; they hand on to the C library. */
#define _GNU_SOURCE /* RTLD_NEXT */
#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/clip.h"
#include "worker/team.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <cmocka.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#define FRAMES  20
#define STREAMS 4 /* of each thread */
#define WINDOWS 3 /* different ones, in turn */
#define WARM    5
#define STEPS   50

/* ------------------------------------------------------------------ counters */

static atomic_size_t allocations, libm_calls;

#if !SANITIZED
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

void *malloc(size_t size)
{
    allocations++;
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size)
{
    allocations++;
    return __libc_calloc(count, size);
}
void *realloc(void *old, size_t size)
{
    allocations++;
    return __libc_realloc(old, size);
}
void *aligned_alloc(size_t alignment, size_t size)
{
    allocations++;
    return __libc_memalign(alignment, size);
}
int posix_memalign(void **out, size_t alignment, size_t size)
{
    allocations++;
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : 12; /* ENOMEM */
}
void free(void *old)
{
    allocations += old != NULL;
    __libc_free(old);
}
#endif

static void *real_function(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);
    if (!f) err_bug(__FILE__, __LINE__, name);
    return f;
}
#define COUNTED(type, name)                                                                                  \
    type name(type x)                                                                                        \
    {                                                                                                        \
        static type (*f)(type);                                                                              \
        libm_calls++;                                                                                        \
        if (!f) *(void **)&f = real_function(#name);                                                         \
        return f(x);                                                                                         \
    }
#define COUNTED_2(type, name)                                                                                \
    type name(type x, type y)                                                                                \
    {                                                                                                        \
        static type (*f)(type, type);                                                                        \
        libm_calls++;                                                                                        \
        if (!f) *(void **)&f = real_function(#name);                                                         \
        return f(x, y);                                                                                      \
    }
#define COUNTED_BOTH(name) COUNTED(double, name) COUNTED(float, name##f)
COUNTED_BOTH(exp)
COUNTED_BOTH(exp2)
COUNTED_BOTH(expm1)
COUNTED_BOTH(log)
COUNTED_BOTH(log2)
COUNTED_BOTH(log10)
COUNTED_BOTH(log1p)
COUNTED_BOTH(tanh)
COUNTED_BOTH(sinh)
COUNTED_BOTH(cosh)
#ifdef __OPTIMIZE__ /* else what is one instruction is a call */
COUNTED_BOTH(sqrt)
#endif
COUNTED_2(double, pow)
COUNTED_2(float, powf)

/* Of this process so far. */
struct cost {
    size_t allocations, libm, faults;
};

static struct cost cost_now(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (struct cost){allocations, libm_calls, (size_t)use.ru_minflt};
}

static struct cost cost_since(struct cost before)
{
    struct cost now = cost_now();
    return (struct cost){now.allocations - before.allocations, now.libm - before.libm,
                         now.faults - before.faults};
}

/* ------------------------------------------------------------------ a worker without a network */

struct bench {
    struct model model;
    struct team *team;
    struct window_data windows[WINDOWS];
    float *params, *grad;
    size_t steps;
};

/* Two layers of sizes that are no multiple of anything; extra outputs and peepholes for the first kind. */
static struct model make_model(bool plain)
{
    struct model_spec s = {.type = plain ? MODEL_LSTM : MODEL_LSTMP,
                           .input = 40,
                           .targets = 139,
                           .num_layers = 2,
                           .peepholes = !plain,
                           .cell_clip = 50,
                           .feature_dim = 40,
                           .stack = 1,
                           .skip = 1};
    s.layers[0] =
        (struct model_layer){.cells = 101, .projection = plain ? 0 : 47, .nonrecurrent = plain ? 0 : 19};
    s.layers[1] = (struct model_layer){.cells = 64, .projection = plain ? 0 : 33};
    struct model m;
    ASSERT(model_build(&s, &m) == 0);
    return m;
}

static void bench_init(struct bench *b, enum plan_level level, int threads, bool plain)
{
    struct rng rng;
    rng_init(&rng, 77);
    *b = (struct bench){.model = make_model(plain)};
    struct team_options o = {
        .threads = threads,
        .net = {.window = FRAMES, .streams = STREAMS, .gate_delta_clip = 5, .trains = true, .level = level}};
    b->team = team_new(&b->model, &o);
    b->params = new_reals(b->model.params);
    b->grad = new_reals(b->model.params);
    random_params(&b->model, &rng, 0.2, b->params);
    for (size_t i = 0; i < WINDOWS; i++)
        b->windows[i] = random_window(&b->model, &rng, FRAMES, STREAMS * (size_t)threads);
}

static void bench_fini(struct bench *b)
{
    for (size_t i = 0; i < WINDOWS; i++) window_free(&b->windows[i]);
    free(b->params);
    free(b->grad);
    team_free(&b->team);
    model_fini(&b->model);
}

static void run_steps(struct bench *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct window_data *w = &b->windows[b->steps++ % WINDOWS];
        struct team_window window = {w->x, w->reset, w->target, false};
        struct net_result r;
        double squares = team_compute(b->team, b->params, &window, b->grad, &r);
        clip_norm(b->grad, b->model.params, squares, 1e-3); /* always clips */
        for (size_t k = 0; k < b->model.params; k++) b->params[k] -= 0.1f * b->grad[k];
    }
}

/* The cheapest of three rounds: the system moves a page on its own now and then, a step that faults does it
 * always. */
static struct cost cost_of_steps(struct bench *b)
{
    struct cost least = {0};
    run_steps(b, WARM);
    for (int round = 0; round < 3; round++) {
        struct cost before = cost_now();
        run_steps(b, STEPS);
        struct cost c = cost_since(before);
        if (round == 0 || c.faults < least.faults) least.faults = c.faults;
        if (round == 0 || c.allocations > least.allocations) least.allocations = c.allocations;
        if (round == 0 || c.libm > least.libm) least.libm = c.libm;
    }
    return least;
}

/* Calls check(cost, what) for each level of kernels of ours that this CPU has, one and two threads, two
 * models. */
static void each_kind(void (*check)(struct cost, const char *what))
{
    bool any = false;
    for (enum plan_level level = PLAN_AVX2; level <= PLAN_AVX512; level++)
        for (int kind = 0; plan_has(level) && kind < 4; kind++) {
            struct bench b;
            char what[64];
            int threads = 1 + kind % 2;
            bench_init(&b, level, threads, kind / 2);
            snprintf(what, sizeof what, "%s, %s, threads: %d", kind / 2 ? "lstm" : "lstmp",
                     plan_level_name(level), threads);
            check(cost_of_steps(&b), what);
            bench_fini(&b);
            any = true;
        }
    if (any) return;
    print_message("skip: this CPU has no kernels but the portable ones, and BLAS allocates as it likes\n");
    skip();
}

static void skip_if_sanitized(const char *why)
{
    if (!SANITIZED) return;
    print_message("skip: %s\n", why);
    skip();
}

/* ------------------------------------------------------------------ rules */

/* Rule: the counters count, or all that follows would say nothing. */
static void the_counters_count(void **state)
{
    (void)state;
    struct cost before = cost_now();
    volatile float x = 0.5f;
    volatile double y = 0.5;
    x = tanhf(x) + expf(x);
    y = log(y);
    assert_int_equal(cost_since(before).libm, 3);
    size_t pages = 64, page = 4096;
    char *fresh = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(fresh != MAP_FAILED);
    madvise(fresh, pages * page, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < pages; i++) ((volatile char *)fresh)[i * page] = 1;
    assert_true(cost_since(before).faults >= pages);
    munmap(fresh, pages * page);
    if (SANITIZED) return;
    before = cost_now();
    free(xaligned(100));
    free(xcalloc(3, 5));
    free(xstrdup("a"));
    assert_int_equal(cost_since(before).allocations, 6);
}

/* Rule: so does a step: the portable cell is libm's. */
static void a_portable_step_calls_libm(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b, PLAN_PORTABLE, 1, false);
    struct cost before = cost_now();
    run_steps(&b, 1);
    assert_true(cost_since(before).libm >= FRAMES * STREAMS * 5 * (101 + 64));
    bench_fini(&b);
}

static void check_allocations(struct cost c, const char *what)
{
    if (c.allocations) fail_msg("%s: %zu allocations in %d steps", what, c.allocations, STEPS);
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    skip_if_sanitized("the sanitizer has the allocator: no allocations are counted");
    each_kind(check_allocations);
}

static void check_faults(struct cost c, const char *what)
{
    if (c.faults) fail_msg("%s: %zu page faults in %d steps", what, c.faults, STEPS);
}

static void a_step_faults_no_page(void **state)
{
    (void)state;
    skip_if_sanitized("the sanitizer has pages of its own: no page faults are counted");
    each_kind(check_faults);
}

static void check_libm(struct cost c, const char *what)
{
    if (c.libm) fail_msg("%s: %zu calls of libm in %d steps", what, c.libm, STEPS);
}

static void a_step_calls_no_scalar_libm(void **state)
{
    (void)state;
    each_kind(check_libm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_counters_count),          cmocka_unit_test(a_portable_step_calls_libm),
        cmocka_unit_test(a_step_allocates_nothing),    cmocka_unit_test(a_step_faults_no_page),
        cmocka_unit_test(a_step_calls_no_scalar_libm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
