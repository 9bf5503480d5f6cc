/* Threads to cores, seen with the system's own eyes. */
#define _GNU_SOURCE
#include "common/err.h"
#include "worker/pin.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#define THREADS 3

static pthread_barrier_t end;

static void *sleeper(void *arg)
{
    pthread_barrier_wait(&end);
    return arg;
}

static cpu_set_t processors_of(pthread_t thread)
{
    cpu_set_t set;
    assert_int_equal(pthread_getaffinity_np(thread, sizeof set, &set), 0);
    return set;
}

static bool is_within(const cpu_set_t *part, const cpu_set_t *whole)
{
    cpu_set_t both;
    CPU_AND(&both, part, whole);
    return CPU_EQUAL(&both, part);
}

/* Rule: thread k gets core (first + k) mod cores of those that the caller may use, and two threads share one
 * only if there are fewer; afterwards the caller has what it had. */
static void threads_get_cores_of_their_own(void **state)
{
    (void)state;
    pthread_t threads[THREADS] = {pthread_self()};
    cpu_set_t before = processors_of(threads[0]), had[THREADS];
    pthread_barrier_init(&end, NULL, THREADS);
    for (int k = 1; k < THREADS; k++) assert_int_equal(pthread_create(&threads[k], NULL, sleeper, NULL), 0);
    for (uint64_t first = 0; first < 5; first++) {
        int cores[THREADS];
        struct pin *p;
        assert_int_equal(pin_threads(threads, THREADS, first, cores, &p), 0);
        assert_in_range(pin_cores(p), 1, CPU_COUNT(&before));
        for (int k = 0; k < THREADS; k++) {
            had[k] = processors_of(threads[k]);
            assert_true(CPU_ISSET((size_t)cores[k], &had[k]) && is_within(&had[k], &before));
            for (int j = 0; j < k; j++)
                assert_int_equal(CPU_EQUAL(&had[j], &had[k]) != 0, (k - j) % pin_cores(p) == 0);
        }
        pin_free(&p);
        cpu_set_t after = processors_of(threads[0]);
        assert_true(CPU_EQUAL(&after, &before));
    }
    pthread_barrier_wait(&end);
    for (int k = 1; k < THREADS; k++) pthread_join(threads[k], NULL);
    pthread_barrier_destroy(&end);
}

/* Rule: a process that may use one core alone (taskset, a cgroup) has all its threads there; free of what is
 * NULL does nothing. */
static void only_allowed_cores_are_used(void **state)
{
    (void)state;
    cpu_set_t before = processors_of(pthread_self()), one;
    int last = 0;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET((size_t)i, &before)) last = i;
    CPU_ZERO(&one);
    CPU_SET((size_t)last, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    pthread_t self = pthread_self();
    int core;
    struct pin *p;
    assert_int_equal(pin_threads(&self, 1, 7, &core, &p), 0);
    assert_int_equal(pin_cores(p), 1);
    assert_int_equal(core, last);
    pin_free(&p);
    pin_free(&p);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_get_cores_of_their_own),
        cmocka_unit_test(only_allowed_cores_are_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
