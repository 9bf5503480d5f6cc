/* Random products for the tests of the panel kernels: operands in guarded memory, and the reference in double
 * with its bound. Every matrix ends at a page that faults, or begins a few floats after one; what is around
 * it and between its rows is NaN that must stay: so a float too many, read or written, is noticed in any
 * build. */
#ifndef TESTS_UNIT_WORKER_PANELS_CASE_H
#define TESTS_UNIT_WORKER_PANELS_CASE_H

#include "tests/unit/worker/nnet_cases.h"
#include "worker/nnet/kernels/panels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define AREA   (1u << 18) /* floats between two pages that fault */
#define AROUND 64         /* of them are looked at before and behind a matrix */
#define UNIT   0x1p-24

/* A matrix in an area of its own. */
struct block {
    float *area; /* owned */
    float *data; /* view */
    size_t rows, cols, ld;
    bool is_panels; /* rows x cols in panels, without gaps */
};

/* One random case: x (n, in) and for a second term (n, more), d_y (n, out), W (out, in); the same as plain
 * rows in double. */
struct world {
    struct rng rng;
    size_t n, out, in, more;
    struct block x[2], d_y, w, y, grad[2], bias, scratch;
    double *plain_x[2], *plain_d_y, *plain_w;
    char shape[80];
    const char *kernels; /* under test */
};

static const uint32_t fence_bits = 0x7fc0dead; /* a NaN */

/* --- blocks */

static inline struct block block_new(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = AREA * sizeof(float);
    char *all = mmap(NULL, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(all != MAP_FAILED && bytes % page == 0);
    assert_int_equal(mprotect(all + page, bytes, PROT_READ | PROT_WRITE), 0);
    return (struct block){.area = (float *)(all + page)};
}

static inline void block_free(struct block *b)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap((char *)b->area - page, AREA * sizeof(float) + 2 * page);
}

static inline size_t extent(const struct block *b)
{
    return b->is_panels ? b->rows * b->cols : (b->rows - 1) * b->ld + b->cols;
}

static inline float *at(const struct block *b, size_t row, size_t col)
{
    struct tensor t = {.rows = (uint32_t)b->rows, .cols = (uint32_t)b->cols, .layout = LAYOUT_PANELS};
    return b->data + (b->is_panels ? model_at(&t, row, col) : row * b->ld + col);
}

static inline size_t fence_begin(const struct block *b)
{
    size_t data = (size_t)(b->data - b->area);
    return data > AROUND ? data - AROUND : 0;
}

static inline size_t fence_end(const struct block *b)
{
    size_t end = (size_t)(b->data - b->area) + extent(b);
    return AREA - end > AROUND ? end + AROUND : AREA;
}

/* All of it, what is around and the gaps become the fence. */
static inline void place(struct block *b, struct rng *r, size_t rows, size_t cols, bool is_panels)
{
    b->rows = rows;
    b->cols = cols;
    b->ld = rng_below(r, 2) ? cols : cols + 1 + rng_below(r, 20);
    b->is_panels = is_panels;
    assert_true(extent(b) + 8 <= AREA);
    b->data = b->area + (rng_below(r, 4) ? AREA - extent(b) : 1 + rng_below(r, 7));
    for (size_t i = fence_begin(b); i < fence_end(b); i++) memcpy(&b->area[i], &fence_bits, 4);
}

static inline void fill(struct block *b, struct rng *r, double *plain)
{
    for (size_t row = 0; row < b->rows; row++)
        for (size_t col = 0; col < b->cols; col++)
            plain[row * b->cols + col] = (double)(*at(b, row, col) = (float)rng_normal(r));
}

static inline void check_fence(const struct world *w, const char *what, const struct block *b)
{
    for (size_t i = fence_begin(b); i < fence_end(b); i++) {
        size_t from_start = (size_t)(b->area + i - b->data);
        bool is_element = b->area + i >= b->data && from_start < extent(b) &&
                          (b->is_panels || from_start % b->ld < b->cols);
        if (!is_element && memcmp(&b->area[i], &fence_bits, 4) != 0)
            fail_msg("%s, %s, %s: wrote outside, %td floats from the start", w->kernels, w->shape, what,
                     b->area + i - b->data);
    }
}

static inline struct const_rows rows_of(const struct block *b)
{
    return (struct const_rows){b->data, b->ld};
}

static inline struct panels panels_of(const struct block *b)
{
    return (struct panels){b->data, b->rows, b->cols};
}

