/* Products with a weight matrix W (out, in) whose floats lie in panels (LAYOUT_PANELS of common/model.h):
 * panel p is rows 24p to 24p + 23 of W, held as [in][24]; the last one has what is left, out % 24 rows, as
 * [in][out % 24]. A kernel reads one panel from front to back, multiplies 24 outputs of a few rows of x at a
 * time and never packs: that is what makes few rows fast. Bound: 4 rows x 24 columns are 12 FMAs of 8 lanes
 * for 3 + 4 loads, so 2 FMAs a cycle; at one row it is the cache's bandwidth, 4 bytes per 2 flop.
 *
 * Sets with the same contract: panels_portable (plain C and OpenBLAS; the only one in double), panels_avx2,
 * panels_avx512. No alignment and no multiple of anything is asked of the sizes. The same call gives the same
 * bits. Any thread. */
#ifndef WORKER_NNET_KERNELS_PANELS_H
#define WORKER_NNET_KERNELS_PANELS_H

#include "common/model.h"
#include "worker/nnet/real.h"

#include <stdbool.h>
#include <stddef.h>

#define PANEL MODEL_PANEL

/* n rows of a matrix, `ld` numbers from row to row. */
struct rows {
    real *data; /* view */
    size_t ld;
};
struct const_rows {
    const real *data; /* view */
    size_t ld;
};

/* Row `row` of a matrix and those below it. */
static inline struct rows rows_from(struct rows m, size_t row)
{
    return (struct rows){m.data + row * m.ld, m.ld};
}
static inline struct const_rows rows_read(struct rows m)
{
    return (struct const_rows){m.data, m.ld};
}

struct panels {
    const real *data; /* view: out * in numbers */
    size_t out, in;
};

/* One of the weights whose outputs share a delta. */
struct panels_gradient {
    real *grad; /* view: panels of (out, in); overwritten */
    size_t in;
    struct const_rows x; /* (n, in) */
};

struct panel_kernels {
    const char *name;
    /* y (n, out) = x (n, in) W', or adds to it. */
    void (*forward)(struct panels w, size_t n, struct const_rows x, bool adds, struct rows y);
    /* d_x (n, in) = d_y (n, out) W, or adds to it. W is turned around in `scratch` (PANELS_TURN_SCRATCH
     * numbers) bit by bit, which pays from some twenty rows on. For fewer: `turn` once, then `forward` with
     * {turned, in, out}. */
    void (*backward)(struct panels w, size_t n, struct const_rows d_y, bool adds, struct rows d_x,
                     real *scratch);
    /* turned = W' (in, out) in panels: out * in numbers. Only panels [begin, end) of it, so that several may
     * share the work. */
    void (*turn)(struct panels w, size_t begin, size_t end, real *turned);
    /* For each term: grad = scale * d_y' x; and bias (out; NULL: none) = scale * the sum of the rows of d_y.
     * Returns the sum of the squares of all it wrote (not finite if one of them is not, or is beyond 1e19).
     * `scratch`: panels_gradient_scratch numbers. */
    double (*gradient)(size_t out, size_t n, struct const_rows d_y, const struct panels_gradient *terms,
                       size_t num_terms, real scale, real *bias, real *scratch);
};

#define PANELS_TURN_BLOCK   10 /* panels of W that backward turns at once: 23 KiB, which stay in L1 */
#define PANELS_TURN_SCRATCH (PANELS_TURN_BLOCK * PANEL * PANEL)

static inline size_t panels_count(size_t out)
{
    return (out + PANEL - 1) / PANEL;
}
/* Columns of panel p: 24, or what is left. */
static inline size_t panels_width(size_t out, size_t p)
{
    return out - p * PANEL < PANEL ? out - p * PANEL : PANEL;
}
/* n rows; `in` = the sum over the terms. */
static inline size_t panels_gradient_scratch(size_t n, size_t in)
{
    return n * (2 * PANEL + in + 8);
}

extern const struct panel_kernels panels_portable;
#ifndef REAL_DOUBLE
/* x86-64 only; call after asking the CPU (plan.h). */
extern const struct panel_kernels panels_avx2, panels_avx512;
#endif

#endif
