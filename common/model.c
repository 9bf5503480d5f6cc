#include "common/model.h"

#include "common/err.h"
#include "common/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MAX_TENSORS (MODEL_MAX_LAYERS * 8 + 2)
#define MAX_SIZE    1000000u /* cells, projection, inputs, targets */

uint32_t model_recurrent(const struct model_spec *s, size_t layer)
{
    return s->layers[layer].projection ? s->layers[layer].projection : s->layers[layer].cells;
}

uint32_t model_upward(const struct model_spec *s, size_t layer)
{
    return model_recurrent(s, layer) + s->layers[layer].nonrecurrent;
}

uint32_t model_layer_input(const struct model_spec *s, size_t layer)
{
    return layer == 0 ? s->input : model_upward(s, layer - 1);
}

/* Weights are w...: in panels; vectors have one column. */
static void add(struct model *m, int layer, const char *name, uint32_t rows, uint32_t cols)
{
    struct tensor *t = &m->tensors[m->num_tensors++];
    if (layer >= 0)
        snprintf(t->name, sizeof t->name, "layer%d.%s", layer, name);
    else
        snprintf(t->name, sizeof t->name, "output.%s", name);
    t->rows = rows;
    t->cols = cols;
    t->layout = name[0] == 'w' ? LAYOUT_PANELS : LAYOUT_ROWS;
    t->offset = m->params;
    m->params += (size_t)rows * cols;
}

static int check_spec(const struct model_spec *s)
{
    if (s->num_layers < 1 || s->num_layers > MODEL_MAX_LAYERS)
        return err_set(ERR_USAGE, "model.layers has %u layers; 1 to %d are possible", s->num_layers,
                       MODEL_MAX_LAYERS);
    if (s->input < 1 || s->input > MAX_SIZE || s->targets < 2 || s->targets > MAX_SIZE)
        return err_set(ERR_USAGE, "a model of %u inputs and %u targets is not possible; look at the data",
                       s->input, s->targets);
    if (s->stack < 1 || s->skip < 1 || s->input != s->feature_dim * s->stack)
        return err_set(ERR_USAGE, "%u inputs do not match %u features stacked %u times", s->input,
                       s->feature_dim, s->stack);
    for (size_t l = 0; l < s->num_layers; l++) {
        const struct model_layer *y = &s->layers[l];
        if (y->cells < 1 || y->cells > MAX_SIZE || y->projection > MAX_SIZE || y->nonrecurrent > MAX_SIZE)
            return err_set(ERR_USAGE, "layer %zu has %u cells and %u projections; 1 to %u are possible", l,
                           y->cells, y->projection, MAX_SIZE);
        if (s->type == MODEL_LSTM && (y->projection || y->nonrecurrent))
            return err_set(ERR_USAGE, "layer %zu has a projection but model.type is lstm; use lstmp", l);
        if (s->type == MODEL_LSTMP && !y->projection)
            return err_set(ERR_USAGE, "layer %zu has no projection but model.type is lstmp; use lstm", l);
    }
    return 0;
}

int model_build(const struct model_spec *spec, struct model *out)
{
    int err = check_spec(spec);
    if (err) return err;
    struct model m = {.spec = *spec};
    m.tensors = xcalloc(MAX_TENSORS, sizeof *m.tensors);
    for (uint32_t l = 0; l < spec->num_layers; l++) {
        const struct model_layer *y = &spec->layers[l];
        add(&m, (int)l, "w_x", 4 * y->cells, model_layer_input(spec, l));
        add(&m, (int)l, "w_r", 4 * y->cells, model_recurrent(spec, l));
        add(&m, (int)l, "b", 4 * y->cells, 1);
        if (spec->peepholes) {
            add(&m, (int)l, "p_i", y->cells, 1);
            add(&m, (int)l, "p_f", y->cells, 1);
            add(&m, (int)l, "p_o", y->cells, 1);
        }
        if (y->projection) add(&m, (int)l, "w_m", y->projection, y->cells);
        if (y->nonrecurrent) add(&m, (int)l, "w_p", y->nonrecurrent, y->cells);
    }
    add(&m, -1, "w", spec->targets, model_upward(spec, spec->num_layers - 1));
    add(&m, -1, "b", spec->targets, 1);
    *out = m;
    return 0;
}

void model_fini(struct model *m)
{
    free(m->tensors);
    memset(m, 0, sizeof *m);
}

