/* chorale-score: log-posteriors of every utterance of a Kaldi table, for a decoder. Row t is output t + delay
 * and belongs to frame t * skip. */
#include "common/err.h"
#include "common/files.h"
#include "common/snapshot.h"
#include "worker/data/ark.h"
#include "worker/data/input.h"
#include "worker/data/utterance.h"
#include "worker/job.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/net.h"

#include <float.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW     32           /* frames computed at once */
#define MIN_PRIOR  1e-10        /* below it a class is never to be decoded, as in Kaldi's PdfPrior */
#define MAX_PRIOR  1e15         /* frames of one target: more than anybody has, and sums stay finite */
#define MAX_PRIORS (256u << 20) /* bytes */
#define MAX_TOLD   10           /* utterances named that were left out */

struct request {
    const char *model, *rspecifier, *wspecifier, *priors, *data; /* borrowed; NULL = not given */
    bool likelihoods, allow_pipes;
};

struct score {
    const struct request *request;
    struct facts facts;
    float *params;
    float *log_priors;                     /* (K); NULL = posteriors */
    struct normaliser normaliser;          /* a view of the facts */
    struct job_data *data;                 /* for statistics per speaker */
    const struct corpus_utterance **by_id; /* of data, sorted; owned array */
    struct frontend frontend;
    struct net *net;
    struct utterance *utterance;
    struct matrix in, out;
    float *x; /* (WINDOW, D), for the last window of an utterance */
    uint64_t scored, frames, left_out;
};

static const char usage[] =
    "usage: chorale score RUN|MODEL rspecifier wspecifier\n"
    "                     [--log-likelihoods --priors FILE] [--data DIR]\n"
    "                     [--allow-pipes]\n"
    "\n"
    "  chorale score run1 scp:data/test/feats.scp ark,scp:post.ark,post.scp\n"
    "  chorale score run1 \"ark:copy-feats scp:feats.scp ark:- |\" ark:- | \\\n"
    "      latgen-faster-mapped ...\n"
    "\n"
    "Writes the log-posteriors (natural logarithm) of every utterance as a Kaldi\n"
    "matrix: one row per frame (per data.skip frames), one column per target; the\n"
    "target delay is taken back. Features are those of training: normalisation and\n"
    "stacking belong to the model. Utterances that cannot be read are named and left\n"
    "out.\n"
    "\n"
    "  --log-likelihoods  minus the log priors of --priors\n"
    "  --priors FILE      frames or probabilities per target, as text: [ 123 45 ... ]\n"
    "  --data DIR         utt2spk and cmvn.scp, for a model normalised by speaker\n"
    "  --allow-pipes      run commands that stand in scp files\n"
    "\n"
    "Exit status: 0 done, 2 usage, 3 the data cannot be used, 5 it does not fit the\n"
    "model, 7 storage.\n";

