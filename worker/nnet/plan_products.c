#include "common/err.h"
#include "worker/nnet/plan.h"

#include <stdio.h>
#include <string.h>

/* How a product reads its weight. */
enum reading { AS_IT_IS, TURNED_ONCE, TURNED_ON_THE_WAY, NUM_READINGS };

/* BLAS reads a matrix either way as it is. */
static const char *const kernels[][NUM_READINGS] = {
    {"OpenBLAS", "OpenBLAS, turned once", "OpenBLAS"},
    {"panels avx2", "panels avx2, turned once", "panels avx2, turned on the way"},
    {"panels avx512", "panels avx512, turned once", "panels avx512, turned on the way"},
};
#define NUM_KERNELS (sizeof kernels / sizeof kernels[0])

struct list {
    const struct model *model;
    const char *const *kernels; /* (NUM_READINGS) */
    size_t frames, streams;     /* T, S */
    struct plan_product *out;
    size_t max, count;
};

static const char *const *kernels_of(const struct plan *p)
{
    size_t i = 0;
    while (i < NUM_KERNELS && strcmp(kernels[i][AS_IT_IS], p->panels->name) != 0) i++;
    ASSERT(i < NUM_KERNELS);
    return kernels[i];
}

static const struct tensor *find(const struct list *l, size_t layer, const char *what)
{
    char name[sizeof l->model->tensors[0].name];
    snprintf(name, sizeof name, "layer%u.%s", (unsigned)layer, what);
    return model_find(l->model, name);
}

/* Nothing for a weight that the model has not (NULL), or that is never used. */
static void add(struct list *l, const struct tensor *w, const char *pass, enum reading r, size_t rows,
                size_t calls)
{
    if (!w || calls == 0) return;
    if (l->count++ >= l->max) return;
    struct plan_product *p = &l->out[l->count - 1];
    *p = (struct plan_product){.out = w->rows, .in = w->cols, .rows = rows, .calls = calls};
    if (r != AS_IT_IS) {
        p->out = w->cols;
        p->in = w->rows;
    }
    p->kernel = l->kernels[r];
    snprintf(p->what, sizeof p->what, "%s %s", w->name, pass);
}

static void add_forward(struct list *l, size_t layer)
{
    size_t S = l->streams, all = l->frames * S;
    add(l, find(l, layer, "w_x"), "forward", AS_IT_IS, all, 1);
    add(l, find(l, layer, "w_r"), "forward", AS_IT_IS, S, l->frames);
    add(l, find(l, layer, "w_m"), "forward", AS_IT_IS, S, l->frames);
    add(l, find(l, layer, "w_p"), "forward", AS_IT_IS, all, 1);
}

/* The last frame of a window gets nothing back through w_r; the features get nothing back at all. */
static void add_backward(struct list *l, size_t layer)
{
    size_t S = l->streams, all = l->frames * S;
    add(l, find(l, layer, "w_m"), "backward", TURNED_ONCE, S, l->frames);
    add(l, find(l, layer, "w_p"), "backward", TURNED_ONCE, S, l->frames);
    add(l, find(l, layer, "w_r"), "backward", TURNED_ONCE, S, l->frames - 1);
    add(l, find(l, layer, "w_x"), "gradient", AS_IT_IS, all, 1);
    add(l, find(l, layer, "w_r"), "gradient", AS_IT_IS, all, 1);
    add(l, find(l, layer, "w_m"), "gradient", AS_IT_IS, all, 1);
    add(l, find(l, layer, "w_p"), "gradient", AS_IT_IS, all, 1);
    if (layer > 0) add(l, find(l, layer, "w_x"), "backward", TURNED_ON_THE_WAY, all, 1);
}

size_t plan_products(const struct model *m, const struct plan *p, size_t frames, size_t streams,
                     struct plan_product *out, size_t max)
{
    ASSERT(frames > 0 && streams > 0);
    struct list l = {m, kernels_of(p), frames, streams, out, max, 0};
    const struct tensor *output = model_find(m, "output.w");
    for (size_t layer = 0; layer < m->spec.num_layers; layer++) add_forward(&l, layer);
    add(&l, output, "forward", AS_IT_IS, frames * streams, 1);
    add(&l, output, "gradient", AS_IT_IS, frames * streams, 1);
    add(&l, output, "backward", TURNED_ON_THE_WAY, frames * streams, 1);
    for (size_t layer = m->spec.num_layers; layer-- > 0;) add_backward(&l, layer);
    return l.count;
}
