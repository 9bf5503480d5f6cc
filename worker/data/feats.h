/* From the frames of a file to the inputs of the net: normalisation (global, or per speaker from cmvn.scp),
 * stacking, skipping and target delay (DESIGN section 3). Plain functions over arrays; statistics are
 * read-only once made, then any thread. Source: the paper, section 3.2 (delay 5, last frame repeated); Kaldi
 * transform/cmvn.cc. */
#ifndef WORKER_DATA_FEATS_H
#define WORKER_DATA_FEATS_H

#include "common/model.h"
#include "worker/data/corpus.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* x' = (x - mean) * scale, each (dim). Part of the model: frames of the files, before stacking. */
struct normaliser {
    uint32_t dim;
    float *mean, *scale; /* owned */
};

void normaliser_init(struct normaliser *n, uint32_t dim); /* mean 0, scale 1 */
void normaliser_fini(struct normaliser *n);

/* Mean and 1 / standard deviation of every frame of the corpus, in double over the utterances in order
 * (Welford's update by utterance, so equal corpora give equal bits). A dimension that hardly varies gets
 * scale 1. Unreadable utterances are left out and counted in *skipped (NULL = not wanted); ERR_DATA if
 * nothing is left. */
int feats_global_stats(const struct corpus *c, struct normaliser *out, size_t *skipped);
/* rows x dim, in place. */
void feats_normalise(const struct normaliser *n, size_t rows, float *x);

/* One normaliser per speaker of a corpus. */
struct speaker_stats {
    uint32_t dim, num_speakers;
    struct normaliser *of; /* owned, (num_speakers) */
};
/* From DIR/cmvn.scp: matrices 2 x (dim + 1) of sums and sums of squares, the last column of row 0 the frame
 * count (1 x (dim + 1) if means alone). norm_vars false: means alone. ERR_DATA if a speaker is missing or its
 * numbers make no sense; with a report (NULL = none), such speakers are reported there, get mean 0, scale 1
 * and no error. */
int feats_speaker_stats(const struct corpus *c, bool norm_vars, struct corpus_report *report,
                        struct speaker_stats *out);
void speaker_stats_fini(struct speaker_stats *s);

/* How frames become inputs. Zero-initialised, stack and skip mean 1. */
struct frontend {
    uint32_t dim;         /* of the files */
    uint32_t stack, skip; /* frames side by side in one input, frames advanced per input */
    uint32_t delay;       /* of the targets, in inputs */
    enum delay_style delay_style;
    const struct normaliser *normaliser;  /* global; NULL = none. Borrowed */
    const struct speaker_stats *speakers; /* applied first; NULL = none. Borrowed */
};

/* The part of a model's specification that belongs here; no statistics. */
struct frontend feats_frontend(const struct model_spec *spec);
/* D of the net: dim x stack. */
uint32_t feats_input_dim(const struct frontend *f);
/* Labelled inputs of N frames: ceil(N / skip). Row t of `score` belongs to frame t * skip. */
uint32_t feats_labelled(const struct frontend *f, uint32_t frames);
/* Inputs that the net runs: labelled + delay (repeat), labelled (kaldi). 0 for 0 frames. */
uint32_t feats_inputs(const struct frontend *f, uint32_t frames);
/* Output t belongs to labelled input t - delay (repeat; the first `delay` to none) or t (kaldi). Input t is
 * the stack of frames b*skip .. b*skip + stack - 1, each at most N - 1, with b = min(t, labelled - 1)
 * (repeat) or min(t + delay, labelled - 1) (kaldi). x: (frames, dim); out: (feats_inputs, feats_input_dim).
 * frames >= 1. */
void feats_compose(const struct frontend *f, const float *x, uint32_t frames, float *out);
/* targets (frames) or NULL = all -1; out (feats_inputs): targets[(t - delay) * skip] or -1. */
void feats_targets(const struct frontend *f, const int32_t *targets, uint32_t frames, int32_t *out);

#endif
