/* From frames to inputs: normalisation, stacking, skipping, target delay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/rng.h"
#include "tests/unit/worker/data_dir.h"
#include "worker/data/feats.h"
#include "worker/data/utterance.h"

#include <math.h>

static struct data_dir dir;
static const size_t frames[3] = {10, 7, 8};

static int set_up(void **state)
{
    (void)state;
    data_dir_make(&dir);
    data_dir_corpus(&dir, 3, frames, 4);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    data_dir_remove(&dir);
    return 0;
}

static struct corpus *open_corpus(const char *targets)
{
    struct corpus_options o = CORPUS_OPTIONS_DEFAULT;
    struct corpus *c = NULL;
    assert_int_equal(corpus_open(dir.path, targets, &o, &c), 0);
    return c;
}

static void test_repeat_delay_runs_n_plus_delay_inputs_and_repeats_the_last_frame(void **state)
{
    (void)state;
    struct frontend f = {.dim = 1, .delay = 2, .delay_style = DELAY_REPEAT};
    const float x[3] = {10, 11, 12}, expected[5] = {10, 11, 12, 12, 12};
    const int32_t target[3] = {5, 6, 7}, delayed[5] = {-1, -1, 5, 6, 7};
    float out[5];
    int32_t out_target[5];
    assert_int_equal(feats_inputs(&f, 3), 5);
    assert_int_equal(feats_labelled(&f, 3), 3);
    feats_compose(&f, x, 3, out);
    feats_targets(&f, target, 3, out_target);
    assert_memory_equal(out, expected, sizeof out);
    assert_memory_equal(out_target, delayed, sizeof delayed);
    assert_int_equal(feats_inputs(&f, 0), 0);
}

static void test_kaldi_delay_feeds_the_frame_ahead_with_the_target_of_now(void **state)
{
    (void)state;
    struct frontend f = {.dim = 1, .delay = 2, .delay_style = DELAY_KALDI};
    const float x[4] = {10, 11, 12, 13}, expected[4] = {12, 13, 13, 13};
    const int32_t target[4] = {5, 6, 7, 8};
    float out[4];
    int32_t out_target[4];
    assert_int_equal(feats_inputs(&f, 4), 4);
    feats_compose(&f, x, 4, out);
    feats_targets(&f, target, 4, out_target);
    assert_memory_equal(out, expected, sizeof out);
    assert_memory_equal(out_target, target, sizeof target);
    f.delay = 9; /* beyond the utterance: the last frame */
    feats_compose(&f, x, 4, out);
    assert_true(out[0] == 13.0f && out[3] == 13.0f);
}

static void test_stacking_and_skipping_take_matching_targets(void **state)
{
    (void)state;
    struct frontend f = {.dim = 2, .stack = 3, .skip = 2, .delay = 1};
    const float x[10] = {0, 0.5f, 1, 1.5f, 2, 2.5f, 3, 3.5f, 4, 4.5f};
    /* frames 0 1 2 | 2 3 4 | 4 4 4, and the last input once more for the delay */
    const float expected[24] = {0, 0.5f, 1, 1.5f, 2, 2.5f, 2, 2.5f, 3, 3.5f, 4, 4.5f,
                                4, 4.5f, 4, 4.5f, 4, 4.5f, 4, 4.5f, 4, 4.5f, 4, 4.5f};
    const int32_t target[5] = {10, 11, 12, 13, 14}, delayed[4] = {-1, 10, 12, 14};
    float out[24];
    int32_t out_target[4];
    assert_int_equal(feats_input_dim(&f), 6);
    assert_int_equal(feats_inputs(&f, 5), 4);
    feats_compose(&f, x, 5, out);
    feats_targets(&f, target, 5, out_target);
    assert_memory_equal(out, expected, sizeof out);
    assert_memory_equal(out_target, delayed, sizeof delayed);
    feats_targets(&f, NULL, 5, out_target);
    for (int t = 0; t < 4; t++) assert_int_equal(out_target[t], -1);
}

