/* The maths and the importer against what Kaldi's own nnet1 programs wrote (shared/golden/kaldi-nnet1). */
#include "common/files.h"
#include "tests/unit/worker/nnet_cases.h"
#include "worker/tools/import_nnet1.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <cmocka.h>

#define MAX_UTTERANCES 16

static char *golden_file(const char *net, const char *name)
{
    const char *shared = getenv("CHORALE_SHARED");
    return xprintf("%s/golden/kaldi-nnet1/%s/%s", shared ? shared : "../shared", net, name);
}

static void skip_without_shared(void)
{
    char *path = golden_file("lstm1", "model.bin");
    bool is_there = files_exists(path);
    if (!is_there) print_message("skipped: no %s; set CHORALE_SHARED\n", path);
    free(path);
    if (!is_there) skip();
}

/* Binary float matrices, or text posteriors "utt [ pdf 1 ] ..." with one column. */
struct archive {
    size_t count;
    struct {
        size_t rows, cols;
        float *values;
    } utt[MAX_UTTERANCES];
};

static void archive_free(struct archive *a)
{
    for (size_t u = 0; u < a->count; u++) free(a->utt[u].values);
    free(a);
}

static struct archive *read_ark(const char *net, const char *name)
{
    char *path = golden_file(net, name), *bytes;
    size_t len;
    assert_int_equal(files_read(path, 1 << 24, &bytes, &len), 0);
    struct archive *a = xcalloc(1, sizeof *a);
    for (const char *p = bytes; p < bytes + len;) {
        assert_true(a->count < MAX_UTTERANCES);
        p = strchr(p, ' ') + 1;
        assert_memory_equal(p, "\0BFM \4", 6);
        int32_t rows, cols;
        memcpy(&rows, p + 6, 4);
        memcpy(&cols, p + 11, 4);
        size_t n = (size_t)rows * (size_t)cols;
        float *values = xcalloc(n, sizeof *values);
        memcpy(values, p + 15, n * sizeof *values);
        p += 15 + n * sizeof *values;
        a->utt[a->count].rows = (size_t)rows;
        a->utt[a->count].cols = (size_t)cols;
        a->utt[a->count++].values = values;
    }
    free(bytes);
    free(path);
    return a;
}

static struct archive *read_targets(const char *net, const char *name)
{
    char *path = golden_file(net, name), *text;
    assert_int_equal(files_read(path, 1 << 24, &text, NULL), 0);
    struct archive *a = xcalloc(1, sizeof *a);
    for (char *keep = NULL, *line = strtok_r(text, "\n", &keep); line; line = strtok_r(NULL, "\n", &keep)) {
        assert_true(a->count < MAX_UTTERANCES);
        float *values = xcalloc(strlen(line), sizeof *values);
        size_t rows = 0;
        for (const char *p = line; (p = strchr(p, '[')); rows++) values[rows] = (float)atoi(++p);
        a->utt[a->count].rows = rows;
        a->utt[a->count].cols = 1;
        a->utt[a->count++].values = values;
    }
    free(text);
    free(path);
    return a;
}

static float *import(const char *net, const char *name, struct model *m, float *diff_clip)
{
    char *path = golden_file(net, name);
    float *vector;
    if (import_nnet1(path, m, &vector, diff_clip)) fail_msg("%s", err_text());
    free(path);
    return vector;
}

/* Posteriors of one utterance from zero state, as nnet-forward. */
static void check_forward(const struct model *m, enum plan_level level, const float *params,
                          const struct archive *feats, const struct archive *posts, size_t u, double bound)
{
    size_t rows = feats->utt[u].rows, n = rows * m->spec.targets;
    struct net_options o = {.window = (int)rows, .streams = 1, .level = level};
    struct net *net = net_new(m, &o);
    struct window_data w = {rows, 1, feats->utt[u].values, xcalloc(rows, sizeof(int32_t)), xcalloc(rows, 1)};
    run_window(net, params, &w, NULL);
    const float *log_post = net_log_posteriors(net), *want = posts->utt[u].values;
    assert_int_equal(posts->utt[u].rows * posts->utt[u].cols, n);
    double worst = 0;
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs(exp((double)log_post[i]) - (double)want[i]) / (double)want[i]);
    if (!(worst <= bound)) fail_msg("utterance %zu: relative error %.3g > %.3g", u, worst, bound);
    free(w.target);
    free(w.reset);
    net_free(&net);
}

