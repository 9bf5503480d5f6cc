/* Forward only over whole utterances, each from zero state: cross entropy, frame accuracy, and accuracy
 * without silence. The same range, weights and options give the same bits on every worker. Used for
 * evaluation leases and by `chorale eval`. One thread. Source: DESIGN sections 3 and 4. */
#ifndef WORKER_EVALUATE_H
#define WORKER_EVALUATE_H

#include "common/model.h"
#include "worker/job.h"

#include <stdbool.h>
#include <stdint.h>

struct evaluate_options {
    int window, streams;    /* T, S */
    const int32_t *silence; /* targets that count as silence; copied. Each >= 0 */
    uint32_t num_silence;
};

/* Sums over the frames that carry error. */
struct evaluation {
    double loss; /* natural logarithm */
    uint64_t frames, correct;
    uint64_t speech_frames, speech_correct; /* target not silence; all frames without a list */
    uint32_t failed;                        /* utterances that could not be read: left out */
};

struct evaluate;

/* m and d (a corpus with targets) are borrowed until evaluate_free. */
struct evaluate *evaluate_new(const struct model *m, const struct job_data *d,
                              const struct evaluate_options *o);
/* Accepts NULL. */
void evaluate_free(struct evaluate **e);
/* Starts on utterances [begin, end) of the corpus, begin <= end <= corpus_count; sums at 0. Nothing may be
 * under way. */
void evaluate_begin(struct evaluate *e, uint32_t begin, uint32_t end);
/* One window with params[P]; false when all is done. */
bool evaluate_step(struct evaluate *e, const float *params);
/* Of what was done since evaluate_begin. */
const struct evaluation *evaluate_sums(const struct evaluate *e);
/* All of [begin, end) in one call. */
void evaluate_range(struct evaluate *e, const float *params, uint32_t begin, uint32_t end,
                    struct evaluation *out);

#endif
