#include "worker/nnet/affine.h"

#include "common/err.h"

#include <stdlib.h>

void workspace_init(struct workspace *s, const struct panel_kernels *k, real scale, size_t n, size_t in)
{
    size_t gradient = panels_gradient_scratch(n, in);
    size_t size = gradient > PANELS_TURN_SCRATCH ? gradient : PANELS_TURN_SCRATCH;
    *s = (struct workspace){k, scale, xaligned(size * sizeof(real))};
}

void workspace_fini(struct workspace *s)
{
    free(s->scratch);
    *s = (struct workspace){0};
}

static struct panels panels_of(const struct tensor *w, const real *params)
{
    DCHECK(w->layout == LAYOUT_PANELS);
    return (struct panels){params + w->offset, w->rows, w->cols};
}

void affine_forward(const struct workspace *s, const struct tensor *w, const real *params, size_t n,
                    struct const_rows x, bool adds, struct rows y)
{
    s->kernels->forward(panels_of(w, params), n, x, adds, y);
}

void affine_backward(const struct workspace *s, const struct tensor *w, const real *params,
                     const struct transposed *t, size_t n, struct const_rows d_y, bool adds, struct rows d_x)
{
    if (t)
        s->kernels->forward(transposed_of(t, w), n, d_y, adds, d_x);
    else
        s->kernels->backward(panels_of(w, params), n, d_y, adds, d_x, s->scratch);
}

double affine_gradient(const struct workspace *s, const struct affine_input *inputs, size_t num_inputs,
                       const struct tensor *b, size_t n, struct const_rows d_y, real *grad)
{
    struct panels_gradient terms[AFFINE_INPUTS];
    ASSERT(num_inputs >= 1 && num_inputs <= AFFINE_INPUTS);
    for (size_t i = 0; i < num_inputs; i++) {
        const struct tensor *w = inputs[i].w;
        DCHECK(w->rows == inputs[0].w->rows);
        terms[i] = (struct panels_gradient){grad + w->offset, w->cols, inputs[i].x};
    }
    return s->kernels->gradient(inputs[0].w->rows, n, d_y, terms, num_inputs, s->scale,
                                b ? grad + b->offset : NULL, s->scratch);
}
