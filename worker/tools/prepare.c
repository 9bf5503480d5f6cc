/* chorale-prepare RUN: makes a run ready to be trained. The first time: looks through the data, computes the
 * normalisation, draws the first weights, and writes them as set 0 and then, as the last thing, the facts
 * (RUN/model.safetensors), with which the run counts as started. Later: checks that model and data are still
 * those of the start. */
#include "common/blocks.h"
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/snapshot.h"
#include "worker/data/corpus.h"
#include "worker/data/feats.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define MAX_TARGETS 16777216

struct prepare {
    const char *run, *config_path; /* borrowed; config_path NULL = RUN/job.yaml */
    bool quiet;
    struct config config;
    struct corpus *train, *dev; /* owned; dev NULL without dev data */
    size_t unreadable;          /* training utterances without a part in the statistics */
    struct facts facts;
};

static const char usage[] =
    "usage: chorale-prepare RUN [--config FILE] [--quiet]\n"
    "\n"
    "Makes a run ready: reads its data, computes the normalisation, writes RUN/model.safetensors and the "
    "first\n"
    "checkpoint. A run that has been started is checked against its job file and data instead.\n"
    "`chorale train` does this by itself.\n"
    "\n"
    "  --config FILE   a job file to judge in place of RUN/job.yaml\n"
    "  --quiet         say nothing but errors\n"
    "\n"
    "Exit status: 0 ready, 2 usage, 3 the data cannot be used or has changed, 5 another model, 7 storage.\n";

static int parse_options(int argc, char **argv, struct prepare *p)
{
    static const struct option names[] = {
        {"config", required_argument, NULL, 'c'}, {"quiet", no_argument, NULL, 'q'}, {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":", names, NULL)) != -1;) {
        if (c == 'c')
            p->config_path = optarg;
        else if (c == 'q')
            p->quiet = true;
        else
            return err_set(ERR_USAGE,
                           "'%.80s' is not an option, or wants a value; see chorale-prepare --help",
                           argv[optind - 1]);
    }
    if (optind + 1 != argc) return err_set(ERR_USAGE, "name one run: chorale-prepare RUN");
    p->run = argv[optind];
    return 0;
}

static int load_config(struct prepare *p)
{
    char *job = files_join(p->run, "job.yaml");
    int rc;
    if (!files_exists(job))
        rc = err_set(ERR_USAGE,
                     "%s is not a run (it has no job.yaml); make one with: chorale init %s --data DIR",
                     p->run, p->run);
    else
        rc = config_load_merged(p->config_path ? p->config_path : job, NULL, 0, &p->config);
    free(job);
    return rc;
}

/* ------------------------------------------------------------------ the data */

static int open_corpus(const struct config *c, const char *dir, char *targets, uint32_t dim,
                       uint32_t num_targets, struct corpus **out)
{
    struct corpus_options o = {.allow_pipes = c->data.allow_pipes,
                               .length_tolerance = (uint32_t)c->data.length_tolerance,
                               .dim = dim,
                               .num_targets = num_targets};
    int rc = corpus_open(dir, targets, &o, out);
    free(targets);
    return rc;
}

/* Statistics per speaker are read by every worker for itself; here only whether they are there. */
static int check_speakers(const struct config *c, const struct corpus *data)
{
    struct speaker_stats s;
    int rc = feats_speaker_stats(data, c->data.cmvn_var, NULL, &s);
    if (rc == 0) speaker_stats_fini(&s);
    return rc < 0 ? err_prefix(rc, "data.normalise is speaker") : 0;
}

/* Size of the output: model.targets, or 1 + the largest target. */
static uint32_t count_targets(const struct prepare *p)
{
    return p->config.model.targets ? (uint32_t)p->config.model.targets : corpus_num_targets(p->train);
}

static int open_data(struct prepare *p)
{
    const struct config *c = &p->config;
    int rc = open_corpus(c, c->data.train, config_targets_path(c), 0, (uint32_t)c->model.targets, &p->train);
    if (rc == 0 && count_targets(p) > MAX_TARGETS)
        rc = err_set(ERR_DATA, "the largest target of %s is %" PRIu32 "; a model has at most %d",
                     c->data.train, count_targets(p) - 1, MAX_TARGETS);
    if (rc == 0 && c->data.dev[0])
        rc = open_corpus(c, c->data.dev, config_dev_targets_path(c), corpus_dim(p->train), count_targets(p),
                         &p->dev);
    if (rc == 0 && c->data.normalise == NORMALISE_SPEAKER) {
        rc = check_speakers(c, p->train);
        if (rc == 0 && p->dev) rc = check_speakers(c, p->dev);
    }
    return rc;
}

static struct data_facts facts_of(const struct corpus *c, const struct frontend *f)
{
    struct data_facts out = {0};
    if (!c) return out;
    out.utterances = (uint32_t)corpus_count(c);
    out.hash = corpus_hash(c);
    for (size_t i = 0; i < corpus_count(c); i++)
        out.frames += feats_labelled(f, corpus_utterance(c, i)->frames);
    return out;
}

