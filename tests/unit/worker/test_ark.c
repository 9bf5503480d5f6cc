/* Kaldi objects: every format against bytes that this test lays down from the definition of the format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/rng.h"
#include "tests/unit/worker/data_dir.h"

#include <math.h>

static struct data_dir dir;

struct bytes {
    unsigned char data[4096];
    size_t n;
};

static void add(struct bytes *b, const void *p, size_t n)
{
    assert_true(b->n + n <= sizeof b->data);
    memcpy(b->data + b->n, p, n);
    b->n += n;
}

static void add_byte(struct bytes *b, unsigned v)
{
    unsigned char c = (unsigned char)v;
    add(b, &c, 1);
}

static void add_float(struct bytes *b, float v)
{
    add(b, &v, 4);
}

static void add_i32(struct bytes *b, int32_t v)
{
    add(b, &v, 4);
}

static void add_sized(struct bytes *b, int32_t v)
{
    add_byte(b, 4);
    add_i32(b, v);
}

static void add_u16(struct bytes *b, unsigned v)
{
    uint16_t w = (uint16_t)v;
    add(b, &w, 2);
}

/* "key \0BTOKEN " */
static size_t start(struct bytes *b, const char *key, const char *token)
{
    add(b, key, strlen(key));
    add_byte(b, ' ');
    size_t offset = b->n;
    add(b, "\0B", 2);
    add(b, token, strlen(token));
    add_byte(b, ' ');
    return offset;
}

static int read_at(const char *name, size_t offset, const char *range, struct matrix *m)
{
    char location[1024];
    snprintf(location, sizeof location, "%s/%s:%zu%s", dir.path, name, offset, range);
    struct ark_source s = {.location = location};
    return ark_read_matrix(&s, m);
}

static void assert_sentence(const char *part)
{
    if (!strstr(err_text(), part)) fail_msg("'%s' is not in '%s'", part, err_text());
}

static void put_fm(struct bytes *b, const char *key, int rows, int cols)
{
    start(b, key, "FM");
    add_sized(b, rows);
    add_sized(b, cols);
    for (int i = 0; i < rows * cols; i++) add_float(b, (float)i);
}

static void test_float_and_double_matrices_are_read_exactly(void **state)
{
    (void)state;
    struct bytes b = {.n = 0};
    struct matrix m = {0};
    put_fm(&b, "a", 2, 3);
    size_t second = start(&b, "b", "DM");
    add_sized(&b, 2);
    add_sized(&b, 2);
    for (int i = 0; i < 4; i++) {
        double v = i + 0.5;
        add(&b, &v, 8);
    }
    data_dir_put(&dir, "x.ark", b.data, b.n);
    assert_int_equal(read_at("x.ark", 2, "", &m), 0);
    assert_int_equal(m.rows, 2);
    assert_int_equal(m.cols, 3);
    for (int i = 0; i < 6; i++) assert_true(m.data[i] == (float)i);
    assert_int_equal(read_at("x.ark", second, "", &m), 0);
    assert_int_equal(m.cols, 2);
    for (int i = 0; i < 4; i++) assert_true(m.data[i] == (float)i + 0.5f);
    matrix_fini(&m);
}

/* Tolerance: a few roundings of numbers up to |min| + range in float, eps 6e-8. */
static void assert_near(float got, double expected, double scale)
{
    if (fabs((double)got - expected) > 5e-7 * scale) fail_msg("%.9g, not %.9g", (double)got, expected);
}

