/* Mel filterbank energies of one utterance: samples in, matrix out, no files. One thread (FFTW's planner).
 * Source: the definition that Kaldi's compute-fbank-feats documents (feat/feature-window, mel-computations,
 * feature-fbank), written anew; option names and defaults are the same. */
#ifndef WORKER_TOOLS_FBANK_H
#define WORKER_TOOLS_FBANK_H

#include <stdbool.h>
#include <stddef.h>

#include "common/rng.h"

enum fbank_window {
    FBANK_POVEY,
    FBANK_HAMMING,
    FBANK_HANNING,
    FBANK_SINE,
    FBANK_RECTANGULAR,
    FBANK_BLACKMAN
};
#define FBANK_WINDOWS "povey|hamming|hanning|sine|rectangular|blackman" /* in the order of the enum */

struct fbank_options {
    double sample_frequency;        /* Hz */
    double frame_length;            /* ms; L = floor(frame_length * sample_frequency / 1000) samples */
    double frame_shift;             /* ms */
    double preemphasis_coefficient; /* x_n -= c x_{n-1}, x_0 -= c x_0 within the frame, c in [0, 1] */
    double dither;                  /* standard deviation of normal noise, in int16 units; 0 = none */
    double blackman_coeff;
    double low_freq;     /* Hz */
    double high_freq;    /* Hz; 0 or less: that far below sample_frequency / 2 */
    double energy_floor; /* of the frame's energy, linear; 0 = none */
    enum fbank_window window_type;
    int num_mel_bins;
    bool remove_dc_offset;
    bool round_to_power_of_two; /* length N of the FFT: L rounded up, or L itself (rounded up to even) */
    bool snip_edges;            /* only frames that lie wholly inside; otherwise the edges are mirrored */
    bool use_energy;            /* one more column: log energy of the frame, first (htk_compat: last) */
    bool raw_energy;            /* that energy before pre-emphasis and window */
    bool use_log_fbank, use_power, htk_compat;
    bool htk_mode; /* as HTK, for comparison only: bin 0 loses its first weight if low_freq > 0, energies >= 1
                    */
};

struct fbank;

/* The defaults of compute-fbank-feats. */
void fbank_defaults(struct fbank_options *out);
/* Plans the transform. ERR_USAGE names the option that cannot be used. *out: owned by the caller. */
int fbank_new(const struct fbank_options *options, struct fbank **out);
void fbank_free(struct fbank **f);
/* Columns of the matrix: num_mel_bins, + 1 with use_energy. */
size_t fbank_dim(const struct fbank *f);
/* Frames of `samples` samples. snip_edges: 0 if samples < L, else 1 + (samples - L) / shift;
 * otherwise (samples + shift / 2) / shift. */
size_t fbank_frames(const struct fbank *f, size_t samples);
/* wave: `samples` values in int16 units. noise: for the dither, may be NULL where it is 0.
 * out: (fbank_frames, fbank_dim) row-major, natural logarithm unless use_log_fbank is off. */
void fbank_compute(struct fbank *f, const float *wave, size_t samples, struct rng *noise, float *out);

#endif
