/* Sentences and exit codes. */
#include "common/err.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void every_code_has_its_exit_status(void **state)
{
    (void)state;
    const struct {
        int code, exit;
    } rows[] = {{0, 0},         {ERR_FAIL, 1},         {ERR_USAGE, 2},    {ERR_DATA, 3},
                {ERR_REACH, 4}, {ERR_MODEL, 5},        {ERR_DIVERGED, 6}, {ERR_STORAGE, 7},
                {ERR_AGAIN, 1}, {ERR_INTERRUPTED, 75}, {17, 0},           {-1000, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(err_exit_code(rows[i].code), rows[i].exit);
}

static void a_sentence_may_be_built_from_the_one_before(void **state)
{
    (void)state;
    assert_int_equal(err_set(ERR_DATA, "utterance %s is short", "a1"), ERR_DATA);
    assert_int_equal(err_set(ERR_USAGE, "%s, twice", err_text()), ERR_USAGE);
    assert_string_equal(err_text(), "utterance a1 is short, twice");
    assert_int_equal(err_prefix(ERR_USAGE, "job.yaml:%d", 3), ERR_USAGE);
    assert_string_equal(err_text(), "job.yaml:3: utterance a1 is short, twice");
}

static void a_sentence_too_long_is_cut_and_never_overruns(void **state)
{
    (void)state;
    char longer[5000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    err_set(ERR_FAIL, "%s", longer);
    assert_int_equal(strlen(err_text()), 1023);
    err_prefix(ERR_FAIL, "before");
    assert_int_equal(strlen(err_text()), 1023);
    assert_memory_equal(err_text(), "before: xxx", 11);
    err_set(ERR_FAIL, "tail");
    err_prefix(ERR_FAIL, "%s", longer);
    assert_int_equal(strlen(err_text()), 1023);
}

static void *set_elsewhere(void *arg)
{
    (void)arg;
    err_set(ERR_FAIL, "of another thread");
    return NULL;
}

static void the_sentence_belongs_to_its_thread(void **state)
{
    (void)state;
    pthread_t t;
    err_set(ERR_FAIL, "mine");
    assert_int_equal(pthread_create(&t, NULL, set_elsewhere, NULL), 0);
    pthread_join(t, NULL);
    assert_string_equal(err_text(), "mine");
}

static void the_code_is_kept_with_its_sentence(void **state)
{
    (void)state;
    err_set(ERR_STORAGE, "the disk is full");
    assert_int_equal(err_code(), ERR_STORAGE);
    err_prefix(ERR_DATA, "set 3");
    assert_int_equal(err_code(), ERR_DATA);
}

static void memory_comes_zeroed_and_aligned(void **state)
{
    (void)state;
    static const size_t sizes[] = {1000, (5 << 20) + 4}; /* the second on huge pages, if there are any */
    for (size_t k = 0; k < 2; k++) {
        unsigned char *p = xaligned(sizes[k]);
        size_t zeros = 0;
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t i = 0; i < sizes[k]; i++) zeros += p[i] == 0;
        assert_int_equal(zeros, sizes[k]);
        free(p);
    }
    free(xaligned(0));
    free(xcalloc(0, 0));
    char *text = xprintf("%d-%s", 7, "x");
    assert_string_equal(text, "7-x");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_its_exit_status),
        cmocka_unit_test(a_sentence_may_be_built_from_the_one_before),
        cmocka_unit_test(a_sentence_too_long_is_cut_and_never_overruns),
        cmocka_unit_test(the_sentence_belongs_to_its_thread),
        cmocka_unit_test(the_code_is_kept_with_its_sentence),
        cmocka_unit_test(memory_comes_zeroed_and_aligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