size_t model_at(const struct tensor *t, size_t row, size_t col)
{
    DCHECK(row < t->rows && col < t->cols);
    if (t->layout == LAYOUT_ROWS) return t->offset + row * t->cols + col;
    size_t first = row - row % MODEL_PANEL, left = t->rows - first,
           width = left < MODEL_PANEL ? left : MODEL_PANEL;
    return t->offset + first * t->cols + col * width + row % MODEL_PANEL;
}

const struct tensor *model_find(const struct model *m, const char *name)
{
    for (size_t i = 0; i < m->num_tensors; i++)
        if (strcmp(m->tensors[i].name, name) == 0) return &m->tensors[i];
    return NULL;
}

void model_get(const struct tensor *t, const float *vector, float *rows_out)
{
    for (size_t r = 0; r < t->rows; r++)
        for (size_t c = 0; c < t->cols; c++) rows_out[r * t->cols + c] = vector[model_at(t, r, c)];
}

void model_set(const struct tensor *t, const float *rows_in, float *vector)
{
    for (size_t r = 0; r < t->rows; r++)
        for (size_t c = 0; c < t->cols; c++) vector[model_at(t, r, c)] = rows_in[r * t->cols + c];
}

/* The layer that a tensor belongs to; the last one for the output layer. */
static size_t layer_of(const struct model *m, const struct tensor *t)
{
    return strncmp(t->name, "layer", 5) == 0 ? (size_t)strtoul(t->name + 5, NULL, 10)
                                             : m->spec.num_layers - 1;
}

void model_init(const struct model *m, const struct model_init_options *o, float *vector)
{
    for (size_t i = 0; i < m->num_tensors; i++) {
        const struct tensor *t = &m->tensors[i];
        size_t layer = layer_of(m, t);
        uint32_t cells = m->spec.layers[layer].cells;
        float range = o->range > 0 ? o->range : 1.0f / sqrtf((float)cells);
        bool is_bias = strcmp(strchr(t->name, '.'), ".b") == 0;
        bool is_gate_bias = is_bias && t->rows == 4 * cells && strncmp(t->name, "layer", 5) == 0;
        struct rng r;
        rng_init(&r, rng_derive(o->seed, 0x696e6974 /* "init" */, XXH3_64bits(t->name, strlen(t->name))));
        for (size_t row = 0; row < t->rows; row++)
            for (size_t col = 0; col < t->cols; col++) {
                float w = rng_range(&r, -range, range);
                if (is_bias && o->zero_bias) w = 0;
                if (is_gate_bias && row / cells == 2) w += o->forget_bias; /* gates g i f o: f is the third */
                vector[model_at(t, row, col)] = w;
            }
    }
}

uint64_t model_hash(const struct model *m, const float *mean, const float *scale)
{
    XXH3_state_t *x = XXH3_createState();
    ASSERT(x);
    XXH3_64bits_reset(x);
    const struct model_spec *s = &m->spec;
    uint32_t head[] = {s->type,        s->input, s->targets, s->num_layers, s->peepholes,
                       s->feature_dim, s->stack, s->skip,    s->delay,      s->delay_style};
    XXH3_64bits_update(x, head, sizeof head);
    XXH3_64bits_update(x, &s->cell_clip, sizeof s->cell_clip);
    for (size_t i = 0; i < m->num_tensors; i++) {
        const struct tensor *t = &m->tensors[i];
        uint64_t row[] = {t->rows, t->cols, t->layout, t->offset};
        XXH3_64bits_update(x, t->name, strlen(t->name));
        XXH3_64bits_update(x, row, sizeof row);
    }
    if (mean) XXH3_64bits_update(x, mean, s->feature_dim * sizeof *mean);
    if (scale) XXH3_64bits_update(x, scale, s->feature_dim * sizeof *scale);
    uint64_t hash = XXH3_64bits_digest(x);
    XXH3_freeState(x);
    return hash;
}

void model_describe(const struct model *m, char *out, size_t size)
{
    const struct model_spec *s = &m->spec;
    size_t n =
        (size_t)snprintf(out, size, "%u x %s", s->num_layers, s->type == MODEL_LSTM ? "LSTM" : "LSTMP");
    for (size_t l = 0; l < s->num_layers && n < size; l++) {
        const struct model_layer *y = &s->layers[l];
        n += (size_t)snprintf(out + n, size - n, y->projection ? "%s%u/%u" : "%s%u", l ? ", " : " ", y->cells,
                              y->projection);
        if (y->nonrecurrent && n < size) n += (size_t)snprintf(out + n, size - n, "+%u", y->nonrecurrent);
    }
    if (n < size)
        snprintf(out + n, size - n, "; %u inputs, %u targets, %zu parameters", s->input, s->targets,
                 m->params);
}
