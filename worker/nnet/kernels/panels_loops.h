/* The loops over panels, written once for every instruction set. Only the file of a set includes this, after
 * it has defined what is multiplied at once: TOGETHER           panels side by side: one, or two struct strip
 * their columns of one row, in registers struct cut         which of the columns there are strip_zero,
 * strip_load, strip_store, strip_madd (acc + *x w), strip_mul, strip_square, strip_sum `second` = numbers
 * from the first panel's part of a strip to the second's, where it is in memory. All is inlined with constant
 * `rows` and `cut`, so that the sums stay in registers. */
#include "worker/nnet/kernels/panels_inside.h"

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 4")
#endif

#define ROWS    4                /* of x, multiplied at once */
#define K_BLOCK (256 / TOGETHER) /* 24 KiB of panels stay in L1 while more than ROWS rows go by */

/* Element (row, k) is at data[row * row_step + k * k_step]. */
struct factor {
    const float *data;
    size_t row_step, k_step;
};

/* Panels of W, [k][ld], the second one `second` numbers after the first. */
struct lines {
    const float *data;
    size_t ld, second;
};

/* acc (rows, columns) += a (rows, k) w (k, columns) */
INLINE void multiply(const int rows, const struct cut cut, size_t k, struct factor a, struct lines w,
                     struct strip *acc)
{
    for (; k > 0; k--, a.data += a.k_step, w.data += w.ld) {
        struct strip line = strip_load(w.data, w.second, cut);
        UNROLL
        for (int r = 0; r < rows; r++)
            acc[r] = strip_madd(acc[r], a.data + (size_t)r * a.row_step, line, cut);
    }
}

/* --- y = x W' */

INLINE void forward_tile(const int rows, const struct cut cut, size_t k, struct factor x, struct lines w,
                         bool adds, struct rows y)
{
    struct strip acc[ROWS];
    UNROLL
    for (int r = 0; r < rows; r++)
        acc[r] = adds ? strip_load(y.data + (size_t)r * y.ld, PANEL, cut) : strip_zero();
    multiply(rows, cut, k, x, w, acc);
    UNROLL
    for (int r = 0; r < rows; r++) strip_store(y.data + (size_t)r * y.ld, PANEL, acc[r], cut);
}

/* y (n, columns) = or += x (n, k) w (k, columns) */
INLINE void forward_rows(const struct cut cut, size_t n, size_t k, struct const_rows x, struct lines w,
                         bool adds, struct rows y)
{
    for (; n >= ROWS; n -= ROWS, x.data += ROWS * x.ld, y.data += ROWS * y.ld)
        forward_tile(ROWS, cut, k, (struct factor){x.data, x.ld, 1}, w, adds, y);
    struct factor rest = {x.data, x.ld, 1};
    if (n == 3) forward_tile(3, cut, k, rest, w, adds, y);
    if (n == 2) forward_tile(2, cut, k, rest, w, adds, y);
    if (n == 1) forward_tile(1, cut, k, rest, w, adds, y);
}

INLINE void forward_strip(const struct cut cut, struct lines w, size_t n, size_t k, struct const_rows x,
                          bool adds, struct rows y)
{
    size_t block = n > ROWS ? K_BLOCK : k;
    for (size_t from = 0; from < k; from += block) {
        size_t here = k - from < block ? k - from : block;
        struct lines part = {w.data + from * w.ld, w.ld, w.second};
        forward_rows(cut, n, here, (struct const_rows){x.data + from, x.ld}, part, adds || from > 0, y);
    }
}

/* Panels [p, p + TOGETHER), each `width` wide. */
INLINE void forward_at(const struct cut cut, const size_t width, struct panels w, size_t p, size_t n,
                       struct const_rows x, bool adds, struct rows y)
{
    struct lines from = {w.data + p * PANEL * w.in, width, PANEL * w.in};
    forward_strip(cut, from, n, w.in, x, adds, (struct rows){y.data + p * PANEL, y.ld});
}

/* --- d_x = d_y W, some panels of W turned at a time */

