/* Reading the features of a corpus, and the report of what is wrong with it. */
#include "worker/data/corpus.h"

#include "common/err.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

static const struct {
    const char *key, *name, *effect;
} problems[CORPUS_PROBLEMS] = {
    [CORPUS_BAD_LINE] = {"bad_line", "line without a value", "ignored"},
    [CORPUS_UNSORTED] = {"unsorted", "ids not sorted", "used all the same"},
    [CORPUS_DUPLICATE] = {"duplicate", "duplicate id", "first entry used"},
    [CORPUS_PIPE] = {"pipe", "command not run or failed", "skipped"},
    [CORPUS_UNREADABLE] = {"unreadable", "missing, truncated or damaged archive", "skipped"},
    [CORPUS_EMPTY] = {"empty", "empty utterance", "skipped"},
    [CORPUS_DIMENSION] = {"dimension", "wrong feature dimension", "skipped"},
    [CORPUS_MISSING_ALIGNMENT] = {"missing_alignment", "missing alignment", "skipped"},
    [CORPUS_LENGTH] = {"length", "alignment and features differ in length", "skipped"},
    [CORPUS_TARGET] = {"target", "target out of range", "skipped"},
    [CORPUS_NONFINITE] = {"nonfinite", "NaN or infinite features", "skipped"},
    [CORPUS_FRAME_COUNT] = {"frame_count", "utt2num_frames is wrong", "archive believed"},
    [CORPUS_NO_UTT2SPK] = {"no_utt2spk", "utterance not in utt2spk", "its own speaker"},
    [CORPUS_SPEAKER_STATS] = {"speaker_stats", "speaker without usable cmvn statistics",
                              "refused with per-speaker normalisation"},
};

const char *corpus_problem_key(enum corpus_problem kind)
{
    return problems[kind].key;
}

const char *corpus_problem_name(enum corpus_problem kind)
{
    return problems[kind].name;
}

const char *corpus_problem_effect(enum corpus_problem kind)
{
    return problems[kind].effect;
}

void corpus_report_add(struct corpus_report *r, enum corpus_problem kind, const char *format, ...)
{
    uint64_t at = r->count[kind]++;
    if (at >= CORPUS_EXAMPLES) return;
    va_list args;
    va_start(args, format);
    vsnprintf(r->example[kind][at], CORPUS_EXAMPLE_SIZE, format, args);
    va_end(args);
}

uint64_t corpus_report_total(const struct corpus_report *r)
{
    uint64_t total = 0;
    for (int k = 0; k < CORPUS_PROBLEMS; k++) total += r->count[k];
    return total;
}

/* The index of the first NaN or infinity, n if there is none. */
static size_t find_nonfinite(const float *x, size_t n)
{
    float sum = 0; /* x * 0 is 0 for a number and NaN for the rest: one pass without branches */
    for (size_t i = 0; i < n; i++) sum += x[i] * 0.0f;
    if (sum == 0.0f) return n;
    size_t i = 0;
    while (i < n && isfinite(x[i])) i++;
    return i;
}

static int judge(const struct corpus *c, const struct matrix *m, enum corpus_problem *kind)
{
    uint32_t dim = corpus_dim(c);
    if (m->rows == 0) {
        *kind = CORPUS_EMPTY;
        return err_set(ERR_DATA, "no frames");
    }
    if (m->cols != dim) {
        *kind = CORPUS_DIMENSION;
        return err_set(ERR_DATA, "dimension %zu, not %" PRIu32, m->cols, dim);
    }
    size_t bad = find_nonfinite(m->data, m->rows * m->cols);
    if (bad == m->rows * m->cols) return 0;
    *kind = CORPUS_NONFINITE;
    return err_set(ERR_DATA, "value %g at frame %zu, dimension %zu", (double)m->data[bad], bad / m->cols,
                   bad % m->cols);
}

int corpus_read(const struct corpus *c, size_t i, struct input *in, struct matrix *out,
                enum corpus_problem *problem)
{
    const struct corpus_utterance *u = corpus_utterance(c, i);
    struct ark_source s = u->features;
    enum corpus_problem kind = CORPUS_UNREADABLE;
    s.input = in;
    int rc = ark_read_matrix(&s, out);
    if (rc == 0) rc = judge(c, out, &kind);
    if (rc == 0) return 0;
    if (problem) *problem = kind;
    return err_prefix(rc, "%.200s/feats.scp line %zu: %.100s", corpus_dir(c), u->line, u->id);
}

/* Does the archive agree with what utt2num_frames made us believe? */
static bool scan_length(const struct corpus *c, const struct corpus_utterance *u, size_t rows,
                        struct corpus_report *out)
{
    if (rows >= u->frames) return true;
    corpus_report_add(out, CORPUS_FRAME_COUNT, "%s/feats.scp line %zu: %s has %zu frames, not %" PRIu32,
                      corpus_dir(c), u->line, u->id, rows, u->frames);
    return u->frames - rows <= corpus_options(c)->length_tolerance;
}

void corpus_scan(const struct corpus *c, struct corpus_report *out)
{
    struct input *in = input_new();
    struct matrix m = {0};
    *out = *corpus_report(c);
    for (size_t i = 0; i < corpus_count(c); i++) {
        const struct corpus_utterance *u = corpus_utterance(c, i);
        enum corpus_problem kind;
        bool good = corpus_read(c, i, in, &m, &kind) == 0;
        if (!good)
            corpus_report_add(out, kind, "%s", err_text());
        else
            good = scan_length(c, u, m.rows, out);
        if (good) continue;
        out->usable--;
        out->frames -= u->frames;
    }
    matrix_fini(&m);
    input_free(&in);
}
