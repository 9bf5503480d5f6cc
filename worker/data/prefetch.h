/* Loads utterances on a thread of its own, ahead of need, and hands them over in exactly the order in which
 * they were asked for. A bounded queue; once every buffer has seen its longest utterance nothing is
 * allocated. An utterance that cannot be read takes its turn as a failure. prefetch_* are for one thread, the
 * owner; the corpus and the front end must not change meanwhile. */
#ifndef WORKER_DATA_PREFETCH_H
#define WORKER_DATA_PREFETCH_H

#include "worker/data/utterance.h"

#include <stdbool.h>
#include <stdint.h>

enum prefetch_result {
    PREFETCH_NONE,      /* nothing was asked for, or (without wait) the next one is not loaded yet */
    PREFETCH_UTTERANCE, /* *u_out is the caller's */
    PREFETCH_FAILED     /* *failure_out says why; the next call gives the next one */
};

struct prefetch_failure {
    uint32_t index;
    uint64_t lease;
    int stream;
    int code;             /* enum err */
    const char *sentence; /* holds until the next prefetch_take or prefetch_ask */
};

struct prefetch;

/* corpus and frontend are borrowed. At most `capacity` utterances are asked for and not taken. */
struct prefetch *prefetch_new(const struct corpus *c, const struct frontend *f, int capacity);
/* Waits for the load that is running, then frees everything that was not taken. Accepts NULL. */
void prefetch_free(struct prefetch **p);
/* False if the queue is full. index < corpus_count. lease and stream come back with the utterance. */
bool prefetch_ask(struct prefetch *p, uint32_t index, uint64_t lease, int stream);
enum prefetch_result prefetch_take(struct prefetch *p, bool wait, struct utterance **u_out,
                                   struct prefetch_failure *failure_out);
/* Takes an utterance back, so that its buffers serve again. */
void prefetch_give_back(struct prefetch *p, struct utterance **u);
/* Asked for and not taken; failures so far; utterance buffers ever made. */
int prefetch_pending(struct prefetch *p);
uint64_t prefetch_failures(struct prefetch *p);
int prefetch_buffers(struct prefetch *p);

#endif
