/* The table of options and what is made from it. */
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/options.h"
#include "common/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

static char dir[64], *job;

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/chorale-config-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    job = files_join(dir, "job.yaml");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(job);
    return files_remove_tree(dir);
}

/* ------------------------------------------------------------------ the table */

static void every_row_is_whole_and_every_default_is_valid(void **state)
{
    (void)state;
    struct config c;
    char name[128], other[128];
    config_default(&c);
    for (size_t i = 0; i < options_count; i++) {
        const struct option_spec *o = &options_table[i];
        assert_non_null(strchr(o->key, '.'));
        assert_ptr_equal(options_find(o->key), o);
        assert_true(strlen(o->help) > 10);
        assert_true(o->offset < sizeof c);
        options_environment_name(o, name, sizeof name);
        for (size_t j = 0; j < i; j++) {
            options_environment_name(&options_table[j], other, sizeof other);
            assert_string_not_equal(name, other);
            assert_true(options_table[j].offset != o->offset);
        }
    }
    config_free(&c);
}

static void names_of_choices_are_in_the_order_of_their_enums(void **state)
{
    (void)state;
    struct config c;
    config_default(&c);
#define CHOICE(key, field, text, value)                                                                      \
    (assert_int_equal(config_apply_set(&c, key "=" text), 0), assert_int_equal(c.field, value))
    CHOICE("data.delay_style", data.delay_style, "repeat", DELAY_REPEAT);
    CHOICE("data.delay_style", data.delay_style, "kaldi", DELAY_KALDI);
    CHOICE("data.normalise", data.normalise, "global", NORMALISE_GLOBAL);
    CHOICE("data.normalise", data.normalise, "speaker", NORMALISE_SPEAKER);
    CHOICE("data.normalise", data.normalise, "none", NORMALISE_NONE);
    CHOICE("model.type", model.type, "lstm", MODEL_LSTM);
    CHOICE("model.type", model.type, "lstmp", MODEL_LSTMP);
    CHOICE("train.gradient", train.gradient, "sum", GRADIENT_SUM);
    CHOICE("train.gradient", train.gradient, "mean", GRADIENT_MEAN);
    CHOICE("optimizer.type", optimizer.type, "sgd", OPTIMIZER_SGD);
    CHOICE("optimizer.type", optimizer.type, "momentum", OPTIMIZER_MOMENTUM);
    CHOICE("optimizer.schedule.type", optimizer.schedule.type, "constant", SCHEDULE_CONSTANT);
    CHOICE("optimizer.schedule.type", optimizer.schedule.type, "exponential", SCHEDULE_EXPONENTIAL);
    CHOICE("optimizer.schedule.type", optimizer.schedule.type, "halve", SCHEDULE_HALVE);
    CHOICE("optimizer.schedule.type", optimizer.schedule.type, "newbob", SCHEDULE_NEWBOB);
    CHOICE("consistency.mode", consistency.mode, "async", CONSISTENCY_ASYNC);
    CHOICE("consistency.mode", consistency.mode, "bsp", CONSISTENCY_BSP);
    CHOICE("consistency.mode", consistency.mode, "ssp", CONSISTENCY_SSP);
    CHOICE("cluster.security", cluster.security, "none", SECURITY_NONE);
    CHOICE("cluster.security", cluster.security, "curve", SECURITY_CURVE);
#undef CHOICE
    config_free(&c);
}

/* ------------------------------------------------------------------ round trip */

static char *random_text(struct rng *r)
{
    static const char *const pieces[] = {"a", "/", " ",        "\"",           "\\", "#",    ": ", "- ",
                                         "{", "~", "\xC3\xA9", "\xE2\x82\xAC", "'",  "null", "%",  "\\n"};
    char *text = xcalloc(1, 200);
    for (uint64_t n = rng_below(r, 20); n > 0; n--) strcat(text, pieces[rng_below(r, 16)]);
    return text;
}

static double random_in(struct rng *r, const struct option_spec *o)
{
    double v = o->min + (o->max - o->min) * rng_uniform(r);
    if (rng_below(r, 2)) v = o->min + (v - o->min) * 1e-9; /* small ones, too */
    return v < o->min ? o->min : v > o->max ? o->max : v;
}

static void set_random(struct rng *r, struct config *c, const struct option_spec *o)
{
    void *slot = (char *)c + o->offset;
    unsigned choices = 1;
    struct int_list *list = slot;
    switch (o->type) {
    case OPTION_INT:
        *(int *)slot = (int)random_in(r, o);
        break;
    case OPTION_FLOAT:
        *(double *)slot = random_in(r, o);
        break;
    case OPTION_BOOL:
        *(bool *)slot = rng_below(r, 2);
        break;
    case OPTION_STRING:
    case OPTION_PATH:
        free(*(char **)slot);
        *(char **)slot = random_text(r);
        break;
    case OPTION_ENUM:
        for (const char *p = o->choices; *p; p++) choices += *p == '|';
        choices = (unsigned)rng_below(r, choices);
        memcpy(slot, &choices, sizeof choices);
        break;
    case OPTION_INTS:
        options_clear_list(c, o);
        list->count = rng_below(r, 6);
        if (list->count) list->values = xcalloc(list->count, sizeof *list->values);
        for (size_t i = 0; i < list->count; i++) list->values[i] = (int)random_in(r, o);
        break;
    case OPTION_LAYERS:
        c->model.num_layers = 1 + rng_below(r, MODEL_MAX_LAYERS);
        for (size_t i = 0; i < c->model.num_layers; i++)
            c->model.layers[i] =
                (struct model_layer){1 + (uint32_t)rng_below(r, 65536), (uint32_t)rng_below(r, 65537),
                                     (uint32_t)rng_below(r, 65537)};
        break;
    default:
        fail();
    }
}

static void assert_equal_values(const struct config *a, const struct config *b)
{
    for (size_t i = 0; i < options_count; i++) {
        const struct option_spec *o = &options_table[i];
        char *x = options_text(a, o), *y = options_text(b, o);
        assert_string_equal(x, y);
        if (o->type == OPTION_FLOAT)
            assert_memory_equal((const char *)a + o->offset, (const char *)b + o->offset, sizeof(double));
        free(x);
        free(y);
    }
}

static void what_is_written_reads_back_equal(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct rng r;
    rng_init(&r, seed);
    for (int round = 0; round < 60; round++) {
        struct config a, b;
        config_default(&a);
        for (size_t i = 0; round > 0 && i < options_count; i++) set_random(&r, &a, &options_table[i]);
        assert_int_equal(config_write(&a, job, round % 2), 0);
        int rc = config_load(job, &b);
        if (rc != 0) fail_msg("%s", err_text());
        assert_equal_values(&a, &b);
        config_free(&a);
        config_free(&b);
    }
}

static void the_commented_file_tells_help_range_and_default_of_every_option(void **state)
{
    (void)state;
    struct config c;
    config_default(&c);
    char *text = config_text(&c, true);
    for (size_t i = 0; i < options_count; i++) {
        const char *leaf = strrchr(options_table[i].key, '.') + 1;
        char *line = xprintf(" %s: ", leaf);
        assert_non_null(strstr(text, line));
        free(line);
    }
    assert_non_null(strstr(text, "# (an integer of 1 to 10000 frames; default 20)\n  window: 20\n"));
    for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
        assert_true(end - line <= 112);
    free(text);
    config_free(&c);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_row_is_whole_and_every_default_is_valid),
        TEST(names_of_choices_are_in_the_order_of_their_enums),
        TEST(what_is_written_reads_back_equal),
        TEST(the_commented_file_tells_help_range_and_default_of_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
