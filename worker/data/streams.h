/* S streams of utterances, cut into windows of T frames. A core without I/O: it is given loaded utterances
 * and gives minibatches; equal gifts give equal windows. An utterance starts at the top of a window; the rest
 * of its last window is padding, and the next utterance of the stream starts in the next window. Allocates
 * nothing after streams_new. Source: the paper, section 3.2; DESIGN section 2, stage 3. One thread. */
#ifndef WORKER_DATA_STREAMS_H
#define WORKER_DATA_STREAMS_H

#include "worker/data/utterance.h"

#include <stdbool.h>
#include <stdint.h>

/* Row of frame t of stream s: t*S + s. Owned by the caller: one per window that may be in flight. */
struct minibatch {
    int T, S;
    uint32_t dim;
    float *x;        /* (T*S, dim); padding is 0 */
    int32_t *target; /* (T*S), -1 = no error */
    uint8_t *reset;  /* (T*S), 1 = first frame of an utterance: the state before it is zero */
    uint64_t frames; /* rows with target >= 0 */
    uint64_t padded; /* rows that hold no input */
};

void minibatch_init(struct minibatch *m, int T, int S, uint32_t dim);
void minibatch_fini(struct minibatch *m);

struct streams;

struct streams *streams_new(int T, int S, uint32_t dim);
/* Also frees the utterances that are still inside. Accepts NULL. */
void streams_free(struct streams **s);
/* The first stream without an utterance, -1 if there is none. */
int streams_need(const struct streams *s);
bool streams_is_idle(const struct streams *s, int stream);
/* Takes ownership; the stream must be idle, the utterance of the streams' dim and not empty. */
void streams_give(struct streams *s, int stream, struct utterance **u);
/* Cuts the next T inputs of every stream; an idle stream is padding. False, and nothing written, if all are
 * idle. All finished utterances must have been taken before. */
bool streams_cut(struct streams *s, struct minibatch *out);
/* Gives back, in stream order, an utterance whose last frame the last cut held; false if there is none. */
bool streams_take_finished(struct streams *s, struct utterance **out);

/* For capsules: what stream is in the middle of. next_frame counts inputs. False if it is idle. */
bool streams_cursor(const struct streams *s, int stream, uint32_t *index, uint64_t *lease,
                    uint32_t *next_frame);
/* After giving the same utterance again: goes on at next_frame (< its frames). No reset unless it is 0. */
void streams_set_cursor(struct streams *s, int stream, uint32_t next_frame);

#endif
