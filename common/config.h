/* A job as one struct. What exists, with type, default, range, unit and help, is the table of
 * common/options.c alone. Where a value comes from: default < YAML file < environment
 * (CHORALE_TRAIN_WINDOW=40) < --set train.window=40. Every error is ERR_USAGE with one sentence (file, line
 * and column where there are any, and the nearest known key). config.c alone sees YAML; no tags, anchors or
 * aliases; a file of at most 1 MiB. Plain data: any thread may read it. */
#ifndef COMMON_CONFIG_H
#define COMMON_CONFIG_H

#include "common/element.h"
#include "common/model.h"

#include <stdbool.h>
#include <stddef.h>

/* In RUN: a changed job file that a running job takes up between two epochs (chorale set). */
#define CONFIG_NEXT "job.next.yaml"

enum normalise { NORMALISE_GLOBAL, NORMALISE_SPEAKER, NORMALISE_NONE };
enum gradient_unit { GRADIENT_SUM, GRADIENT_MEAN }; /* over the frames of a window */
enum optimizer_type {
    OPTIMIZER_SGD,
    OPTIMIZER_MOMENTUM,
    OPTIMIZER_NESTEROV,
    OPTIMIZER_ADAGRAD,
    OPTIMIZER_RMSPROP,
    OPTIMIZER_ADAM,
    OPTIMIZER_ADAMW
};
enum momentum_place { MOMENTUM_AT_WORKER, MOMENTUM_AT_SERVER };
enum staleness_rate { STALENESS_IGNORE, STALENESS_DIVIDE };
enum schedule_type { SCHEDULE_CONSTANT, SCHEDULE_EXPONENTIAL, SCHEDULE_HALVE, SCHEDULE_NEWBOB };
enum consistency_mode { CONSISTENCY_ASYNC, CONSISTENCY_BSP, CONSISTENCY_SSP };
enum durability { DURABILITY_SNAPSHOT };
enum security { SECURITY_NONE, SECURITY_CURVE };

struct int_list {
    int *values; /* owned */
    size_t count;
};

/* Strings are owned, never NULL; "" = not set. Numbers are inside the range that the table states. */
struct config {
    struct {
        char *train, *dev; /* Kaldi data directories */
        char *targets;     /* alignment scp: absolute, or inside the train directory */
        char *dev_targets; /* "" = like targets, inside the dev directory */
        struct int_list silence;
        int delay; /* inputs */
        enum delay_style delay_style;
        int stack, skip;
        enum normalise normalise;
        bool cmvn_var; /* normalise speaker: the variance too */
        bool allow_pipes;
        int length_tolerance; /* frames */
    } data;
    struct {
        enum model_type type;
        struct model_layer layers[MODEL_MAX_LAYERS];
        size_t num_layers;
        bool peepholes;
        double cell_clip; /* 0 = off */
        int targets;      /* 0 = found in the data */
        struct {
            double range; /* 0 = 1/sqrt(C) */
            double forget_bias;
            bool zero_bias;
        } init;
    } model;
    struct {
        int epochs, window, streams, threads, seed;
        enum gradient_unit gradient;
        double norm_clip, gate_clip; /* 0 = off; in the unit of `gradient` */
        int chunk_utterances;
        double lease_s;
        double warm_start_frames; /* that one worker trains alone */
        bool pin;                 /* threads to cores */
    } train;
    struct {
        enum optimizer_type type;
        double rate, momentum;
        enum momentum_place momentum_at; /* momentum, nesterov */
        double beta1, beta2, epsilon;    /* adam, adamw, rmsprop, adagrad */
        double weight_decay;
        double warmup_epochs;          /* the rate rises over these */
        enum staleness_rate staleness; /* what the staleness of a push does to its rate */
        double delay_compensation;     /* lambda; 0 = off */
        bool follow_workers;           /* rate and momentum follow the number of workers */
        struct {
            enum schedule_type type;
            int from_epoch; /* first epoch (from 1) with a lower rate */
            double factor;
            double per_frames;                         /* exponential: rate * factor^(frames / per_frames) */
            double start_improvement, end_improvement; /* newbob: relative, of the dev loss */
        } schedule;
    } optimizer;
    struct {
        enum consistency_mode mode;
        int bound;         /* ssp: steps */
        int backup;        /* bsp: workers whose gradient a step does not wait for */
        int max_staleness; /* async, ssp: versions; 0 = off */
        int overlap, push_every, pull_every;
    } consistency;
    struct {
        enum element_type weights, gradients;
        int credit, deadline_ms;
    } exchange;
    struct {
        double interval_s;
        int keep;
        enum durability durability;
    } checkpoint;
    struct {
        int servers, workers; /* workers 0 = one per train.threads cores that are left */
        char *network, *ports;
        enum security security;
    } cluster;
};

/* All defaults. Undo with config_free (which also accepts a zeroed struct). */
void config_default(struct config *out);
void config_free(struct config *c);
/* default < file. yaml_path NULL = defaults alone. No cross checks yet. On failure *out is empty. */
int config_load(const char *yaml_path, struct config *out);
/* The whole precedence and the cross checks: default < yaml_path (NULL = none) < environment < sets[count] of
 * "a.b=c". On failure *out is empty. */
int config_load_merged(const char *yaml_path, char *const *sets, size_t count, struct config *out);
/* One "a.b=c"; after an error that one option may be empty. Lists as in YAML: model.layers=[{cells: 256,
 * projection: 128}], data.silence=[102, 103]. */
int config_apply_set(struct config *c, const char *assignment);
/* CHORALE_<SECTION>_<KEY>; one that starts with a section's name but names no option is an error, others are
 * ignored. */
int config_apply_environment(struct config *c);
/* What no single range can say: a projection for lstmp, dev data for newbob, backup workers in bsp alone...
 */
int config_check(const struct config *c);
/* Is momentum kept by each worker for its own gradients (worker/velocity.h)? The servers then do plain SGD.
 * Not in bsp, where nothing is stale and the servers' step is one of all workers. */
bool config_momentum_is_on_worker(const struct config *c);
/* The update that the servers apply. */
enum optimizer_type config_server_optimizer(const struct config *c);
/* The scp files of the alignments, as data.targets and data.dev_targets mean them (an empty data.dev_targets:
 * the name of data.targets without its directory, inside data.dev). Owned by the caller. */
char *config_targets_path(const struct config *c);
char *config_dev_targets_path(const struct config *c);
/* Writes the YAML atomically; commented: help, unit, range and default above every option. Reading it back
 * gives equal values, floats bit for bit. */
int config_write(const struct config *c, const char *path, bool commented);
/* The same text in memory; owned by the caller. */
char *config_text(const struct config *c, bool commented);
/* RUN/job.next.yaml, if it is there, takes the place of RUN/job.yaml. ERR_STORAGE. */
int config_take_next(const char *run);

#endif
