/* The models of the bench: 40 inputs each, peepholes; windows of 20 frames. */
#ifndef BENCH_COMPUTE_MODELS_H
#define BENCH_COMPUTE_MODELS_H

#include "common/model.h"

#define MODELS_INPUT   40
#define MODELS_FRAMES  20 /* T */
#define MODELS_STREAMS 64 /* S at most */

enum bench_model { MODEL_A, MODEL_B, MODEL_C, MODEL_D, MODELS };
/* S = 1, 4, 8, 16, 64 */
enum bench_streams { STREAMS_1, STREAMS_4, STREAMS_8, STREAMS_16, STREAMS_64, STREAMS };

const char *models_name(enum bench_model which);
int models_streams(enum bench_streams which);
/* Undo with model_fini. */
void models_build(enum bench_model which, struct model *out);
/* GFLOP of one frame forward and backward, products alone: 2 per weight forward, twice that backward, less
 * the gradient towards the features. */
double models_train_gflop(const struct model *m);
/* Bytes of all matrices, which a frame of one stream reads once. */
double models_matrix_bytes(const struct model *m);

#endif
