/* The table of tensors. (The parameter counts of the papers are in tests/unit/worker/test_params.c.) */
#include "common/err.h"
#include "common/model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct model_spec small(void)
{
    return (struct model_spec){
        .type = MODEL_LSTMP,
        .input = 6,
        .targets = 5,
        .num_layers = 2,
        .layers = {{.cells = 8, .projection = 3, .nonrecurrent = 2}, {.cells = 4, .projection = 2}},
        .peepholes = true,
        .cell_clip = 50,
        .feature_dim = 6,
        .stack = 1,
        .skip = 1,
        .delay = 5,
    };
}

static void assert_tensor(const struct model *m, const char *name, uint32_t rows, uint32_t cols)
{
    const struct tensor *t = model_find(m, name);
    assert_non_null(t);
    assert_int_equal(t->rows, rows);
    assert_int_equal(t->cols, cols);
}

static void a_layer_reads_what_the_one_below_feeds_upward(void **state)
{
    (void)state;
    struct model m;
    struct model_spec s = small();
    assert_int_equal(model_build(&s, &m), 0);
    assert_int_equal(model_upward(&s, 0), 5); /* R + nonrecurrent */
    assert_int_equal(model_recurrent(&s, 0), 3);
    assert_int_equal(model_layer_input(&s, 1), 5);
    assert_tensor(&m, "layer0.w_x", 32, 6);
    assert_tensor(&m, "layer0.w_r", 32, 3);
    assert_tensor(&m, "layer0.b", 32, 1);
    assert_tensor(&m, "layer0.p_i", 8, 1);
    assert_tensor(&m, "layer0.w_m", 3, 8);
    assert_tensor(&m, "layer0.w_p", 2, 8);
    assert_tensor(&m, "layer1.w_x", 16, 5);
    assert_tensor(&m, "output.w", 5, 2);
    assert_tensor(&m, "output.b", 5, 1);
    assert_null(model_find(&m, "layer1.w_p"));
    assert_null(model_find(&m, "layer2.w_x"));
    model_fini(&m);
}

static void tensors_cover_the_vector_without_gap_or_overlap(void **state)
{
    (void)state;
    struct model m;
    struct model_spec s = small();
    assert_int_equal(model_build(&s, &m), 0);
    unsigned char *hits = xcalloc(m.params, 1);
    for (size_t i = 0; i < m.num_tensors; i++)
        for (uint32_t r = 0; r < m.tensors[i].rows; r++)
            for (uint32_t c = 0; c < m.tensors[i].cols; c++) {
                size_t at = model_at(&m.tensors[i], r, c);
                assert_true(at < m.params);
                hits[at]++;
            }
    for (size_t i = 0; i < m.params; i++) assert_int_equal(hits[i], 1);
    free(hits);
    model_fini(&m);
}

static void weights_lie_in_panels_and_vectors_in_rows(void **state)
{
    (void)state;
    struct model m;
    struct model_spec s = small();
    assert_int_equal(model_build(&s, &m), 0);
    for (size_t i = 0; i < m.num_tensors; i++) {
        bool is_weight = strchr(m.tensors[i].name, '.')[1] == 'w';
        assert_int_equal(m.tensors[i].layout, is_weight ? LAYOUT_PANELS : LAYOUT_ROWS);
        assert_true(is_weight || m.tensors[i].cols == 1);
    }
    model_fini(&m);
}

/* Places counted by hand: panels of 24 rows as [cols][24], then what is left as [cols][rows % 24]. */
static void panels_hold_24_rows_column_by_column(void **state)
{
    (void)state;
    const struct tensor t = {.rows = 53, .cols = 3, .layout = LAYOUT_PANELS, .offset = 1000},
                        one = {.rows = 24, .cols = 2, .layout = LAYOUT_PANELS},
                        few = {.rows = 5, .cols = 2, .layout = LAYOUT_PANELS};
    size_t place = 1000;
    static const size_t first[] = {0, 24, 48, 53};
    for (size_t p = 0; p < 3; p++)
        for (size_t col = 0; col < 3; col++)
            for (size_t row = first[p]; row < first[p + 1]; row++)
                assert_int_equal(model_at(&t, row, col), place++);
    assert_int_equal(model_at(&one, 23, 0), 23);
    assert_int_equal(model_at(&one, 0, 1), 24);
    assert_int_equal(model_at(&few, 4, 0), 4);
    assert_int_equal(model_at(&few, 0, 1), 5);
}

