/* Every line of the log file is one JSON object; a reader or a disk that fails stops nothing. */
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

static char dir[64], *path;

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/chorale-log-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    path = files_join(dir, "x.jsonl");
    log_set_stderr(LOG_NONE);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    log_close();
    free(path);
    return files_remove_tree(dir);
}

/* Lines of the log as an array; a line that is not JSON becomes null. Owned by the caller. */
static json_t *read_lines(void)
{
    char *text;
    assert_int_equal(files_read(path, 1 << 24, &text, NULL), 0);
    json_t *lines = json_array();
    char *rest = text;
    for (char *end; (end = strchr(rest, '\n')); rest = end + 1) {
        json_t *line = json_loadb(rest, (size_t)(end - rest), 0, NULL);
        json_array_append_new(lines, line ? line : json_null());
    }
    assert_int_equal(strlen(rest), 0);
    free(text);
    return lines;
}

static void a_line_has_its_time_its_process_and_its_fields(void **state)
{
    (void)state;
    char quoted[64];
    log_open("server", 7, "my \"run\"", path);
    log_event(LOG_INFO, "epoch", "\"epoch\":%d,\"loss\":%.4f,\"who\":%s", 3, 1.5,
              log_quote(quoted, 64, "a\\b\n\"\xC3\xA9\xff"));
    log_event(LOG_ERROR, "bare", NULL);
    json_t *lines = read_lines(), *line = json_array_get(lines, 0);
    assert_int_equal(json_array_size(lines), 2);
    assert_string_equal(json_string_value(json_object_get(line, "run")), "my \"run\"");
    assert_string_equal(json_string_value(json_object_get(line, "role")), "server");
    assert_string_equal(json_string_value(json_object_get(line, "ev")), "epoch");
    assert_string_equal(json_string_value(json_object_get(line, "who")), "a\\b\n\"\xC3\xA9?");
    assert_string_equal(json_string_value(json_object_get(line, "level")), "info");
    assert_int_equal(json_integer_value(json_object_get(line, "id")), 7);
    assert_int_equal(json_integer_value(json_object_get(line, "epoch")), 3);
    assert_true(json_number_value(json_object_get(line, "loss")) == 1.5);
    assert_true(json_number_value(json_object_get(line, "mono")) > 0);
    assert_int_equal(strlen(json_string_value(json_object_get(line, "ts"))), 24);
    assert_string_equal(json_string_value(json_object_get(json_array_get(lines, 1), "level")), "error");
    json_decref(lines);
}

static void nan_and_inf_become_null_but_not_inside_text(void **state)
{
    (void)state;
    log_open("worker", 1, "r", path);
    log_event(LOG_INFO, "x", "\"a\":%f,\"b\":%f,\"c\":[%f,1],\"d\":\"nan inf \\\" nan\"", (double)NAN,
              -(double)INFINITY, (double)INFINITY);
    json_t *lines = read_lines(), *line = json_array_get(lines, 0);
    assert_true(json_is_null(json_object_get(line, "a")));
    assert_true(json_is_object(line));
    assert_true(json_is_null(json_object_get(line, "b")));
    assert_true(json_is_null(json_array_get(json_object_get(line, "c"), 0)));
    assert_string_equal(json_string_value(json_object_get(line, "d")), "nan inf \" nan");
    json_decref(lines);
}

static void a_quoted_text_is_cut_where_its_room_ends_and_stays_closed(void **state)
{
    (void)state;
    char out[16];
    assert_string_equal(log_quote(out, 3, "abc"), "\"\"");
    assert_string_equal(log_quote(out, 5, "abc"), "\"ab\"");
    assert_string_equal(log_quote(out, 6, "abc"), "\"abc\"");
    assert_string_equal(log_quote(out, 6, "ab\"c"), "\"ab\"");
    assert_string_equal(log_quote(out, 5, "a\xC3\xA9"), "\"a\"");
    assert_string_equal(log_quote(out, 16, "\x01"), "\"\\u0001\"");
    assert_string_equal(log_quote(out, 16, "\xC0\xAF\xED\xA0\x80"), "\"?????\""); /* overlong; surrogate */
}

static void a_full_disk_loses_lines_and_nothing_else(void **state)
{
    (void)state;
    uint64_t before = log_lost();
    log_open("server", 1, "r", "/dev/full");
    for (int i = 0; i < 3; i++) log_event(LOG_INFO, "x", "\"i\":%d", i);
    assert_int_equal(log_lost(), before + 3);
    log_open("server", 1, "r", path);
    log_event(LOG_INFO, "after", NULL);
    json_t *lines = read_lines();
    assert_int_equal(json_array_size(lines), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(lines, 0), "ev")), "log_lost");
    assert_true(json_integer_value(json_object_get(json_array_get(lines, 0), "lines")) >= 3);
    json_decref(lines);
}

