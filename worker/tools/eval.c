/* chorale-eval: cross entropy and frame accuracy of a run or model on a data directory. */
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/snapshot.h"
#include "worker/evaluate.h"
#include "worker/job.h"
#include "worker/nnet/blas.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Frames and utterances computed at once: each utterance is run whole from zero state in any case. */
#define WINDOW  20
#define STREAMS 16

struct request {
    const char *model, *data, *targets, *silence; /* borrowed; NULL = not given */
    bool json, allow_pipes;
};

struct int_array {
    int32_t *values; /* owned */
    uint32_t n;
};

static const char usage[] = "usage: chorale eval RUN|MODEL --data DIR [--targets FILE] [--silence N,N,...]\n"
                            "                    [--allow-pipes] [--json]\n"
                            "\n"
                            "  chorale eval run1 --data data/dev\n"
                            "  chorale eval run1/final.safetensors --data data/test --targets ali.scp \\\n"
                            "      --silence 102,103,104 --json\n"
                            "\n"
                            "Runs every utterance of a Kaldi data directory whole through the net: cross\n"
                            "entropy (natural logarithm) and the share of frames whose target is the most\n"
                            "probable one, with and without silence. A run is evaluated with its final\n"
                            "weights, or with its newest checkpoint while it is not done.\n"
                            "\n"
                            "  --data DIR        feats.scp and an alignment\n"
                            "  --targets FILE    one integer per frame: scp or ark file, in DIR or a path\n"
                            "                    (default: as the job of RUN says, else ali.scp)\n"
                            "  --silence N,N     targets left out of the second accuracy\n"
                            "                    (default: data.silence of the job)\n"
                            "  --allow-pipes     run commands that stand in scp files\n"
                            "  --json            one JSON object instead of a table\n"
                            "\n"
                            "Exit status: 0 done, 2 usage, 3 the data cannot be used, 5 it does not fit the\n"
                            "model, 7 storage.\n";

