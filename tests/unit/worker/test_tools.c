/* chorale-prepare as a program: exit status, one sentence, nothing half-written. */
#include "tests/unit/worker/tools_home.h"

static void prepare_writes_facts_and_set_0_that_fit_the_data(void **state)
{
    (void)state;
    struct facts f;
    float *params;
    char *run = run_path();
    make_ready("  silence: [0, 2]\n  stack: 2\n");
    assert_int_equal(snapshot_newest(run), 0);
    assert_int_equal(snapshot_load_model(run, &f, &params), 0);
    assert_true(f.job != 0);
    assert_int_equal(f.model.spec.targets, TARGETS);
    assert_int_equal(f.model.spec.feature_dim, DIM);
    assert_int_equal(f.model.spec.input, 2 * DIM);
    assert_int_equal(f.train.utterances, 5);
    assert_int_equal(f.train.frames, 30 + 21 + 9 + 40 + 12);
    assert_int_equal(f.dev.utterances, 3);
    assert_int_equal(f.num_silence, 2);
    assert_non_null(f.mean);
    float *expected = xcalloc(f.model.params, sizeof *expected);
    model_init(&f.model, &(struct model_init_options){.range = 0.5f, .seed = 1}, expected);
    assert_memory_equal(params, expected, f.model.params * sizeof *expected);
    free(expected);
    free(params);
    facts_fini(&f);
    free(run);
}

static void prepare_again_changes_nothing_and_another_seed_is_no_other_model(void **state)
{
    (void)state;
    make_ready("");
    char *before = program_slurp("run/checkpoints/set-000000/manifest.json");
    make_job("run/job.yaml", "train: {seed: 5, streams: 3}\n");
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run"), 0);
    char *after = program_slurp("run/checkpoints/set-000000/manifest.json");
    assert_string_equal(before, after);
    free(before);
    free(after);
}

/* A started run refuses what would change model or data, with the words and the status of the row. */
static void prepare_refuses_another_model_or_other_data_in_a_started_run(void **state)
{
    (void)state;
    static const char data[] = "train: train, dev: dev, delay: 2",
                      layers[] = "layers: [{cells: 6, projection: 4}]";
    static const struct {
        int exit;
        const char *says, *data, *model;
    } rows[] = {
        {5, "251 parameters now", data, "peepholes: false, layers: [{cells: 6, projection: 4}]"},
        {5, "7 targets", data, "targets: 9, layers: [{cells: 6, projection: 4}]"},
        {5, "14/4", data, "layers: [{cells: 14, projection: 4}]"},
        {5, "data.normalise", "train: train, dev: dev, delay: 2, normalise: none", layers},
        {5, "9 inputs", "train: train, dev: dev, delay: 2, stack: 3", layers},
        {5, "delay", "train: train, dev: dev, delay: 2, delay_style: kaldi", layers},
        {3, "data.train 'dev'", "train: dev, dev: dev, delay: 2", layers},
        {3, "data.dev 'train'", "train: train, dev: train, delay: 2", layers},
        {3, "0 and 0 now", "train: train, delay: 2", layers},
        {3, "data.silence", "train: train, dev: dev, delay: 2, silence: [1]", layers},
    };
    make_ready("");
    char *before = program_slurp("run/job.yaml");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = xprintf("data: {%s}\nmodel: {%s}\n", rows[i].data, rows[i].model);
        program_write("other.yaml", text);
        program_refuses(i, (const char *const[]){"chorale-prepare", "run", "--config", "other.yaml", NULL},
                        rows[i].exit, rows[i].says);
        free(text);
    }
    char *after = program_slurp("run/job.yaml");
    assert_string_equal(before, after);
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run"), 0);
    free(before);
    free(after);
}

