/* What was written is read back in order; half a last line is no row. */
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "server/coordinator/journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static char dir[64], *path, seen[4096];

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/chorale-journal-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    path = files_join(dir, "journal");
    seen[0] = '\0';
    log_set_stderr(LOG_NONE);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(path);
    return files_remove_tree(dir);
}

/* Refuses rows that begin with 'x'. */
static int see(void *ctx, const char *row)
{
    (void)ctx;
    if (row[0] == 'x') return err_set(ERR_DATA, "no row");
    strcat(seen, row);
    strcat(seen, "|");
    return 0;
}

static void rows_come_back_in_order_also_after_reopening(void **state)
{
    (void)state;
    struct journal *j;
    assert_int_equal(journal_open(path, &j), 0);
    assert_int_equal(journal_write(j, "{\"a\":1}"), 0);
    journal_close(&j);
    assert_int_equal(journal_open(path, &j), 0);
    assert_int_equal(journal_write(j, "{}"), 0);
    journal_close(&j);
    assert_int_equal(journal_replay(path, see, NULL), 0);
    assert_string_equal(seen, "{\"a\":1}|{}|");
}

static void no_file_is_no_rows(void **state)
{
    (void)state;
    assert_int_equal(journal_replay(path, see, NULL), 0);
    assert_string_equal(seen, "");
}

static void a_torn_last_line_is_passed_over_and_a_torn_middle_is_not(void **state)
{
    (void)state;
    static const struct {
        const char *text, *rows;
        int rc;
    } cases[] = {{"a\nb\nhal", "a|b|", 0},
                 {"a\nxgarbage\n", "a|", 0},
                 {"a\nxgarbage\nb\n", "a|", ERR_DATA},
                 {"", "", 0},
                 {"\n\n", "", 0},
                 {"a\nxgarbage\nb", "a|", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        seen[0] = '\0';
        assert_int_equal(files_write_atomic(path, cases[i].text, strlen(cases[i].text)), 0);
        assert_int_equal(journal_replay(path, see, NULL), cases[i].rc);
        assert_string_equal(seen, cases[i].rows);
    }
}

static void compaction_replaces_all_rows(void **state)
{
    (void)state;
    struct journal *j;
    assert_int_equal(journal_open(path, &j), 0);
    assert_int_equal(journal_write(j, "old"), 0);
    journal_close(&j);
    assert_int_equal(journal_rewrite(path, "new\n"), 0);
    assert_int_equal(journal_open(path, &j), 0);
    assert_int_equal(journal_write(j, "newer"), 0);
    journal_close(&j);
    assert_int_equal(journal_replay(path, see, NULL), 0);
    assert_string_equal(seen, "new|newer|");
}

static void a_disk_that_fails_is_an_error_with_a_sentence(void **state)
{
    (void)state;
    struct journal *j;
    if (journal_open("/dev/full", &j) < 0) skip();
    assert_int_equal(journal_write(j, "row"), ERR_STORAGE);
    assert_non_null(strstr(err_text(), "/dev/full"));
    journal_close(&j);
    assert_int_equal(journal_open("/nowhere/journal", &j), ERR_STORAGE);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(rows_come_back_in_order_also_after_reopening),
        TEST(no_file_is_no_rows),
        TEST(a_torn_last_line_is_passed_over_and_a_torn_middle_is_not),
        TEST(compaction_replaces_all_rows),
        TEST(a_disk_that_fails_is_an_error_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