static void test_compressed_matrices_with_column_headers_follow_the_definition(void **state)
{
    (void)state;
    enum { ROWS = 256, COLS = 3 };
    const unsigned p[COLS][4] = {{0, 10000, 40000, 65535}, {5, 6, 7, 8}, {100, 100, 30000, 30001}};
    const double min = -3.0, range = 20.0;
    struct bytes b = {.n = 0};
    struct matrix m = {0};
    size_t at = start(&b, "a", "CM");
    add_float(&b, (float)min);
    add_float(&b, (float)range);
    add_i32(&b, ROWS);
    add_i32(&b, COLS);
    for (int c = 0; c < COLS; c++)
        for (int i = 0; i < 4; i++) add_u16(&b, p[c][i]);
    for (int c = 0; c < COLS; c++)
        for (int r = 0; r < ROWS; r++) add_byte(&b, (unsigned)(r + c) % 256); /* column by column */
    data_dir_put(&dir, "cm.ark", b.data, b.n);
    assert_int_equal(read_at("cm.ark", at, "", &m), 0);
    assert_int_equal(m.rows, ROWS);
    assert_int_equal(m.cols, COLS);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) {
            unsigned v = (unsigned)(r + c) % 256;
            double q[4], expected;
            for (int i = 0; i < 4; i++) q[i] = min + range * p[c][i] / 65535.0;
            if (v <= 64)
                expected = q[0] + (q[1] - q[0]) * v / 64.0;
            else if (v <= 192)
                expected = q[1] + (q[2] - q[1]) * (v - 64) / 128.0;
            else
                expected = q[2] + (q[3] - q[2]) * (v - 192) / 63.0;
            assert_near(m.data[r * COLS + c], expected, range);
        }
    matrix_fini(&m);
}

static void check_flat_compressed(const char *token, unsigned steps)
{
    struct bytes b = {.n = 0};
    struct matrix m = {0};
    size_t at = start(&b, "a", token);
    add_float(&b, -1.5f);
    add_float(&b, 4.0f);
    add_i32(&b, 3);
    add_i32(&b, 2);
    for (unsigned i = 0; i < 6; i++) {
        if (steps == 255)
            add_byte(&b, i * 51);
        else
            add_u16(&b, i * 13107);
    }
    data_dir_put(&dir, "cm.ark", b.data, b.n);
    assert_int_equal(read_at("cm.ark", at, "", &m), 0);
    assert_int_equal(m.rows, 3);
    assert_int_equal(m.cols, 2);
    for (unsigned i = 0; i < 6; i++)
        assert_near(m.data[i], -1.5 + 4.0 * i / 5.0, 4.0); /* 51/255 = 13107/65535 = 1/5 */
    matrix_fini(&m);
}

static void test_cm2_and_cm3_follow_the_definition(void **state)
{
    (void)state;
    check_flat_compressed("CM2", 65535);
    check_flat_compressed("CM3", 255);
}

static void test_text_matrices_are_read(void **state)
{
    (void)state;
    struct matrix m = {0};
    const char *text = "a  [\n  1 2.5 -3e2 \n  4 5 6 ]\nb [ ]\nc [ 7\n8\n]\n";
    char spec[600];
    const char *key;
    data_dir_print(&dir, "t.ark", "%s", text);
    snprintf(spec, sizeof spec, "ark,t:%s", data_dir_file(&dir, "t.ark"));
    struct ark_reader *r = ark_open(spec, &(struct ark_options){0});
    assert_non_null(r);
    assert_int_equal(ark_next(r, &key), 1);
    assert_string_equal(key, "a");
    assert_int_equal(ark_next_matrix(r, &m), 0);
    assert_int_equal(m.rows, 2);
    assert_int_equal(m.cols, 3);
    assert_true(m.data[1] == 2.5f && m.data[2] == -300.0f && m.data[5] == 6.0f);
    assert_int_equal(ark_next(r, &key), 1);
    assert_int_equal(ark_next_matrix(r, &m), 0);
    assert_int_equal(m.rows, 0);
    assert_int_equal(ark_next(r, &key), 1);
    assert_string_equal(key, "c");
    assert_int_equal(ark_next_matrix(r, &m), 0);
    assert_int_equal(m.rows, 2);
    assert_int_equal(m.cols, 1);
    assert_int_equal(ark_next(r, &key), 0);
    assert_int_equal(ark_close(&r), 0);
    assert_int_equal(read_at("t.ark", 2, "[1:1]", &m), 0);
    assert_true(m.rows == 1 && m.data[0] == 4.0f);
    matrix_fini(&m);
}

