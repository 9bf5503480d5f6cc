/* chorale-prepare, eval and score, as programs: exit status, one sentence, nothing half-written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/config.h"
#include "common/snapshot.h"
#include "tests/unit/deploy/program.h"
#include "tests/unit/worker/data_dir.h"
#include "worker/data/feats.h"

#include <jansson.h>
#include <math.h>

#define DIM     3
#define TARGETS 7 /* data_dir_corpus: (u + t) % 7 */

static struct data_dir home; /* with the directories train and dev, and the run that a test makes */

static void make_data(const char *name, size_t n, const size_t *frames, size_t dim)
{
    struct data_dir d;
    snprintf(d.path, sizeof d.path, "%.40s/%.15s", home.path, name);
    assert_int_equal(files_make_dirs(d.path), 0);
    data_dir_corpus(&d, n, frames, dim);
}

static int set_up(void **state)
{
    (void)state;
    data_dir_make(&home);
    make_data("train", 5, (const size_t[]){30, 21, 9, 40, 12}, DIM);
    make_data("dev", 3, (const size_t[]){17, 8, 25}, DIM);
    make_data("wide", 2, (const size_t[]){10, 10}, DIM + 1);
    return program_set_up(home.path, "chorale-prepare");
}

static int tear_down(void **state)
{
    (void)state;
    program_tear_down();
    data_dir_remove(&home);
    return 0;
}

/* A job file by itself; `more` are lines of YAML at the end of the section data. */
static void make_job(const char *path, const char *more)
{
    char *text = xprintf("data:\n  train: %s/train\n  dev: %s/dev\n  delay: 2\n%s"
                         "model:\n  layers: [{cells: 6, projection: 4}]\n  init: {range: 0.5}\n",
                         home.path, home.path, more);
    program_write(path, text);
    free(text);
}

static void make_ready(const char *more)
{
    make_job("run/job.yaml", more);
    if (RUN_PROGRAM("chorale-prepare", "run") != 0) fail_msg("prepare: %s", program_err);
}

static char *run_path(void)
{
    return files_join(home.path, "run");
}

/* ------------------------------------------------------------------ prepare */

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

/* ------------------------------------------------------------------ eval */

static void eval_counts_every_frame_and_json_says_the_same(void **state)
{
    (void)state;
    make_ready("  silence: [0]\n");
    assert_int_equal(RUN_PROGRAM("chorale", "eval", "run", "--data", "dev", "--json"), 0);
    json_t *j = json_loads(program_out, 0, NULL);
    assert_non_null(j);
    double loss = json_number_value(json_object_get(j, "cross_entropy"));
    /* targets of utterance u are (u + t) % 7: zeros in 17, 8 and 25 frames from u = 0, 1, 2 */
    assert_int_equal(json_integer_value(json_object_get(j, "frames")), 17 + 8 + 25);
    assert_int_equal(json_integer_value(json_object_get(j, "speech_frames")), 50 - 3 - 1 - 3);
    assert_int_equal(json_integer_value(json_object_get(j, "failed")), 0);
    assert_true(loss > 0.5 && loss < 5);
    json_decref(j);
    char *text = xprintf("cross entropy   %10.4f", loss);
    assert_int_equal(RUN_PROGRAM("chorale-eval", "run", "--data", "dev"), 0);
    if (!strstr(program_out, text)) fail_msg("no '%s' in %s", text, program_out);
    assert_non_null(strstr(program_out, "without silence"));
    assert_int_equal(RUN_PROGRAM("chorale-eval", "run", "--data", "dev", "--silence", ""), 0);
    assert_null(strstr(program_out, "without silence"));
    free(text);
}

static void eval_of_bad_options_or_data_exits_with_a_sentence(void **state)
{
    (void)state;
    static const struct {
        int exit;
        const char *says, *words[9];
    } rows[] = {
        {2, "name one run", {"chorale-eval"}},
        {2, "--data DIR", {"chorale-eval", "run"}},
        {2, "unknown option", {"chorale-eval", "run", "--frob"}},
        {2, "wants a value", {"chorale-eval", "run", "--data"}},
        {2, "integers", {"chorale-eval", "run", "--data", "dev", "--silence", "1,x"}},
        {2, "integers", {"chorale-eval", "run", "--data", "dev", "--silence", "1,"}},
        {2, "0 to 6", {"chorale-eval", "run", "--data", "dev", "--silence", "7"}},
        {3, "not a data directory", {"chorale-eval", "run", "--data", "nowhere"}},
        {3, "none.scp", {"chorale-eval", "run", "--data", "dev", "--targets", "none.scp"}},
        {3, "no usable", {"chorale-eval", "run", "--data", "dev", "--targets", "big.scp"}},
        {3, "dimension 4, not 3", {"chorale-eval", "run", "--data", "wide"}},
        {2, "nowhere", {"chorale-eval", "nowhere", "--data", "dev"}},
        {3, "job.yaml", {"chorale-eval", "run/job.yaml", "--data", "dev"}},
    };
    make_ready("");
    program_write("dev/big.ark", "utt-00 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7\n");
    program_write("dev/big.scp", "utt-00 big.ark:7\n");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        program_refuses(i, rows[i].words, rows[i].exit, rows[i].says);
}

