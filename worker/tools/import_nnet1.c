#include "worker/tools/import_nnet1.h"

#include "common/err.h"
#include "common/files.h"

#include <ctype.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES  ((size_t)8 << 30)
#define MAX_SIZE        1000000
#define MAX_PARTS       7
#define LONGEST_TOKEN   32
#define MAX_SUBSECTIONS (MODEL_MAX_LAYERS + 2)

struct reader {
    const char *path, *at, *end; /* a 0 byte stands at end */
    bool is_binary;
};

enum kind { LSTM_PROJECTED, AFFINE_TRANSFORM, SOFTMAX };

/* One component as the file has it. */
struct component {
    enum kind kind;
    int out, in, cells;
    float cell_clip, diff_clip;
    float *parts[MAX_PARTS]; /* owned; row-major, in the order of the file */
};

struct nnet1 {
    struct component components[MAX_SUBSECTIONS];
    size_t num_components;
};

static int bad(const struct reader *r, const char *what)
{
    return err_set(ERR_DATA, "%s: %s; it is damaged or not a Kaldi nnet1 model of LstmProjected layers",
                   r->path, what);
}

static void skip_space(struct reader *r)
{
    while (r->at < r->end && isspace((unsigned char)*r->at)) r->at++;
}

/* A word up to white space; binary files have one space after it. */
static int read_token(struct reader *r, char token[LONGEST_TOKEN])
{
    if (!r->is_binary) skip_space(r);
    size_t n = 0;
    while (r->at + n < r->end && n < LONGEST_TOKEN && !isspace((unsigned char)r->at[n])) n++;
    if (n == 0 || n == LONGEST_TOKEN || r->at + n == r->end) return bad(r, "a word is missing or too long");
    memcpy(token, r->at, n);
    token[n] = 0;
    r->at += n + 1;
    return 0;
}

static int expect_token(struct reader *r, const char *want)
{
    char token[LONGEST_TOKEN];
    int err = read_token(r, token);
    if (err) return err;
    if (strcmp(token, want) == 0) return 0;
    return err_set(ERR_DATA, "%s: found %s where %s should stand; is it a Kaldi nnet1 model?", r->path, token,
                   want);
}

/* Four bytes behind their size byte. */
static int read_four(struct reader *r, void *out)
{
    if (r->end - r->at < 5 || r->at[0] != 4) return bad(r, "a binary number is cut or has a wrong size");
    memcpy(out, r->at + 1, 4);
    r->at += 5;
    return 0;
}

static int read_text_number(struct reader *r, float *out)
{
    skip_space(r);
    char *after;
    float value = strtof(r->at, &after);
    if (after == r->at || after > r->end) return bad(r, "a number is missing");
    if (!isfinite(value)) return bad(r, "a number is not finite");
    r->at = after;
    *out = value;
    return 0;
}

static int read_float(struct reader *r, float *out)
{
    if (!r->is_binary) return read_text_number(r, out);
    float value;
    int err = read_four(r, &value);
    if (err) return err;
    if (!isfinite(value)) return bad(r, "a number is not finite");
    *out = value;
    return 0;
}

static int read_size(struct reader *r, int *out)
{
    int32_t value = 0;
    if (r->is_binary) {
        int err = read_four(r, &value);
        if (err) return err;
    } else {
        char *after;
        skip_space(r);
        long text = strtol(r->at, &after, 10);
        if (after == r->at || after > r->end) return bad(r, "a size is missing");
        r->at = after;
        value = text > 0 && text <= MAX_SIZE ? (int32_t)text : 0;
    }
    if (value < 1 || value > MAX_SIZE) return bad(r, "a size is not between 1 and 1000000");
    *out = value;
    return 0;
}

/* Binary "FM " rows cols data, "FV " dim data, and D for double. Leaves r at the data and checks that all is
 * there. */
static int binary_head(struct reader *r, int rows, int cols, bool is_matrix, size_t *bytes_each)
{
    if (r->end - r->at < 3 || (r->at[0] != 'F' && r->at[0] != 'D') || r->at[1] != (is_matrix ? 'M' : 'V'))
        return bad(r, is_matrix ? "a float matrix is missing" : "a float vector is missing");
    size_t each = r->at[0] == 'F' ? 4 : 8;
    r->at += 3;
    int got_rows = rows, got_cols, err = is_matrix ? read_size(r, &got_rows) : 0;
    if (!err) err = read_size(r, is_matrix ? &got_cols : &got_rows);
    if (!is_matrix) got_cols = 1;
    if (err) return err;
    if (got_rows != rows || got_cols != cols)
        return err_set(ERR_DATA,
                       "%s: a matrix is %d x %d where its component says %d x %d; the file is damaged",
                       r->path, got_rows, got_cols, rows, cols);
    if ((size_t)(r->end - r->at) / each < (size_t)rows * (size_t)cols)
        return bad(r, "it ends inside a matrix");
    *bytes_each = each;
    return 0;
}

