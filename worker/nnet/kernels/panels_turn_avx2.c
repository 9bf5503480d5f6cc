#include "worker/nnet/kernels/panels_inside.h"

#ifdef __AVX2__

#include <immintrin.h>

#define LANES 8
#define GROUP 4

/* Pairs, then fours, then halves change places. */
static inline void turn_square(const float *from, size_t ld_from, float *to, size_t ld_to)
{
    __m256 row[LANES], pair[LANES], four[LANES];
    for (size_t i = 0; i < LANES; i++) row[i] = _mm256_loadu_ps(from + i * ld_from);
    for (size_t i = 0; i < LANES; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (size_t i = 0; i < LANES; i += 4) {
        four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
        four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (size_t i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * ld_to, _mm256_permute2f128_ps(four[i], four[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * ld_to, _mm256_permute2f128_ps(four[i], four[i + 4], 0x31));
    }
}

static void turn_rest(size_t row, size_t rows, size_t col, size_t cols, const float *from, size_t ld_from,
                      float *to, size_t ld_to)
{
    for (size_t r = row; r < rows; r++)
        for (size_t c = col; c < cols; c++) to[c * ld_to + r] = from[r * ld_from + c];
}

void panels_turn_matrix(size_t rows, size_t cols, const float *from, size_t ld_from, float *to, size_t ld_to)
{
    size_t whole_rows = rows - rows % LANES, whole_cols = cols - cols % LANES;
    for (size_t r = 0; r < whole_rows; r += LANES)
        for (size_t c = 0; c < whole_cols; c += LANES)
            turn_square(from + r * ld_from + c, ld_from, to + c * ld_to + r, ld_to);
    turn_rest(0, whole_rows, whole_cols, cols, from, ld_from, to, ld_to);
    turn_rest(whole_rows, rows, 0, cols, from, ld_from, to, ld_to);
}

void panels_turn_part(struct panels w, size_t p, size_t panels, size_t q, float *to)
{
    size_t columns = panels_width(w.in, q);
    for (size_t end = p + panels; p < end; p++) {
        size_t width = panels_width(w.out, p);
        const float *from = w.data + p * PANEL * w.in + q * PANEL * width;
        for (size_t k = 0; k < columns * width; k += 16) __builtin_prefetch(from + PANEL * w.in + k);
        panels_turn_matrix(columns, width, from, width, to, columns);
        to += width * columns;
    }
}

void panels_turn(struct panels w, size_t begin, size_t end, float *turned)
{
    for (size_t q = begin; q < end; q++)
        panels_turn_part(w, 0, panels_count(w.out), q, turned + q * PANEL * w.out);
}

/* (n, in) as [in / 4][n][4]; what the last group lacks is zero. */
static void pack_groups(size_t n, size_t in, struct const_rows x, float *to)
{
    for (size_t column = 0; column < in; column += GROUP) {
        size_t here = in - column < GROUP ? in - column : GROUP;
        for (size_t r = 0; r < n; r++, to += GROUP) {
            const float *from = x.data + r * x.ld + column;
            if (here == GROUP)
                _mm_storeu_ps(to, _mm_loadu_ps(from));
            else
                for (size_t k = 0; k < GROUP; k++) to[k] = k < here ? from[k] : 0;
        }
    }
}

void panels_pack_job(size_t out, size_t n, struct const_rows d_y, const struct panels_gradient *terms,
                     size_t num_terms, float scale, float *bias, float *scratch, struct gradient_job *job)
{
    *job =
        (struct gradient_job){out, n, num_terms, d_y, terms, scale, bias, scratch, scratch + 2 * n * PANEL};
    float *x = job->x;
    for (size_t i = 0; i < num_terms; i++) {
        pack_groups(n, terms[i].in, terms[i].x, x);
        x += (terms[i].in + GROUP - 1) / GROUP * GROUP * n;
    }
}

#endif
