/* Locations, commands, tables and writing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker/data_dir.h"
#include "worker/data/scp.h"

#include <math.h>

static struct data_dir dir;

static void assert_sentence(const char *part)
{
    if (!strstr(err_text(), part)) fail_msg("'%s' is not in '%s'", part, err_text());
}

/* NAME: one entry "a " (so the object is at offset 2) of rows x cols with the values 0, 1, 2, ... */
static void put_fm(const char *name, size_t rows, size_t cols)
{
    float x[64];
    assert_true(rows * cols <= 64);
    for (size_t i = 0; i < rows * cols; i++) x[i] = (float)i;
    FILE *f = fopen(data_dir_file(&dir, name), "wb");
    assert_non_null(f);
    assert_int_equal(ark_write_matrix(f, "a", rows, cols, x), 0);
    fclose(f);
}

static void test_a_pipe_never_runs_unless_allowed(void **state)
{
    (void)state;
    struct matrix m = {0};
    put_fm("x.ark", 3, 2);
    struct ark_source s = {.location = "touch ran; tail -c +3 x.ark |", .folder = dir.path};
    assert_int_equal(ark_read_matrix(&s, &m), ERR_DATA);
    assert_sentence("--allow-pipes");
    assert_false(files_exists(data_dir_file(&dir, "ran")));
    s.allow_pipes = true; /* runs in the folder of the scp file */
    assert_int_equal(ark_read_matrix(&s, &m), 0);
    assert_true(m.rows == 3 && m.cols == 2 && m.data[5] == 5.0f);
    assert_true(files_exists(data_dir_file(&dir, "ran")));
    s.location = "tail -c +3 x.ark |[1:2]";
    assert_int_equal(ark_read_matrix(&s, &m), 0);
    assert_true(m.rows == 2 && m.data[0] == 2.0f);
    matrix_fini(&m);
}

static void test_a_failing_or_endless_pipe_is_reported_and_ended(void **state)
{
    (void)state;
    struct matrix m = {0};
    struct ark_source s = {.location = "exit 3 |", .folder = dir.path, .allow_pipes = true};
    assert_int_equal(ark_read_matrix(&s, &m), ERR_DATA);
    assert_sentence("status 3");
    s.location = "printf 'x'; exit 0 |";
    assert_int_equal(ark_read_matrix(&s, &m), ERR_DATA);
    s.location = "echo '[ 1 2 ]'; echo $$ > pid; exec cat /dev/zero |"; /* more than is wanted: killed */
    assert_int_equal(ark_read_matrix(&s, &m), 0);
    assert_int_equal(m.cols, 2);
    char *text;
    assert_int_equal(files_read(data_dir_file(&dir, "pid"), 100, &text, NULL), 0);
    char process[64];
    snprintf(process, sizeof process, "/proc/%ld", strtol(text, NULL, 10));
    assert_false(files_exists(process));
    free(text);
    matrix_fini(&m);
}

static void test_a_claim_from_a_pipe_costs_no_memory(void **state)
{
    (void)state;
    struct matrix m = {0};
    const int32_t rows = 1 << 20, cols = 1 << 9; /* 2 GiB */
    char bytes[18] = "a \0BFM \4....\4....";
    memcpy(bytes + 8, &rows, 4);
    memcpy(bytes + 13, &cols, 4);
    data_dir_put(&dir, "x.ark", bytes, sizeof bytes - 1);
    struct input *in = input_new();
    struct ark_source s = {"tail -c +3 x.ark |", dir.path, true, in};
    assert_int_equal(ark_read_matrix(&s, &m), ERR_DATA);
    assert_sentence("truncated");
    assert_int_equal(m.capacity, 0);
    assert_true(in->scratch_bytes < 4 << 20);
    input_free(&in);
}

