/* The turned weights of a model: which ones, what they hold, and loading in parts. */
#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/transposed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static bool is_turned(const struct tensor *t)
{
    static const char *const names[] = {"w_r", "w_m", "w_p"};
    for (size_t i = 0; i < 3; i++)
        if (strcmp(strchr(t->name, '.') + 1, names[i]) == 0) return true;
    return false;
}

/* W' of tensor w, element by element, whatever model_at says of a tensor of that shape. */
static void check_tensor(const struct panels *turned, const struct tensor *w, const float *params)
{
    const struct tensor shape = {.rows = w->cols, .cols = w->rows, .layout = LAYOUT_PANELS};
    assert_true(turned->out == w->cols && turned->in == w->rows);
    for (size_t r = 0; r < w->rows; r++)
        for (size_t c = 0; c < w->cols; c++)
            if (turned->data[model_at(&shape, c, r)] != params[model_at(w, r, c)])
                fail_msg("%s: (%zu, %zu)", w->name, r, c);
}

static void check_model(const struct model *m, const struct transposed *t, const float *params)
{
    for (size_t i = 0; i < m->num_tensors; i++) {
        const struct tensor *w = &m->tensors[i];
        struct panels turned = transposed_of(t, w);
        if (is_turned(w))
            check_tensor(&turned, w, params);
        else
            assert_null(turned.data);
    }
}

/* Rule: w_r, w_m and w_p of every layer are there, turned around, and no other tensor; parts of any number,
 * loaded in any order, give the same as the whole, and a load again what has changed. */
static void parts_of_any_number_make_the_whole(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        struct rng r;
        rng_init(&r, seed);
        struct model m = random_model(&r);
        float *params = new_reals(m.params);
        EACH_LEVEL(level)
        for (size_t parts = 1; parts <= 5; parts++) {
            struct transposed *t = transposed_new(&m, plan_make(level).panels);
            size_t first = rng_below(&r, parts);
            for (int again = 0; again < 2; again++) {
                random_params(&m, &r, 1, params);
                for (size_t k = 0; k < parts; k++) transposed_load(t, params, (first + k) % parts, parts);
                check_model(&m, t, params);
            }
            transposed_free(&t);
            assert_null(t);
        }
        free(params);
        model_fini(&m);
    }
}

/* Rule: a part touches its panels alone: with one part missing, something of it is missing. */
static void a_part_loads_no_more_than_its_share(void **state)
{
    (void)state;
    struct model_spec s = {.type = MODEL_LSTM,
                           .input = 1,
                           .targets = 2,
                           .num_layers = 1,
                           .layers = {{.cells = 121}}, /* W_r' (121, 484): six panels */
                           .feature_dim = 1,
                           .stack = 1,
                           .skip = 1};
    struct model m;
    assert_int_equal(model_build(&s, &m), 0);
    float *params = new_reals(m.params);
    for (size_t i = 0; i < m.params; i++) params[i] = 1;
    EACH_LEVEL(level)
    for (size_t missing = 0; missing < 3; missing++) {
        struct transposed *t = transposed_new(&m, plan_make(level).panels);
        size_t size = 121 * 484, share = 2 * PANEL * 484, loaded = 0;
        for (size_t k = 0; k < 3; k++)
            if (k != missing) transposed_load(t, params, k, 3);
        struct panels w_r = transposed_of(t, model_find(&m, "layer0.w_r"));
        for (size_t i = 0; i < size; i++) loaded += w_r.data[i] == 1;
        assert_int_equal(loaded, size - (missing < 2 ? share : size - 2 * share));
        transposed_free(&t);
    }
    free(params);
    model_fini(&m);
}

/* Rule: a model without projection has w_r alone, of every layer; nothing is freed twice. */
static void a_model_without_projection_turns_its_recurrent_weights(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 3);
    struct model m;
    do m = random_model(&r);
    while (m.spec.type == MODEL_LSTMP && (model_fini(&m), true));
    float *params = new_reals(m.params);
    random_params(&m, &r, 1, params);
    struct transposed *t = transposed_new(&m, plan_make(PLAN_BEST).panels);
    transposed_load(t, params, 0, 1);
    check_model(&m, t, params);
    size_t count = 0;
    for (size_t i = 0; i < m.num_tensors; i++) count += transposed_of(t, &m.tensors[i]).data != NULL;
    assert_int_equal(count, m.spec.num_layers);
    transposed_free(&t);
    transposed_free(&t);
    free(params);
    model_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_of_any_number_make_the_whole),
        cmocka_unit_test(a_part_loads_no_more_than_its_share),
        cmocka_unit_test(a_model_without_projection_turns_its_recurrent_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
