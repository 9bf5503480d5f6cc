/* A Kaldi data directory as a list of utterances: feats.scp joined by id with one integer target per frame.
 * Every problem is counted and named with file and line; an utterance with a problem that makes it useless is
 * left out. The features themselves stay on disk. Opening reads lists, headers and alignments, so each worker
 * can afford it; equal directories give equal lists. Read-only after corpus_open, then any thread
 * (corpus_scan included). Source: Kaldi's utils/validate_data_dir.sh and nnetbin/nnet-train-multistream.cc
 * for what is skipped. */
#ifndef WORKER_DATA_CORPUS_H
#define WORKER_DATA_CORPUS_H

#include "worker/data/ark.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CORPUS_NO_SPEAKER UINT32_MAX

enum corpus_problem {
    CORPUS_BAD_LINE,          /* a line without a value */
    CORPUS_UNSORTED,          /* ids not in the order of the C locale: used all the same */
    CORPUS_DUPLICATE,         /* an id for the second time: the first entry is used */
    CORPUS_PIPE,              /* a command that was not run, or failed: skipped */
    CORPUS_UNREADABLE,        /* missing, truncated or damaged archive: skipped */
    CORPUS_EMPTY,             /* no frames: skipped */
    CORPUS_DIMENSION,         /* another feature dimension than the rest: skipped */
    CORPUS_MISSING_ALIGNMENT, /* skipped */
    CORPUS_LENGTH,            /* alignment and features differ by more than the tolerance: skipped */
    CORPUS_TARGET,            /* a target below 0 or beyond the model's: skipped */
    CORPUS_NONFINITE,     /* NaN or infinite features: found by corpus_scan and when loaded, then skipped */
    CORPUS_FRAME_COUNT,   /* utt2num_frames does not agree with the archive */
    CORPUS_NO_UTT2SPK,    /* an utterance that utt2spk leaves out: is its own speaker */
    CORPUS_SPEAKER_STATS, /* a speaker without usable statistics in cmvn.scp */
    CORPUS_PROBLEMS
};

#define CORPUS_EXAMPLES     3 /* sentences kept of each kind */
#define CORPUS_EXAMPLE_SIZE 400

/* Plain data. */
struct corpus_report {
    uint64_t count[CORPUS_PROBLEMS];
    char example[CORPUS_PROBLEMS][CORPUS_EXAMPLES][CORPUS_EXAMPLE_SIZE];
    uint64_t listed;   /* lines of feats.scp */
    uint64_t usable;   /* utterances left after the join (corpus_scan: and after reading every matrix) */
    uint64_t frames;   /* of those, before stacking and skipping */
    uint64_t cut;      /* of those, utterances cut to the shorter of features and alignment: no problem */
    uint64_t unwanted; /* alignments without features: no problem */
};

struct corpus_options {
    bool allow_pipes;          /* commands in scp files */
    bool allow_empty;          /* no usable utterance is no error (for the check) */
    uint32_t length_tolerance; /* frames; a difference within it is cut to the shorter */
    uint32_t dim;              /* expected feature dimension, 0 = that of the first readable utterance */
    uint32_t num_targets;      /* of the model, 0 = any */
};
#define CORPUS_OPTIONS_DEFAULT ((struct corpus_options){.length_tolerance = 5}) /* as Kaldi */

struct corpus_utterance {
    const char *id;
    uint32_t frames;  /* min(features, alignment); features as utt2num_frames says, where there is one */
    uint32_t speaker; /* index for corpus_speaker */
    size_t line;      /* of feats.scp */
    struct ark_source features; /* without an input */
    const int32_t *targets;     /* (frames), each >= 0; NULL if the corpus has none. View into the corpus */
};

struct corpus;

/* targets: NULL = none; "ali.scp" is tried in dir and then as a path; also "FILE.ark", "ark:FILE",
 * "scp:FILE". ERR_DATA if the lists cannot be read or (unless allow_empty) nothing is usable. */
int corpus_open(const char *dir, const char *targets, const struct corpus_options *o, struct corpus **out);
void corpus_free(struct corpus **c);

size_t corpus_count(const struct corpus *c);
/* i < count; in the order of feats.scp. A view that holds as long as the corpus. */
const struct corpus_utterance *corpus_utterance(const struct corpus *c, size_t i);
uint32_t corpus_dim(const struct corpus *c);         /* 0 if nothing is usable */
uint32_t corpus_num_targets(const struct corpus *c); /* largest target + 1, 0 without targets */
uint64_t corpus_frames(const struct corpus *c);      /* sum over utterances */
uint64_t corpus_hash(const struct corpus *c);        /* XXH3 of ids and frame counts, in order */
uint32_t corpus_num_speakers(const struct corpus *c);
const char *corpus_speaker(const struct corpus *c, uint32_t speaker);
const char *corpus_dir(const struct corpus *c);
const struct corpus_options *corpus_options(const struct corpus *c);
/* What opening found. */
const struct corpus_report *corpus_report(const struct corpus *c);

/* Reads every matrix; *out gets what opening found and what only reading shows. */
void corpus_scan(const struct corpus *c, struct corpus_report *out);

/* Reads the features of utterance i: (rows >= 1, corpus_dim), all finite. rows may differ from `frames`.
 * `in` keeps archives open between calls (NULL = none). ERR_DATA with a sentence that names id and line;
 * *problem says which kind (NULL = not wanted). */
int corpus_read(const struct corpus *c, size_t i, struct input *in, struct matrix *out,
                enum corpus_problem *problem);

/* "missing_alignment" for machines, "missing alignment" for people, what is done about it: "skipped". */
const char *corpus_problem_key(enum corpus_problem kind);
const char *corpus_problem_name(enum corpus_problem kind);
const char *corpus_problem_effect(enum corpus_problem kind);
/* Counts one problem and keeps its sentence while there is room. */
void corpus_report_add(struct corpus_report *r, enum corpus_problem kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
uint64_t corpus_report_total(const struct corpus_report *r);

#endif
