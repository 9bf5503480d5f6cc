#include "worker/nnet/lstmp.h"

#include "common/err.h"
#include "worker/nnet/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct rows new_rows(size_t n, size_t cols)
{
    size_t ld = plan_stride(cols);
    return (struct rows){xaligned(n * ld * sizeof(real)), ld};
}

static const struct tensor *find(const struct model *m, size_t layer, const char *what)
{
    char name[sizeof m->tensors[0].name];
    snprintf(name, sizeof name, "layer%u.%s", (unsigned)layer, what);
    return model_find(m, name);
}

void lstmp_init(struct lstmp *l, const struct model *m, size_t index, const struct window *w)
{
    const struct model_layer *size = &m->spec.layers[index];
    *l = (struct lstmp){.window = *w, .cells = size->cells, .nonrecurrent = size->nonrecurrent};
    l->input = model_layer_input(&m->spec, index);
    l->recurrent = model_recurrent(&m->spec, index);
    l->w_x = find(m, index, "w_x");
    l->w_r = find(m, index, "w_r");
    l->b = find(m, index, "b");
    l->p_i = find(m, index, "p_i");
    l->p_f = find(m, index, "p_f");
    l->p_o = find(m, index, "p_o");
    l->w_m = find(m, index, "w_m");
    l->w_p = find(m, index, "w_p");
    ASSERT(l->w_x && l->w_r && l->b && (l->w_m || l->recurrent == l->cells) && (l->w_m || !l->w_p));

    size_t s = w->streams, ts = w->frames * s, upward = l->recurrent + l->nonrecurrent;
    l->z = new_rows(ts, 4 * l->cells);
    l->c = new_rows(ts + s, l->cells);
    l->m = new_rows(ts, l->cells);
    l->y = l->w_m ? new_rows(ts, upward) : l->m;
    l->r_prev = new_rows(ts, l->recurrent);
    l->state_c = xaligned(s * l->cells * sizeof(real));
    l->state_r = xaligned(s * l->recurrent * sizeof(real));
    l->zeros = xaligned(l->cells * sizeof(real));
    if (!w->trains) return;
    l->d_y = new_rows(ts, upward);
    l->d_m = new_rows(s, l->cells);
    l->d_c = new_rows(s, l->cells);
    l->kept = new_rows(s, l->recurrent);
    l->d_peephole = xaligned(3 * l->cells * sizeof(real));
}

void lstmp_fini(struct lstmp *l)
{
    free(l->z.data);
    free(l->c.data);
    free(l->m.data);
    if (l->w_m) free(l->y.data);
    free(l->r_prev.data);
    free(l->state_c);
    free(l->state_r);
    free(l->zeros);
    free(l->d_y.data);
    free(l->d_m.data);
    free(l->d_c.data);
    free(l->kept.data);
    free(l->d_peephole);
    memset(l, 0, sizeof *l);
}

static struct cell cell_of(const struct lstmp *l, const real *params)
{
    return (struct cell){
        .cells = l->cells,
        .b = params + l->b->offset,
        .p_i = l->p_i ? params + l->p_i->offset : l->zeros,
        .p_f = l->p_f ? params + l->p_f->offset : l->zeros,
        .p_o = l->p_o ? params + l->p_o->offset : l->zeros,
        .cell_clip = l->window.cell_clip,
        .delta_clip = l->window.delta_clip,
    };
}

/* c before frame `row`: the rows of c are one frame late. */
static const real *cell_before(const struct lstmp *l, size_t row, const uint8_t *reset)
{
    return reset[row] ? l->zeros : l->c.data + row * l->c.ld;
}

/* r before frame t, for all streams. */
static void take_recurrent(struct lstmp *l, size_t t, const uint8_t *reset)
{
    size_t streams = l->window.streams, bytes = l->recurrent * sizeof(real);
    for (size_t s = 0; s < streams; s++) {
        size_t row = t * streams + s;
        real *to = l->r_prev.data + row * l->r_prev.ld;
        if (reset[row])
            memset(to, 0, bytes);
        else
            memcpy(to, t ? l->y.data + (row - streams) * l->y.ld : l->state_r + s * l->recurrent, bytes);
    }
}

/* z_t holds W_x x_t already. */
static void forward_frame(struct lstmp *l, const struct cell *cell, const real *params, size_t t,
                          const uint8_t *reset)
{
    size_t streams = l->window.streams, first = t * streams;
    take_recurrent(l, t, reset);
    affine_forward(&l->window.products, l->w_r, params, streams, rows_read(rows_from(l->r_prev, first)), true,
                   rows_from(l->z, first));
    for (size_t row = first; row < first + streams; row++)
        l->window.gates->cell_forward(cell, l->z.data + row * l->z.ld, cell_before(l, row, reset),
                                      l->c.data + (row + streams) * l->c.ld, l->m.data + row * l->m.ld);
    if (l->w_m)
        affine_forward(&l->window.products, l->w_m, params, streams, rows_read(rows_from(l->m, first)), false,
                       rows_from(l->y, first));
}