static void the_layout_changes_the_place_but_neither_value_nor_start_weight(void **state)
{
    (void)state;
    struct model a, b;
    struct model_spec s = small();
    const struct model_init_options o = {.range = 0.02f, .seed = 9};
    assert_int_equal(model_build(&s, &a), 0);
    assert_int_equal(model_build(&s, &b), 0);
    for (size_t i = 0; i < b.num_tensors; i++) b.tensors[i].layout = LAYOUT_ROWS;
    float *va = xcalloc(a.params, sizeof *va), *vb = xcalloc(b.params, sizeof *vb);
    float *ra = xcalloc(a.params, sizeof *ra), *rb = xcalloc(b.params, sizeof *rb);
    model_init(&a, &o, va);
    model_init(&b, &o, vb);
    assert_memory_not_equal(va, vb, a.params * sizeof *va);
    for (size_t i = 0; i < a.num_tensors; i++) {
        size_t bytes = (size_t)a.tensors[i].rows * a.tensors[i].cols * sizeof *ra;
        model_get(&a.tensors[i], va, ra);
        model_get(&b.tensors[i], vb, rb);
        assert_memory_equal(ra, rb, bytes);
        model_set(&b.tensors[i], ra, vb);
        model_get(&b.tensors[i], vb, rb);
        assert_memory_equal(ra, rb, bytes);
    }
    assert_true(model_hash(&a, NULL, NULL) != model_hash(&b, NULL, NULL));
    free(va);
    free(vb);
    free(ra);
    free(rb);
    model_fini(&a);
    model_fini(&b);
}

static void weights_start_as_the_options_say(void **state)
{
    (void)state;
    struct model m;
    struct model_spec s = small();
    assert_int_equal(model_build(&s, &m), 0);
    float *v = xcalloc(m.params, sizeof *v);
    model_init(&m, &(struct model_init_options){.range = 0, .forget_bias = 1, .zero_bias = true, .seed = 1},
               v);
    const struct tensor *b = model_find(&m, "layer0.b"), *w = model_find(&m, "layer0.w_x");
    for (uint32_t r = 0; r < b->rows; r++) assert_true(v[model_at(b, r, 0)] == (r / 8 == 2 ? 1.0f : 0.0f));
    float largest = 0;
    for (uint32_t r = 0; r < w->rows; r++)
        for (uint32_t c = 0; c < w->cols; c++) largest = fmaxf(largest, fabsf(v[model_at(w, r, c)]));
    assert_true(largest <= 1 / sqrtf(8) && largest > 0.9f / sqrtf(8));
    model_init(&m, &(struct model_init_options){.range = 0.02f, .seed = 1}, v);
    for (size_t i = 0; i < m.params; i++) assert_true(fabsf(v[i]) <= 0.02f);
    free(v);
    model_fini(&m);
}

static uint64_t hash_of(struct model_spec s, const float *mean)
{
    struct model m;
    assert_int_equal(model_build(&s, &m), 0);
    uint64_t hash = model_hash(&m, mean, NULL);
    model_fini(&m);
    return hash;
}

static void whatever_makes_models_differ_changes_the_hash(void **state)
{
    (void)state;
    struct model_spec s = small(), t;
    const float zero[6] = {0}, other[6] = {0, 0, 0, 0, 0, 1};
    uint64_t h = hash_of(s, NULL);
    assert_true(hash_of(s, NULL) == h);
    assert_true(hash_of(s, zero) != h);
    assert_true(hash_of(s, zero) != hash_of(s, other));
#define CHANGED(field, value) (t = s, t.field = (value), assert_true(hash_of(t, NULL) != h))
    CHANGED(delay, 4);
    CHANGED(delay_style, DELAY_KALDI);
    CHANGED(skip, 2);
    CHANGED(cell_clip, 20);
    CHANGED(peepholes, false);
    CHANGED(targets, 6);
    CHANGED(layers[1].cells, 5);
#undef CHANGED
}

static void impossible_sizes_are_refused_with_a_sentence(void **state)
{
    (void)state;
    struct model m;
    struct model_spec s;
#define REFUSED(field, value)                                                                                \
    (s = small(), s.field = (value), err_set(0, "%s", ""), assert_int_equal(model_build(&s, &m), ERR_USAGE), \
     assert_true(strlen(err_text()) > 10))
    REFUSED(num_layers, 0);
    REFUSED(num_layers, MODEL_MAX_LAYERS + 1);
    REFUSED(input, 0);
    REFUSED(input, 7); /* not feature_dim x stack */
    REFUSED(targets, 1);
    REFUSED(targets, UINT32_MAX);
    REFUSED(stack, 0);
    REFUSED(skip, 0);
    REFUSED(layers[0].cells, 0);
    REFUSED(layers[0].cells, UINT32_MAX);
    REFUSED(layers[1].projection, 0);
    REFUSED(layers[1].nonrecurrent, UINT32_MAX);
    REFUSED(type, MODEL_LSTM);
#undef REFUSED
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_reads_what_the_one_below_feeds_upward),
        cmocka_unit_test(tensors_cover_the_vector_without_gap_or_overlap),
        cmocka_unit_test(weights_lie_in_panels_and_vectors_in_rows),
        cmocka_unit_test(panels_hold_24_rows_column_by_column),
        cmocka_unit_test(the_layout_changes_the_place_but_neither_value_nor_start_weight),
        cmocka_unit_test(weights_start_as_the_options_say),
        cmocka_unit_test(whatever_makes_models_differ_changes_the_hash),
        cmocka_unit_test(impossible_sizes_are_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
