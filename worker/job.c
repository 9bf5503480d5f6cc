#include "worker/job.h"

#include "common/err.h"
#include "common/files.h"

#include <inttypes.h>
#include <stdlib.h>

static int open_statistics(const struct facts *f, struct job_data *d)
{
    d->frontend = feats_frontend(&f->model.spec);
    if (f->mean) {
        d->normaliser = (struct normaliser){f->model.spec.feature_dim, f->mean, f->scale};
        d->frontend.normaliser = &d->normaliser;
    }
    if (!f->speaker_cmvn) return 0;
    int rc = feats_speaker_stats(d->corpus, f->cmvn_var, NULL, &d->speakers);
    if (rc == 0) d->frontend.speakers = &d->speakers;
    return rc;
}

int job_open_data(const struct facts *f, const char *dir, const char *targets,
                  const struct job_data_options *o, struct job_data **out)
{
    const struct corpus_options options = {.allow_pipes = o->allow_pipes,
                                           .length_tolerance = o->length_tolerance,
                                           .dim = f->model.spec.feature_dim,
                                           .num_targets = f->model.spec.targets};
    struct job_data *d = xcalloc(1, sizeof *d);
    int rc = corpus_open(dir, targets, &options, &d->corpus);
    if (rc == 0) rc = open_statistics(f, d);
    if (rc < 0) {
        job_close_data(&d);
        return rc;
    }
    *out = d;
    return 0;
}

void job_close_data(struct job_data **d)
{
    if (!*d) return;
    speaker_stats_fini(&(*d)->speakers);
    corpus_free(&(*d)->corpus);
    free(*d);
    *d = NULL;
}

uint64_t job_data_frames(const struct job_data *d)
{
    uint64_t frames = 0;
    for (size_t i = 0; i < corpus_count(d->corpus); i++)
        frames += feats_labelled(&d->frontend, corpus_utterance(d->corpus, i)->frames);
    return frames;
}

static int check_facts(const struct job *j)
{
    const struct facts *f = &j->facts;
    if (model_hash(&f->model, f->mean, f->scale) == f->model_hash) return 0;
    return err_set(ERR_MODEL,
                   "%s/model.safetensors: its numbers do not have the hash that it states: prepare "
                   "the job again in a new directory",
                   j->run);
}

static int check_data(const struct job *j, const struct job_data *d, const struct data_facts *facts)
{
    size_t count = corpus_count(d->corpus);
    uint64_t hash = corpus_hash(d->corpus);
    if (hash == facts->hash && count == facts->utterances) return 0;
    return err_set(ERR_DATA,
                   "%s: %zu utterances with hash %016" PRIx64 " here, but job %s was prepared with %u "
                   "and %016" PRIx64 ": give this machine the same data, or prepare a new job",
                   corpus_dir(d->corpus), count, hash, j->run, facts->utterances, facts->hash);
}

static int open_checked(const struct job *j, const char *dir, char *targets, const struct data_facts *facts,
                        struct job_data **out)
{
    struct job_data_options o = {j->config.data.allow_pipes, (uint32_t)j->config.data.length_tolerance};
    int rc = job_open_data(&j->facts, dir, targets, &o, out);
    free(targets);
    return rc < 0 ? rc : check_data(j, *out, facts);
}

static int load_config(const char *run, struct config *out)
{
    char *path = files_join(run, "job.yaml");
    int rc = config_load_merged(path, NULL, 0, out);
    free(path);
    return rc;
}

int job_load(const char *run, struct job *out)
{
    *out = (struct job){.run = xstrdup(run)};
    int rc = load_config(run, &out->config);
    if (rc == 0) rc = facts_read(run, &out->facts);
    if (rc == 0) rc = check_facts(out);
    const struct config *c = &out->config;
    if (rc == 0)
        rc = open_checked(out, c->data.train, config_targets_path(c), &out->facts.train, &out->train);
    if (rc == 0 && out->facts.dev.utterances)
        rc = open_checked(out, c->data.dev, config_dev_targets_path(c), &out->facts.dev, &out->dev);
    if (rc < 0) {
        job_fini(out);
        return rc;
    }
    blocks_cut(out->facts.model.params, &out->blocks);
    return 0;
}

void job_fini(struct job *j)
{
    job_close_data(&j->dev);
    job_close_data(&j->train);
    facts_fini(&j->facts);
    config_free(&j->config);
    free(j->run);
    *j = (struct job){0};
}
