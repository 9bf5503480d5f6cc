/* The computing threads of one worker: N members, each with a net over S streams of its own, and their summed
 * gradient. Member k computes the streams [k*S, (k+1)*S) of a minibatch of N*S streams; member 0 is the
 * thread that calls. Sums go in member order, so the same windows give the same bits; N = 1 is exactly one
 * net, and N members agree with one net of N*S streams but for rounding. Between windows the threads sleep.
 * One thread calls. Source: the paper, section 3.1 (three threads per machine, one gradient). */
#ifndef WORKER_TEAM_H
#define WORKER_TEAM_H

#include "worker/nnet/net.h"

#include <pthread.h>

struct team_options {
    int threads; /* N */
    /* Of each member: `streams` is S; `between` is called on the caller's thread alone; `transposed` is the
     * team's. */
    struct net_options net;
};

/* Row t*(N*S) + s, as net_forward takes it. */
struct team_window {
    const float *x;        /* (T*N*S, D) */
    const uint8_t *reset;  /* (T*N*S) */
    const int32_t *target; /* (T*N*S) */
    bool same_weights;     /* params hold what they held for the window before */
};

struct team;

/* m is borrowed until team_free. State zero. */
struct team *team_new(const struct model *m, const struct team_options *o);
/* Accepts NULL. */
void team_free(struct team **t);

/* Forward over all streams and, if any frame carries error, backward: grad[P] is then overwritten with the
 * sum over the members; else it is left as it is. Moves the state on. params[P] may not change meanwhile.
 * Returns the sum of the squares of grad as net_backward does; 0 if it was left. */
double team_compute(struct team *t, const float *params, const struct team_window *w, float *grad,
                    struct net_result *out);

/* The recurrent state of all members, one after the other, each as net_get_state writes it. */
void team_clear_state(struct team *t);
size_t team_state_size(const struct team *t); /* numbers, not bytes */
void team_get_state(const struct team *t, float *out);
void team_set_state(struct team *t, const float *in);

/* (N) for pin_threads; [0] is the thread that called team_new. A view. */
const pthread_t *team_threads(const struct team *t);

#endif
