/* Reads the model files of Kaldi's nnet1: a stack of LstmProjected, one AffineTransform and an optional
 * Softmax, text or binary, float or double. Other components, and sizes that do not fit together, are refused
 * with a sentence. No state; any thread. Source: Kaldi src/nnet, whose gates stand in our order g, i, f, o
 * already. */
#ifndef WORKER_TOOLS_IMPORT_NNET1_H
#define WORKER_TOOLS_IMPORT_NNET1_H

#include "common/model.h"

/* Builds *out (undo with model_fini) and *vector_out (P floats, owned by the caller, free()). The file says
 * nothing of stacking, delay or normalisation: *out has none. *diff_clip_out, which may be NULL, is Kaldi's
 * DiffClip of the first layer, our train option gate_delta_clip; its learning rate factors, GradClip and
 * CellDiffClip are not taken over. ERR_STORAGE if the file cannot be read, ERR_DATA if it cannot be
 * understood; then nothing is written. */
int import_nnet1(const char *path, struct model *out, float **vector_out, float *diff_clip_out);

#endif