static int read_binary_values(struct reader *r, size_t n, size_t bytes_each, float *out)
{
    for (size_t i = 0; i < n; i++) {
        double wide;
        if (bytes_each == 4) {
            memcpy(&out[i], r->at, 4);
        } else {
            memcpy(&wide, r->at, 8);
            out[i] = (float)wide;
        }
        if (!isfinite(out[i])) return bad(r, "a weight is not finite");
        r->at += bytes_each;
    }
    return 0;
}

/* "[ numbers ]", as many as the sizes say. */
static int read_text_values(struct reader *r, size_t n, float *out)
{
    int err = 0;
    for (size_t i = 0; i < n && !err; i++) err = read_text_number(r, &out[i]);
    return err ? err : expect_token(r, "]");
}

/* A matrix, or with is_matrix false a vector of `rows`: row-major, *out is owned by the caller. */
static int read_values(struct reader *r, int rows, int cols, bool is_matrix, float **out)
{
    size_t n = (size_t)rows * (size_t)cols, bytes_each = 0;
    int err = r->is_binary ? binary_head(r, rows, cols, is_matrix, &bytes_each) : expect_token(r, "[");
    if (err) return err;
    if ((size_t)(r->end - r->at) / 2 < n)
        return bad(r, "it ends inside a matrix"); /* a text number has 2 bytes or more */
    float *values = xcalloc(n, sizeof *values);
    err = r->is_binary ? read_binary_values(r, n, bytes_each, values) : read_text_values(r, n, values);
    if (err)
        free(values);
    else
        *out = values;
    return err;
}

/* The options between the head of a component and its first matrix, in any order. */
static int read_options(struct reader *r, struct component *c)
{
    static const char *const ignored[] = {"<LearnRateCoef>", "<BiasLearnRateCoef>", "<CellDiffClip>",
                                          "<GradClip>", "<MaxNorm>"};
    for (;;) {
        if (!r->is_binary) skip_space(r);
        if (r->at == r->end || *r->at != '<') return 0;
        char token[LONGEST_TOKEN];
        float value = 0;
        int err = read_token(r, token);
        if (err) return err;
        if (strcmp(token, "<CellDim>") == 0) {
            if ((err = read_size(r, &c->cells))) return err;
            continue;
        }
        if ((err = read_float(r, &value))) return err;
        bool is_known = false;
        for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
            is_known |= strcmp(token, ignored[i]) == 0;
        if (strcmp(token, "<CellClip>") == 0)
            c->cell_clip = value;
        else if (strcmp(token, "<DiffClip>") == 0)
            c->diff_clip = value;
        else if (!is_known)
            return err_set(ERR_DATA, "%s: unknown option %s; only LstmProjected and AffineTransform are read",
                           r->path, token);
    }
}

static int read_lstm(struct reader *r, struct component *c)
{
    int err = read_options(r, c);
    if (err) return err;
    if (!c->cells) return bad(r, "an LstmProjected has no CellDim");
    if (c->cells > MAX_SIZE / 4) return bad(r, "an LstmProjected has too many cells");
    const struct {
        int rows, cols;
        bool is_matrix;
    } parts[MAX_PARTS] = {{4 * c->cells, c->in, true}, {4 * c->cells, c->out, true}, {4 * c->cells, 1, false},
                          {c->cells, 1, false},        {c->cells, 1, false},         {c->cells, 1, false},
                          {c->out, c->cells, true}};
    for (size_t k = 0; k < MAX_PARTS && !err; k++)
        err = read_values(r, parts[k].rows, parts[k].cols, parts[k].is_matrix, &c->parts[k]);
    return err;
}

static int read_affine(struct reader *r, struct component *c)
{
    int err = read_options(r, c);
    if (!err) err = read_values(r, c->out, c->in, true, &c->parts[0]);
    if (!err) err = read_values(r, c->out, 1, false, &c->parts[1]);
    return err;
}