/* Rule: posteriors agree with nnet-forward within 3e-6 relative, from the binary and the text model. */
static void posteriors_agree_with_nnet_forward(void **state)
{
    (void)state;
    skip_without_shared();
    static const struct {
        const char *net, *model, *feats, *posts;
    } cases[] = {{"lstm1", "model.bin", "feats.ark", "post.ark"},
                 {"lstm1", "model.bin", "feats_multi.ark", "post_multi.ark"},
                 {"lstm1", "model.txt", "feats.ark", "post_fromtext.ark"},
                 {"lstm2", "model.bin", "feats.ark", "post.ark"},
                 {"lstm2", "model.bin", "feats_multi.ark", "post_multi.ark"},
                 {"lstm2", "model.txt", "feats.ark", "post_fromtext.ark"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model m;
        float *params = import(cases[i].net, cases[i].model, &m, NULL);
        struct archive *feats = read_ark(cases[i].net, cases[i].feats),
                       *posts = read_ark(cases[i].net, cases[i].posts);
        assert_int_equal(feats->count, posts->count);
        EACH_LEVEL(level)
        for (size_t u = 0; u < feats->count; u++) check_forward(&m, level, params, feats, posts, u, 3e-6);
        archive_free(feats);
        archive_free(posts);
        free(params);
        model_fini(&m);
    }
}

/* Rule: the text and the binary file are the same model within the 7 digits of the text. */
static void text_and_binary_models_agree(void **state)
{
    (void)state;
    skip_without_shared();
    static const char *const nets[] = {"lstm1", "lstm2"};
    for (size_t k = 0; k < 2; k++) {
        struct model text, binary;
        float clip_text, clip_binary, *a = import(nets[k], "model.txt", &text, &clip_text),
                                      *b = import(nets[k], "model.bin", &binary, &clip_binary);
        assert_memory_equal(&text.spec, &binary.spec, sizeof text.spec);
        assert_true(clip_text == 1 && clip_binary == 1 && text.spec.cell_clip == 50);
        double worst = 0;
        for (size_t i = 0; i < text.params; i++)
            worst = fmax(worst, fabs((double)a[i] - (double)b[i]) / fabs((double)b[i]));
        print_message("%s: text against binary %.2g\n", nets[k], worst);
        assert_true(worst <= 5.6e-7); /* half of the seventh digit, and the rounding of a float */
        free(a);
        free(b);
        model_fini(&text);
        model_fini(&binary);
    }
}

/* Kaldi's `one` case: one window of T frames of all utterances as streams, rate 1, so gradient = before -
 * after. */
static void check_one_window(const char *net_name, enum plan_level level, size_t frames,
                             double loss_per_frame)
{
    struct model m, after_m;
    float diff_clip, *before = import(net_name, "model.bin", &m, &diff_clip),
                     *after = import(net_name, "after_one.bin", &after_m, NULL);
    struct archive *feats = read_ark(net_name, "feats_one.ark"),
                   *targets = read_targets(net_name, "targets_one.txt");
    size_t streams = feats->count, dim = m.spec.input;
    struct window_data w = window_new(frames, streams, dim);
    for (size_t s = 0; s < streams; s++) {
        assert_int_equal(feats->utt[s].rows, frames);
        for (size_t t = 0; t < frames; t++) {
            memcpy(w.x + (t * streams + s) * dim, feats->utt[s].values + t * dim, dim * sizeof *w.x);
            w.target[t * streams + s] = (int32_t)targets->utt[s].values[t];
        }
    }
    struct net_options o = {.window = (int)frames,
                            .streams = (int)streams,
                            .gate_delta_clip = diff_clip,
                            .trains = true,
                            .level = level};
    struct net *net = net_new(&m, &o);
    float *grad = new_reals(m.params), *want = new_reals(m.params);
    struct net_result result = run_window(net, before, &w, grad);
    for (size_t i = 0; i < m.params; i++) want[i] = before[i] - after[i];
    assert_true(fabs(result.loss / (double)result.frames - loss_per_frame) <
                6e-6 * loss_per_frame); /* 6 digits */
    for (size_t i = 0; i < m.num_tensors; i++) {
        const struct tensor *t = &m.tensors[i];
        double d = distance(grad + t->offset, want + t->offset, (size_t)t->rows * t->cols);
        print_message("%s %s %s: %.2g\n", plan_level_name(level), net_name, t->name, d);
        assert_true(d <= 2e-4);
    }
    net_free(&net);
    window_free(&w);
    archive_free(feats);
    archive_free(targets);
    free(before);
    free(after);
    free(grad);
    free(want);
    model_fini(&m);
    model_fini(&after_m);
}

/* Rule: the gradient of one window agrees with what nnet-train-multistream did, within 2e-4 relative per
 * tensor. The difference of two float models has an error of about 6e-8 of a weight, so small gradients have
 * few digits. */
static void one_window_gradients_agree_with_kaldi(void **state)
{
    (void)state;
    skip_without_shared();
    EACH_LEVEL(level)
    {
        check_one_window("lstm1", level, 5, 1.76475);
        check_one_window("lstm2", level, 20, 2.50377);
    }
}

static char *write_file(const char *dir, const char *bytes, size_t len)
{
    char *path = files_join(dir, "model");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
    return path;
}

/* A small net of the text format, with its first LSTM option and its last component given. */
static char *text_model(const char *option, const char *matrix, const char *last)
{
    return xprintf("<Nnet>\n<LstmProjected> 1 1\n<CellDim> 1 %s [\n %s ]\n [ 1\n 2\n 3\n 4 ]\n [ 1 2 3 4 ]\n "
                   "[ 5 ]\n [ 6 ]\n"
                   " [ 7 ]\n [ 8 ]\n<!EndOfComponent>\n<AffineTransform> 2 1\n [ 1\n 2 ]\n [ 3 4 "
                   "]\n<!EndOfComponent>\n%s"
                   "</Nnet>\n",
                   option, matrix, last);
}

/* Rule: a file that is cut at any byte, garbled or of another kind is refused with a sentence, never read in
 * part. */
static void damaged_models_are_refused(void **state)
{
    (void)state;
    char dir[] = "/tmp/chorale-nnet1-XXXXXX";
    assert_non_null(mkdtemp(dir));
    static const struct {
        const char *option, *matrix, *last;
        int err;
    } cases[] = {
        {"<CellClip> 50", "1\n2\n3\n4", "", 0},
        {"<CellClip> 50", "1\n2\n3\n4", "<Softmax> 2 2\n<!EndOfComponent>\n", 0},
        {"<CellClip> 50", "1 2 3", "", ERR_DATA},
        {"<CellClip> 50", "1 2 3 4 5", "", ERR_DATA},
        {"<CellClip> 50", "1 2 nan 4", "", ERR_DATA},
        {"<CellClip> x", "1 2 3 4", "", ERR_DATA},
        {"<Dropout> 1", "1 2 3 4", "", ERR_DATA},
        {"<CellDim> 999999999", "1 2 3 4", "", ERR_DATA},
        {"<CellDim> 200000", "1 2 3 4", "", ERR_DATA},
        {"", "1 2 3 4", "<Softmax> 3 3\n<!EndOfComponent>\n", ERR_DATA},
        {"", "1 2 3 4", "<Sigmoid> 2 2\n<!EndOfComponent>\n", ERR_DATA},
        {"", "1 2 3 4", "<Softmax> 2 2\n<!EndOfComponent>\n<Softmax> 2 2\n<!EndOfComponent>\n", ERR_DATA},
    };
    struct model m;
    float *vector;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = text_model(cases[i].option, cases[i].matrix, cases[i].last);
        char *path = write_file(dir, text, strlen(text));
        int err = import_nnet1(path, &m, &vector, NULL);
        if (err != cases[i].err) fail_msg("case %zu: %d, %s", i, err, err_text());
        if (!err) {
            assert_int_equal(m.params, 20);
            assert_true(vector[0] == 1 && vector[15] == 8 && vector[19] == 4);
            free(vector);
            model_fini(&m);
        }
        free(text);
        free(path);
    }
    char *whole = text_model("<CellClip> 50", "1 2 3 4", ""), *path = NULL;
    for (size_t len = 0; len + 1 < strlen(whole); len++) {
        free(path);
        path = write_file(dir, whole, len);
        assert_int_equal(import_nnet1(path, &m, &vector, NULL), ERR_DATA);
    }
    free(path);
    free(whole);
    files_remove_tree(dir);
}