static void test_every_row_obeys_the_formula_for_random_shapes(void **state)
{
    (void)state;
    struct rng rng;
    uint64_t seed = 77;
    print_message("seed %llu\n", (unsigned long long)seed);
    rng_init(&rng, seed);
    for (int round = 0; round < 500; round++) {
        struct frontend f = {.dim = 1 + (uint32_t)rng_below(&rng, 3),
                             .stack = (uint32_t)rng_below(&rng, 5),
                             .skip = (uint32_t)rng_below(&rng, 4),
                             .delay = (uint32_t)rng_below(&rng, 7),
                             .delay_style = rng_below(&rng, 2) ? DELAY_KALDI : DELAY_REPEAT};
        uint32_t n = 1 + (uint32_t)rng_below(&rng, 20), stack = f.stack ? f.stack : 1,
                 skip = f.skip ? f.skip : 1;
        uint32_t inputs = feats_inputs(&f, n), dim = feats_input_dim(&f), labelled = (n + skip - 1) / skip,
                 count = 0;
        float x[60], *out = xcalloc((size_t)inputs * dim, sizeof *out);
        int32_t target[20], *out_target = xcalloc(inputs, sizeof *out_target);
        for (uint32_t i = 0; i < n * f.dim; i++) x[i] = (float)i;
        for (uint32_t t = 0; t < n; t++) target[t] = (int32_t)t;
        feats_compose(&f, x, n, out);
        feats_targets(&f, target, n, out_target);
        for (uint32_t t = 0; t < inputs; t++) {
            uint32_t ahead = f.delay_style == DELAY_KALDI ? f.delay : 0,
                     b = t + ahead < labelled ? t + ahead : labelled - 1;
            for (uint32_t k = 0; k < stack; k++) {
                uint32_t frame = b * skip + k < n ? b * skip + k : n - 1;
                for (uint32_t d = 0; d < f.dim; d++)
                    assert_true(out[t * dim + k * f.dim + d] == (float)(frame * f.dim + d));
            }
            count += out_target[t] >= 0;
        }
        assert_int_equal(count, labelled);
        free(out);
        free(out_target);
    }
}

static void test_global_statistics_give_mean_0_and_deviation_1(void **state)
{
    (void)state;
    struct corpus *c = open_corpus(NULL);
    struct normaliser n;
    size_t skipped = 99;
    assert_int_equal(feats_global_stats(c, &n, &skipped), 0);
    assert_int_equal(skipped, 0);
    assert_int_equal(n.dim, 4);
    struct frontend f = {.dim = 4, .normaliser = &n};
    struct utterance *u = utterance_new();
    double sum[4] = {0}, square[4] = {0}, total = 0;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(utterance_load(c, i, &f, u), 0);
        assert_int_equal(u->frames, frames[i]);
        total += u->frames;
        for (size_t t = 0; t < u->frames; t++)
            for (size_t k = 0; k < 4; k++) {
                sum[k] += (double)u->x[t * 4 + k];
                square[k] += (double)u->x[t * 4 + k] * (double)u->x[t * 4 + k];
            }
    }
    /* float mean and scale: relative error 6e-8 of values up to 1.5 deviations */
    for (int k = 0; k < 4; k++) {
        assert_true(fabs(sum[k] / total) < 1e-6);
        assert_true(fabs(square[k] / total - 1.0) < 1e-6);
    }
    utterance_free(&u);
    normaliser_fini(&n);
    corpus_free(&c);
}

static void test_a_constant_dimension_keeps_scale_1_and_far_means_keep_their_digits(void **state)
{
    (void)state;
    data_dir_print(&dir, "m.txt", "a  [\n 1000000 3\n 1000001 3\n 1000002 3 ]\n");
    data_dir_print(&dir, "feats.scp", "a m.txt:3\n");
    struct corpus *c = open_corpus(NULL);
    struct normaliser n;
    assert_int_equal(feats_global_stats(c, &n, NULL), 0);
    assert_true(n.mean[0] == 1000001.0f && n.mean[1] == 3.0f);
    assert_true(fabs((double)n.scale[0] - 1.0 / sqrt(2.0 / 3.0)) < 1e-6);
    assert_true(n.scale[1] == 1.0f);
    normaliser_fini(&n);
    corpus_free(&c);
}

