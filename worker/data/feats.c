#include "worker/data/feats.h"

#include "common/err.h"
#include "common/files.h"
#include "worker/data/scp.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SMALLEST_VARIANCE 1e-10 /* below it a dimension is constant for float features: scale 1 */

void normaliser_init(struct normaliser *n, uint32_t dim)
{
    n->dim = dim;
    n->mean = xcalloc(dim, sizeof *n->mean);
    n->scale = xcalloc(dim, sizeof *n->scale);
    for (uint32_t d = 0; d < dim; d++) n->scale[d] = 1.0f;
}

void normaliser_fini(struct normaliser *n)
{
    free(n->mean);
    free(n->scale);
    *n = (struct normaliser){0};
}

static float scale_of(double variance)
{
    return variance > SMALLEST_VARIANCE ? (float)(1.0 / sqrt(variance)) : 1.0f;
}

/* --- global statistics */

struct moments {
    double count, *mean, *m2; /* m2: sum of squared distances from the mean; each (dim) */
    double *sum, *square;     /* of one utterance */
};

/* Two passes inside the utterance, then Chan's merge:
 *   mean += delta * n / N,   m2 += m2_u + delta^2 * N_old * n / N,   delta = mean_u - mean. */
static void add_utterance(struct moments *m, const struct matrix *x)
{
    double n = (double)x->rows, total = m->count + n;
    memset(m->sum, 0, x->cols * sizeof *m->sum);
    memset(m->square, 0, x->cols * sizeof *m->square);
    for (size_t t = 0; t < x->rows; t++)
        for (size_t d = 0; d < x->cols; d++) m->sum[d] += (double)x->data[t * x->cols + d];
    for (size_t t = 0; t < x->rows; t++)
        for (size_t d = 0; d < x->cols; d++) {
            double apart = (double)x->data[t * x->cols + d] - m->sum[d] / n;
            m->square[d] += apart * apart;
        }
    for (size_t d = 0; d < x->cols; d++) {
        double delta = m->sum[d] / n - m->mean[d];
        m->mean[d] += delta * n / total;
        m->m2[d] += m->square[d] + delta * delta * m->count * n / total;
    }
    m->count = total;
}

int feats_global_stats(const struct corpus *c, struct normaliser *out, size_t *skipped)
{
    uint32_t dim = corpus_dim(c);
    double *memory = xcalloc(4 * (unsigned long)dim, sizeof *memory);
    struct moments m = {0, memory, memory + dim, memory + 2 * dim, memory + 3 * dim};
    struct input *in = input_new();
    struct matrix x = {0};
    size_t bad = 0;
    for (size_t i = 0; i < corpus_count(c); i++) {
        if (corpus_read(c, i, in, &x, NULL) == 0)
            add_utterance(&m, &x);
        else
            bad++;
    }
    matrix_fini(&x);
    input_free(&in);
    if (m.count > 0) {
        normaliser_init(out, dim);
        for (uint32_t d = 0; d < dim; d++) {
            out->mean[d] = (float)m.mean[d];
            out->scale[d] = scale_of(m.m2[d] / m.count);
        }
    }
    free(memory);
    if (skipped) *skipped = bad;
    return m.count > 0 ? 0 : err_prefix(ERR_DATA, "no utterance of %.200s can be read", corpus_dir(c));
}

void feats_normalise(const struct normaliser *n, size_t rows, float *x)
{
    for (size_t t = 0; t < rows; t++)
        for (uint32_t d = 0; d < n->dim; d++)
            x[t * n->dim + d] = (x[t * n->dim + d] - n->mean[d]) * n->scale[d];
}

/* --- statistics per speaker */

static int fill_from_sums(const struct matrix *m, bool norm_vars, struct normaliser *out)
{
    if (m->cols != (size_t)out->dim + 1 || m->rows < (norm_vars ? 2u : 1u) || m->rows > 2)
        return err_set(ERR_DATA,
                       "statistics of %zu x %zu do not fit the dimension %" PRIu32 " (%s x %" PRIu32
                       " needed)",
                       m->rows, m->cols, out->dim, norm_vars ? "2" : "1 or 2", out->dim + 1);
    double count = (double)m->data[out->dim];
    if (!(count >= 1.0) || !isfinite(count)) return err_set(ERR_DATA, "statistics of %g frames", count);
    for (uint32_t d = 0; d < out->dim; d++) {
        double mean = (double)m->data[d] / count;
        double variance = norm_vars ? (double)m->data[m->cols + d] / count - mean * mean : 1.0;
        if (!isfinite(mean) || !isfinite(variance)) return err_set(ERR_DATA, "the statistics are not finite");
        out->mean[d] = (float)mean;
        out->scale[d] = scale_of(variance);
    }
    return 0;
}