static void test_ranges_are_inclusive_and_may_end_a_little_late(void **state)
{
    (void)state;
    struct bytes b = {.n = 0};
    struct matrix m = {0};
    put_fm(&b, "a", 10, 4);
    data_dir_put(&dir, "x.ark", b.data, b.n);
    assert_int_equal(read_at("x.ark", 2, "[2:4]", &m), 0);
    assert_int_equal(m.rows, 3);
    assert_true(m.data[0] == 8.0f && m.data[11] == 19.0f);
    assert_int_equal(read_at("x.ark", 2, "[2:4,1:2]", &m), 0);
    assert_int_equal(m.cols, 2);
    assert_true(m.data[0] == 9.0f && m.data[5] == 18.0f);
    assert_int_equal(read_at("x.ark", 2, "[:,3:3]", &m), 0);
    assert_true(m.rows == 10 && m.cols == 1 && m.data[9] == 39.0f);
    assert_int_equal(read_at("x.ark", 2, "[5:12]", &m), 0); /* up to 3 rows late */
    assert_int_equal(m.rows, 5);
    const char *wrong[] = {"[5:13]",    "[10:11]", "[4:2]",   "[1]",    "[a:b]",
                           "[0:1,0:4]", "[-1:2]",  "[1:2,3]", "[0:1:2]"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(read_at("x.ark", 2, wrong[i], &m), ERR_DATA);
        assert_sentence("range");
    }
    char location[600];
    size_t rows, cols;
    snprintf(location, sizeof location, "%s/x.ark:2[0:3,1:3]", dir.path);
    struct ark_source s = {.location = location};
    assert_int_equal(ark_read_shape(&s, &rows, &cols), 0);
    assert_true(rows == 4 && cols == 3);
    matrix_fini(&m);
}

static void test_int_vectors_binary_and_text(void **state)
{
    (void)state;
    struct bytes b = {.n = 0};
    struct ints v = {0};
    add(&b, "a ", 2);
    add(&b, "\0B", 2);
    add_sized(&b, 3);
    for (int i = 0; i < 3; i++) add_sized(&b, 1000 * i - 1);
    data_dir_put(&dir, "i.ark", b.data, b.n);
    char location[600];
    snprintf(location, sizeof location, "%s/i.ark:2", dir.path);
    struct ark_source s = {.location = location};
    assert_int_equal(ark_read_ints(&s, &v), 0);
    assert_int_equal(v.count, 3);
    assert_true(v.data[0] == -1 && v.data[1] == 999 && v.data[2] == 1999);
    data_dir_put(&dir, "i.ark", b.data, b.n - 1);
    assert_int_equal(ark_read_ints(&s, &v), ERR_DATA);
    assert_sentence("truncated");

    const char *key;
    data_dir_print(&dir, "t.ark", "a 1 2 3\nb \nc -7");
    snprintf(location, sizeof location, "ark:%s/t.ark", dir.path);
    struct ark_reader *r = ark_open(location, &(struct ark_options){0});
    size_t counts[] = {3, 0, 1};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ark_next(r, &key), 1);
        assert_int_equal(ark_next_ints(r, &v), 0);
        assert_int_equal(v.count, counts[i]);
    }
    assert_int_equal(v.data[0], -7);
    assert_int_equal(ark_next(r, &key), 0);
    ark_close(&r);
    data_dir_print(&dir, "t.ark", "1 2 [ 3");
    snprintf(location, sizeof location, "%s/t.ark", dir.path);
    assert_int_equal(ark_read_ints(&s, &v), ERR_DATA);
    assert_sentence("'[' is not a 32-bit integer");
    ints_fini(&v);
}

static void test_truncation_is_told_with_file_and_offset_at_every_length(void **state)
{
    (void)state;
    struct matrix m = {0};
    const char *tokens[] = {"FM", "CM", "CM2", "CM3"};
    for (size_t k = 0; k < 4; k++) {
        struct bytes b = {.n = 0};
        if (k == 0) {
            put_fm(&b, "a", 4, 3);
        } else {
            start(&b, "a", tokens[k]);
            add_float(&b, 0.0f);
            add_float(&b, 1.0f);
            add_i32(&b, 4);
            add_i32(&b, 3);
            size_t body = k == 1 ? 3 * 8 + 12 : k == 2 ? 24 : 12;
            for (size_t i = 0; i < body; i++) add_byte(&b, (unsigned)i);
        }
        data_dir_put(&dir, "x.ark", b.data, b.n);
        assert_int_equal(read_at("x.ark", 2, "", &m), 0);
        for (size_t n = 2; n < b.n; n++) {
            data_dir_put(&dir, "x.ark", b.data, n);
            assert_int_equal(read_at("x.ark", 2, "", &m), ERR_DATA);
            assert_sentence("x.ark at offset");
        }
    }
    assert_int_equal(read_at("x.ark", 100000, "", &m), ERR_DATA);
    assert_sentence("truncated");
    matrix_fini(&m);
}

