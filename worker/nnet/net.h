/* The whole model over windows of T frames of S streams: LSTM or LSTMP stack, softmax, cross entropy;
 * forward, and backward truncated at the window while the state is carried on. Row t*S + s is frame t of
 * stream s. No allocation after net_new; the same calls give the same bits. One thread per net. Source: Sak,
 * Senior, Beaufays, Interspeech 2014. */
#ifndef WORKER_NNET_NET_H
#define WORKER_NNET_NET_H

#include "common/model.h"
#include "worker/nnet/plan.h"
#include "worker/nnet/real.h"
#include "worker/nnet/transposed.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct net;

struct net_options {
    int window, streams;     /* T, S: 1 or more */
    real cell_clip_override; /* limit of |c|; 0 = that of the model, below 0 = off */
    float gate_delta_clip;   /* limit of each element of the four gate deltas (Kaldi's diff_clip); 0 = off */
    bool trains;             /* false: forward only, no backward buffers */
    float scale;             /* of the gradient; 0 = 1 */
    enum plan_level level;   /* of the kernels; PLAN_BEST = the best that this CPU has */
    /* The weights turned around for net_backward, loaded by the caller (borrowed until net_free). NULL: the
     * net has its own and loads it in every net_backward. */
    const struct transposed *transposed;
    /* NULL, or called while a window is computed: at least once per frame of every layer forward and again
     * backward, and between the large products over all frames. Must not touch what the net reads or writes.
     */
    void (*between)(void *ctx);
    void *between_ctx;
};

struct net_result {
    double loss;      /* cross entropy summed over the frames that carry error, natural logarithm */
    uint64_t frames;  /* that carry error */
    uint64_t correct; /* of these, the target is the most probable */
};

/* m is borrowed until net_free. State zero. */
struct net *net_new(const struct model *m, const struct net_options *o);
void net_free(struct net **n);

/* params[P]; x (T*S, D); reset (T*S): 1 = the state before this frame is zero, at any t; target (T*S): below
 * 0 = no error, else below K. Carries the state on to the next window. */
void net_forward(struct net *n, const real *params, const real *x, const uint8_t *reset,
                 const int32_t *target, struct net_result *out);
/* Once after net_forward with the same arguments; needs `trains`. Overwrites grad[P] with the gradient of the
 * summed loss times `scale`; none crosses a reset or leaves the window. Returns the sum of its squares: not
 * finite if one element is not, or is beyond 1e19. */
double net_backward(struct net *n, const real *params, const real *x, const uint8_t *reset, real *grad);
/* (T*S, K) contiguous, natural logarithm; computed at the call. After net_forward and before net_backward; a
 * view until the next of either. */
const real *net_log_posteriors(struct net *n);

/* The recurrent state: for every layer c (S, C), then r (S, R), as net_get_state writes it. */
void net_clear_state(struct net *n);
size_t net_state_size(const struct net *n); /* numbers, not bytes */
void net_get_state(const struct net *n, real *out);
void net_set_state(struct net *n, const real *in);

#endif
