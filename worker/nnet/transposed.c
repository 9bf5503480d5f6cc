#include "worker/nnet/transposed.h"

#include "common/err.h"

#include <stdlib.h>
#include <string.h>

#define MAX_MATRICES (3 * MODEL_MAX_LAYERS)

struct matrix {
    const struct tensor *w; /* borrowed */
    real *turned;           /* owned: panels of W' */
};

struct transposed {
    const struct panel_kernels *kernels;
    struct matrix matrices[MAX_MATRICES];
    size_t count;
};

/* w_r, w_m, w_p: read once per frame, for few rows. */
static bool is_per_frame(const struct tensor *t)
{
    const char *dot = strchr(t->name, '.');
    return dot && (strcmp(dot, ".w_r") == 0 || strcmp(dot, ".w_m") == 0 || strcmp(dot, ".w_p") == 0);
}

struct transposed *transposed_new(const struct model *m, const struct panel_kernels *k)
{
    struct transposed *t = xcalloc(1, sizeof *t);
    t->kernels = k;
    for (size_t i = 0; i < m->num_tensors; i++) {
        const struct tensor *w = &m->tensors[i];
        if (!is_per_frame(w)) continue;
        ASSERT(t->count < MAX_MATRICES);
        t->matrices[t->count++] = (struct matrix){w, xaligned((size_t)w->rows * w->cols * sizeof(real))};
    }
    return t;
}

void transposed_free(struct transposed **t)
{
    if (!*t) return;
    for (size_t i = 0; i < (*t)->count; i++) free((*t)->matrices[i].turned);
    free(*t);
    *t = NULL;
}

void transposed_load(struct transposed *t, const real *params, size_t part, size_t parts)
{
    for (size_t i = 0; i < t->count; i++) {
        const struct tensor *w = t->matrices[i].w;
        struct panels from = {params + w->offset, w->rows, w->cols};
        size_t panels = panels_count(w->cols);
        t->kernels->turn(from, panels * part / parts, panels * (part + 1) / parts, t->matrices[i].turned);
    }
}

struct panels transposed_of(const struct transposed *t, const struct tensor *w)
{
    for (size_t i = 0; i < t->count; i++)
        if (t->matrices[i].w == w) return (struct panels){t->matrices[i].turned, w->cols, w->rows};
    return (struct panels){NULL, w->cols, w->rows};
}