/* Rule: the same of a binary file, cut anywhere or with any one byte changed: refused or read, never a crash.
 */
static void damaged_binary_models_never_crash(void **state)
{
    (void)state;
    skip_without_shared();
    char dir[] = "/tmp/chorale-nnet1-XXXXXX", *bytes, *source = golden_file("lstm1", "model.bin");
    assert_non_null(mkdtemp(dir));
    size_t len;
    assert_int_equal(files_read(source, 1 << 20, &bytes, &len), 0);
    struct model m;
    float *vector;
    for (size_t cut = 0; cut + 1 < len; cut += 7) {
        char *path = write_file(dir, bytes, cut);
        assert_int_equal(import_nnet1(path, &m, &vector, NULL), ERR_DATA);
        free(path);
    }
    for (size_t i = 0; i < len; i += i < 200 ? 1 : 13) {
        bytes[i] ^= (char)0x81;
        char *path = write_file(dir, bytes, len);
        if (import_nnet1(path, &m, &vector, NULL) == 0) {
            free(vector);
            model_fini(&m);
        }
        bytes[i] ^= (char)0x81;
        free(path);
    }
    free(bytes);
    free(source);
    files_remove_tree(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posteriors_agree_with_nnet_forward),
        cmocka_unit_test(text_and_binary_models_agree),
        cmocka_unit_test(one_window_gradients_agree_with_kaldi),
        cmocka_unit_test(damaged_models_are_refused),
        cmocka_unit_test(damaged_binary_models_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