static int read_component(struct reader *r, const char *token, struct component *c)
{
    int err = read_size(r, &c->out);
    if (!err) err = read_size(r, &c->in);
    if (err) return err;
    if (strcmp(token, "<LstmProjected>") == 0) {
        c->kind = LSTM_PROJECTED;
        err = read_lstm(r, c);
    } else if (strcmp(token, "<AffineTransform>") == 0) {
        c->kind = AFFINE_TRANSFORM;
        err = read_affine(r, c);
    } else if (strcmp(token, "<Softmax>") == 0) {
        c->kind = SOFTMAX;
    } else {
        return err_set(
            ERR_DATA,
            "%s: component %s is not supported; only LstmProjected, AffineTransform and Softmax are", r->path,
            token);
    }
    return err ? err : expect_token(r, "<!EndOfComponent>");
}

static int read_nnet(struct reader *r, struct nnet1 *n)
{
    if (r->end - r->at >= 2 && r->at[0] == 0 && r->at[1] == 'B') {
        r->is_binary = true;
        r->at += 2;
    }
    int err = expect_token(r, "<Nnet>");
    while (!err) {
        char token[LONGEST_TOKEN];
        if ((err = read_token(r, token)) || strcmp(token, "</Nnet>") == 0) break;
        if (n->num_components == MAX_SUBSECTIONS) return bad(r, "it has too many components");
        err = read_component(r, token, &n->components[n->num_components++]);
    }
    return err;
}

/* The order that we can hold: LSTM layers, one affine layer, perhaps a softmax; each fed by the one before.
 */
static int spec_of(const struct reader *r, const struct nnet1 *n, struct model_spec *out)
{
    struct model_spec s = {.type = MODEL_LSTMP, .peepholes = true, .stack = 1, .skip = 1};
    const struct component *c = n->components;
    size_t layers = 0, last = n->num_components;
    while (layers < last && c[layers].kind == LSTM_PROJECTED) layers++;
    if (last > 0 && c[last - 1].kind == SOFTMAX) last--;
    if (layers < 1 || layers > MODEL_MAX_LAYERS || last != layers + 1 || c[layers].kind != AFFINE_TRANSFORM)
        return err_set(ERR_DATA,
                       "%s: need 1 to %d LstmProjected, then one AffineTransform and perhaps a Softmax",
                       r->path, MODEL_MAX_LAYERS);
    for (size_t i = 0; i < n->num_components; i++) {
        if (i > 0 && c[i].in != c[i - 1].out) return bad(r, "a component does not fit the one before it");
        if (i < layers && c[i].cell_clip != c[0].cell_clip)
            return err_set(ERR_DATA, "%s: its layers differ in CellClip; a model here has one for all",
                           r->path);
        if (i < layers)
            s.layers[i] =
                (struct model_layer){.cells = (uint32_t)c[i].cells, .projection = (uint32_t)c[i].out};
    }
    if (n->num_components > last && c[last].out != c[last].in)
        return bad(r, "its Softmax changes the dimension");
    s.num_layers = (uint32_t)layers;
    s.input = s.feature_dim = (uint32_t)c[0].in;
    s.targets = (uint32_t)c[layers].out;
    s.cell_clip = c[0].cell_clip;
    *out = s;
    return 0;
}

/* The tensors of the model stand in the order of the file's parts. */
static float *vector_of(const struct nnet1 *n, const struct model *m)
{
    float *vector = xaligned(m->params * sizeof *vector);
    size_t tensor = 0;
    for (size_t i = 0; i < n->num_components; i++)
        for (size_t k = 0; k < MAX_PARTS && n->components[i].parts[k]; k++)
            model_set(&m->tensors[tensor++], n->components[i].parts[k], vector);
    ASSERT(tensor == m->num_tensors);
    return vector;
}

int import_nnet1(const char *path, struct model *out, float **vector_out, float *diff_clip_out)
{
    char *bytes;
    size_t len;
    int err = files_read(path, MAX_FILE_BYTES, &bytes, &len);
    if (err) return err;
    struct reader r = {.path = path, .at = bytes, .end = bytes + len};
    struct nnet1 *n = xcalloc(1, sizeof *n);
    struct model_spec spec;
    err = read_nnet(&r, n);
    if (!err) err = spec_of(&r, n, &spec);
    if (!err && (err = model_build(&spec, out))) err = err_prefix(ERR_DATA, "%s", path);
    if (!err) {
        *vector_out = vector_of(n, out);
        if (diff_clip_out) *diff_clip_out = n->components[0].diff_clip;
    }
    for (size_t i = 0; i < n->num_components; i++)
        for (size_t k = 0; k < MAX_PARTS; k++) free(n->components[i].parts[k]);
    free(n);
    free(bytes);
    return err;
}