static void test_relative_paths_are_tried_from_here_and_then_from_the_scp_folder(void **state)
{
    (void)state;
    struct matrix m = {0};
    char spec[600];
    const char *key;
    put_fm("only-there.ark", 2, 2);
    data_dir_print(&dir, "f.scp", "a only-there.ark:2\nb  only-there.ark:2[0:0] \r\n");
    snprintf(spec, sizeof spec, "scp:%s/f.scp", dir.path);
    struct ark_reader *r = ark_open(spec, &(struct ark_options){0});
    assert_non_null(r);
    assert_int_equal(ark_next(r, &key), 1);
    assert_int_equal(ark_next_matrix(r, &m), 0);
    assert_int_equal(m.rows, 2);
    assert_int_equal(ark_next(r, &key), 1);
    assert_int_equal(ark_line(r), 2);
    assert_int_equal(ark_next_matrix(r, &m), 0);
    assert_int_equal(m.rows, 1);
    assert_int_equal(ark_next(r, &key), 0);
    ark_close(&r);
    /* a file of the same name in the working directory wins */
    char here[256], there[512];
    assert_non_null(getcwd(here, sizeof here));
    snprintf(there, sizeof there, "%s/sub", dir.path);
    assert_int_equal(files_make_dirs(there), 0);
    put_fm("sub/only-there.ark", 5, 1);
    assert_int_equal(chdir(there), 0);
    struct ark_source s = {.location = "only-there.ark:2", .folder = dir.path};
    int rc = ark_read_matrix(&s, &m);
    assert_int_equal(chdir(here), 0);
    assert_int_equal(rc, 0);
    assert_int_equal(m.rows, 5);
    matrix_fini(&m);
}

static void test_what_is_written_reads_back_equal(void **state)
{
    (void)state;
    const float x[6] = {1.0f, -2.5f, 1e-30f, 3.14159274f, 1e30f, 0.1f};
    for (int i = 0; i < 3; i++) {
        char spec[600];
        const char *key;
        struct matrix m = {0};
        if (i < 2)
            snprintf(spec, sizeof spec, "%s:%s/o.ark", i ? "ark,t" : "ark", dir.path);
        else
            snprintf(spec, sizeof spec, "ark,scp:%s/o.ark,%s/o.scp", dir.path, dir.path);
        unlink(data_dir_file(&dir, "o.ark"));
        struct ark_writer *w = ark_writer_open(spec);
        assert_non_null(w);
        assert_int_equal(ark_writer_matrix(w, "first", 2, 3, x), 0);
        assert_int_equal(ark_writer_matrix(w, "second", 3, 2, x), 0);
        assert_false(files_exists(data_dir_file(&dir, "o.ark"))); /* not before it is whole */
        assert_int_equal(ark_writer_commit(&w), 0);
        snprintf(spec, sizeof spec, "%s:%s/o.%s", i == 2 ? "scp" : "ark", dir.path, i == 2 ? "scp" : "ark");
        struct ark_reader *r = ark_open(spec, &(struct ark_options){0});
        assert_non_null(r);
        for (size_t rows = 2; rows <= 3; rows++) {
            assert_int_equal(ark_next(r, &key), 1);
            assert_string_equal(key, rows == 2 ? "first" : "second");
            assert_int_equal(ark_next_matrix(r, &m), 0);
            assert_int_equal(m.rows, rows);
            assert_memory_equal(m.data, x, sizeof x);
        }
        assert_int_equal(ark_next(r, &key), 0);
        ark_close(&r);
        matrix_fini(&m);
    }
    struct ark_writer *w = ark_writer_open("ark:/nonexistent/dir/o.ark");
    assert_null(w);
    assert_null(ark_writer_open("o.ark"));
    assert_null(ark_open("o.ark", &(struct ark_options){0}));
    assert_sentence("rspecifier");
    char spec[600];
    snprintf(spec, sizeof spec, "ark:%s/given-up.ark", dir.path);
    w = ark_writer_open(spec);
    assert_int_equal(ark_writer_matrix(w, "a", 2, 3, x), 0);
    ark_writer_free(&w);
    assert_false(files_exists(data_dir_file(&dir, "given-up.ark")));
}