static void test_speaker_statistics_are_sums_counts_and_squares(void **state)
{
    (void)state;
    data_dir_print(&dir, "utt2spk", "utt-00 anna\nutt-01 bert\nutt-02 anna\n");
    /* count 4: means 2 and -1, variances 4 and 0.25; bert has means alone */
    data_dir_print(&dir, "cmvn.ark", "anna  [\n 8 -4 0 0 4\n 32 5 4 4 0 ]\nbert  [\n 1 2 3 4 2 ]\n");
    data_dir_print(&dir, "cmvn.scp", "anna cmvn.ark:5\nbert cmvn.ark:39\n");
    struct corpus *c = open_corpus(NULL);
    struct speaker_stats s;
    assert_int_equal(feats_speaker_stats(c, false, NULL, &s), 0);
    uint32_t anna = corpus_utterance(c, 2)->speaker, bert = corpus_utterance(c, 1)->speaker;
    assert_true(s.of[anna].mean[0] == 2.0f && s.of[anna].mean[1] == -1.0f && s.of[anna].scale[0] == 1.0f);
    assert_true(s.of[bert].mean[0] == 0.5f && s.of[bert].mean[3] == 2.0f);
    struct frontend f = {.dim = 4, .speakers = &s};
    struct utterance *u = utterance_new();
    assert_int_equal(utterance_load(c, 1, &f, u), 0);
    assert_true(u->x[0] == data_dir_value(1, 0, 0) - 0.5f);
    utterance_free(&u);
    speaker_stats_fini(&s);

    assert_int_equal(feats_speaker_stats(c, true, NULL, &s), ERR_DATA);
    assert_non_null(strstr(err_text(), "bert"));
    struct corpus_report *r = xcalloc(1, sizeof *r);
    assert_int_equal(feats_speaker_stats(c, true, r, &s), 0);
    assert_int_equal(r->count[CORPUS_SPEAKER_STATS], 1);
    assert_true(s.of[anna].scale[0] == 0.5f && s.of[anna].scale[1] == 2.0f && s.of[bert].scale[0] == 1.0f);
    speaker_stats_fini(&s);
    data_dir_print(&dir, "cmvn.scp", "anna cmvn.ark:5\n");
    assert_int_equal(feats_speaker_stats(c, false, NULL, &s), ERR_DATA);
    assert_non_null(strstr(err_text(), "no statistics for the speaker bert"));
    free(r);
    corpus_free(&c);
}

static void test_a_loaded_utterance_is_the_whole_front_end_and_reuses_its_buffers(void **state)
{
    (void)state;
    struct corpus *c = open_corpus("ali.scp");
    struct normaliser n;
    normaliser_init(&n, 4);
    n.mean[1] = 1.0f;
    n.scale[1] = 2.0f;
    struct frontend f = {.dim = 4, .stack = 2, .skip = 2, .delay = 3, .normaliser = &n};
    struct utterance *u = utterance_new();
    assert_int_equal(utterance_load(c, 0, &f, u), 0);
    assert_int_equal(u->frames, 5 + 3);
    assert_int_equal(u->labelled, 5);
    assert_int_equal(u->dim, 8);
    assert_true(u->x[8 + 1] == (data_dir_value(0, 2, 1) - 1.0f) * 2.0f);
    assert_int_equal(u->target[3 + 2], 4);
    const float *x = u->x;
    const int32_t *target = u->target;
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < 3; i++) assert_int_equal(utterance_load(c, i, &f, u), 0);
    assert_ptr_equal(u->x, x);
    assert_ptr_equal(u->target, target);
    utterance_free(&u);
    normaliser_fini(&n);
    corpus_free(&c);
}

#define EACH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_repeat_delay_runs_n_plus_delay_inputs_and_repeats_the_last_frame),
        EACH(test_kaldi_delay_feeds_the_frame_ahead_with_the_target_of_now),
        EACH(test_stacking_and_skipping_take_matching_targets),
        EACH(test_every_row_obeys_the_formula_for_random_shapes),
        EACH(test_global_statistics_give_mean_0_and_deviation_1),
        EACH(test_a_constant_dimension_keeps_scale_1_and_far_means_keep_their_digits),
        EACH(test_speaker_statistics_are_sums_counts_and_squares),
        EACH(test_a_loaded_utterance_is_the_whole_front_end_and_reuses_its_buffers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
