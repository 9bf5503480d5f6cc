/* The parameter counts of the 28 networks that the two papers print. */
#include "common/err.h"
#include "common/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define IS_TARGETS 14247 /* Interspeech 2014 */

struct published {
    uint32_t cells, projection, nonrecurrent, layers, targets;
    size_t params;      /* with peepholes, without biases, as the papers count */
    double printed;     /* in the paper, in millions; 0 = not printed there */
    size_t with_biases; /* 0 = not listed */
};

static const struct published networks[] = {
    /* Interspeech 2014, LSTMP, then LSTM */
    {800, 512, 0, 2, IS_TARGETS, 13161664, 13, 13182311},
    {1024, 512, 0, 2, IS_TARGETS, 14804480, 15, 0},
    {1024, 512, 0, 3, IS_TARGETS, 19526144, 20, 0},
    {2048, 512, 0, 1, IS_TARGETS, 12871168, 13, 0},
    {2048, 512, 0, 2, IS_TARGETS, 22314496, 22, 0},
    {6000, 800, 0, 1, IS_TARGETS, 36375600, 36, 0},
    {700, 400, 0, 2, IS_TARGETS, 9735000, 10, 0},
    {600, 350, 0, 2, IS_TARGETS, 8026050, 8, 0},
    {840, 0, 0, 5, IS_TARGETS, 37516080, 37, 0},
    {440, 0, 0, 5, IS_TARGETS, 13315280, 13, 0},
    {600, 0, 0, 2, IS_TARGETS, 12967800, 13, 0},
    {385, 0, 0, 7, IS_TARGETS, 13262480, 13, 0},
    {750, 0, 0, 1, IS_TARGETS, 13057500, 13, 0},
    /* arXiv 1402.1128, one layer, 126, 2000 and 8000 states */
    {512, 0, 0, 1, 126, 1196544, 1.2, 0},
    {512, 0, 0, 1, 2000, 2156032, 2.2, 0},
    {512, 0, 0, 1, 8000, 5228032, 5.2, 0},
    {1024, 256, 0, 1, 126, 1509888, 1.5, 0},
    {1024, 256, 0, 1, 2000, 1989632, 2, 0},
    {1024, 256, 0, 1, 8000, 3525632, 3.5, 0},
    {2048, 256, 0, 1, 126, 2987520, 3, 0},
    {2048, 256, 0, 1, 2000, 3467264, 3.5, 0},
    {2048, 256, 0, 1, 8000, 5003264, 5, 0},
    {2048, 512, 0, 1, 126, 5641216, 5.6, 0},
    {2048, 512, 0, 1, 2000, 6600704, 6.6, 0},
    {2048, 512, 0, 1, 8000, 9672704, 9.7, 0},
    {2048, 256, 256, 1, 126, 3544064, 3.6, 0},
    {2048, 256, 256, 1, 2000, 4503552, 4.5, 0},
    {2048, 256, 256, 1, 8000, 7575552, 7.6, 0},
};

static struct model model_of(const struct published *p)
{
    struct model_spec s = {.type = p->projection ? MODEL_LSTMP : MODEL_LSTM,
                           .input = 40,
                           .feature_dim = 40,
                           .stack = 1,
                           .skip = 1,
                           .targets = p->targets,
                           .num_layers = p->layers,
                           .peepholes = true};
    for (size_t l = 0; l < p->layers; l++)
        s.layers[l] = (struct model_layer){p->cells, p->projection, p->nonrecurrent};
    struct model m;
    if (model_build(&s, &m)) fail_msg("%s", err_text());
    return m;
}

static size_t biases_of(const struct model *m)
{
    size_t n = 0;
    for (size_t i = 0; i < m->num_tensors; i++)
        if (strcmp(strchr(m->tensors[i].name, '.'), ".b") == 0) n += m->tensors[i].rows;
    return n;
}

/* Rule: each of the 28 networks has the computed count without biases, and the printed one within its
 * rounding (the papers print 37.5 M as 37 M and 3.54 M as 3.6 M). */
static void counts_of_the_published_networks(void **state)
{
    (void)state;
    assert_int_equal(sizeof networks / sizeof *networks, 28);
    for (size_t i = 0; i < 28; i++) {
        struct model m = model_of(&networks[i]);
        size_t bare = m.params - biases_of(&m);
        if (bare != networks[i].params) fail_msg("network %zu: %zu, want %zu", i, bare, networks[i].params);
        if (networks[i].with_biases) assert_int_equal(m.params, networks[i].with_biases);
        double unit = networks[i].targets == IS_TARGETS ? 1 : 0.1,
               off = (double)bare / 1e6 - networks[i].printed;
        assert_true((off < 0 ? -off : off) <= 0.6 * unit);
        model_fini(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(counts_of_the_published_networks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
