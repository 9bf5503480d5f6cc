/* Where values come from, and what is refused. (The table and the round trip: test_options.c.) */
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"

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

static int load_text(const char *text, struct config *out)
{
    assert_int_equal(files_write_atomic(job, text, strlen(text)), 0);
    return config_load(job, out);
}

/* ------------------------------------------------------------------ files */

static void a_job_file_in_either_yaml_style_is_read(void **state)
{
    (void)state;
    struct config c;
    assert_int_equal(
        load_text("# a job\n"
                  "data: {train: /d/train, silence: [102, 103, 104], normalise: speaker, dev: ~}\n"
                  "model:\n"
                  "  layers:\n"
                  "    - {cells: 512, projection: 256}\n"
                  "    - cells: 400\n"
                  "      projection: 200\n"
                  "      nonrecurrent: 7\n"
                  "  init: {range: 0.1, forget_bias: -1.5e0}\n"
                  "  peepholes: false\n"
                  "train:\n"
                  "optimizer: {schedule: {type: halve, from_epoch: 6}}\n",
                  &c),
        0);
    assert_string_equal(c.data.train, "/d/train");
    assert_string_equal(c.data.dev, "");
    assert_int_equal(c.data.silence.count, 3);
    assert_int_equal(c.data.silence.values[2], 104);
    assert_int_equal(c.data.normalise, NORMALISE_SPEAKER);
    assert_int_equal(c.model.num_layers, 2);
    assert_int_equal(c.model.layers[1].cells, 400);
    assert_int_equal(c.model.layers[1].nonrecurrent, 7);
    assert_true(c.model.init.range == 0.1 && c.model.init.forget_bias == -1.5);
    assert_false(c.model.peepholes);
    assert_int_equal(c.optimizer.schedule.type, SCHEDULE_HALVE);
    assert_int_equal(c.optimizer.schedule.from_epoch, 6);
    assert_int_equal(c.train.window, 20); /* default */
    config_free(&c);
    assert_int_equal(load_text("", &c), 0);
    config_free(&c);
    assert_int_equal(load_text("# nothing\n", &c), 0);
    config_free(&c);
}