void lstmp_forward(struct lstmp *l, const real *params, struct const_rows x, const uint8_t *reset)
{
    size_t frames = l->window.frames, streams = l->window.streams, n = frames * streams;
    const struct cell cell = cell_of(l, params);
    for (size_t s = 0; s < streams; s++)
        memcpy(l->c.data + s * l->c.ld, l->state_c + s * l->cells, l->cells * sizeof(real));

    affine_forward(&l->window.products, l->w_x, params, n, x, false, l->z);
    window_between(&l->window);
    for (size_t t = 0; t < frames; t++) {
        forward_frame(l, &cell, params, t, reset);
        window_between(&l->window);
    }
    if (l->w_p)
        affine_forward(&l->window.products, l->w_p, params, n, rows_read(l->m), false,
                       (struct rows){l->y.data + l->recurrent, l->y.ld});

    for (size_t s = 0; s < streams; s++) {
        memcpy(l->state_c + s * l->cells, l->c.data + (n + s) * l->c.ld, l->cells * sizeof(real));
        memcpy(l->state_r + s * l->recurrent, l->y.data + (n - streams + s) * l->y.ld,
               l->recurrent * sizeof(real));
    }
}

/* d_r_t += d_z_{t+1} W_r, but for streams that begin anew at t+1: their rows are put back. */
static void add_from_next(struct lstmp *l, const real *params, size_t t, const uint8_t *reset)
{
    size_t streams = l->window.streams, first = t * streams, bytes = l->recurrent * sizeof(real);
    const uint8_t *next = reset + first + streams;
    struct rows d_r = rows_from(l->d_y, first);
    for (size_t s = 0; s < streams; s++)
        if (next[s]) memcpy(l->kept.data + s * l->kept.ld, d_r.data + s * d_r.ld, bytes);
    affine_backward(&l->window.products, l->w_r, params, l->window.transposed, streams,
                    rows_read(rows_from(l->z, first + streams)), true, d_r);
    for (size_t s = 0; s < streams; s++)
        if (next[s]) memcpy(d_r.data + s * d_r.ld, l->kept.data + s * l->kept.ld, bytes);
}

/* d_m_t = d_r_t W_m + d_p_t W_p; without a projection it is d_r_t. */
static struct rows back_to_output(struct lstmp *l, const real *params, size_t t)
{
    size_t streams = l->window.streams;
    struct rows d_r = rows_from(l->d_y, t * streams), d_p = {d_r.data + l->recurrent, d_r.ld};
    if (!l->w_m) return d_r;
    const struct window *w = &l->window;
    affine_backward(&w->products, l->w_m, params, w->transposed, streams, rows_read(d_r), false, l->d_m);
    if (l->w_p)
        affine_backward(&w->products, l->w_p, params, w->transposed, streams, rows_read(d_p), true, l->d_m);
    return l->d_m;
}

static void backward_frame(struct lstmp *l, const struct cell *cell, const real *params, size_t t,
                           const uint8_t *reset)
{
    size_t streams = l->window.streams;
    if (t + 1 < l->window.frames) add_from_next(l, params, t, reset);
    struct rows d_m = back_to_output(l, params, t);
    for (size_t s = 0; s < streams; s++) {
        size_t row = t * streams + s;
        real *d_c = l->d_c.data + s * l->d_c.ld;
        l->window.gates->cell_backward(cell, l->z.data + row * l->z.ld, cell_before(l, row, reset),
                                       l->c.data + (row + streams) * l->c.ld, d_m.data + s * d_m.ld, d_c,
                                       l->d_peephole);
        if (reset[row]) memset(d_c, 0, l->cells * sizeof(real));
    }
}

static double peephole_gradients(const struct lstmp *l, real *grad)
{
    const struct tensor *p[] = {l->p_i, l->p_f, l->p_o};
    double squares = 0;
    for (size_t k = 0; k < 3; k++) {
        if (!p[k]) continue;
        const real *from = l->d_peephole + k * l->cells;
        real *to = grad + p[k]->offset;
        for (size_t j = 0; j < l->cells; j++) {
            to[j] = l->window.products.scale * from[j];
            squares += (double)to[j] * (double)to[j];
        }
    }
    return squares;
}

/* Sums over all rows of the window, from the deltas that the frames left in z and d_y. */
static double weight_gradients(struct lstmp *l, struct const_rows x, real *grad)
{
    const struct workspace *products = &l->window.products;
    size_t n = l->window.frames * l->window.streams;
    struct const_rows d_r = rows_read(l->d_y), d_p = {d_r.data + l->recurrent, d_r.ld};
    struct affine_input gates[] = {{l->w_x, x}, {l->w_r, rows_read(l->r_prev)}};
    struct affine_input m = {l->w_m, rows_read(l->m)}, p = {l->w_p, rows_read(l->m)};
    double squares = affine_gradient(products, gates, 2, l->b, n, rows_read(l->z), grad);
    window_between(&l->window);
    if (l->w_m) squares += affine_gradient(products, &m, 1, NULL, n, d_r, grad);
    if (l->w_p) squares += affine_gradient(products, &p, 1, NULL, n, d_p, grad);
    return squares + peephole_gradients(l, grad);
}

double lstmp_backward(struct lstmp *l, const real *params, struct const_rows x, const uint8_t *reset,
                      struct rows d_x, real *grad)
{
    ASSERT(l->window.trains);
    const struct cell cell = cell_of(l, params);
    memset(l->d_c.data, 0, l->window.streams * l->d_c.ld * sizeof(real));
    memset(l->d_peephole, 0, 3 * l->cells * sizeof(real));
    for (size_t t = l->window.frames; t-- > 0;) {
        backward_frame(l, &cell, params, t, reset);
        window_between(&l->window);
    }
    double squares = weight_gradients(l, x, grad);
    window_between(&l->window);
    if (d_x.data)
        affine_backward(&l->window.products, l->w_x, params, NULL, l->window.frames * l->window.streams,
                        rows_read(l->z), false, d_x);
    return squares;
}
