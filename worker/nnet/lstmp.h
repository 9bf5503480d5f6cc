/* One LSTM or LSTMP layer over a window of T frames of S streams: forward, and backward truncated at the
 * window. Row t*S + s of every matrix is frame t of stream s. Gates stacked g, i, f, o. One thread. Source:
 * Sak, Senior, Beaufays, Interspeech 2014, equations 1 to 8; arXiv 1402.1128 for p_t; the order of clips in
 * the backward pass is that of Kaldi's nnet1 LstmProjected. */
#ifndef WORKER_NNET_LSTMP_H
#define WORKER_NNET_LSTMP_H

#include "common/model.h"
#include "worker/nnet/affine.h"
#include "worker/nnet/kernels/gates.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The window that all layers of a net share. */
struct window {
    size_t frames, streams;     /* T, S */
    bool trains;                /* false: nothing for a backward pass is kept */
    real cell_clip, delta_clip; /* INFINITY = off */
    const struct gates *gates;
    struct workspace products;
    const struct transposed *transposed; /* where it trains */
    void (*between)(void *ctx);          /* as net_options has it */
    void *between_ctx;
};

static inline void window_between(const struct window *w)
{
    if (w->between) w->between(w->between_ctx);
}

struct lstmp {
    struct window window;
    size_t input, cells, recurrent,
        nonrecurrent; /* columns of x, c, r, p; r = m where there is no projection */
    const struct tensor *w_x, *w_r, *b, *p_i, *p_f, *p_o, *w_m,
        *w_p; /* views; NULL where the model has none */

    struct rows z;      /* (T*S, 4C): forward leaves g, i, f, o; backward leaves their deltas */
    struct rows c;      /* ((T+1)*S, C): the first S rows are the state before the window */
    struct rows m;      /* (T*S, C) */
    struct rows y;      /* (T*S, R + p): [r; p], what the next layer sees; m itself without a projection */
    struct rows r_prev; /* (T*S, R): r of the frame before, zero after a reset */
    real *state_c, *state_r; /* (S, C), (S, R): state after the last frame, contiguous */
    real *zeros;             /* (C) */

    struct rows d_y;  /* (T*S, R + p): written by what is above before lstmp_backward */
    struct rows d_m;  /* (S, C): one frame's; not used without a projection */
    struct rows d_c;  /* (S, C): what frame t+1 sends back to c_t */
    struct rows kept; /* (S, R): rows of d_y that a reset protects */
    real *d_peephole; /* (3C): i, f, o */
};

/* Layer `index` of m, which must outlive l; w is copied, what it points to borrowed. */
void lstmp_init(struct lstmp *l, const struct model *m, size_t index, const struct window *w);
void lstmp_fini(struct lstmp *l);
/* x (T*S, input); reset (T*S): 1 = the state before this frame is zero. Fills y and moves the state on by T
 * frames. */
void lstmp_forward(struct lstmp *l, const real *params, struct const_rows x, const uint8_t *reset);
/* After lstmp_forward with the same arguments and d_y filled. d_x (T*S, input) is overwritten; d_x.data NULL
 * = not wanted. Overwrites the layer's tensors in grad[P] with sums over the window, scaled as the workspace
 * says; returns the sum of their squares. */
double lstmp_backward(struct lstmp *l, const real *params, struct const_rows x, const uint8_t *reset,
                      struct rows d_x, real *grad);

#endif