/* ------------------------------------------------------------------ score */

/* Sums exp of every row, -log of the target's column and rows, over a table of posteriors for `dir`. */
static double cross_entropy_of(const char *rspecifier, const char *dir, size_t *rows)
{
    struct corpus *c;
    struct matrix m = {0};
    const char *id;
    double loss = 0;
    size_t u = 0;
    char *path = files_join(home.path, dir);
    assert_int_equal(corpus_open(path, "ali.scp", &CORPUS_OPTIONS_DEFAULT, &c), 0);
    struct ark_reader *r = ark_open(rspecifier, &(struct ark_options){0});
    assert_non_null(r);
    for (*rows = 0; ark_next(r, &id) == 1; u++) {
        const struct corpus_utterance *from = corpus_utterance(c, u);
        assert_string_equal(id, from->id);
        assert_int_equal(ark_next_matrix(r, &m), 0);
        assert_int_equal(m.rows, from->frames);
        assert_int_equal(m.cols, TARGETS);
        for (size_t t = 0; t < m.rows; t++) {
            double sum = 0;
            for (size_t k = 0; k < m.cols; k++) sum += exp((double)m.data[t * m.cols + k]);
            assert_true(fabs(sum - 1) < 1e-5);
            loss -= (double)m.data[t * m.cols + (size_t)from->targets[t]];
        }
        *rows += m.rows;
    }
    assert_int_equal(u, corpus_count(c));
    ark_close(&r);
    corpus_free(&c);
    matrix_fini(&m);
    free(path);
    return loss;
}

/* Both delay styles: the cross entropy of score's rows against the alignment is that of eval. Both run in
 * fp32 with another number of streams, so sums differ in the last bits: 1e-5 relative is 80 ulp. */
static void score_row_t_belongs_to_frame_t_as_in_eval(void **state)
{
    (void)state;
    static const char *const styles[] = {"", "  delay_style: kaldi\n"};
    for (size_t i = 0; i < 2; i++) {
        size_t rows;
        char *run = run_path(), *table = xprintf("ark:%s/post.ark", home.path);
        files_remove_tree(run);
        make_ready(styles[i]);
        assert_int_equal(RUN_PROGRAM("chorale-eval", "run", "--data", "train", "--json"), 0);
        json_t *j = json_loads(program_out, 0, NULL);
        double expected = json_number_value(json_object_get(j, "cross_entropy"));
        json_decref(j);
        int rc = RUN_PROGRAM("chorale", "score", "run", "scp:train/feats.scp", "ark:post.ark");
        if (rc != 0) fail_msg("score: %s", program_err);
        double got = cross_entropy_of(table, "train", &rows);
        assert_int_equal(rows, 112);
        assert_true(fabs(got / (double)rows - expected) < 1e-5 * expected);
        free(table);
        free(run);
    }
}

static void score_of_log_likelihoods_subtracts_the_log_priors(void **state)
{
    (void)state;
    struct matrix a = {0}, b = {0};
    char *path = files_join(home.path, "one.ark");
    make_ready("");
    program_write("priors", " [ 1 1 2 1 1 1 1 ]\n");
    assert_int_equal(RUN_PROGRAM("chorale-score", "run", "scp:dev/feats.scp", "ark,scp:one.ark,one.scp"), 0);
    struct ark_source from = {.location = path};
    char *location = xprintf("%s:7", path);
    from.location = location;
    assert_int_equal(ark_read_matrix(&from, &a), 0);
    assert_int_equal(RUN_PROGRAM("chorale-score", "run", "scp:dev/feats.scp", "ark:one.ark",
                                 "--log-likelihoods", "--priors", "priors"),
                     0);
    assert_int_equal(ark_read_matrix(&from, &b), 0);
    for (size_t i = 0; i < a.rows * a.cols; i++) {
        double prior = i % a.cols == 2 ? 2 / 8.0 : 1 / 8.0;
        assert_true(fabs((double)b.data[i] - ((double)a.data[i] - log(prior))) < 1e-5);
    }
    matrix_fini(&a);
    matrix_fini(&b);
    free(location);
    free(path);
}

