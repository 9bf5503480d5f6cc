/* chorale eval and chorale score as programs: what they compute, exit status, one sentence, nothing
 * half-written. */
#include "tests/unit/worker/tools_home.h"

#include <jansson.h>
#include <math.h>

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
    assert_int_equal(RUN_PROGRAM("chorale-eval", "run", "--data", "dev", "--silence", "0,1,2,3,4,5,6"), 0);
    assert_non_null(strstr(program_out, "without silence       none"));
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
        {2, "'1x'", {"chorale-eval", "run", "--data", "dev", "--silence", "1x"}},
        {2, "'-1'", {"chorale-eval", "run", "--data", "dev", "--silence", "-1"}},
        {2, "'1,,2'", {"chorale-eval", "run", "--data", "dev", "--silence", "1,,2"}},
        {2, "'1.5'", {"chorale-eval", "run", "--data", "dev", "--silence", "1.5"}},
        {2, "'1 2'", {"chorale-eval", "run", "--data", "dev", "--silence", "1 2"}},
        {2, "integers", {"chorale-eval", "run", "--data", "dev", "--silence", "99999999999999999999"}},
        {2, "name one run", {"chorale-eval", "run", "run", "--data", "dev"}},
        {2, "name one run", {"chorale-eval", "", "--data", "dev"}},
        {2, "name the data", {"chorale-eval", "run", "--data", ""}},
        {2, "names no file", {"chorale-eval", "run", "--data", "dev", "--targets", ""}},
        {2, "'-xy'", {"chorale-eval", "run", "--data", "dev", "-xy"}},
        {2, "'--json=yes'", {"chorale-eval", "run", "--data", "dev", "--json=yes"}},
        {2, "no model yet", {"chorale-eval", "dev", "--data", "dev"}},
        {3, "not a data directory", {"chorale-eval", "run", "--data", "nowhere"}},
        {3, "not a data directory", {"chorale-eval", "run", "--data", "dev/feats.scp"}},
        {3, "feats.scp is empty", {"chorale-eval", "run", "--data", "empty"}},
        {3, "ali.scp", {"chorale-eval", "run", "--data", "bare"}},
        {3, "is a folder", {"chorale-eval", "run", "--data", "dev", "--targets", "train"}},
        {3, "no usable", {"chorale-eval", "run", "--data", "dev", "--targets", "feats.scp"}},
        {3, "no alignment", {"chorale-eval", "run", "--data", "dev", "--targets", "/dev/null"}},
        {3, "none.scp", {"chorale-eval", "run", "--data", "dev", "--targets", "none.scp"}},
        {3, "no usable", {"chorale-eval", "run", "--data", "dev", "--targets", "big.scp"}},
        {3, "dimension 4, not 3", {"chorale-eval", "run", "--data", "wide"}},
        {2, "nowhere", {"chorale-eval", "nowhere", "--data", "dev"}},
        {3, "a file of another kind", {"chorale-eval", "run/job.yaml", "--data", "dev"}},
        {3, "format chorale-model", {"chorale-eval", "run/model.safetensors", "--data", "dev"}},
    };
    make_ready("");
    program_write("empty/feats.scp", "");
    program_write("empty/ali.scp", "");
    char *feats = program_slurp("dev/feats.scp");
    program_write("bare/feats.scp", feats);
    free(feats);
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
        {2, "name a run", {"chorale-score", "run", "scp:dev/feats.scp"}},
        {2, "name a run", {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "y"}},
        {2, "name a run", {"chorale-score", "", "scp:dev/feats.scp", "ark:x"}},
        {2, "'-xy'", {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "-xy"}},
        {2, "names no file", {"chorale-score", "run", "scp:", "ark:x"}},
        {2, "no rspecifier", {"chorale-score", "run", "scp,y:dev/feats.scp", "ark:x"}},
        {2, "names no file", {"chorale-score", "run", "scp:dev/feats.scp", "ark:"}},
        {2, "no wspecifier", {"chorale-score", "run", "scp:dev/feats.scp", "ark,y:x"}},
        {2, "needs two files", {"chorale-score", "run", "scp:dev/feats.scp", "ark,scp:x"}},
        {2, "both are to be 'x'", {"chorale-score", "run", "scp:dev/feats.scp", "ark,scp:x,x"}},
        {2, "--data wants", {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--data", ""}},
        {2,
         "--priors wants",
         {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods", "--priors", ""}},
        {3, "nowhere is not", {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--data", "nowhere"}},
        {3,
         "open nothing",
         {"chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods", "--priors", "nothing"}},
        {3, "has no utterances", {"chorale-score", "run", "scp:/dev/null", "ark:x"}},
        {3, "has no utterances", {"chorale-score", "run", "ark:/dev/null", "ark:x"}},
        {3, "run that command", {"chorale-score", "run", "ark:false |", "ark:x"}},
        {3, "is it an archive", {"chorale-score", "run", "scp:dev/feats.ark", "ark:x"}},
        {3, "neither", {"chorale-score", "run", "ark:dev/feats.scp", "ark:x"}},
        {3, "is a folder", {"chorale-score", "run", "scp:dev", "ark:x"}},
        {7, "Is a directory", {"chorale-score", "run", "scp:dev/feats.scp", "ark:train"}},
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

/* Each of seven targets has a number, and one of them is this. */
static void priors_are_decimal_numbers_that_are_not_negative(void **state)
{
    (void)state;
    static const char *const bad[] = {"-1",  "1x",  "0x10", "nan", "inf", "1e308",
                                      "1,1", "1-1", "#",    "+-1", "."};
    static const char *const good[] = {"0", "1", "+1", "1e3", "0.25", ".5", "1E-4"};
    make_ready("");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0] + sizeof good / sizeof good[0]; i++) {
        bool is_bad = i < sizeof bad / sizeof bad[0];
        const char *word = is_bad ? bad[i] : good[i - sizeof bad / sizeof bad[0]];
        char *text = xprintf("[ 1 2 %s 4 5 6 7 ]\n", word), *says = xprintf("'%s' is not a number", word);
        const char *const words[] = {
            "chorale-score", "run", "scp:dev/feats.scp", "ark:x", "--log-likelihoods", "--priors",
            "prior",         NULL};
        program_write("prior", text);
        if (is_bad)
            program_refuses(i, words, 3, says);
        else if (program_run(words) != 0)
            fail_msg("'%s': %s", word, program_err);
        free(says);
        free(text);
    }
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(eval_counts_every_frame_and_json_says_the_same),
        TEST(eval_of_bad_options_or_data_exits_with_a_sentence),
        TEST(score_row_t_belongs_to_frame_t_as_in_eval),
        TEST(score_of_log_likelihoods_subtracts_the_log_priors),
        TEST(score_of_bad_options_or_tables_exits_with_a_sentence_and_leaves_no_archive),
        TEST(priors_are_decimal_numbers_that_are_not_negative),
        TEST(score_leaves_out_what_cannot_be_read_and_says_so),
        TEST(a_model_by_speaker_asks_score_for_its_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