static void test_a_scp_line_without_a_location_is_refused_by_number(void **state)
{
    (void)state;
    char spec[600];
    data_dir_print(&dir, "f.scp", "a x.ark:2\n\nb\n");
    snprintf(spec, sizeof spec, "scp:%s/f.scp", dir.path);
    assert_null(ark_open(spec, &(struct ark_options){0}));
    assert_sentence("line 2");
    struct scp s;
    assert_int_equal(scp_read(spec + 4, NULL, false, &s), 0);
    assert_true(s.n == 1 && s.bad == 2 && s.first_bad_line == 2);
    assert_int_equal(scp_find(&s, "a"), 0);
    assert_true(scp_find(&s, "b") == SCP_NONE);
    scp_fini(&s);
}

static void test_a_real_compressed_archive_agrees_with_its_float_twin(void **state)
{
    (void)state;
    char path[600], spec[700];
    snprintf(path, sizeof path, "%s/an4/train/feats.scp", data_dir_shared());
    if (!files_exists(path)) {
        print_message("skipped: %s is absent\n", path);
        skip();
    }
    struct matrix m = {0};
    const char *key;
    size_t frames = 0, n = 0;
    snprintf(spec, sizeof spec, "scp:%s", path);
    struct ark_reader *r = ark_open(spec, &(struct ark_options){0});
    assert_non_null(r);
    double sum = 0;
    for (int rc; (rc = ark_next(r, &key)) != 0; n++) {
        assert_int_equal(rc, 1);
        assert_int_equal(ark_next_matrix(r, &m), 0);
        assert_int_equal(m.cols, 40);
        frames += m.rows;
        for (size_t i = 0; i < m.rows * m.cols; i++) sum += (double)m.data[i];
    }
    ark_close(&r);
    assert_int_equal(n, 655);
    assert_int_equal(frames, 179510);
    print_message("mean of train: %.6f\n", sum / (double)frames / 40.0);
    /* tiny holds 16 of these utterances as float: the compression error is at most 0.104 */
    char train[600];
    double worst = 0;
    struct scp list;
    struct matrix exact = {0};
    assert_int_equal(scp_read(path, NULL, false, &list), 0);
    snprintf(spec, sizeof spec, "scp:%s/an4/tiny/feats.scp", data_dir_shared());
    r = ark_open(spec, &(struct ark_options){0});
    assert_non_null(r);
    while (ark_next(r, &key) == 1) {
        assert_int_equal(ark_next_matrix(r, &exact), 0);
        size_t at = scp_find(&list, key);
        assert_true(at != SCP_NONE);
        snprintf(train, sizeof train, "%s", list.values[at]);
        struct ark_source s = {.location = train, .folder = list.folder};
        assert_int_equal(ark_read_matrix(&s, &m), 0);
        assert_true(m.rows == exact.rows && m.cols == exact.cols);
        for (size_t i = 0; i < m.rows * m.cols; i++)
            worst = fmax(worst, fabs((double)(m.data[i] - exact.data[i])));
    }
    ark_close(&r);
    print_message("largest compression error: %.4f\n", worst);
    assert_true(worst > 0 && worst <= 0.105);
    matrix_fini(&m);
    matrix_fini(&exact);
    scp_fini(&list);
}

static int set_up(void **state)
{
    (void)state;
    data_dir_make(&dir);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    data_dir_remove(&dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pipe_never_runs_unless_allowed),
        cmocka_unit_test(test_a_failing_or_endless_pipe_is_reported_and_ended),
        cmocka_unit_test(test_a_claim_from_a_pipe_costs_no_memory),
        cmocka_unit_test(test_relative_paths_are_tried_from_here_and_then_from_the_scp_folder),
        cmocka_unit_test(test_what_is_written_reads_back_equal),
        cmocka_unit_test(test_a_scp_line_without_a_location_is_refused_by_number),
        cmocka_unit_test(test_a_real_compressed_archive_agrees_with_its_float_twin),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