static int unknown_option(const char *word)
{
    return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale eval --help`", word);
}

static int parse_options(int argc, char **argv, struct request *q)
{
    static const struct option names[] = {
        {"data", required_argument, NULL, 'd'},    {"targets", required_argument, NULL, 't'},
        {"silence", required_argument, NULL, 's'}, {"allow-pipes", no_argument, NULL, 'p'},
        {"json", no_argument, NULL, 'j'},          {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":", names, NULL)) != -1;) {
        if (c == 'd')
            q->data = optarg;
        else if (c == 't')
            q->targets = optarg;
        else if (c == 's')
            q->silence = optarg;
        else if (c == 'p')
            q->allow_pipes = true;
        else if (c == 'j')
            q->json = true;
        else if (c == ':')
            return err_set(ERR_USAGE, "%s wants a value; see `chorale eval --help`", argv[optind - 1]);
        else
            return unknown_option(argv[optind - 1][0] == '-' ? argv[optind - 1] : argv[optind]);
    }
    if (optind + 1 != argc || !argv[optind][0])
        return err_set(ERR_USAGE, "name one run or model file: chorale eval RUN --data DIR");
    q->model = argv[optind];
    if (!q->data || !q->data[0])
        return err_set(ERR_USAGE, "name the data: chorale eval %.200s --data DIR", q->model);
    if (q->targets && !q->targets[0])
        return err_set(ERR_USAGE, "--targets names no file; leave it away for those of the job");
    return 0;
}

/* "102,103"; "" is an empty list. */
static int parse_silence(const char *text, uint32_t targets, struct int_array *out)
{
    out->values = xcalloc(strlen(text) / 2 + 1, sizeof *out->values);
    for (const char *at = text; *at;) {
        char *end;
        errno = 0;
        unsigned long n = strtoul(at, &end, 10);
        if (*at < '0' || *at > '9' || errno || (*end && *end != ',') || (*end == ',' && !end[1]))
            return err_set(ERR_USAGE, "--silence must be integers with commas between them, not '%.80s'",
                           text);
        if (n >= targets)
            return err_set(ERR_USAGE,
                           "--silence has the target %lu, but the model's targets are 0 to %" PRIu32, n,
                           targets - 1);
        out->values[out->n++] = (int32_t)n;
        at = *end ? end + 1 : end;
    }
    return 0;
}

/* What data.targets of the job means for another directory: the same file name there, or that very file.
 * Owned by the caller. */
static char *targets_of_run(const char *run, const char *dir)
{
    struct config c;
    char *job = files_join(run, "job.yaml"), *out = NULL;
    if (files_is_dir(run) && files_exists(job) && config_load(job, &c) == 0) {
        const char *slash = strrchr(c.data.targets, '/'), *name = slash ? slash + 1 : c.data.targets;
        char *inside = files_join(dir, name);
        out = xstrdup(files_exists(inside) || !slash ? name : c.data.targets);
        free(inside);
        config_free(&c);
    }
    free(job);
    return out && out[0] ? out : (free(out), xstrdup("ali.scp"));
}

/* ------------------------------------------------------------------ results */

static double ratio(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static void print_json(const struct evaluation *e, uint64_t utterances, const struct int_array *silence)
{
    printf("{\"utterances\":%" PRIu64 ",\"failed\":%" PRIu32 ",\"frames\":%" PRIu64
           ",\"cross_entropy\":%.9g,\"frame_accuracy\":%.9g,\"silence\":[",
           utterances, e->failed, e->frames, e->loss / (double)e->frames, ratio(e->correct, e->frames));
    for (uint32_t i = 0; i < silence->n; i++) printf("%s%" PRId32, i ? "," : "", silence->values[i]);
    if (silence->n && e->speech_frames)
        printf("],\"speech_frames\":%" PRIu64 ",\"speech_accuracy\":%.9g}\n", e->speech_frames,
               ratio(e->speech_correct, e->speech_frames));
    else
        printf("],\"speech_frames\":null,\"speech_accuracy\":null}\n");
}

static void print_table(const struct evaluation *e, uint64_t utterances, const struct int_array *silence)
{
    printf("utterances      %10" PRIu64 "  (%" PRIu32 " failed)\n", utterances, e->failed);
    printf("frames          %10" PRIu64 "\n", e->frames);
    printf("cross entropy   %10.4f\n", e->loss / (double)e->frames);
    printf("frame accuracy  %10.2f %%\n", 100 * ratio(e->correct, e->frames));
    if (silence->n && e->speech_frames)
        printf("without silence %10.2f %%  (%" PRIu64 " frames)\n",
               100 * ratio(e->speech_correct, e->speech_frames), e->speech_frames);
    else if (silence->n)
        printf("without silence       none\n");
}

/* Utterances that could not even be joined have failed, too. */
static int report(const struct request *q, const struct job_data *d, struct evaluation *e,
                  const struct int_array *silence)
{
    const struct corpus_report *r = corpus_report(d->corpus);
    uint64_t used = corpus_count(d->corpus) - e->failed;
    if (e->frames == 0)
        return err_set(ERR_DATA, "no utterance of %.200s could be read; see chorale data check %.200s",
                       q->data, q->data);
    e->failed += (uint32_t)(r->listed - r->usable);
    if (q->json)
        print_json(e, used, silence);
    else
        print_table(e, used, silence);
    for (int k = 0; !q->json && k < CORPUS_PROBLEMS; k++)
        if (r->count[k])
            fprintf(stderr, "%s: %" PRIu64 " (%s), for instance: %s\n", corpus_problem_name(k), r->count[k],
                    corpus_problem_effect(k), r->example[k][0]);
    return fflush(stdout) == 0 ? 0 : err_set(ERR_STORAGE, "cannot write to the standard output");
}

static int evaluate_data(const struct request *q, const struct facts *f, const float *params,
                         const struct int_array *silence)
{
    char *targets = q->targets ? xstrdup(q->targets) : targets_of_run(q->model, q->data);
    struct job_data_options how = {q->allow_pipes, CORPUS_OPTIONS_DEFAULT.length_tolerance};
    struct job_data *d = NULL;
    int rc = job_open_data(f, q->data, targets, &how, &d);
    if (rc == 0) {
        struct evaluation sums;
        struct evaluate_options o = {WINDOW, STREAMS, silence->values, silence->n};
        struct evaluate *e = evaluate_new(&f->model, d, &o);
        evaluate_range(e, params, 0, (uint32_t)corpus_count(d->corpus), &sums);
        evaluate_free(&e);
        rc = report(q, d, &sums, silence);
    }
    job_close_data(&d);
    free(targets);
    return rc;
}

static int eval(const struct request *q)
{
    struct facts f;
    float *params = NULL;
    struct int_array silence = {0};
    int rc = snapshot_load_model(q->model, &f, &params);
    if (rc < 0) return rc;
    if (q->silence)
        rc = parse_silence(q->silence, f.model.spec.targets, &silence);
    else if (f.num_silence) {
        silence.n = f.num_silence;
        silence.values = xcalloc(silence.n, sizeof *silence.values);
        memcpy(silence.values, f.silence, silence.n * sizeof *silence.values);
    }
    if (rc == 0) rc = evaluate_data(q, &f, params, &silence);
    free(silence.values);
    free(params);
    facts_fini(&f);
    return rc;
}

int main(int argc, char **argv)
{
    struct request q = {0};
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return fputs(usage, stdout) < 0;
    blas_use_one_thread();
    int rc = parse_options(argc, argv, &q);
    if (rc == 0) rc = eval(&q);
    return err_report("chorale eval", rc);
}