static void a_bad_job_file_is_refused_with_line_and_column(void **state)
{
    (void)state;
    static const struct {
        const char *text, *place, *says;
    } rows[] = {
        {"train: {windw: 3}", ":1:9: ", "did you mean train.window?"},
        {"train:\n  epochs: 3\nnet: 1\n", ":3:1: ", "unknown option net"},
        {"optimizer: {momentun: 0.5}", ":1:13: ", "did you mean optimizer.momentum?"},
        {"train:\n  rate: 0.1\n", ":2:3: ", "did you mean optimizer.rate?"},
        {"train: {window: many}", ":1:17: ", "an integer of 1 to 10000 frames, not 'many'"},
        {"train: {window: 0}", ":1:17: ", "an integer of 1 to 10000 frames, not '0'"},
        {"train: {window: 10001}", ":1:17: ", "not '10001'"},
        {"train: {window: 99999999999999999999}", ":1:17: ", "of 1 to 10000"},
        {"train: {window: 2.5}", ":1:17: ", "an integer"},
        {"train: {window: 0x10}", ":1:17: ", "an integer"},
        {"train: {window: \"20\"}", ":1:17: ", "not quoted text"},
        {"train: {window: [20]}", ":1:17: ", "not a list"},
        {"train: {window: {a: 1}}", ":1:17: ", "not a mapping"},
        {"train: {window: }", ":1:17: ", "an integer"},
        {"train: {threads: 257}", ":1:18: ", "an integer of 1 to 256 threads"},
        {"optimizer: {rate: fast}", ":1:19: ", "a number"},
        {"optimizer: {rate: .nan}", ":1:19: ", "a number"},
        {"optimizer: {rate: nan}", ":1:19: ", "a number"},
        {"optimizer: {rate: 1e999}", ":1:19: ", "a number"},
        {"optimizer: {rate: -1}", ":1:19: ", "of 0 to"},
        {"model: {peepholes: yes}", ":1:20: ", "true or false"},
        {"consistency: {mode: fast}", ":1:21: ", "one of async, bsp, ssp"},
        {"exchange: {weights: int4}", ":1:21: ", "one of fp32, bf16, fp16, int8"},
        {"optimizer: {type: adagrd}", ":1:19: ", "one of sgd, momentum, nesterov, adagrad, rmsprop"},
        {"optimizer: {staleness: halve}", ":1:24: ", "one of ignore, divide"},
        {"train: 5", ":1:8: ", "must be a mapping"},
        {"train: [5]", ":1:8: ", "must be a mapping"},
        {"[1, 2]", ":1:1: ", "must be a mapping"},
        {"just words", ":1:1: ", "must be a mapping"},
        {"train: {epochs: 1}\ntrain: {window: 3}", ":2:1: ", "train appears twice"},
        {"train: {epochs: 1, epochs: 2}", ":1:20: ", "train.epochs appears twice"},
        {"train.epochs: 3", ":1:1: ", "unknown option"},
        {"data: {silence: 5}", ":1:17: ", "a list of integers"},
        {"data: {silence: [1, x]}", ":1:21: ", "not 'x'"},
        {"data: {silence: [1, [2]]}", ":1:21: ", "a list of integers"},
        {"data: {train: [a]}", ":1:15: ", "a path"},
        {"data: {train: \"a\\nb\"}", ":1:15: ", "printable"},
        {"data: {train: \"a\\0b\"}", ":1:15: ", "0 byte"},
        {"model: {layers: []}", "", "model.layers is empty"},
        {"model: {layers: 3}", ":1:17: ", "a list of 1 to 16 layers"},
        {"model: {layers: [3]}", ":1:18: ", "must look like"},
        {"model: {layers: [{cell: 3}]}", ":1:19: ", "a layer has cells"},
        {"model: {layers: [{projection: 3}]}", ":1:32: ", "does not say its cells"},
        {"model: {layers: [{cells: 0}]}", ":1:26: ", "cells must be"},
        {"model: {layers: [{cells: 3, cells: 4}]}", ":1:29: ", "appears twice"},
        {"model: {layers: [{cells: -3}]}", ":1:26: ", "cells must be"},
        {"a: &x 1\nb: *x", ":1:1: ", "unknown option a"},
        {"train: {epochs: &x 1, window: *x}", ":1:17: ", "anchors"},
        {"train: {epochs: *x}", ":1:17: ", "anchors"},
        {"train: {epochs: !!int 3}", ":1:17: ", "tags"},
        {"train: !mine {epochs: 3}", ":1:8: ", "tags"},
        {"? {a: b}\n: 3", ":1:3: ", "a key must be"},
        {"train: {epochs: 3", ":", "expected"},
        {"train:\n\tepochs: 3", ":2:1: ", "found character that cannot start any token"},
        {"---\ntrain: {epochs: 3}\n---\ntrain: {epochs: 4}\n", ":3:1: ", "only one YAML document"},
        {"train: {epochs: \x01}", ": ", "control characters"},
        {"train: {epochs: \xff}", ": ", "invalid leading UTF-8"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct config c;
        char *place = xprintf("%s%s", rows[i].place[0] ? job : "", rows[i].place);
        int rc = load_text(rows[i].text, &c);
        if (rc == 0 && !rows[i].place[0]) { /* left to the cross checks */
            assert_int_equal(config_apply_set(&c, "data.train=/x"), 0);
            rc = config_check(&c);
            config_free(&c);
        }
        if (rc != ERR_USAGE || !strstr(err_text(), place) || !strstr(err_text(), rows[i].says))
            fail_msg("%s: %d %s; expected %s ... %s", rows[i].text, rc, err_text(), place, rows[i].says);
        assert_null(strchr(err_text(), '\n'));
        free(place);
    }
}

static void a_file_too_large_too_deep_or_missing_is_refused(void **state)
{
    (void)state;
    struct config c;
    size_t n = (1 << 20) + 2;
    char *big = xcalloc(1, n);
    memset(big, '#', n - 1);
    assert_int_equal(load_text(big, &c), ERR_USAGE);
    assert_non_null(strstr(err_text(), "larger than 1048576"));
    memset(big, '[', n - 1);
    big[1 << 19] = '\0';
    assert_int_equal(load_text(big, &c), ERR_USAGE);
    assert_int_equal(config_load("/nowhere/job.yaml", &c), ERR_USAGE);
    assert_non_null(strstr(err_text(), "/nowhere/job.yaml"));
    free(big);
}

/* Whatever the bytes are: an error or a config, and no crash. */
static void garbled_files_are_refused_or_read_but_never_crash(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct rng r;
    struct config c;
    rng_init(&r, seed);
    config_default(&c);
    char *text = config_text(&c, false);
    size_t n = strlen(text);
    config_free(&c);
    for (int round = 0; round < 300; round++) {
        char *copy = xcalloc(1, n + 1);
        memcpy(copy, text, n);
        for (uint64_t k = 1 + rng_below(&r, 4); k > 0; k--)
            copy[rng_below(&r, n)] = "{}[]:,&*!|>'\"\\ \n\t#-?a9\x80"[rng_below(&r, 24)];
        if (rng_below(&r, 3) == 0) copy[rng_below(&r, n)] = '\0';
        int rc = load_text(copy, &c);
        assert_true(rc == 0 || rc == ERR_USAGE);
        if (rc == 0) config_free(&c);
        free(copy);
    }
    free(text);
}

/* ------------------------------------------------------------------ precedence */

static void later_sources_win(void **state)
{
    (void)state;
    struct config c;
    char a[] = "train.window=40", b[] = "train.seed=9", *sets[] = {a, b};
    const char *text = "data: {train: /d}\ntrain: {window: 10, streams: 11, epochs: 12}\n";
    assert_int_equal(files_write_atomic(job, text, strlen(text)), 0);
    setenv("CHORALE_TRAIN_WINDOW", "30", 1);
    setenv("CHORALE_TRAIN_STREAMS", "31", 1);
    setenv("CHORALE_MODEL_LAYERS", "[{cells: 9, projection: 4}]", 1);
    setenv("CHORALE_SHARED", "not ours", 1);
    int rc = config_load_merged(job, sets, 2, &c);
    unsetenv("CHORALE_TRAIN_WINDOW");
    unsetenv("CHORALE_TRAIN_STREAMS");
    unsetenv("CHORALE_MODEL_LAYERS");
    unsetenv("CHORALE_SHARED");
    assert_int_equal(rc, 0);
    assert_int_equal(c.train.window, 40);
    assert_int_equal(c.train.streams, 31);
    assert_int_equal(c.train.epochs, 12);
    assert_int_equal(c.train.seed, 9);
    assert_int_equal(c.model.layers[0].cells, 9);
    assert_int_equal(c.train.chunk_utterances, 16);
    config_free(&c);
}

static void a_bad_variable_or_set_is_refused_by_name(void **state)
{
    (void)state;
    struct config c;
    config_default(&c);
    setenv("CHORALE_TRAIN_WINDO", "3", 1);
    assert_int_equal(config_apply_environment(&c), ERR_USAGE);
    assert_non_null(strstr(err_text(), "did you mean CHORALE_TRAIN_WINDOW?"));
    unsetenv("CHORALE_TRAIN_WINDO");
    setenv("CHORALE_TRAIN_WINDOW", "x", 1);
    assert_int_equal(config_apply_environment(&c), ERR_USAGE);
    assert_non_null(strstr(err_text(), "environment variable CHORALE_TRAIN_WINDOW"));
    unsetenv("CHORALE_TRAIN_WINDOW");
    static const struct {
        const char *set, *says;
    } rows[] = {
        {"train.window", "wants option=value"},
        {"=3", "wants option=value"},
        {"train.windw=3", "train.window?"},
        {"train=3", "section"},
        {"train.window=", "an integer"},
        {"train.window= 3", "an integer"},
        {"train.window=3x", "an integer"},
        {"data.train=a\nb", "printable"},
        {"data.train=\xff", "UTF-8"},
        {"data.train=\xE2\x82", "UTF-8"},
        {"data.silence=3", "a list of integers"},
        {"data.silence=[3", "data.silence:"},
        {"data.silence=", "no value"},
        {"model.layers=[{cells: 5}] x", "model.layers:"},
        {"data.silence=[16777216]", "not '16777216'"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int rc = config_apply_set(&c, rows[i].set);
        if (rc != ERR_USAGE || !strstr(err_text(), rows[i].says) || strncmp(err_text(), "--set", 5) != 0)
            fail_msg("%s: %d %s", rows[i].set, rc, err_text());
    }
    config_free(&c);
}

/* ------------------------------------------------------------------ cross checks */

static void options_that_contradict_each_other_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *first, *second, *says; /* says NULL: accepted */
    } rows[] = {
        {"train.epochs=1", "train.seed=1", NULL},
        {"data.train=", "train.seed=1", "data.train is not set"},
        {"data.targets=", "train.seed=1", "data.targets is empty"},
        {"model.layers=[{cells: 5}]", "model.type=lstmp", "has no projection"},
        {"model.layers=[{cells: 5}]", "model.type=lstm", NULL},
        {"model.layers=[{cells: 5, projection: 2}]", "model.type=lstm", "has a projection"},
        {"optimizer.schedule.type=newbob", "data.dev=", "set data.dev"},
        {"optimizer.schedule.type=newbob", "data.dev=/dev-set", NULL},
        {"optimizer.schedule.type=exponential", "train.seed=1", "per_frames"},
        {"optimizer.schedule.type=exponential", "optimizer.schedule.per_frames=1e8", NULL},
        {"consistency.mode=ssp", "consistency.bound=0", NULL},
        {"consistency.mode=async", "consistency.bound=9", NULL}, /* only ssp looks at it */
        {"consistency.backup=1", "consistency.mode=async", "bsp alone"},
        {"consistency.backup=1", "consistency.mode=ssp", "bsp alone"},
        {"consistency.backup=1", "consistency.mode=bsp",
         NULL}, /* how many workers there will be is not known */
        {"train.warm_start_frames=1e6", "consistency.mode=bsp", "train.warm_start_frames"},
        {"train.warm_start_frames=1e6", "consistency.mode=ssp", NULL},
        {"consistency.pull_every=2", "consistency.mode=ssp", NULL},
        {"consistency.pull_every=2", "consistency.mode=bsp", "must be 1 in consistency.mode bsp"},
        {"consistency.pull_every=2", "consistency.push_every=3", NULL},
        {"consistency.push_every=2", "consistency.mode=bsp", NULL},
        {"optimizer.staleness=divide", "consistency.mode=bsp", "optimizer.staleness divide"},
        {"optimizer.staleness=divide", "consistency.mode=ssp", NULL},
        {"optimizer.delay_compensation=0.04", "consistency.mode=bsp", "in bsp there is no delay"},
        {"optimizer.delay_compensation=0.04", "optimizer.type=sgd", NULL},
        {"optimizer.delay_compensation=0.04", "optimizer.type=momentum", "optimizer.momentum_at worker"},
        {"optimizer.delay_compensation=0.04", "optimizer.type=nesterov", "optimizer.momentum_at worker"},
        {"optimizer.delay_compensation=0.04", "optimizer.momentum_at=server", NULL},
        {"optimizer.delay_compensation=0.04", "optimizer.type=adagrad", "sgd, momentum and nesterov"},
        {"optimizer.delay_compensation=0.04", "optimizer.type=adamw", "sgd, momentum and nesterov"},
        {"optimizer.delay_compensation=0.04", "consistency.overlap=1", "consistency.overlap 0"},
        {"optimizer.delay_compensation=0.04", "consistency.pull_every=2", "optimizer.momentum_at worker"},
        {"exchange.gradients=int8", "exchange.weights=bf16", NULL},
        {"exchange.gradients=int8", "consistency.mode=bsp", NULL},
        {"train.threads=16", "train.streams=4096", NULL},
        {"train.threads=17", "train.streams=4096", "at most 65536 streams"},
        {"cluster.security=curve", "train.seed=1", "does not exist yet"},
        {"cluster.network=10.0.0.0/8", "train.seed=1", "loopback"},
        {"cluster.network=127.0.0.1", "cluster.ports=41000-41999", NULL},
        {"cluster.ports=41999-41000", "train.seed=1", "cluster.ports"},
        {"cluster.ports=80", "train.seed=1", "cluster.ports"},
        {"cluster.ports=1-70000", "train.seed=1", "cluster.ports"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct config c;
        config_default(&c);
        assert_int_equal(config_apply_set(&c, "data.train=/d"), 0);
        assert_int_equal(config_apply_set(&c, rows[i].first), 0);
        assert_int_equal(config_apply_set(&c, rows[i].second), 0);
        int rc = config_check(&c);
        if (rc != (rows[i].says ? ERR_USAGE : 0) || (rows[i].says && !strstr(err_text(), rows[i].says)))
            fail_msg("%s %s: %d %s", rows[i].first, rows[i].second, rc, err_text());
        config_free(&c);
    }
}

/* Options that only all together say too much. */
static void options_that_contradict_each_other_by_their_numbers_are_refused(void **state)
{
    (void)state;
    static const struct {
        int workers, backup, threads, streams;
        const char *says;
    } rows[] = {
        {3, 2, 1, 4, NULL},
        {2, 2, 1, 4, "only 2 workers"},
        {2, 3, 1, 4, "only 2 workers"},
        {32767, 0, 16, 4096, NULL},
        {32768, 0, 16, 4096, "at most 2147483647"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct config c;
        config_default(&c);
        assert_int_equal(config_apply_set(&c, "data.train=/d"), 0);
        assert_int_equal(config_apply_set(&c, "consistency.mode=bsp"), 0);
        c.cluster.workers = rows[i].workers;
        c.consistency.backup = rows[i].backup;
        c.train.threads = rows[i].threads;
        c.train.streams = rows[i].streams;
        int rc = config_check(&c);
        if (rc != (rows[i].says ? ERR_USAGE : 0) || (rows[i].says && !strstr(err_text(), rows[i].says)))
            fail_msg("row %zu: %d %s", i, rc, err_text());
        config_free(&c);
    }
}

static void targets_are_found_beside_their_features(void **state)
{
    (void)state;
    static const char *const rows[][4] = {
        /* targets, dev_targets, train path, dev path */
        {"ali.scp", "", "/t/ali.scp", "/d/ali.scp"},       {"/x/ali.scp", "", "/x/ali.scp", "/d/ali.scp"},
        {"sub/a.scp", "", "/t/sub/a.scp", "/d/sub/a.scp"}, {"ali.scp", "b.scp", "/t/ali.scp", "/d/b.scp"},
        {"ali.scp", "/y/b.scp", "/t/ali.scp", "/y/b.scp"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct config c = {0};
        char t[] = "/t", d[] = "/d", *one = xstrdup(rows[i][0]), *two = xstrdup(rows[i][1]);
        c.data.train = t;
        c.data.dev = d;
        c.data.targets = one;
        c.data.dev_targets = two;
        char *train = config_targets_path(&c), *dev = config_dev_targets_path(&c);
        assert_string_equal(train, rows[i][2]);
        assert_string_equal(dev, rows[i][3]);
        free(train);
        free(dev);
        free(one);
        free(two);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_job_file_in_either_yaml_style_is_read),
        TEST(a_bad_job_file_is_refused_with_line_and_column),
        TEST(a_file_too_large_too_deep_or_missing_is_refused),
        TEST(garbled_files_are_refused_or_read_but_never_crash),
        TEST(later_sources_win),
        TEST(a_bad_variable_or_set_is_refused_by_name),
        TEST(options_that_contradict_each_other_are_refused),
        TEST(options_that_contradict_each_other_by_their_numbers_are_refused),
        TEST(targets_are_found_beside_their_features),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