static int check_silence(const struct config *c, uint32_t targets)
{
    for (size_t i = 0; i < c->data.silence.count; i++)
        if (c->data.silence.values[i] < 0 || (uint32_t)c->data.silence.values[i] >= targets)
            return err_set(ERR_USAGE,
                           "data.silence has the target %d, but the model's targets are 0 to %" PRIu32,
                           c->data.silence.values[i], targets - 1);
    return 0;
}

/* What job file and data say, but for the job's number and the statistics. */
static int gather_facts(struct prepare *p)
{
    const struct config *c = &p->config;
    struct facts *f = &p->facts;
    struct model_spec s = {.type = c->model.type,
                           .targets = count_targets(p),
                           .num_layers = (uint32_t)c->model.num_layers,
                           .peepholes = c->model.peepholes,
                           .cell_clip = (float)c->model.cell_clip,
                           .feature_dim = corpus_dim(p->train),
                           .stack = (uint32_t)c->data.stack,
                           .skip = (uint32_t)c->data.skip,
                           .delay = (uint32_t)c->data.delay,
                           .delay_style = c->data.delay_style};
    memcpy(s.layers, c->model.layers, sizeof s.layers);
    struct frontend front = feats_frontend(&s);
    s.input = feats_input_dim(&front);
    int rc = check_silence(c, s.targets);
    if (rc == 0) rc = model_build(&s, &f->model);
    if (rc < 0) return rc;
    f->speaker_cmvn = c->data.normalise == NORMALISE_SPEAKER;
    f->cmvn_var = f->speaker_cmvn && c->data.cmvn_var;
    f->train = facts_of(p->train, &front);
    f->dev = facts_of(p->dev, &front);
    f->num_silence = (uint32_t)c->data.silence.count;
    f->silence = xcalloc(f->num_silence, sizeof *f->silence);
    for (uint32_t i = 0; i < f->num_silence; i++) f->silence[i] = c->data.silence.values[i];
    return 0;
}

/* ------------------------------------------------------------------ the first time */

static int compute_statistics(struct prepare *p)
{
    struct normaliser n;
    struct facts *f = &p->facts;
    if (p->config.data.normalise == NORMALISE_GLOBAL) {
        int rc = feats_global_stats(p->train, &n, &p->unreadable);
        if (rc < 0) return rc;
        f->mean = n.mean;
        f->scale = n.scale;
    }
    f->model_hash = model_hash(&f->model, f->mean, f->scale);
    while (f->job == 0)
        if (getrandom(&f->job, sizeof f->job, 0) != (ssize_t)sizeof f->job)
            return err_set(ERR_FAIL, "the system gives no random number to name the job");
    return 0;
}

static struct shard_state *first_weights(const struct prepare *p)
{
    const struct config *c = &p->config;
    struct blocks b;
    struct model_init_options o = {.range = (float)c->model.init.range,
                                   .forget_bias = (float)c->model.init.forget_bias,
                                   .zero_bias = c->model.init.zero_bias,
                                   .seed = (uint64_t)c->train.seed};
    blocks_cut(p->facts.model.params, &b);
    struct shard_state *s = shard_state_new(&b, 0, b.count, 0, 0);
    model_init(&p->facts.model, &o, s->weights);
    return s;
}

static int write_set_0(const struct prepare *p)
{
    struct shard_state *state = first_weights(p);
    struct snapshot_file file;
    struct manifest m = {.exact = true,
                         .wall = (uint64_t)time(NULL),
                         .job = p->facts.job,
                         .model_hash = p->facts.model_hash,
                         .num_files = 1,
                         .files = &file}; /* no rows of the coordinator: it has not lived yet */
    int rc = snapshot_write_shard(p->run, 0, 0, 1, &p->facts, state, &file);
    if (rc == 0) rc = snapshot_write_manifest(p->run, &m);
    shard_state_free(&state);
    return rc;
}

static void tell_data(const char *what, const struct corpus *c, const struct data_facts *f)
{
    const struct corpus_report *r = corpus_report(c);
    fprintf(stderr, "%s: %" PRIu32 " utterances, %" PRIu64 " frames, %" PRIu64 " left out\n", what,
            f->utterances, f->frames, r->listed - r->usable);
    for (int k = 0; k < CORPUS_PROBLEMS; k++)
        if (r->count[k])
            fprintf(stderr, "  %s: %" PRIu64 " (%s), for instance: %s\n", corpus_problem_name(k), r->count[k],
                    corpus_problem_effect(k), r->example[k][0]);
}

static void tell(const struct prepare *p)
{
    char text[256];
    if (p->quiet) return;
    tell_data("train", p->train, &p->facts.train);
    if (p->dev) tell_data("dev", p->dev, &p->facts.dev);
    if (p->unreadable)
        fprintf(stderr, "  %zu utterances could not be read; see chorale data check %s\n", p->unreadable,
                p->config.data.train);
    model_describe(&p->facts.model, text, sizeof text);
    fprintf(stderr, "model: %s\n", text);
}

