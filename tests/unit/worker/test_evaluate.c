#include "tests/unit/worker/data_dir.h"
#include "worker/data/utterance.h"
#include "worker/evaluate.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/net.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define N       9
#define DIM     3
#define TARGETS 7

struct bed {
    struct data_dir dir;
    struct facts facts;
    struct job_data *data;
    float *params;
};

static int setup(void **state)
{
    struct bed *b = xcalloc(1, sizeof *b);
    size_t frames[N];
    for (size_t i = 0; i < N; i++) frames[i] = 4 + i * 5 % 13;
    data_dir_make(&b->dir);
    data_dir_corpus(&b->dir, N, frames, DIM);
    struct model_spec s = {.type = MODEL_LSTMP,
                           .input = DIM,
                           .feature_dim = DIM,
                           .targets = TARGETS,
                           .num_layers = 1,
                           .layers = {{8, 4, 0}},
                           .peepholes = true,
                           .cell_clip = 50,
                           .stack = 1,
                           .skip = 1,
                           .delay = 2};
    assert_int_equal(model_build(&s, &b->facts.model), 0);
    b->facts.mean = xcalloc(DIM, sizeof(float));
    b->facts.scale = xcalloc(DIM, sizeof(float));
    for (int k = 0; k < DIM; k++) {
        b->facts.mean[k] = 400;
        b->facts.scale[k] = 0.01f;
    }
    b->params = xaligned(b->facts.model.params * sizeof(float));
    model_init(&b->facts.model, &(struct model_init_options){.range = 0.8f, .seed = 3}, b->params);
    struct job_data_options o = {.length_tolerance = 5};
    assert_int_equal(job_open_data(&b->facts, b->dir.path, "ali.scp", &o, &b->data), 0);
    blas_use_one_thread();
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct bed *b = *state;
    job_close_data(&b->data);
    facts_fini(&b->facts);
    free(b->params);
    data_dir_remove(&b->dir);
    free(b);
    return 0;
}

static struct evaluation run(const struct bed *b, struct evaluate_options o, uint32_t begin, uint32_t end)
{
    struct evaluation out;
    struct evaluate *e = evaluate_new(&b->facts.model, b->data, &o);
    evaluate_range(e, b->params, begin, end, &out);
    evaluate_free(&e);
    return out;
}

/* The whole utterance in one window of one stream: what evaluation means. */
static void reference(const struct bed *b, size_t index, const int32_t *silence, struct evaluation *sum)
{
    struct utterance *u = utterance_new();
    assert_int_equal(utterance_load(b->data->corpus, index, &b->data->frontend, u), 0);
    struct net *n = net_new(&b->facts.model, &(struct net_options){.window = (int)u->frames, .streams = 1});
    uint8_t *reset = xcalloc(u->frames, 1);
    reset[0] = 1;
    struct net_result r;
    net_forward(n, b->params, u->x, reset, u->target, &r);
    sum->loss += r.loss;
    sum->frames += r.frames;
    sum->correct += r.correct;
    const float *y = net_log_posteriors(n);
    for (uint32_t t = 0; t < u->frames; t++) {
        if (u->target[t] < 0 || u->target[t] == silence[0] || u->target[t] == silence[1]) continue;
        int best = 0;
        for (int k = 1; k < TARGETS; k++)
            if (y[t * TARGETS + (uint32_t)k] > y[t * TARGETS + (uint32_t)best]) best = k;
        sum->speech_frames++;
        sum->speech_correct += best == u->target[t];
    }
    free(reset);
    net_free(&n);
    utterance_free(&u);
}

static void test_evaluation_equals_every_utterance_run_whole_from_zero_state(void **state)
{
    const struct bed *b = *state;
    const int32_t silence[2] = {0, 4};
    struct evaluation want = {0};
    for (size_t i = 0; i < N; i++) reference(b, i, silence, &want);
    for (int streams = 1; streams < 6; streams += 2) {
        struct evaluate_options o = {.window = 4, .streams = streams, .silence = silence, .num_silence = 2};
        struct evaluation got = run(b, o, 0, N);
        assert_int_equal(got.frames, corpus_frames(b->data->corpus));
        assert_int_equal(got.frames, want.frames);
        /* fp32 products in another order: relative 1e-6 a frame, a sum of positive terms keeps it */
        assert_true(fabs(got.loss - want.loss) <= 1e-5 * want.loss);
        assert_int_equal(got.correct, want.correct);
        assert_int_equal(got.speech_frames, want.speech_frames);
        assert_int_equal(got.speech_correct, want.speech_correct);
        assert_true(got.speech_frames < got.frames && got.failed == 0);
    }
}

static void test_a_range_gives_the_same_bits_whatever_was_evaluated_before(void **state)
{
    const struct bed *b = *state;
    struct evaluate_options o = {.window = 4, .streams = 3};
    struct evaluation fresh = run(b, o, 3, 8), used, other;
    struct evaluate *e = evaluate_new(&b->facts.model, b->data, &o);
    evaluate_range(e, b->params, 0, 7, &other);
    evaluate_range(e, b->params, 3, 8, &used);
    evaluate_free(&e);
    assert_true(fresh.loss == used.loss && fresh.frames == used.frames && fresh.correct == used.correct);
    assert_true(other.frames != used.frames);
}

static void test_without_a_list_of_silence_every_frame_is_speech(void **state)
{
    struct evaluation e = run(*state, (struct evaluate_options){.window = 4, .streams = 2}, 0, N);
    assert_true(e.speech_frames == e.frames && e.speech_correct == e.correct && e.frames > 0);
}

static void test_an_empty_range_sums_to_nothing(void **state)
{
    struct evaluation e = run(*state, (struct evaluate_options){.window = 4, .streams = 2}, 5, 5);
    assert_true(e.frames == 0 && e.loss == 0 && e.failed == 0);
}

static void test_utterances_that_cannot_be_read_are_counted(void **state)
{
    const struct bed *b = *state;
    struct {
        char *bytes;
        size_t len;
    } f;
    struct data_dir d = b->dir;
    struct evaluation all = run(b, (struct evaluate_options){.window = 4, .streams = 2}, 0, N);
    assert_int_equal(files_read(data_dir_file(&d, "feats.ark"), 1 << 20, &f.bytes, &f.len), 0);
    data_dir_put(&d, "feats.ark", f.bytes, f.len - 4); /* the last matrix is cut */
    struct evaluation e = run(b, (struct evaluate_options){.window = 4, .streams = 2}, 0, N);
    assert_int_equal(e.failed, 1);
    assert_int_equal(e.frames, all.frames - corpus_utterance(b->data->corpus, N - 1)->frames);
    free(f.bytes);
}

static void test_data_of_another_dimension_is_refused(void **state)
{
    struct bed *b = *state;
    struct job_data_options o = {.length_tolerance = 5};
    struct job_data *d = NULL;
    b->facts.model.spec.feature_dim = DIM + 1;
    assert_true(job_open_data(&b->facts, b->dir.path, "ali.scp", &o, &d) < 0);
    assert_null(d);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_evaluation_equals_every_utterance_run_whole_from_zero_state),
        TEST(test_a_range_gives_the_same_bits_whatever_was_evaluated_before),
        TEST(test_without_a_list_of_silence_every_frame_is_speech),
        TEST(test_an_empty_range_sums_to_nothing),
        TEST(test_utterances_that_cannot_be_read_are_counted),
        TEST(test_data_of_another_dimension_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