static int read_speaker(const struct corpus *c, const struct scp *list, uint32_t speaker, bool norm_vars,
                        struct input *in, struct matrix *m, struct normaliser *out)
{
    const char *name = corpus_speaker(c, speaker);
    size_t at = scp_find(list, name);
    if (at == SCP_NONE)
        return err_set(ERR_DATA, "%s has no statistics for the speaker %.100s", list->path, name);
    struct ark_source s = {list->values[at], list->folder, corpus_options(c)->allow_pipes, in};
    int rc = ark_read_matrix(&s, m);
    if (rc == 0) rc = fill_from_sums(m, norm_vars, out);
    return rc < 0 ? err_prefix(rc, "%s line %zu: speaker %.100s", list->path, list->lines[at], name) : 0;
}

int feats_speaker_stats(const struct corpus *c, bool norm_vars, struct corpus_report *report,
                        struct speaker_stats *out)
{
    struct scp list;
    char *path = files_join(corpus_dir(c), "cmvn.scp");
    int rc = scp_read(path, NULL, false, &list);
    free(path);
    if (rc < 0) return err_prefix(rc, "no statistics per speaker");
    struct speaker_stats s = {corpus_dim(c), corpus_num_speakers(c), NULL};
    struct input *in = input_new();
    struct matrix m = {0};
    s.of = xcalloc(s.num_speakers, sizeof *s.of);
    for (uint32_t i = 0; i < s.num_speakers && rc == 0; i++) {
        normaliser_init(&s.of[i], s.dim);
        rc = read_speaker(c, &list, i, norm_vars, in, &m, &s.of[i]);
        if (rc < 0 && report) {
            corpus_report_add(report, CORPUS_SPEAKER_STATS, "%s", err_text());
            normaliser_fini(&s.of[i]);
            normaliser_init(&s.of[i], s.dim);
            rc = 0;
        }
    }
    matrix_fini(&m);
    input_free(&in);
    scp_fini(&list);
    if (rc < 0)
        speaker_stats_fini(&s);
    else
        *out = s;
    return rc;
}

void speaker_stats_fini(struct speaker_stats *s)
{
    for (uint32_t i = 0; i < s->num_speakers; i++) normaliser_fini(&s->of[i]);
    free(s->of);
    *s = (struct speaker_stats){0};
}

/* --- inputs */

static uint32_t at_least_one(uint32_t n)
{
    return n ? n : 1;
}

struct frontend feats_frontend(const struct model_spec *spec)
{
    return (struct frontend){.dim = spec->feature_dim,
                             .stack = at_least_one(spec->stack),
                             .skip = at_least_one(spec->skip),
                             .delay = spec->delay,
                             .delay_style = spec->delay_style};
}

uint32_t feats_input_dim(const struct frontend *f)
{
    return f->dim * at_least_one(f->stack);
}

uint32_t feats_labelled(const struct frontend *f, uint32_t frames)
{
    uint32_t skip = at_least_one(f->skip);
    return frames / skip + (frames % skip != 0);
}

uint32_t feats_inputs(const struct frontend *f, uint32_t frames)
{
    uint32_t labelled = feats_labelled(f, frames);
    return labelled && f->delay_style == DELAY_REPEAT ? labelled + f->delay : labelled;
}

static uint32_t smaller(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

void feats_compose(const struct frontend *f, const float *x, uint32_t frames, float *out)
{
    uint32_t stack = at_least_one(f->stack), skip = at_least_one(f->skip);
    uint32_t inputs = feats_inputs(f, frames), last = feats_labelled(f, frames) - 1;
    uint32_t ahead = f->delay_style == DELAY_KALDI ? f->delay : 0;
    for (uint32_t t = 0; t < inputs; t++) {
        uint64_t first = (uint64_t)smaller((uint64_t)t + ahead, last) * skip;
        for (uint32_t k = 0; k < stack; k++) {
            memcpy(out, x + (size_t)smaller(first + k, frames - 1) * f->dim, f->dim * sizeof *x);
            out += f->dim;
        }
    }
}

void feats_targets(const struct frontend *f, const int32_t *targets, uint32_t frames, int32_t *out)
{
    uint32_t skip = at_least_one(f->skip), inputs = feats_inputs(f, frames);
    uint32_t wait = f->delay_style == DELAY_REPEAT ? f->delay : 0;
    for (uint32_t t = 0; t < inputs; t++)
        out[t] = targets && t >= wait ? targets[(size_t)(t - wait) * skip] : -1;
}
