/* One utterance, ready for the net: normalised inputs and delayed targets, in buffers that are used again.
 * Source: DESIGN section 2, stages 1 and 2. One thread at a time per utterance. */
#ifndef WORKER_DATA_UTTERANCE_H
#define WORKER_DATA_UTTERANCE_H

#include "worker/data/feats.h"

#include <stdint.h>

struct utterance {
    uint32_t index;         /* in the corpus */
    uint32_t frames;        /* inputs after stacking, skipping and delay */
    uint32_t labelled;      /* of those, with a target >= 0 */
    uint32_t source_frames; /* frames of the file that were used */
    uint32_t dim;           /* D of the net */
    float *x;               /* (frames, dim), owned */
    int32_t *target;        /* (frames), -1 = carries no error; owned */
    uint64_t lease;         /* whoever asked for it knows what this means */
    int stream;             /* hint of whoever asked, -1 = any */
    /* inside */
    size_t x_capacity, target_capacity; /* in elements */
    struct matrix raw;                  /* frames as read */
    struct input *input;                /* borrowed: keeps archives open; NULL = opened for each call */
};

struct utterance *utterance_new(void);
/* Accepts NULL. */
void utterance_free(struct utterance **u);
/* Reads utterance `index` and makes its inputs; lease and stream stay. Buffers only grow. ERR_DATA with a
 * sentence that names id and line; then u->frames is 0. The frontend's dim must be the corpus' (ERR_MODEL
 * otherwise). */
int utterance_load(const struct corpus *c, size_t index, const struct frontend *f, struct utterance *u);
/* The same from frames in memory: x (rows, f->dim) is normalised in place; targets (rows) or NULL; rows >= 1.
 * For tables without a corpus (score). speaker CORPUS_NO_SPEAKER = no statistics per speaker. */
void utterance_make(const struct frontend *f, uint32_t speaker, uint32_t rows, float *x,
                    const int32_t *targets, struct utterance *u);

#endif