static void score_of_bad_options_or_tables_exits_with_a_sentence_and_leaves_no_archive(void **state)
{
    (void)state;
    static const struct {
        int exit;
        const char *says, *words[9];
    } rows[] = {
        {2, "rspecifier", {"chorale-score"}},
        {2, "unknown option", {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--frob"}},
        {2, "not an rspecifier", {"chorale-score", "run", "dev/feats.scp", "ark:x"}},
        {2, "not a wspecifier", {"chorale-score", "run", "scp:dev/feats.scp", "x"}},
        {2, "not a wspecifier", {"chorale-score", "run", "scp:dev/feats.scp", "scp:x"}},
        {2, "go together", {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods"}},
        {2, "go together", {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--priors", "good"}},
        {3,
         "3 numbers",
         {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods", "--priors", "few"}},
        {3,
         "more than",
         {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods", "--priors", "many"}},
        {3,
         "not a number",
         {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods", "--priors", "bad"}},
        {3,
         "all priors are 0",
         {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods", "--priors", "zero"}},
        {3, "nothing.scp", {"chorale-score", "run", "scp:nothing.scp", "ark:x"}},
        {3, "cut.ark", {"chorale-score", "run", "ark:cut.ark", "ark:x"}},
        {5, "dimension 4, the model needs 3", {"chorale-score", "run", "scp:wide/feats.scp", "ark:x"}},
        {7, "no/x", {"chorale-score", "run", "scp:dev/feats.scp", "ark:no/x"}},
        {2, "nowhere", {"chorale-score", "nowhere", "scp:dev/feats.scp", "ark:x"}},
    };
    make_ready("");
    program_write("few", "1 2 3");
    program_write("many", "1 2 3 4 5 6 7 8");
    program_write("bad", "1 2 x");
    program_write("zero", "[ 0 0 0 0 0 0 0 ]");
    char *whole, *from = files_join(home.path, "dev/feats.ark"), *to = files_join(home.path, "cut.ark");
    size_t len;
    assert_int_equal(files_read(from, 1 << 20, &whole, &len), 0);
    assert_int_equal(files_write_atomic(to, whole, len - 20), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        program_refuses(i, rows[i].words, rows[i].exit, rows[i].says);
        assert_false(program_is_there("x"));
    }
    free(whole);
    free(from);
    free(to);
}

static void score_leaves_out_what_cannot_be_read_and_says_so(void **state)
{
    (void)state;
    make_ready("");
    char *scp = program_slurp("dev/feats.scp"), *more = xprintf("%szzz nothing.ark:5\n", scp);
    program_write("dev/more.scp", more);
    assert_int_equal(RUN_PROGRAM("chorale-score", "run", "scp:dev/more.scp", "ark:x"), 0);
    assert_non_null(strstr(program_err, "zzz left out"));
    assert_non_null(strstr(program_err, "3 utterances, 50 rows, 1 left out"));
    free(scp);
    free(more);
}

static void a_model_by_speaker_asks_score_for_its_statistics(void **state)
{
    (void)state;
    /* sums and squares of one frame of ones in every dimension: mean 1, for each utterance's own speaker */
    char *text = xprintf("[ 1 1 1 1\n 1 1 1 0 ]\n"),
         *scp = xprintf("utt-00 %s/cmvn.txt\nutt-01 %s/cmvn.txt\n"
                        "utt-02 %s/cmvn.txt\nutt-03 %s/cmvn.txt\n"
                        "utt-04 %s/cmvn.txt\n",
                        home.path, home.path, home.path, home.path, home.path);
    program_write("cmvn.txt", text);
    program_write("train/cmvn.scp", scp);
    program_write("dev/cmvn.scp", scp);
    make_ready("  normalise: speaker\n");
    program_refuses(0, (const char *const[]){"chorale-score", "run", "scp:dev/feats.scp", "ark:x", NULL}, 2,
                    "normalised by speaker");
    assert_int_equal(RUN_PROGRAM("chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--data", "dev"), 0);
    assert_int_equal(RUN_PROGRAM("chorale-eval", "run", "--data", "dev"), 0);
    free(text);
    free(scp);
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

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
        TEST(eval_counts_every_frame_and_json_says_the_same),
        TEST(eval_of_bad_options_or_data_exits_with_a_sentence),
        TEST(score_row_t_belongs_to_frame_t_as_in_eval),
        TEST(score_of_log_likelihoods_subtracts_the_log_priors),
        TEST(score_of_bad_options_or_tables_exits_with_a_sentence_and_leaves_no_archive),
        TEST(score_leaves_out_what_cannot_be_read_and_says_so),
        TEST(a_model_by_speaker_asks_score_for_its_statistics),
        TEST(help_goes_to_stdout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