static int make_ready(struct prepare *p)
{
    int rc = compute_statistics(p);
    if (rc == 0) rc = write_set_0(p);
    if (rc == 0) rc = facts_write(p->run, &p->facts);
    if (rc == 0) {
        tell(p);
        return 0;
    }
    char *why = xstrdup(err_text()), *set = snapshot_set_dir(p->run, 0);
    files_remove_tree(set);
    err_set(rc, "%s", why);
    free(set);
    free(why);
    return rc;
}

/* ------------------------------------------------------------------ later */

static int compare_data(const char *run, const char *what, const char *dir, const struct data_facts *then,
                        const struct data_facts *now)
{
    if (then->utterances == now->utterances && then->frames == now->frames && then->hash == now->hash)
        return 0;
    return err_set(ERR_DATA,
                   "%s '%s' is not the data that %s was started with: %" PRIu32 " utterances and %" PRIu64
                   " frames then, %" PRIu32 " and %" PRIu64 " now; put it back, or make a new run",
                   what, dir, run, then->utterances, then->frames, now->utterances, now->frames);
}

static int compare_model(struct prepare *p, const struct facts *then)
{
    char old[200], new[200];
    struct facts *now = &p->facts;
    bool was_global = then->mean != NULL, is_global = p->config.data.normalise == NORMALISE_GLOBAL;
    if (was_global != is_global || then->speaker_cmvn != now->speaker_cmvn || then->cmvn_var != now->cmvn_var)
        return err_set(
            ERR_MODEL,
            "data.normalise belongs to the model and cannot change once %s has started; put it back, or make "
            "a new run",
            p->run);
    bool same_dim = then->model.spec.feature_dim == now->model.spec.feature_dim;
    if (same_dim && model_hash(&now->model, then->mean, then->scale) == then->model_hash) return 0;
    model_describe(&then->model, old, sizeof old);
    model_describe(&now->model, new, sizeof new);
    bool visible = strcmp(old, new) != 0;
    return err_set(
        ERR_MODEL, "%s was started with %s, and its job says %s now%s; put it back, or make a new run",
        p->run, old, visible ? new : "otherwise", visible ? "" : " (peepholes, clip, delay, stack or skip)");
}

static int compare_silence(const struct prepare *p, const struct facts *then)
{
    const struct facts *now = &p->facts;
    if (then->num_silence == now->num_silence &&
        (now->num_silence == 0 ||
         memcmp(then->silence, now->silence, now->num_silence * sizeof *now->silence) == 0))
        return 0;
    return err_set(ERR_DATA,
                   "data.silence cannot change once %s has started; put it back (chorale eval has --silence)",
                   p->run);
}

static int compare(struct prepare *p, const struct facts *then)
{
    int rc = compare_model(p, then);
    if (rc == 0) rc = compare_data(p->run, "data.train", p->config.data.train, &then->train, &p->facts.train);
    if (rc == 0) rc = compare_data(p->run, "data.dev", p->config.data.dev, &then->dev, &p->facts.dev);
    return rc == 0 ? compare_silence(p, then) : rc;
}

/* ------------------------------------------------------------------ which of the two */

/* A set beyond set 0, whole or not, or a journal: then there is work to lose. */
static bool has_begun(const char *run)
{
    char *journal = files_join(run, "journal");
    size_t n;
    uint32_t *sets = snapshot_list_sets(run, &n);
    bool begun = files_exists(journal) || (n > 0 && sets[0] > 0);
    free(sets);
    free(journal);
    return begun;
}

static int check_started(struct prepare *p, int64_t newest)
{
    struct facts then;
    int rc = facts_read(p->run, &then);
    if (rc < 0) return rc;
    rc = compare(p, &then);
    facts_fini(&then);
    if (rc == 0 && !p->quiet) fprintf(stderr, "%s goes on from checkpoint %" PRId64 "\n", p->run, newest);
    return rc;
}

static int prepare(struct prepare *p)
{
    char *facts = files_join(p->run, "model.safetensors");
    bool has_facts = files_exists(facts), begun = has_begun(p->run);
    free(facts);
    int64_t newest = has_facts ? snapshot_newest(p->run) : -1;
    if (begun && newest < 0)
        return err_set(ERR_STORAGE,
                       "%s has been trained but %s; remove its journal and checkpoints to start anew", p->run,
                       has_facts ? "no checkpoint of it is whole" : "model.safetensors is missing");
    int rc = open_data(p);
    if (rc == 0) rc = gather_facts(p);
    if (rc < 0) return rc;
    return newest >= 0 ? check_started(p, newest) : make_ready(p);
}

int main(int argc, char **argv)
{
    struct prepare p = {0};
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return fputs(usage, stdout) < 0;
    int rc = parse_options(argc, argv, &p);
    if (rc == 0) rc = load_config(&p);
    if (rc == 0) rc = prepare(&p);
    corpus_free(&p.train);
    corpus_free(&p.dev);
    facts_fini(&p.facts);
    config_free(&p.config);
    return err_report("chorale prepare", rc);
}