static void prepare_of_bad_data_or_options_exits_with_a_sentence_and_writes_nothing(void **state)
{
    (void)state;
    static const struct {
        int exit;
        const char *says, *data;
    } rows[] = {
        {3, "not a data directory", "train: nowhere"},
        {2, "data.train is not set", "delay: 1"},
        {3, "nothing.scp", "train: train, targets: nothing.scp"},
        {3, "no usable utterance", "train: train, targets: short.scp"},
        {3, "no usable utterance", "train: train, dev: wide"},
        {3, "not a data directory", "train: train, dev: nowhere"},
        {3, "no utterances", "train: empty"},
        {3, "cmvn.scp", "train: train, normalise: speaker"},
        {2, "targets are 0 to 6", "train: train, silence: [7]"},
        {2, "data.frob", "train: train, frob: 7"},
        {3, "no usable utterance", "train: garbled"},
    };
    program_write("empty/feats.scp", "");
    program_write("empty/ali.scp", "");
    program_write("garbled/feats.scp", "utt-00 garbled/feats.ark:7\n");
    program_write("garbled/feats.ark", "utt-00 \1\2\3 nothing that anyone could read");
    program_write("garbled/ali.scp", "utt-00 train/ali.ark:7\n");
    program_write("train/short.scp", "utt-99 x.ark:1\n");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = xprintf("data: {%s}\n", rows[i].data);
        program_write("bad/job.yaml", text);
        program_refuses(i, (const char *const[]){"chorale-prepare", "bad", NULL}, rows[i].exit, rows[i].says);
        assert_false(program_is_there("bad/model.safetensors"));
        assert_false(program_is_there("bad/checkpoints/set-000000"));
        free(text);
    }
    static const char *const usage_rows[][5] = {{"chorale-prepare"},
                                                {"chorale-prepare", "nowhere"},
                                                {"chorale-prepare", "a", "b"},
                                                {"chorale-prepare", "bad", "--frob"},
                                                {"chorale-prepare", "bad", "--config"},
                                                {"chorale-prepare", "bad", "--config", "none.yaml"}};
    for (size_t i = 0; i < sizeof usage_rows / sizeof usage_rows[0]; i++)
        program_refuses(i, usage_rows[i], 2, "");
}

/* Work that could be lost is never overwritten by a new start. */
static void prepare_refuses_a_run_whose_checkpoints_are_lost(void **state)
{
    (void)state;
    make_ready("");
    program_write("run/journal", "");
    program_write("run/checkpoints/set-000000/manifest.json", "{");
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run", "--quiet"), 7);
    assert_non_null(strstr(program_err, "no checkpoint of it is whole"));
    char *facts = files_join(home.path, "run/model.safetensors");
    assert_int_equal(unlink(facts), 0);
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run", "--quiet"), 7);
    assert_non_null(strstr(program_err, "model.safetensors is missing"));
    free(facts);
}

static void prepare_that_was_cut_short_is_done_again(void **state)
{
    (void)state;
    make_ready("");
    program_write("run/checkpoints/set-000000/manifest.json", "{");
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run"), 0);
    char *run = run_path();
    assert_int_equal(snapshot_newest(run), 0);
    free(run);
}

static void prepare_tells_what_it_left_out(void **state)
{
    (void)state;
    make_data("four", 4, (const size_t[]){30, 21, 9, 40}, DIM);
    char *more = xprintf("  targets: %s/four/ali.scp\n  dev_targets: ali.scp\n", home.path);
    make_ready(more);
    free(more);
    assert_non_null(strstr(program_err, "train: 4 utterances, 100 frames, 1 left out"));
    assert_non_null(strstr(program_err, "missing alignment: 1 (skipped)"));
}

static void help_goes_to_stdout(void **state)
{
    (void)state;
    static const char *const programs[] = {"chorale-prepare", "chorale-eval", "chorale-score"};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(RUN_PROGRAM(programs[i], "--help"), 0);
        assert_non_null(strstr(program_out, "usage:"));
        assert_int_equal(strlen(program_err), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(prepare_writes_facts_and_set_0_that_fit_the_data),
        TEST(prepare_again_changes_nothing_and_another_seed_is_no_other_model),
        TEST(prepare_refuses_another_model_or_other_data_in_a_started_run),
        TEST(prepare_of_bad_data_or_options_exits_with_a_sentence_and_writes_nothing),
        TEST(prepare_refuses_a_run_whose_checkpoints_are_lost),
        TEST(prepare_that_was_cut_short_is_done_again),
        TEST(prepare_tells_what_it_left_out),
        TEST(help_goes_to_stdout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
