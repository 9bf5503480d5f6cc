/* Files whole or not at all. */
#include "common/err.h"
#include "common/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <cmocka.h>

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/chorale-files-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return files_remove_tree(dir);
}

static size_t entries(const char *path)
{
    DIR *d = opendir(path);
    assert_non_null(d);
    size_t n = 0;
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

static void assert_holds(const char *path, const char *text)
{
    char *data;
    size_t len;
    assert_int_equal(files_read(path, 1000, &data, &len), 0);
    assert_int_equal(len, strlen(text));
    assert_string_equal(data, text);
    free(data);
}

static void a_write_replaces_the_file_and_leaves_no_other(void **state)
{
    (void)state;
    char *path = files_join(dir, "a");
    assert_int_equal(files_write_atomic(path, "one", 3), 0);
    assert_int_equal(files_write_atomic(path, "three", 5), 0);
    assert_holds(path, "three");
    assert_int_equal(files_write_atomic(path, "", 0), 0);
    assert_holds(path, "");
    assert_int_equal(entries(dir), 1);
    free(path);
}

static void a_failed_write_keeps_the_old_file_and_leaves_no_temp(void **state)
{
    (void)state;
    char *path = files_join(dir, "a"), *big = xcalloc(1, 100000);
    struct rlimit old, low;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(files_write_atomic(path, "old", 3), 0);
    getrlimit(RLIMIT_FSIZE, &old);
    low = (struct rlimit){.rlim_cur = 5000, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int rc = files_write_atomic(path, big, 100000);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(rc, ERR_STORAGE);
    assert_non_null(strstr(err_text(), path));
    assert_non_null(strstr(err_text(), "File too large"));
    assert_holds(path, "old");
    assert_int_equal(entries(dir), 1);
    free(big);
    free(path);
}

static int refuse_body(int fd, void *arg)
{
    (void)arg;
    assert_int_equal(files_write_all(fd, "half", 4, "x"), 0);
    return err_set(ERR_DATA, "no more");
}

static void a_body_that_fails_writes_nothing(void **state)
{
    (void)state;
    char *path = files_join(dir, "b");
    assert_int_equal(files_write_with(path, refuse_body, NULL), ERR_DATA);
    assert_string_equal(err_text(), "no more");
    assert_int_equal(entries(dir), 0);
    free(path);
}

static void failures_name_the_path_and_the_reason(void **state)
{
    (void)state;
    char *data, *none = files_join(dir, "none/x");
    assert_int_equal(files_write_atomic(none, "a", 1), ERR_STORAGE);
    assert_non_null(strstr(err_text(), none));
    assert_non_null(strstr(err_text(), "No such file"));
    assert_int_equal(files_read(none, 10, &data, NULL), ERR_STORAGE);
    assert_int_equal(files_read(dir, 10, &data, NULL), ERR_STORAGE);
    assert_non_null(strstr(err_text(), "directory"));
    assert_int_equal(files_write_atomic(dir, "a", 1), ERR_STORAGE); /* a directory is in the way */
    free(none);
}

static void a_file_larger_than_the_limit_is_refused(void **state)
{
    (void)state;
    char *path = files_join(dir, "a"), *data;
    assert_int_equal(files_write_atomic(path, "12345", 5), 0);
    assert_int_equal(files_read(path, 4, &data, NULL), ERR_STORAGE);
    assert_int_equal(files_read(path, 5, &data, NULL), 0);
    free(data);
    assert_int_equal(files_read("/dev/zero", 10000, &data, NULL), ERR_STORAGE);
    assert_int_equal(files_read("/proc/self/status", 1 << 20, &data, NULL), 0); /* stat says 0 bytes */
    assert_non_null(strstr(data, "Pid:"));
    free(data);
    free(path);
}

static void the_hash_of_a_file_is_that_of_its_bytes(void **state)
{
    (void)state;
    size_t len = (1u << 20) + 12345; /* more than one piece */
    char *path = files_join(dir, "a"), *data = xcalloc(1, len);
    uint64_t hash, bytes;
    for (size_t i = 0; i < len; i++) data[i] = (char)(i * i >> 3);
    assert_int_equal(files_write_atomic(path, data, len), 0);
    int fd = open(path, O_RDONLY), folder = open(dir, O_RDONLY);
    assert_int_equal(files_hash(fd, path, &hash, &bytes), 0);
    assert_true(hash == XXH3_64bits(data, len) && bytes == len);
    assert_int_equal(files_hash(fd, path, &hash, &bytes), 0); /* nothing is left */
    assert_true(hash == XXH3_64bits("", 0) && bytes == 0);
    assert_int_equal(files_hash(folder, dir, &hash, &bytes), ERR_STORAGE);
    assert_non_null(strstr(err_text(), dir));
    close(fd);
    close(folder);
    free(data);
    free(path);
}

static void directories_are_made_to_any_depth(void **state)
{
    (void)state;
    char *deep = files_join(dir, "a/b//c/"), *file = files_join(dir, "f"), *under = files_join(dir, "f/g");
    assert_int_equal(files_make_dirs(deep), 0);
    assert_int_equal(files_make_dirs(deep), 0);
    assert_true(files_is_dir(deep));
    assert_int_equal(files_write_atomic(file, "", 0), 0);
    assert_int_equal(files_make_dirs(file), ERR_STORAGE);
    assert_int_equal(files_make_dirs(under), ERR_STORAGE);
    assert_int_equal(files_make_dirs(""), ERR_STORAGE);
    free(deep);
    free(file);
    free(under);
}

static void paths_join_as_a_shell_would(void **state)
{
    (void)state;
    const char *rows[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"a", "/b", "/b"}, {"", "b", "b"}, {"/", "b", "/b"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *got = files_join(rows[i][0], rows[i][1]);
        assert_string_equal(got, rows[i][2]);
        free(got);
    }
    char *missing = files_absolute("not-here"), *here = files_absolute(".");
    assert_int_equal(missing[0], '/');
    assert_int_equal(here[0], '/');
    assert_null(strstr(here, "/."));
    free(missing);
    free(here);
}

static void removing_a_tree_follows_no_link(void **state)
{
    (void)state;
    char *tree = files_join(dir, "tree"), *deep = files_join(tree, "x/y"), *kept = files_join(dir, "kept");
    char *link_path = files_join(tree, "x/link"), *inside = files_join(kept, "file");
    assert_int_equal(files_make_dirs(deep), 0);
    assert_int_equal(files_make_dirs(kept), 0);
    assert_int_equal(files_write_atomic(inside, "k", 1), 0);
    assert_int_equal(symlink(kept, link_path), 0);
    assert_int_equal(files_remove_tree(tree), 0);
    assert_false(files_exists(tree));
    assert_holds(inside, "k");
    assert_int_equal(files_remove_tree(tree), 0);
    free(tree);
    free(deep);
    free(kept);
    free(link_path);
    free(inside);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_write_replaces_the_file_and_leaves_no_other),
        TEST(a_failed_write_keeps_the_old_file_and_leaves_no_temp),
        TEST(a_body_that_fails_writes_nothing),
        TEST(failures_name_the_path_and_the_reason),
        TEST(a_file_larger_than_the_limit_is_refused),
        TEST(the_hash_of_a_file_is_that_of_its_bytes),
        TEST(directories_are_made_to_any_depth),
        TEST(paths_join_as_a_shell_would),
        TEST(removing_a_tree_follows_no_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
