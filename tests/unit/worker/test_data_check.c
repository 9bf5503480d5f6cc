/* `chorale data check`: the report, and the exit codes of the program where it is built. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker/data_dir.h"
#include "worker/data/data_check.h"

#include <jansson.h>
#include <sys/wait.h>

static struct data_dir dir;
static const size_t frames[4] = {10, 12, 8, 9};

static int set_up(void **state)
{
    (void)state;
    data_dir_make(&dir);
    data_dir_corpus(&dir, 4, frames, 3);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    data_dir_remove(&dir);
    return 0;
}

/* The report as text, owned by the caller. */
static char *run(struct data_check o, int *rc)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    o.dir = dir.path;
    *rc = data_check_run(&o, f);
    fclose(f);
    return text;
}

static void assert_has(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("'%s' is not in:\n%s", part, text);
}

/* Missing alignment, target out of range, duplicate, unsorted and a command, all at once. */
static void spoil(void)
{
    char *text;
    assert_int_equal(files_read(data_dir_file(&dir, "feats.scp"), 1 << 20, &text, NULL), 0);
    char *second = strchr(text, '\n') + 1;
    second[-1] = 0;
    data_dir_print(&dir, "feats.scp", "%s%s\n%s\nutt-99 cat \"x\" |\n", second, text, text);
    free(text);
    data_dir_print(&dir, "ali.scp", "utt-01 ali.txt:7\nutt-02 ali.ark:7\nutt-03 ali.ark:7\n");
    data_dir_print(&dir, "ali.txt", "utt-01 0 0 0 0 0 0 0 0 0 0 0 -5\n");
}

static void test_a_clean_directory_gives_0_and_says_so(void **state)
{
    (void)state;
    int rc;
    char *text = run((struct data_check){0}, &rc);
    assert_int_equal(rc, 0);
    assert_has(text, "4 utterances listed, 4 usable, 4 speakers, 39 frames");
    assert_has(text, "features of dimension 3; targets 0..6 from ali.scp");
    assert_has(text, "no problems");
    free(text);
}

static void test_every_problem_is_counted_and_named_with_its_line(void **state)
{
    (void)state;
    int rc;
    spoil();
    char *text = run((struct data_check){0}, &rc);
    assert_int_equal(rc, ERR_DATA);
    assert_has(text, "1  ids not sorted: used all the same\n");
    assert_has(text, "feats.scp line 4: id utt-00 comes after utt-03");
    assert_has(text, "1  duplicate id: first entry used\n");
    assert_has(text, "1  command not run or failed: skipped\n");
    assert_has(text, "feats.scp line 6: utt-99 is a command, which needs --allow-pipes");
    assert_has(text, "1  missing alignment: skipped\n");
    assert_has(text, "feats.scp line 4: utt-00 has no alignment");
    assert_has(text, "1  target out of range: skipped\n");
    assert_has(text, "ali.scp line 1: utt-01 has target -5 at frame 11");
    assert_has(text, "2  cut to the shorter");
    assert_has(text, "5 problems\n");
    assert_has(err_text(), "has 5 problems");
    free(text);
}

static void test_json_says_the_same_for_machines(void **state)
{
    (void)state;
    int rc;
    spoil();
    char *text = run((struct data_check){.json = true}, &rc);
    assert_int_equal(rc, ERR_DATA);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    assert_int_equal(json_integer_value(json_object_get(root, "listed")), 6);
    assert_int_equal(json_integer_value(json_object_get(root, "usable")), 2);
    assert_int_equal(json_integer_value(json_object_get(root, "dim")), 3);
    json_t *problems = json_object_get(root, "problems");
    assert_int_equal(json_array_size(problems), 5);
    json_t *first = json_array_get(problems, 0);
    assert_string_equal(json_string_value(json_object_get(first, "kind")), "unsorted");
    assert_int_equal(json_integer_value(json_object_get(first, "count")), 1);
    assert_int_equal(json_array_size(json_object_get(first, "examples")), 1);
    json_decref(root);
    free(text);
    text = run((struct data_check){.json = true, .num_targets = 2, .dim = 3}, &rc);
    root = json_loads(text, 0, NULL);
    assert_non_null(root);
    json_decref(root);
    free(text);
}

static void test_speakers_without_statistics_are_reported(void **state)
{
    (void)state;
    int rc;
    data_dir_print(&dir, "cmvn.ark", "utt-00  [\n 8 -4 0 4\n 32 5 4 0 ]\n");
    data_dir_print(&dir, "cmvn.scp", "utt-00 cmvn.ark:7\n");
    char *text = run((struct data_check){0}, &rc);
    assert_int_equal(rc, ERR_DATA);
    assert_has(text, "3  speaker without usable cmvn statistics");
    assert_has(text, "no statistics for the speaker utt-01");
    free(text);
}

static void test_a_directory_that_cannot_be_read_is_one_sentence(void **state)
{
    (void)state;
    int rc;
    unlink(data_dir_file(&dir, "feats.scp"));
    char *text = run((struct data_check){0}, &rc);
    assert_int_equal(rc, ERR_DATA);
    assert_string_equal(text, "");
    assert_has(err_text(), "is not a data directory: cannot open");
    free(text);
}

/* build/VARIANT/tests/worker/test_data_check -> build/VARIANT/bin/chorale-data */
static bool find_program(char *out, size_t size)
{
    char self[512];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return false;
    self[n] = 0;
    char *tests = strstr(self, "/tests/");
    if (!tests) return false;
    *tests = 0;
    snprintf(out, size, "%s/bin/chorale-data", self);
    return files_exists(out);
}

static int exit_status(const char *program, const char *arguments)
{
    char command[2048];
    snprintf(command, sizeof command, "%s %s > %s/out 2> %s/err", program, arguments, dir.path, dir.path);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_the_program_exits_0_clean_2_usage_3_problems(void **state)
{
    (void)state;
    char program[600], arguments[600], *text;
    if (!find_program(program, sizeof program)) {
        print_message("skipped: chorale-data is not built\n");
        skip();
    }
    snprintf(arguments, sizeof arguments, "check %s", dir.path);
    assert_int_equal(exit_status(program, arguments), 0);
    const char *wrong[] = {"",
                           "chek x",
                           "check",
                           "check a b",
                           "check --dim 0 x",
                           "check --dim many x",
                           "check --nothing x",
                           "check x --targets"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(exit_status(program, wrong[i]), 2);
        assert_int_equal(files_read(data_dir_file(&dir, "err"), 4096, &text, NULL), 0);
        assert_true(strlen(text) > 10 && strchr(text, '\n') == text + strlen(text) - 1); /* one sentence */
        free(text);
    }
    assert_int_equal(exit_status(program, "check /nonexistent"), 3);
    assert_int_equal(exit_status(program, "--help"), 0);
    spoil();
    assert_int_equal(exit_status(program, arguments), 3);
}

#define EACH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_a_clean_directory_gives_0_and_says_so),
        EACH(test_every_problem_is_counted_and_named_with_its_line),
        EACH(test_json_says_the_same_for_machines),
        EACH(test_speakers_without_statistics_are_reported),
        EACH(test_a_directory_that_cannot_be_read_is_one_sentence),
        EACH(test_the_program_exits_0_clean_2_usage_3_problems),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
