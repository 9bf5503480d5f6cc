/* Locations as they stand in scp files, and the objects there. */
#include "worker/data/ark.h"

#include "common/err.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define RANGE_SLACK 3 /* rows that a range may be too long by: Kaldi's length_tolerance */

static bool is_blank(int c)
{
    return c == ' ' || c == '\t';
}

/* --- locations */

struct place {
    char name[INPUT_MAX_NAME]; /* path or command */
    uint64_t offset;
    bool has_offset;
    char range[64]; /* inside the brackets, "" if none */
};

static void split_offset(struct place *p)
{
    char *colon = strrchr(p->name, ':');
    if (!colon || !colon[1] || strlen(colon + 1) > 18 || strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return;
    p->offset = strtoull(colon + 1, NULL, 10);
    p->has_offset = true;
    *colon = 0;
}

static int split_range(struct place *p)
{
    size_t n = strlen(p->name);
    if (n == 0 || p->name[n - 1] != ']') return 0;
    char *open = strrchr(p->name, '[');
    if (!open || n - 2 - (size_t)(open - p->name) >= sizeof p->range)
        return err_set(ERR_DATA, "'%.200s': the range in brackets cannot be read", p->name);
    p->name[n - 1] = 0;
    snprintf(p->range, sizeof p->range, "%s", open + 1);
    while (open > p->name && is_blank(open[-1])) open--;
    *open = 0;
    return 0;
}

static int split_location(const char *location, struct place *p)
{
    size_t n = strlen(location);
    while (n && isspace((unsigned char)location[n - 1])) n--;
    if (n >= sizeof p->name) return err_set(ERR_DATA, "the location '%.60s...' is too long", location);
    memcpy(p->name, location, n);
    p->name[n] = 0;
    p->offset = 0;
    p->has_offset = false;
    p->range[0] = 0;
    int rc = split_range(p);
    if (rc == 0 && !input_is_pipe(p->name)) split_offset(p);
    return rc;
}

/* "a:b" inclusive, "" or ":" = all; `slack` more than there are is forgiven. */
static bool parse_side(const char *text, size_t size, size_t slack, size_t *first, size_t *count)
{
    *first = 0;
    *count = size;
    if (text[0] == 0 || strcmp(text, ":") == 0) return true;
    uint64_t a, b;
    int used = 0;
    if (!isdigit((unsigned char)text[0]) || sscanf(text, "%9" SCNu64 ":%n", &a, &used) != 1 || used == 0)
        return false;
    if (!isdigit((unsigned char)text[used]) || strspn(text + used, "0123456789") != strlen(text + used))
        return false;
    b = strtoull(text + used, NULL, 10);
    if (a > b || a >= size || b >= size + slack) return false;
    *first = (size_t)a;
    *count = (b < size ? (size_t)b : size - 1) - (size_t)a + 1;
    return true;
}

struct window {
    size_t first_row, rows, first_col, cols;
};

static int parse_range(const struct place *p, size_t rows, size_t cols, struct window *w)
{
    char text[sizeof p->range];
    snprintf(text, sizeof text, "%s", p->range);
    char *comma = strchr(text, ',');
    if (comma) *comma = 0;
    if (parse_side(text, rows, RANGE_SLACK, &w->first_row, &w->rows) &&
        parse_side(comma ? comma + 1 : "", cols, 0, &w->first_col, &w->cols))
        return 0;
    return err_set(ERR_DATA, "%.300s: the range [%s] does not fit the matrix of %zu x %zu", p->name, p->range,
                   rows, cols);
}

static void cut_matrix(struct matrix *m, const struct window *w)
{
    for (size_t r = 0; r < w->rows; r++)
        memmove(m->data + r * w->cols, m->data + (w->first_row + r) * m->cols + w->first_col,
                w->cols * sizeof *m->data);
    m->rows = w->rows;
    m->cols = w->cols;
}

/* Opens the place and stands at the object. `in` is the source's input or a new one, for done_with. */
static int stand_at(const struct ark_source *s, struct place *p, struct input **in)
{
    int rc = split_location(s->location, p);
    if (rc < 0) return rc;
    *in = s->input ? s->input : input_new();
    rc = input_open(*in, p->name, s->folder, s->allow_pipes);
    if (rc == 0 && p->has_offset) rc = input_seek(*in, p->offset);
    if (rc < 0 && !s->input) input_free(in);
    return rc;
}

/* A command has to end well, too: it may have failed after a part of its output. */
static int done_with(const struct ark_source *s, struct input *in, int rc)
{
    if (in->pid) {
        int closed = input_close(in);
        if (closed < 0) rc = closed;
    }
    if (!s->input) input_free(&in);
    return rc;
}

int ark_read_matrix(const struct ark_source *s, struct matrix *out)
{
    struct place p;
    struct input *in;
    struct window w;
    int rc = stand_at(s, &p, &in);
    if (rc < 0) return rc;
    rc = done_with(s, in, ark_decode_matrix(in, out));
    if (rc < 0 || !p.range[0]) return rc;
    if ((rc = parse_range(&p, out->rows, out->cols, &w)) == 0) cut_matrix(out, &w);
    return rc;
}

int ark_read_ints(const struct ark_source *s, struct ints *out)
{
    struct place p;
    struct input *in;
    int rc = stand_at(s, &p, &in);
    if (rc < 0) return rc;
    rc = done_with(s, in, ark_decode_ints(in, out));
    if (rc == 0 && p.range[0])
        return err_set(ERR_DATA, "%.300s: a range does not go with integers", s->location);
    return rc;
}

int ark_read_shape(const struct ark_source *s, size_t *rows_out, size_t *cols_out)
{
    struct place p;
    struct input *in;
    struct window w = {0};
    int rc = stand_at(s, &p, &in);
    if (rc < 0) return rc;
    rc = done_with(s, in, ark_decode_shape(in, &w.rows, &w.cols));
    if (rc == 0 && p.range[0]) rc = parse_range(&p, w.rows, w.cols, &w);
    if (rc < 0) return rc;
    *rows_out = w.rows;
    *cols_out = w.cols;
    return 0;
}
