#include "worker/nnet/net.h"

#include "common/err.h"
#include "worker/nnet/affine.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/loss.h"
#include "worker/nnet/lstmp.h"
#include "worker/nnet/plan.h"

#include <stdlib.h>
#include <string.h>

enum phase { IDLE, FORWARD_DONE };

struct net {
    const struct model *model; /* borrowed */
    struct window window;
    size_t num_layers, rows;                  /* rows = T*S */
    const struct tensor *output_w, *output_b; /* views */
    struct lstmp layers[MODEL_MAX_LAYERS];
    struct loss loss;
    int32_t *target;        /* (T*S) of the last forward pass */
    struct transposed *own; /* NULL: it is the caller's */
    enum phase phase;
};

/* The most columns that the weights of one layer read together: x and r, m, the uppermost y. */
static size_t most_inputs(const struct model_spec *s)
{
    size_t most = model_upward(s, s->num_layers - 1);
    for (size_t l = 0; l < s->num_layers; l++) {
        size_t gates = (size_t)model_layer_input(s, l) + model_recurrent(s, l), cells = s->layers[l].cells;
        if (gates > most) most = gates;
        if (cells > most) most = cells;
    }
    return most;
}

static struct window window_of(const struct model *m, const struct net_options *o)
{
    struct plan plan = plan_make(o->level);
    real clip = o->cell_clip_override != 0 ? o->cell_clip_override : (real)m->spec.cell_clip;
    struct window w = {
        .frames = (size_t)o->window,
        .streams = (size_t)o->streams,
        .trains = o->trains,
        .cell_clip = clip > 0 ? clip : (real)INFINITY,
        .delta_clip = o->gate_delta_clip > 0 ? (real)o->gate_delta_clip : (real)INFINITY,
        .gates = plan.gates,
        .transposed = o->transposed,
        .between = o->between,
        .between_ctx = o->between_ctx,
    };
    workspace_init(&w.products, plan.panels, o->scale != 0 ? (real)o->scale : 1, w.frames * w.streams,
                   most_inputs(&m->spec));
    return w;
}

struct net *net_new(const struct model *m, const struct net_options *o)
{
    ASSERT(o->window > 0 && o->streams > 0);
    blas_use_one_thread();
    struct net *n = xcalloc(1, sizeof *n);
    n->model = m;
    n->window = window_of(m, o);
    if (o->trains && !o->transposed)
        n->window.transposed = n->own = transposed_new(m, n->window.products.kernels);
    n->rows = n->window.frames * n->window.streams;
    n->num_layers = m->spec.num_layers;
    n->output_w = model_find(m, "output.w");
    n->output_b = model_find(m, "output.b");
    ASSERT(n->output_w && n->output_b);
    for (size_t l = 0; l < n->num_layers; l++) lstmp_init(&n->layers[l], m, l, &n->window);
    loss_init(&n->loss, n->window.gates, n->rows, m->spec.targets);
    n->target = xcalloc(n->rows, sizeof *n->target);
    return n;
}

void net_free(struct net **n)
{
    if (!*n) return;
    for (size_t l = 0; l < (*n)->num_layers; l++) lstmp_fini(&(*n)->layers[l]);
    loss_fini(&(*n)->loss);
    workspace_fini(&(*n)->window.products);
    transposed_free(&(*n)->own);
    free((*n)->target);
    free(*n);
    *n = NULL;
}

/* What layer l sees; x for the first, [r; p] of the layer below for the others; l = num_layers: the output
 * layer. */
static struct const_rows input_of(const struct net *n, size_t l, const real *x)
{
    return l == 0 ? (struct const_rows){x, n->model->spec.input} : rows_read(n->layers[l - 1].y);
}

void net_forward(struct net *n, const real *params, const real *x, const uint8_t *reset,
                 const int32_t *target, struct net_result *out)
{
    for (size_t l = 0; l < n->num_layers; l++) lstmp_forward(&n->layers[l], params, input_of(n, l, x), reset);
    affine_forward(&n->window.products, n->output_w, params, n->rows, input_of(n, n->num_layers, x), false,
                   (struct rows){n->loss.z, n->loss.targets});
    window_between(&n->window);
    struct loss_sum sum = loss_forward(&n->loss, params + n->output_b->offset, target);
    memcpy(n->target, target, n->rows * sizeof *target);
    n->phase = FORWARD_DONE;
    *out = (struct net_result){.loss = sum.loss, .frames = sum.frames, .correct = sum.correct};
}

double net_backward(struct net *n, const real *params, const real *x, const uint8_t *reset, real *grad)
{
    ASSERT(n->phase == FORWARD_DONE && n->window.trains);
    n->phase = IDLE;
    if (n->own) transposed_load(n->own, params, 0, 1);
    loss_backward(&n->loss, n->target);
    struct const_rows d_logits = {n->loss.z, n->loss.targets};
    struct affine_input uppermost = {n->output_w, input_of(n, n->num_layers, x)};
    const struct workspace *products = &n->window.products;
    double squares = affine_gradient(products, &uppermost, 1, n->output_b, n->rows, d_logits, grad);
    window_between(&n->window);
    affine_backward(products, n->output_w, params, NULL, n->rows, d_logits, false,
                    n->layers[n->num_layers - 1].d_y);
    window_between(&n->window);
    for (size_t l = n->num_layers; l-- > 0;) {
        struct rows below = l > 0 ? n->layers[l - 1].d_y : (struct rows){NULL, 0};
        squares += lstmp_backward(&n->layers[l], params, input_of(n, l, x), reset, below, grad);
    }
    return squares;
}

const real *net_log_posteriors(struct net *n)
{
    ASSERT(n->phase == FORWARD_DONE);
    loss_log_posteriors(&n->loss);
    return n->loss.z;
}

void net_clear_state(struct net *n)
{
    for (size_t l = 0; l < n->num_layers; l++) {
        struct lstmp *y = &n->layers[l];
        memset(y->state_c, 0, n->window.streams * y->cells * sizeof(real));
        memset(y->state_r, 0, n->window.streams * y->recurrent * sizeof(real));
    }
}

size_t net_state_size(const struct net *n)
{
    size_t columns = 0;
    for (size_t l = 0; l < n->num_layers; l++) columns += n->layers[l].cells + n->layers[l].recurrent;
    return columns * n->window.streams;
}

void net_get_state(const struct net *n, real *out)
{
    for (size_t l = 0; l < n->num_layers; l++) {
        const struct lstmp *y = &n->layers[l];
        size_t c = n->window.streams * y->cells, r = n->window.streams * y->recurrent;
        memcpy(out, y->state_c, c * sizeof(real));
        memcpy(out + c, y->state_r, r * sizeof(real));
        out += c + r;
    }
}

void net_set_state(struct net *n, const real *in)
{
    for (size_t l = 0; l < n->num_layers; l++) {
        const struct lstmp *y = &n->layers[l];
        size_t c = n->window.streams * y->cells, r = n->window.streams * y->recurrent;
        memcpy(y->state_c, in, c * sizeof(real));
        memcpy(y->state_r, in + c, r * sizeof(real));
        in += c + r;
    }
}
