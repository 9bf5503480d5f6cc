/* What a worker or a tool loads once: the job's options, its facts, and data directories as the model wants
 * them (corpus, statistics, front end). Read-only after loading, then any thread. */
#ifndef WORKER_JOB_H
#define WORKER_JOB_H

#include "common/config.h"
#include "common/snapshot.h"
#include "worker/data/corpus.h"
#include "worker/data/feats.h"

#include <stdbool.h>
#include <stdint.h>

/* A data directory and how its frames become inputs. */
struct job_data {
    struct corpus *corpus;         /* owned */
    struct normaliser normaliser;  /* a view of the facts' mean and scale */
    struct speaker_stats speakers; /* owned; empty without speaker normalisation */
    struct frontend frontend;      /* points into this struct */
};

struct job_data_options {
    bool allow_pipes;
    uint32_t length_tolerance; /* frames */
};

/* dir and targets as corpus_open (targets NULL: none). f is borrowed until job_close_data. ERR_DATA for data
 * that cannot be used, ERR_MODEL where its dimension is not the model's. */
int job_open_data(const struct facts *f, const char *dir, const char *targets,
                  const struct job_data_options *o, struct job_data **out);
/* Accepts NULL. */
void job_close_data(struct job_data **d);
/* Labelled inputs of the whole directory: feats_labelled summed, what data_facts.frames counts. */
uint64_t job_data_frames(const struct job_data *d);

struct job {
    char *run; /* owned */
    struct config config;
    struct facts facts;
    struct blocks blocks;         /* of facts.model.params */
    struct job_data *train, *dev; /* owned; dev NULL without dev data */
};

/* RUN/job.yaml, RUN/model.safetensors and the data that they name. ERR_DATA if the data is not what the job
 * was prepared with, ERR_MODEL if the facts do not fit together, ERR_USAGE for the job file. On failure *out
 * is empty. */
int job_load(const char *run, struct job *out);
void job_fini(struct job *j);

#endif
