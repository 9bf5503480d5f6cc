#include "worker/data/ark.h"

#include "common/err.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SIDE       ((int64_t)1 << 31)  /* rows or columns, as Kaldi's int32 */
#define UNKNOWN_MAX    ((uint64_t)1 << 32) /* bytes of one object from a pipe, where no file size bounds it */
#define MAX_TEXT_TOKEN 64

/* --- grow-only arrays */

static void *grow(void *old, size_t bytes)
{
    void *p = realloc(old, bytes);
    if (!p) {
        fprintf(stderr, "chorale: out of memory asking for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

void matrix_reserve(struct matrix *m, size_t floats)
{
    if (floats <= m->capacity) return;
    m->data = grow(m->data, floats * sizeof *m->data);
    m->capacity = floats;
}

void ints_reserve(struct ints *v, size_t count)
{
    if (count <= v->capacity) return;
    v->data = grow(v->data, count * sizeof *v->data);
    v->capacity = count;
}

void matrix_fini(struct matrix *m)
{
    free(m->data);
    *m = (struct matrix){0};
}

void ints_fini(struct ints *v)
{
    free(v->data);
    *v = (struct ints){0};
}

/* --- binary objects */

enum kind { KIND_FLOAT, KIND_DOUBLE, KIND_CM, KIND_CM2, KIND_CM3 };

/* What stands before a binary matrix. */
struct header {
    enum kind kind;
    float min, range; /* compressed only */
    uint64_t rows, cols;
};

static int read_token(struct input *in, enum kind *kind)
{
    static const char *const known[] = {"FM", "DM", "CM", "CM2", "CM3"};
    uint64_t at = input_position(in);
    char token[8];
    size_t n = 0;
    for (int c = input_byte(in); c != ' '; c = input_byte(in)) {
        if (c < 0 || !isprint(c) || n + 1 == sizeof token)
            return input_complain(
                in, at, "is not a Kaldi matrix; the offset in the scp file may belong to another archive");
        token[n++] = (char)c;
    }
    token[n] = 0;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(token, known[i]) == 0) return *kind = (enum kind)i, 0;
    char what[120];
    snprintf(what, sizeof what, "holds a Kaldi object of type '%s', not a matrix (FM, DM, CM, CM2 or CM3)",
             token);
    return input_complain(in, at, what);
}

/* Kaldi's WriteBasicType<int32>: the size byte 4, then the number. */
static int read_sized_int(struct input *in, int32_t *out)
{
    unsigned char bytes[5];
    uint64_t at = input_position(in);
    int rc = input_read(in, bytes, sizeof bytes);
    if (rc < 0) return rc;
    if (bytes[0] != 4)
        return input_complain(in, at, "a 32-bit number should start here; the file is damaged");
    memcpy(out, bytes + 1, 4);
    return 0;
}

static uint64_t body_bytes(const struct header *h)
{
    uint64_t cells = h->rows * h->cols; /* both < 2^31 */
    switch (h->kind) {
    case KIND_FLOAT:
        return 4 * cells;
    case KIND_DOUBLE:
        return 8 * cells;
    case KIND_CM:
        return cells + 8 * h->cols;
    case KIND_CM2:
        return 2 * cells;
    case KIND_CM3:
        return cells;
    }
    return 0;
}

static int check_header(const struct input *in, uint64_t at, struct header *h, int64_t rows, int64_t cols)
{
    char what[200];
    if (rows < 0 || cols < 0 || rows >= MAX_SIDE || cols >= MAX_SIDE)
        return input_complain(in, at, "the matrix has an impossible size; the file is damaged");
    h->rows = cols ? (uint64_t)rows : 0;
    h->cols = rows ? (uint64_t)cols : 0;
    uint64_t left = input_left(in), bytes = h->rows * h->cols > UINT64_MAX / 16 ? UINT64_MAX : body_bytes(h);
    if (left != UINT64_MAX && bytes <= left) return 0;
    if (left == UINT64_MAX && bytes <= UNKNOWN_MAX) return 0;
    snprintf(what, sizeof what,
             "the matrix of %" PRId64 " x %" PRId64 " needs %" PRIu64 " bytes but %" PRIu64
             " are there; the archive is truncated or damaged, make it again",
             rows, cols, bytes, left == UINT64_MAX ? UNKNOWN_MAX : left);
    return input_complain(in, at, what);
}

static int read_header(struct input *in, struct header *h)
{
    uint64_t at = input_position(in);
    unsigned char bytes[16];
    int32_t rows, cols;
    int rc = input_read(in, bytes, 2);
    if (rc == 0 && (bytes[0] != 0 || bytes[1] != 'B')) rc = input_complain(in, at, "is not a Kaldi object");
    if (rc == 0) rc = read_token(in, &h->kind);
    if (rc < 0) return rc;
    if (h->kind == KIND_FLOAT || h->kind == KIND_DOUBLE) {
        rc = read_sized_int(in, &rows);
        if (rc == 0) rc = read_sized_int(in, &cols);
    } else if ((rc = input_read(in, bytes, 16)) == 0) { /* min, range, rows, cols: no size bytes */
        memcpy(&h->min, bytes, 4);
        memcpy(&h->range, bytes + 4, 4);
        memcpy(&rows, bytes + 8, 4);
        memcpy(&cols, bytes + 12, 4);
    }
    return rc < 0 ? rc : check_header(in, at, h, rows, cols);
}

static uint16_t u16_at(const unsigned char *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

/* A CM column: its 0th, 25th, 75th and 100th percentile as 16-bit steps of the range, and a byte per row that
 * runs linearly over [p0, p25] for 0..64, [p25, p75] for 64..192, [p75, p100] for 192..255. */
static void decode_cm_column(const struct header *h, const unsigned char *percentiles,
                             const unsigned char *bytes, float *out)
{
    float p[4];
    for (int i = 0; i < 4; i++)
        p[i] = h->min + h->range * (1.0f / 65535.0f) * (float)u16_at(percentiles + 2 * i);
    for (uint64_t r = 0; r < h->rows; r++) {
        int v = bytes[r];
        float *to = out + r * h->cols;
        if (v <= 64)
            *to = p[0] + (p[1] - p[0]) * (float)v * (1.0f / 64.0f);
        else if (v <= 192)
            *to = p[1] + (p[2] - p[1]) * (float)(v - 64) * (1.0f / 128.0f);
        else
            *to = p[2] + (p[3] - p[2]) * (float)(v - 192) * (1.0f / 63.0f);
    }
}

static void decode_body(const struct header *h, const unsigned char *body, float *out)
{
    uint64_t cells = h->rows * h->cols;
    switch (h->kind) {
    case KIND_FLOAT:
        break; /* read straight into place */
    case KIND_DOUBLE:
        for (uint64_t i = 0; i < cells; i++) {
            double v;
            memcpy(&v, body + 8 * i, 8);
            out[i] = (float)v;
        }
        break;
    case KIND_CM: /* all percentile headers, then the columns one after another */
        for (uint64_t c = 0; c < h->cols; c++)
            decode_cm_column(h, body + 8 * c, body + 8 * h->cols + c * h->rows, out + c);
        break;
    case KIND_CM2:
        for (uint64_t i = 0; i < cells; i++)
            out[i] = h->min + h->range * (1.0f / 65535.0f) * (float)u16_at(body + 2 * i);
        break;
    case KIND_CM3:
        for (uint64_t i = 0; i < cells; i++) out[i] = h->min + h->range * (1.0f / 255.0f) * (float)body[i];
        break;
    }
}

static int decode_binary_matrix(struct input *in, struct matrix *out)
{
    struct header h;
    const unsigned char *body = NULL;
    int rc = read_header(in, &h);
    if (rc < 0) return rc;
    /* Of a pipe the bytes are taken first, so that a claim alone costs no memory. */
    if (h.kind != KIND_FLOAT || !in->regular) {
        if ((rc = input_take(in, body_bytes(&h), &body)) < 0) return rc;
    }
    matrix_reserve(out, (size_t)(h.rows * h.cols));
    out->rows = (size_t)h.rows;
    out->cols = (size_t)h.cols;
    if (out->rows == 0) return 0;
    if (h.kind != KIND_FLOAT)
        decode_body(&h, body, out->data);
    else if (body)
        memcpy(out->data, body, (size_t)body_bytes(&h));
    else
        rc = input_read(in, out->data, (size_t)body_bytes(&h));
    return rc;
}

/* --- text objects */

static bool is_blank(int c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

/* The next word of a text object: letters up to a blank, ']' or newline. 0 letters if one of those comes
 * first. */
static size_t read_word(struct input *in, char *word)
{
    size_t n = 0;
    for (int c = input_peek(in); c >= 0 && !isspace(c) && c != ']' && n + 1 < MAX_TEXT_TOKEN;
         c = input_peek(in))
        word[n++] = (char)input_byte(in);
    word[n] = 0;
    return n;
}

static int append_number(struct input *in, struct matrix *out, size_t count)
{
    char word[MAX_TEXT_TOKEN], what[MAX_TEXT_TOKEN + 60], *end;
    uint64_t at = input_position(in);
    read_word(in, word);
    float v = strtof(word, &end);
    if (end == word || *end) {
        snprintf(what, sizeof what, "'%s' is not a number", word);
        return input_complain(in, at, what);
    }
    if (count == out->capacity) matrix_reserve(out, count ? 2 * count : 1024);
    out->data[count] = v;
    return 0;
}

static int end_row(struct input *in, struct matrix *out, size_t in_row)
{
    if (in_row == 0) return 0;
    if (out->rows && in_row != out->cols)
        return input_complain(in, input_position(in), "the rows of this text matrix are not equally long");
    out->cols = in_row;
    out->rows++;
    return 0;
}

static void skip_rest_of_line(struct input *in)
{
    int c = input_peek(in);
    while (is_blank(c)) {
        input_byte(in);
        c = input_peek(in);
    }
    if (c == '\n') input_byte(in);
}

/* " [ 1 2 \n 3 4 ]\n" */
static int decode_text_matrix(struct input *in, struct matrix *out)
{
    uint64_t at = input_position(in);
    size_t count = 0, in_row = 0;
    int c, rc;
    out->rows = out->cols = 0;
    while ((c = input_byte(in)) >= 0 && isspace(c)) continue;
    if (c != '[')
        return input_complain(in, at,
                              "is neither a binary Kaldi matrix nor a text matrix, which starts with '['");
    while ((c = input_peek(in)) != ']') {
        if (c < 0) return input_complain(in, at, "the text matrix has no closing ']'; the file is truncated");
        if (c == '\n') {
            if ((rc = end_row(in, out, in_row)) < 0) return rc;
            in_row = 0;
        }
        if (isspace(c)) {
            input_byte(in);
            continue;
        }
        if ((rc = append_number(in, out, count++)) < 0) return rc;
        in_row++;
    }
    input_byte(in);
    skip_rest_of_line(in);
    return end_row(in, out, in_row);
}

static int append_int(struct input *in, struct ints *out)
{
    char word[MAX_TEXT_TOKEN], what[MAX_TEXT_TOKEN + 60], *end;
    uint64_t at = input_position(in);
    read_word(in, word);
    errno = 0;
    long v = strtol(word, &end, 10);
    if (end == word || *end || errno || v < INT32_MIN || v > INT32_MAX) {
        snprintf(what, sizeof what, "'%s' is not a 32-bit integer", word);
        return input_complain(in, at, what);
    }
    if (out->count == out->capacity) ints_reserve(out, out->count ? 2 * out->count : 1024);
    out->data[out->count++] = (int32_t)v;
    return 0;
}

static int decode_text_ints(struct input *in, struct ints *out)
{
    int c, rc;
    if (input_peek(in) < 0)
        return input_complain(in, input_position(in), "the file ends before the integers");
    while ((c = input_peek(in)) >= 0 && c != '\n') {
        if (is_blank(c))
            input_byte(in);
        else if ((rc = append_int(in, out)) < 0)
            return rc;
    }
    input_byte(in);
    return 0;
}

/* --- objects */

static int decode_binary_ints(struct input *in, struct ints *out)
{
    unsigned char mark[2];
    const unsigned char *body;
    int32_t n = 0;
    uint64_t at = input_position(in);
    int rc = input_read(in, mark, 2);
    if (rc == 0 && mark[1] != 'B') rc = input_complain(in, at, "is not a Kaldi object");
    if (rc == 0 && input_peek(in) != 4)
        rc = input_complain(in, at, "does not hold a Kaldi vector of 32-bit integers");
    if (rc == 0) rc = read_sized_int(in, &n);
    if (rc < 0) return rc;
    if (n < 0) return input_complain(in, at, "the vector has a negative length; the file is damaged");
    if ((rc = input_take(in, (uint64_t)n * 5, &body)) < 0) return rc;
    ints_reserve(out, (size_t)n);
    for (size_t i = 0; i < (size_t)n; i++) {
        if (body[5 * i] != 4) return input_complain(in, at, "the vector of integers is damaged");
        memcpy(out->data + i, body + 5 * i + 1, 4);
    }
    out->count = (size_t)n;
    return 0;
}

int ark_decode_matrix(struct input *in, struct matrix *out)
{
    return input_peek(in) == 0 ? decode_binary_matrix(in, out) : decode_text_matrix(in, out);
}

int ark_decode_ints(struct input *in, struct ints *out)
{
    out->count = 0;
    return input_peek(in) == 0 ? decode_binary_ints(in, out) : decode_text_ints(in, out);
}

int ark_decode_shape(struct input *in, size_t *rows_out, size_t *cols_out)
{
    struct header h = {0};
    struct matrix m = {0};
    int rc;
    if (input_peek(in) == 0) {
        rc = read_header(in, &h);
    } else {
        rc = decode_text_matrix(in, &m);
        h.rows = m.rows;
        h.cols = m.cols;
        matrix_fini(&m);
    }
    if (rc < 0) return rc;
    *rows_out = (size_t)h.rows;
    *cols_out = (size_t)h.cols;
    return 0;
}
