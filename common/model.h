/* The model as one vector of P floats and one table of tensors {name, rows, cols, layout, offset} (DESIGN
 * section 2). The table drives initialisation, sharding, checkpoints, logs, the gradient check and every
 * export. A tensor is rows x cols = [out][in]; gates are stacked in the order g, i, f, o: w_x is (4C, D). The
 * order of the floats inside a tensor is its layout: only model_at() and its callers (import, export, init)
 * see it. Plain data, no threads. Source: Sak, Senior, Beaufays, Interspeech 2014, equations 1 to 8. */
#ifndef COMMON_MODEL_H
#define COMMON_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_MAX_LAYERS 16

enum model_type { MODEL_LSTM, MODEL_LSTMP };
/* Row-major (vectors); or panels: rows 24p to 24p + 23 as [cols][24], one panel after the other, the last one
 * [cols][rows % 24]. It is the order in which the maths reads a weight (worker/nnet/kernels/panels.h), so
 * that what arrives from a server need not be packed. 24 = three vectors of 8 floats. */
enum model_layout { LAYOUT_ROWS, LAYOUT_PANELS };
#define MODEL_PANEL 24
enum delay_style {
    DELAY_REPEAT,
    DELAY_KALDI
}; /* repeat the last frame; feed x_{t+delay} (DESIGN section 3) */

struct model_layer {
    uint32_t cells;        /* C */
    uint32_t projection;   /* R, recurrent; 0 = none: r = m, R = C */
    uint32_t nonrecurrent; /* extra projection p_t (arXiv 1402.1128); 0 = none */
};

/* What a model is, before any weight. Plain data; equal bytes after model_build means equal models. */
struct model_spec {
    enum model_type type;
    uint32_t input;   /* D as the net sees it: feature dim x stack */
    uint32_t targets; /* K */
    uint32_t num_layers;
    struct model_layer layers[MODEL_MAX_LAYERS];
    bool peepholes;
    float cell_clip; /* |c| limit, 0 = off */
    /* How frames become inputs; belongs to the model (DESIGN section 3). */
    uint32_t feature_dim; /* of the files */
    uint32_t stack, skip; /* frames spliced into one input, frames advanced per input; 1, 1 = off */
    uint32_t delay;       /* target delay, in inputs */
    enum delay_style delay_style;
};

struct tensor {
    char name[24]; /* layer0.w_x ... output.b */
    uint32_t rows, cols;
    enum model_layout layout;
    size_t offset; /* floats from the start of the vector */
};

struct model {
    struct model_spec spec;
    struct tensor *tensors; /* owned */
    size_t num_tensors;
    size_t params; /* P */
};

struct model_init_options {
    float range;       /* U(-range, range); 0: +-1/sqrt(C) of the tensor's layer (C of the last layer for the
                          output) */
    float forget_bias; /* added value of b_f */
    bool zero_bias;    /* biases 0 (then + forget_bias) instead of random */
    uint64_t seed;
};

/* Builds the table: ERR_USAGE with a sentence on impossible sizes. Undo with model_fini. */
int model_build(const struct model_spec *spec, struct model *out);
void model_fini(struct model *m);
/* Sizes seen by the maths: R of a layer (C if it has no projection), what it feeds upward (R + nonrecurrent),
 * its input size. */
uint32_t model_recurrent(const struct model_spec *s, size_t layer);
uint32_t model_upward(const struct model_spec *s, size_t layer);
uint32_t model_layer_input(const struct model_spec *s, size_t layer);
/* Index into the vector of element (row, col), whatever the layout. */
size_t model_at(const struct tensor *t, size_t row, size_t col);
/* NULL if there is no tensor of that name. */
const struct tensor *model_find(const struct model *m, const char *name);
/* Copies a tensor between the vector and plain row-major [rows][cols]. */
void model_get(const struct tensor *t, const float *vector, float *rows_out);
void model_set(const struct tensor *t, const float *rows_in, float *vector);
/* Fills vector[P]. The drawn value of an element depends on its name and (row, col), not on its layout. */
void model_init(const struct model *m, const struct model_init_options *o, float *vector);
/* XXH3 of spec, table and the normalisation statistics (mean and scale, feature_dim each; NULL = none). */
uint64_t model_hash(const struct model *m, const float *mean, const float *scale);
/* "2x LSTMP 512/256, 40 inputs, 696 targets, 2,123,456 parameters" */
void model_describe(const struct model *m, char *out, size_t size);

#endif