static int unknown_option(const char *word)
{
    return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale score --help`", word);
}

static int parse_options(int argc, char **argv, struct request *q)
{
    static const struct option names[] = {{"log-likelihoods", no_argument, NULL, 'l'},
                                          {"priors", required_argument, NULL, 'p'},
                                          {"data", required_argument, NULL, 'd'},
                                          {"allow-pipes", no_argument, NULL, 'a'},
                                          {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":", names, NULL)) != -1;) {
        if (c == 'l')
            q->likelihoods = true;
        else if (c == 'p')
            q->priors = optarg;
        else if (c == 'd')
            q->data = optarg;
        else if (c == 'a')
            q->allow_pipes = true;
        else if (c == ':')
            return err_set(ERR_USAGE, "%s wants a value; see `chorale score --help`", argv[optind - 1]);
        else
            return unknown_option(argv[optind - 1][0] == '-' ? argv[optind - 1] : argv[optind]);
    }
    if (optind + 3 != argc || !argv[optind][0])
        return err_set(ERR_USAGE, "name a run or model, an rspecifier and a wspecifier: chorale score RUN "
                                  "scp:feats.scp ark:post.ark");
    if ((q->priors && !q->priors[0]) || (q->data && !q->data[0]))
        return err_set(ERR_USAGE, "%s wants a name; see `chorale score --help`",
                       q->data && !q->data[0] ? "--data" : "--priors");
    if (q->likelihoods != (q->priors != NULL))
        return err_set(ERR_USAGE, "--log-likelihoods and --priors FILE go together");
    q->model = argv[optind];
    q->rspecifier = argv[optind + 1];
    q->wspecifier = argv[optind + 2];
    return 0;
}

static bool is_table(const char *specifier, const char *kind)
{
    size_t n = strlen(kind);
    return strncmp(specifier, kind, n) == 0 && (specifier[n] == ':' || specifier[n] == ',') &&
           strchr(specifier, ':');
}

static int check_specifiers(const struct request *q)
{
    if (!is_table(q->rspecifier, "scp") && !is_table(q->rspecifier, "ark"))
        return err_set(ERR_USAGE, "'%.200s' is not an rspecifier; write scp:feats.scp or ark:feats.ark",
                       q->rspecifier);
    if (!is_table(q->wspecifier, "ark"))
        return err_set(ERR_USAGE,
                       "'%.200s' is not a wspecifier; write ark:FILE, ark,t:FILE or ark,scp:FILE,FILE",
                       q->wspecifier);
    return 0;
}

/* ------------------------------------------------------------------ priors */

/* A word of len letters that is a decimal number from 0 to MAX_PRIOR; negative if it is not. */
static double parse_prior(const char *word, size_t len)
{
    char *end;
    if (strspn(word, "0123456789.eE+-") < len) return -1; /* no hex, no nan */
    double v = strtod(word, &end);
    return end == word + len && v <= MAX_PRIOR ? v : -1;
}

/* Exactly n numbers >= 0, with or without [ ]; *sum > 0. */
static int parse_priors(const char *path, const char *text, size_t n, double *out, double *sum)
{
    size_t k = 0, len;
    *sum = 0;
    for (const char *at = text + strspn(text, " \t\r\n["); *at; at += len + strspn(at + len, " \t\r\n]")) {
        len = strcspn(at, " \t\r\n]");
        double v = parse_prior(at, len);
        if (len == 0 || v < 0)
            return err_set(ERR_DATA, "%.200s: '%.*s' is not a number of frames", path,
                           len < 20 ? (int)len : 20, at);
        if (k == n) return err_set(ERR_DATA, "%.200s has more than the model's %zu targets", path, n);
        out[k++] = v;
        *sum += v;
    }
    if (k < n) return err_set(ERR_DATA, "%.200s has %zu numbers, the model has %zu targets", path, k, n);
    return *sum > 0 ? 0 : err_set(ERR_DATA, "%.200s: all priors are 0", path);
}

static int load_priors(struct score *s)
{
    const char *path = s->request->priors;
    size_t n = s->facts.model.spec.targets;
    char *text;
    double sum;
    if (!path) return 0;
    int rc = files_read(path, MAX_PRIORS, &text, NULL);
    if (rc < 0) return err_prefix(ERR_DATA, "--priors");
    double *priors = xcalloc(n, sizeof *priors);
    s->log_priors = xcalloc(n, sizeof *s->log_priors);
    rc = parse_priors(path, text, n, priors, &sum);
    for (size_t k = 0; rc == 0 && k < n; k++) {
        double prior = priors[k] / sum;
        s->log_priors[k] = prior < MIN_PRIOR ? sqrtf(FLT_MAX) : (float)log(prior);
    }
    free(priors);
    free(text);
    return rc;
}

/* ------------------------------------------------------------------ speakers */

static int by_id(const void *a, const void *b)
{
    const struct corpus_utterance *const *x = a, *const *y = b;
    return strcmp((*x)->id, (*y)->id);
}

static int load_speakers(struct score *s)
{
    const struct request *q = s->request;
    struct job_data_options how = {q->allow_pipes, CORPUS_OPTIONS_DEFAULT.length_tolerance};
    if (q->data && !files_is_dir(q->data)) /* also where it is not needed */
        return err_set(ERR_DATA, "--data: %.200s is not a data directory", q->data);
    if (!s->facts.speaker_cmvn) return 0;
    if (!q->data)
        return err_set(ERR_USAGE,
                       "%.200s is normalised by speaker; name the directory of utt2spk and cmvn.scp with "
                       "--data DIR",
                       q->model);
    int rc = job_open_data(&s->facts, q->data, NULL, &how, &s->data);
    if (rc < 0) return rc;
    size_t n = corpus_count(s->data->corpus);
    s->by_id = xcalloc(n, sizeof *s->by_id);
    for (size_t i = 0; i < n; i++) s->by_id[i] = corpus_utterance(s->data->corpus, i);
    qsort(s->by_id, n, sizeof *s->by_id, by_id);
    s->frontend.speakers = &s->data->speakers;
    return 0;
}

static int find_speaker(const struct score *s, const char *id, uint32_t *out)
{
    *out = CORPUS_NO_SPEAKER;
    if (!s->data) return 0;
    struct corpus_utterance key = {.id = id};
    const struct corpus_utterance *at = &key, **found = bsearch(&at, s->by_id, corpus_count(s->data->corpus),
                                                                sizeof *s->by_id, by_id);
    if (!found)
        return err_set(ERR_DATA, "it is not in %.200s, so its speaker is not known", s->request->data);
    *out = (*found)->speaker;
    return 0;
}

/* ------------------------------------------------------------------ one utterance */

/* ERR_MODEL for what would hold for every utterance, ERR_DATA for one of them. */
static int check_features(const struct score *s)
{
    const struct matrix *m = &s->in;
    if (m->rows == 0) return err_set(ERR_DATA, "no frames");
    if (m->cols != s->frontend.dim)
        return err_set(ERR_MODEL, "features of dimension %zu, the model needs %" PRIu32, m->cols,
                       s->frontend.dim);
    if (m->rows > INT32_MAX) return err_set(ERR_DATA, "too many frames");
    for (size_t i = 0; i < m->rows * m->cols; i++)
        if (!isfinite(m->data[i])) return err_set(ERR_DATA, "frame %zu is not finite", i / m->cols);
    return 0;
}

/* Outputs [first, first + n) of the net become rows first - wait, ... of s->out, where there are such rows.
 */
static void keep_rows(struct score *s, uint32_t first, uint32_t n, uint32_t wait)
{
    size_t targets = s->facts.model.spec.targets;
    const float *posteriors = net_log_posteriors(s->net);
    for (uint32_t t = 0; t < n; t++) {
        if (first + t < wait || first + t - wait >= s->out.rows) continue;
        float *row = s->out.data + (size_t)(first + t - wait) * targets;
        memcpy(row, posteriors + t * targets, targets * sizeof *row);
        for (size_t k = 0; s->log_priors && k < targets; k++) row[k] -= s->log_priors[k];
    }
}

/* s->utterance through the net from zero state into s->out (labelled, K). */
static void run_net(struct score *s)
{
    const struct utterance *u = s->utterance;
    const struct model_spec *spec = &s->facts.model.spec;
    uint8_t reset[WINDOW] = {1};
    int32_t target[WINDOW];
    struct net_result unused;
    uint32_t wait = s->frontend.delay_style == DELAY_REPEAT ? s->frontend.delay : 0;
    for (int t = 0; t < WINDOW; t++) target[t] = -1;
    s->out.rows = feats_labelled(&s->frontend, u->source_frames);
    s->out.cols = spec->targets;
    matrix_reserve(&s->out, s->out.rows * s->out.cols);
    for (uint32_t first = 0; first < u->frames; first += WINDOW) {
        uint32_t n = u->frames - first < WINDOW ? u->frames - first : WINDOW;
        memset(s->x, 0, (size_t)WINDOW * u->dim * sizeof *s->x);
        memcpy(s->x, u->x + (size_t)first * u->dim, (size_t)n * u->dim * sizeof *s->x);
        net_forward(s->net, s->params, s->x, reset, target, &unused);
        keep_rows(s, first, n, wait);
        reset[0] = 0;
    }
}

/* s->in, as read. */
static int score_utterance(struct score *s, const char *id, struct ark_writer *to)
{
    uint32_t speaker = 0;
    int rc = check_features(s);
    if (rc == 0) rc = find_speaker(s, id, &speaker);
    if (rc < 0) return rc;
    utterance_make(&s->frontend, speaker, (uint32_t)s->in.rows, s->in.data, NULL, s->utterance);
    run_net(s);
    rc = ark_writer_matrix(to, id, s->out.rows, s->out.cols, s->out.data);
    if (rc < 0) return rc;
    s->scored++;
    s->frames += s->out.rows;
    return 0;
}

/* ------------------------------------------------------------------ the table */

static int score_table(struct score *s, struct ark_reader *from, struct ark_writer *to)
{
    const char *id;
    int rc;
    bool is_list = is_table(s->request->rspecifier, "scp");
    while ((rc = ark_next(from, &id)) == 1) {
        rc = ark_next_matrix(from, &s->in);
        /* after damage inside an archive nobody knows where the next object starts */
        bool lost = rc < 0 && !is_list;
        if (rc == 0) rc = score_utterance(s, id, to);
        if (rc < 0 && (rc != ERR_DATA || lost)) return err_prefix(rc, "%.100s", id);
        if (rc < 0 && s->left_out++ < MAX_TOLD)
            fprintf(stderr, "chorale score: %s left out: %s\n", id, err_text());
    }
    if (rc < 0) return rc;
    if (s->scored) return 0;
    if (s->left_out == 0)
        return err_set(ERR_DATA, "%.200s has no utterances%s", s->request->rspecifier,
                       input_is_pipe(s->request->rspecifier) ? "; run that command by itself to see why"
                                                             : "");
    return err_set(ERR_DATA, "%.200s: no utterance of %" PRIu64 " could be used", s->request->rspecifier,
                   s->left_out);
}

/* The output gets its name when all of it is there. */
static int copy_table(struct score *s)
{
    const struct request *q = s->request;
    struct ark_options how = {.allow_pipes = q->allow_pipes, .allow_command = true};
    struct ark_reader *from = ark_open(q->rspecifier, &how);
    if (!from) return err_code();
    struct ark_writer *to = ark_writer_open(q->wspecifier);
    int rc = to ? score_table(s, from, to) : err_code();
    if (rc < 0) {
        char *why = xstrdup(err_text());
        ark_close(&from);
        ark_writer_free(&to);
        err_set(rc, "%s", why);
        free(why);
        return rc;
    }
    rc = ark_close(&from);
    if (rc == 0) rc = ark_writer_commit(&to);
    ark_writer_free(&to);
    if (rc == 0)
        fprintf(stderr, "chorale score: %" PRIu64 " utterances, %" PRIu64 " rows, %" PRIu64 " left out\n",
                s->scored, s->frames, s->left_out);
    return rc;
}

static int score(const struct request *q)
{
    struct score s = {.request = q};
    int rc = check_specifiers(q);
    if (rc == 0) rc = snapshot_load_model(q->model, &s.facts, &s.params);
    if (rc < 0) return rc;
    const struct model_spec *spec = &s.facts.model.spec;
    s.frontend = feats_frontend(spec);
    s.normaliser = (struct normaliser){spec->feature_dim, s.facts.mean, s.facts.scale};
    if (s.facts.mean) s.frontend.normaliser = &s.normaliser;
    rc = load_priors(&s);
    if (rc == 0) rc = load_speakers(&s);
    if (rc == 0) {
        s.net = net_new(&s.facts.model, &(struct net_options){.window = WINDOW, .streams = 1});
        s.utterance = utterance_new();
        s.x = xaligned((size_t)WINDOW * spec->input * sizeof *s.x);
        rc = copy_table(&s);
        net_free(&s.net);
        utterance_free(&s.utterance);
    }
    job_close_data(&s.data);
    free(s.by_id);
    free(s.log_priors);
    free(s.params);
    free(s.x);
    matrix_fini(&s.in);
    matrix_fini(&s.out);
    facts_fini(&s.facts);
    return rc;
}

int main(int argc, char **argv)
{
    struct request q = {0};
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return fputs(usage, stdout) < 0;
    blas_use_one_thread();
    int rc = parse_options(argc, argv, &q);
    if (rc == 0) rc = score(&q);
    return err_report("chorale score", rc);
}