INLINE void backward_at(const struct cut cut, const size_t width, struct panels w, size_t q, size_t n,
                        struct const_rows d_y, bool adds, struct rows d_x, float *scratch)
{
    struct rows to = {d_x.data + q * PANEL, d_x.ld};
    const size_t step = PANELS_TURN_BLOCK / TOGETHER;
    for (size_t p = 0, last = panels_count(w.out); p < last; p += step) {
        size_t row = p * PANEL, rows = w.out - row < step * PANEL ? w.out - row : step * PANEL;
        for (size_t k = 0; k < TOGETHER; k++)
            panels_turn_part(w, p, last - p < step ? last - p : step, q + k, scratch + k * rows * PANEL);
        struct lines turned = {scratch, width, rows * PANEL};
        forward_strip(cut, turned, n, rows, (struct const_rows){d_y.data + row, d_y.ld}, adds || p > 0, to);
    }
}

/* --- gradients: x in groups of ROWS columns [n][ROWS], panels of d_y as [n][24]: then it is the same product
 */

static inline size_t groups_of(size_t in)
{
    return (in + ROWS - 1) / ROWS;
}

/* The strip at column `column` of d_y; *sum = the sum of its rows. */
INLINE void pack_strip(const struct cut cut, size_t n, struct const_rows d_y, float *to, struct strip *sum)
{
    const float one = 1;
    *sum = strip_zero();
    for (size_t r = 0; r < n; r++, to += PANEL) {
        struct strip line = strip_load(d_y.data + r * d_y.ld, PANEL, cut);
        *sum = strip_madd(*sum, &one, line, cut);
        strip_store(to, n * PANEL, line, cut);
    }
}

/* grad (rows, columns) = scale * x (rows, n) d_y (n, columns). Returns the sum of its squares. */
INLINE double gradient_tile(const int rows, const struct cut cut, const size_t width, size_t n, size_t in,
                            const float *x, const float *d_y, float scale, float *grad)
{
    struct strip acc[ROWS], squares = strip_zero();
    UNROLL
    for (int r = 0; r < rows; r++) acc[r] = strip_zero();
    multiply(rows, cut, n, (struct factor){x, 1, ROWS}, (struct lines){d_y, PANEL, n * PANEL}, acc);
    UNROLL
    for (int r = 0; r < rows; r++) {
        acc[r] = strip_mul(acc[r], scale);
        squares = strip_square(squares, acc[r]);
        strip_store(grad + (size_t)r * width, PANEL * in, acc[r], cut);
    }
    return strip_sum(squares);
}

/* x: in groups. */
INLINE double gradient_strip(const struct cut cut, const size_t width, size_t n, size_t in, const float *x,
                             const float *d_y, float scale, float *grad)
{
    double sum = 0;
    size_t i = 0;
    for (; i + ROWS <= in; i += ROWS, x += n * ROWS, grad += ROWS * width)
        sum += gradient_tile(ROWS, cut, width, n, in, x, d_y, scale, grad);
    for (; i < in; i++, x++, grad += width) sum += gradient_tile(1, cut, width, n, in, x, d_y, scale, grad);
    return sum;
}

/* Panels [p, p + TOGETHER) of all terms and of the bias. Returns the sum of the squares. */
INLINE double gradient_at(const struct cut cut, const size_t width, size_t p, const struct gradient_job *job)
{
    struct strip column_sums;
    double sum = 0;
    struct const_rows d_y = {job->d_y.data + p * PANEL, job->d_y.ld};
    pack_strip(cut, job->n, d_y, job->panel, &column_sums);
    if (job->bias) {
        struct strip b = strip_mul(column_sums, job->scale);
        strip_store(job->bias + p * PANEL, PANEL, b, cut);
        sum = strip_sum(strip_square(strip_zero(), b));
    }
    const float *x = job->x;
    for (size_t i = 0; i < job->num_terms; i++) {
        const struct panels_gradient *t = &job->terms[i];
        sum +=
            gradient_strip(cut, width, job->n, t->in, x, job->panel, job->scale, t->grad + p * PANEL * t->in);
        x += groups_of(t->in) * ROWS * job->n;
    }
    return sum;
}
