#include "tests/bench/compute/models.h"

#include "common/err.h"

static const struct {
    const char *name;
    uint32_t layers, cells, projection, targets;
} sizes[MODELS] = {
    {"A", 1, 1024, 256, 126}, {"B", 2, 800, 512, 8000}, {"C", 3, 512, 200, 2000}, {"D", 1, 128, 64, 50}};

const char *models_name(enum bench_model which)
{
    return sizes[which].name;
}

int models_streams(enum bench_streams which)
{
    static const int streams[STREAMS] = {1, 4, 8, 16, MODELS_STREAMS};
    return streams[which];
}

void models_build(enum bench_model which, struct model *out)
{
    struct model_spec s = {.type = MODEL_LSTMP,
                           .input = MODELS_INPUT,
                           .feature_dim = MODELS_INPUT,
                           .stack = 1,
                           .skip = 1,
                           .targets = sizes[which].targets,
                           .num_layers = sizes[which].layers,
                           .peepholes = true,
                           .cell_clip = 50};
    for (size_t l = 0; l < s.num_layers; l++)
        s.layers[l] = (struct model_layer){sizes[which].cells, sizes[which].projection, 0};
    ASSERT(model_build(&s, out) == 0);
}

static double weights(const struct model *m)
{
    double sum = 0;
    for (size_t i = 0; i < m->num_tensors; i++)
        if (m->tensors[i].layout == LAYOUT_PANELS) sum += (double)m->tensors[i].rows * m->tensors[i].cols;
    return sum;
}

double models_train_gflop(const struct model *m)
{
    double to_features = 4.0 * m->spec.layers[0].cells * m->spec.input;
    return (6 * weights(m) - 2 * to_features) / 1e9;
}

double models_matrix_bytes(const struct model *m)
{
    return weights(m) * sizeof(float);
}