/* --- the reference. Whatever the order of its additions, a sum of k products is off by at most gamma = m u /
 * (1 - m u) of the sum of the magnitudes, where m counts the roundings that one term can meet: m = k + 2 (its
 * product, k additions with what is there, the scale) and u = 2^-24. Source: Higham, Accuracy and Stability
 * of Numerical Algorithms, section 3.1. */

/* Element (i, k) is at v[i * step + k * k_step]. */
struct side {
    const double *v;
    size_t step, k_step;
};

/* (rows, cols): sums over k of a(row, k) b(col, k), and of their magnitudes. */
struct sums {
    size_t terms;
    double *sum, *size;
};

static inline struct sums sums_of(size_t rows, size_t cols, size_t terms, struct side a, struct side b)
{
    struct sums s = {terms, xcalloc(rows * cols, sizeof(double)), xcalloc(rows * cols, sizeof(double))};
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            for (size_t k = 0; k < terms; k++) {
                double product = a.v[i * a.step + k * a.k_step] * b.v[j * b.step + k * b.k_step];
                s.sum[i * cols + j] += product;
                s.size[i * cols + j] += fabs(product);
            }
    return s;
}

static inline void sums_free(struct sums *s)
{
    free(s->sum);
    free(s->size);
}

/* b = scale * s + before (plain rows; NULL: zero), within the bound; nothing else was written. */
static inline void check_sums(const struct world *w, const char *what, const struct block *b,
                              const struct sums *s, double scale, const double *before)
{
    double m = (double)(s->terms + 2) * UNIT, gamma = m / (1 - m);
    for (size_t i = 0; i < b->rows * b->cols; i++) {
        double got = (double)*at(b, i / b->cols, i % b->cols), was = before ? before[i] : 0;
        double want = scale * s->sum[i] + was, size = fabs(scale) * s->size[i] + fabs(was);
        if (!(fabs(got - want) <= gamma * size))
            fail_msg("%s, %s, %s: (%zu, %zu) is %.9g, want %.9g within %.2g", w->kernels, w->shape, what,
                     i / b->cols, i % b->cols, got, want, gamma * size);
    }
    check_fence(w, what, b);
}

/* --- cases */

static inline int setup(void **state)
{
    struct world *w = xcalloc(1, sizeof *w);
    struct block *all[] = {&w->x[0],    &w->x[1],    &w->d_y,  &w->w,      &w->y,
                           &w->grad[0], &w->grad[1], &w->bias, &w->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = block_new();
    double **plain[] = {&w->plain_x[0], &w->plain_x[1], &w->plain_d_y, &w->plain_w};
    for (size_t i = 0; i < 4; i++) *plain[i] = xcalloc(AREA, sizeof(double));
    *state = w;
    return 0;
}

static inline int teardown(void **state)
{
    struct world *w = *state;
    struct block *all[] = {&w->x[0],    &w->x[1],    &w->d_y,  &w->w,      &w->y,
                           &w->grad[0], &w->grad[1], &w->bias, &w->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) block_free(all[i]);
    double *plain[] = {w->plain_x[0], w->plain_x[1], w->plain_d_y, w->plain_w};
    for (size_t i = 0; i < 4; i++) free(plain[i]);
    free(w);
    return 0;
}

/* One in two lies at an edge of vectors, panels or blocks. */
static inline size_t draw_size(struct rng *r, size_t most)
{
    static const size_t edges[] = {1, 8, 16, 17, 23, 24, 25, 47, 48, 49, 255, 256, 257};
    size_t size = rng_below(r, 2) ? edges[rng_below(r, sizeof edges / sizeof *edges)] : 1 + rng_below(r, 300);
    return size <= most ? size : 1 + rng_below(r, most);
}

static inline void draw_case(struct world *w, size_t n, size_t most)
{
    struct rng *r = &w->rng;
    w->n = n;
    w->out = draw_size(r, most);
    w->in = draw_size(r, most);
    w->more = draw_size(r, most);
    snprintf(w->shape, sizeof w->shape, "n %zu, out %zu, in %zu and %zu", w->n, w->out, w->in, w->more);
    place(&w->x[0], r, n, w->in, false);
    place(&w->x[1], r, n, w->more, false);
    place(&w->d_y, r, n, w->out, false);
    place(&w->w, r, w->out, w->in, true);
    fill(&w->x[0], r, w->plain_x[0]);
    fill(&w->x[1], r, w->plain_x[1]);
    fill(&w->d_y, r, w->plain_d_y);
    fill(&w->w, r, w->plain_w);
}

#endif
