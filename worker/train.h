/* The training loop: the only place where data, maths and network meet. Takes leases, makes gradients window
 * by window, exchanges them for new weights; between windows it evaluates, stands still for an exact
 * checkpoint, obeys orders. With one worker, overlap 0 and no skipped pulls the sequence of gradients is a
 * function of the job alone. One thread (beside the prefetch). Source: DESIGN sections 2, 4 and 5. */
#ifndef WORKER_TRAIN_H
#define WORKER_TRAIN_H

#include "worker/job.h"
#include "worker/links.h"

#include <signal.h>

struct train;

/* j and l are borrowed, and l must be closed before train_free: frames that wait in its queues borrow the
 * gradients. stop: set by a signal handler. */
struct train *train_new(const struct job *j, struct links *l, const volatile sig_atomic_t *stop);
/* Accepts NULL. */
void train_free(struct train **t);
/* Joins, trains until told otherwise, and leaves. 0: the job is done. Else negative with a sentence:
 * ERR_INTERRUPTED (TERM, or the job was interrupted), ERR_DIVERGED, ERR_REACH (no coordinator for a minute
 * and nothing to do), ERR_AGAIN (retired: start over with new links), or what cannot be repaired. */
int train_run(struct train *t);

#endif