static void after_half_a_line_the_next_one_starts_anew(void **state)
{
    (void)state;
    struct rlimit old, low;
    signal(SIGXFSZ, SIG_IGN);
    log_open("server", 1, "r", path);
    log_event(LOG_INFO, "first", NULL);
    getrlimit(RLIMIT_FSIZE, &old);
    low = (struct rlimit){.rlim_cur = 200, .rlim_max = old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &low);
    log_event(LOG_INFO, "cut", "\"pad\":\"%0200d\"", 0);
    setrlimit(RLIMIT_FSIZE, &old);
    log_event(LOG_INFO, "last", NULL);
    json_t *lines = read_lines();
    assert_int_equal(json_array_size(lines), 4);
    assert_true(json_is_null(json_array_get(lines, 1)));
    assert_string_equal(json_string_value(json_object_get(json_array_get(lines, 2), "ev")), "log_lost");
    assert_string_equal(json_string_value(json_object_get(json_array_get(lines, 3), "ev")), "last");
    json_decref(lines);
}

static void *log_many(void *arg)
{
    for (int i = 0; i < 200; i++) log_event(LOG_INFO, "x", "\"thread\":%d,\"i\":%d", *(int *)arg, i);
    return NULL;
}

static void lines_of_many_threads_do_not_mix(void **state)
{
    (void)state;
    pthread_t threads[4];
    int ids[4] = {0, 1, 2, 3};
    log_open("server", 1, "r", path);
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, log_many, &ids[i]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    json_t *lines = read_lines();
    assert_int_equal(json_array_size(lines), 800);
    for (size_t i = 0; i < 800; i++) assert_true(json_is_object(json_array_get(lines, i)));
    json_decref(lines);
}

/* What log_event wrote to stderr, up to `size`. */
static void catch_stderr(int *saved, int pipe_ends[2])
{
    assert_int_equal(pipe(pipe_ends), 0);
    *saved = dup(STDERR_FILENO);
    dup2(pipe_ends[1], STDERR_FILENO);
}

static void release_stderr(int saved, int pipe_ends[2], char *out, size_t size)
{
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(pipe_ends[1]);
    size_t used = 0;
    for (ssize_t n; used + 1 < size && (n = read(pipe_ends[0], out + used, size - 1 - used)) > 0;)
        used += (size_t)n;
    out[used] = '\0';
    close(pipe_ends[0]);
}

static void stderr_gets_a_readable_line_from_its_level_up(void **state)
{
    (void)state;
    int saved, ends[2];
    char text[4096];
    log_open("worker", 3, "r", NULL);
    log_set_stderr(LOG_INFO);
    catch_stderr(&saved, ends);
    log_event(LOG_DEBUG, "hidden", NULL);
    log_event(LOG_WARN, "slow", "\"ms\":%d,\"by\":{\"a\":1,\"b\":[2,3]},\"why\":\"disk, \\\"busy\\\"\"", 12);
    release_stderr(saved, ends, text, sizeof text);
    assert_string_equal(text + 8,
                        " worker 3: warn: slow ms 12 by {\"a\":1,\"b\":[2,3]} why disk, \"busy\"\n");
}

/* Fails by hanging if the rule does not hold: the pipe is never read. */
static void a_reader_that_sleeps_does_not_block_the_process(void **state)
{
    (void)state;
    int saved, ends[2];
    static char text[1 << 20];
    log_open("worker", 3, "r", NULL);
    log_set_stderr(LOG_INFO);
    catch_stderr(&saved, ends);
    for (int i = 0; i < 3000; i++) log_event(LOG_INFO, "x", "\"pad\":\"%0100d\"", i);
    log_event(LOG_INFO, "x", "\"pad\":\"%09000d\"", 0);
    release_stderr(saved, ends, text, sizeof text);
    assert_true(strlen(text) > 1000);
}

static void a_file_that_cannot_be_opened_stops_nothing(void **state)
{
    (void)state;
    log_open("worker", 3, "r", "/nowhere/x.jsonl");
    log_event(LOG_INFO, "x", NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_line_has_its_time_its_process_and_its_fields),
        TEST(nan_and_inf_become_null_but_not_inside_text),
        TEST(a_quoted_text_is_cut_where_its_room_ends_and_stays_closed),
        TEST(a_full_disk_loses_lines_and_nothing_else),
        TEST(after_half_a_line_the_next_one_starts_anew),
        TEST(lines_of_many_threads_do_not_mix),
        TEST(stderr_gets_a_readable_line_from_its_level_up),
        TEST(a_reader_that_sleeps_does_not_block_the_process),
        TEST(a_file_that_cannot_be_opened_stops_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