static void test_impossible_sizes_cost_no_memory(void **state)
{
    (void)state;
    const int32_t sizes[][2] = {{INT32_MAX, INT32_MAX}, {-1, 4}, {4, -1}, {1 << 30, 1 << 30}, {1 << 20, 1}};
    struct matrix m = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int compressed = 0; compressed < 2; compressed++) {
            struct bytes b = {.n = 0};
            start(&b, "a", compressed ? "CM2" : "FM");
            if (compressed) {
                add_float(&b, 0.0f);
                add_float(&b, 1.0f);
                add_i32(&b, sizes[i][0]);
                add_i32(&b, sizes[i][1]);
            } else {
                add_sized(&b, sizes[i][0]);
                add_sized(&b, sizes[i][1]);
            }
            data_dir_put(&dir, "x.ark", b.data, b.n);
            assert_int_equal(read_at("x.ark", 2, "", &m), ERR_DATA);
        }
    assert_int_equal(m.capacity, 0);
    struct bytes b = {.n = 0};
    struct ints v = {0};
    add(&b, "\0B", 2);
    add_sized(&b, INT32_MAX);
    data_dir_put(&dir, "i.ark", b.data, b.n);
    struct ark_source s = {.location = data_dir_file(&dir, "i.ark")};
    assert_int_equal(ark_read_ints(&s, &v), ERR_DATA);
    assert_int_equal(v.capacity, 0);
}

static void test_foreign_bytes_are_refused_with_a_sentence(void **state)
{
    (void)state;
    struct matrix m = {0};
    struct rng rng;
    uint64_t seed = 20240611;
    print_message("seed %llu\n", (unsigned long long)seed);
    rng_init(&rng, seed);
    struct bytes good = {.n = 0};
    put_fm(&good, "a", 4, 3);
    for (int round = 0; round < 300;
         round++) { /* must neither crash nor bloat; a lucky change may be readable */
        struct bytes b = good;
        for (int k = 0; k < 3; k++) b.data[2 + rng_below(&rng, b.n - 2)] = (unsigned char)rng_next(&rng);
        data_dir_put(&dir, "x.ark", b.data, b.n);
        int rc = read_at("x.ark", 2, "", &m);
        assert_true(rc == 0 || rc == ERR_DATA);
        assert_true(m.capacity <= 4096);
    }
    struct bytes b = {.n = 0};
    start(&b, "a", "SM");
    data_dir_put(&dir, "x.ark", b.data, b.n);
    assert_int_equal(read_at("x.ark", 2, "", &m), ERR_DATA);
    assert_sentence("type 'SM'");
    data_dir_print(&dir, "x.ark", "a  [\n 1 2\n 3 ]\n");
    assert_int_equal(read_at("x.ark", 2, "", &m), ERR_DATA);
    assert_sentence("not equally long");
    data_dir_print(&dir, "x.ark", "a  [\n 1 2\n");
    assert_int_equal(read_at("x.ark", 2, "", &m), ERR_DATA);
    assert_sentence("no closing");
    data_dir_print(&dir, "x.ark", "a  [ 1 two ]\n");
    assert_int_equal(read_at("x.ark", 2, "", &m), ERR_DATA);
    assert_sentence("'two' is not a number");
    struct ark_source s = {.location = "no/such/file.ark:5"};
    assert_int_equal(ark_read_matrix(&s, &m), ERR_DATA);
    assert_sentence("cannot open no/such/file.ark");
    matrix_fini(&m);
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
        cmocka_unit_test(test_float_and_double_matrices_are_read_exactly),
        cmocka_unit_test(test_compressed_matrices_with_column_headers_follow_the_definition),
        cmocka_unit_test(test_cm2_and_cm3_follow_the_definition),
        cmocka_unit_test(test_text_matrices_are_read),
        cmocka_unit_test(test_ranges_are_inclusive_and_may_end_a_little_late),
        cmocka_unit_test(test_int_vectors_binary_and_text),
        cmocka_unit_test(test_truncation_is_told_with_file_and_offset_at_every_length),
        cmocka_unit_test(test_impossible_sizes_cost_no_memory),
        cmocka_unit_test(test_foreign_bytes_are_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
