#include "worker/tools/fbank.h"

#include <fftw3.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/err.h"

#define MAX_FRAME_SAMPLES (1 << 20)
#define MAX_MEL_BINS      4096

struct mel_bin {
    size_t first, count; /* bins of the spectrum that have a weight */
    float *weight;       /* view into fbank.weights */
};

struct fbank {
    struct fbank_options options;
    size_t length, shift, padded; /* L, shift and N, in samples */
    double *window;               /* L */
    double *frame;                /* N, aligned; zero from L on */
    fftw_complex *transform;      /* N / 2 + 1 */
    float *spectrum;              /* N / 2 + 1 */
    struct mel_bin *bins;         /* num_mel_bins */
    float *weights;
    fftw_plan plan;
};

void fbank_defaults(struct fbank_options *out)
{
    *out = (struct fbank_options){.sample_frequency = 16000,
                                  .frame_length = 25,
                                  .frame_shift = 10,
                                  .preemphasis_coefficient = 0.97,
                                  .dither = 1,
                                  .blackman_coeff = 0.42,
                                  .low_freq = 20,
                                  .window_type = FBANK_POVEY,
                                  .num_mel_bins = 23,
                                  .remove_dc_offset = true,
                                  .round_to_power_of_two = true,
                                  .snip_edges = true,
                                  .raw_energy = true,
                                  .use_log_fbank = true,
                                  .use_power = true};
}

static double mel(double hertz)
{
    return 1127.0 * log(1.0 + hertz / 700.0);
}

/* Symmetric windows over n = 0..L-1, a = 2 pi / (L - 1). */
static void window_fill(const struct fbank_options *o, size_t length, double *out)
{
    double a = 2.0 * M_PI / (double)(length - 1), b = o->blackman_coeff;
    for (size_t n = 0; n < length; n++) {
        double cosine = cos(a * (double)n), w = 1.0;
        switch (o->window_type) {
        case FBANK_POVEY:
            w = pow(0.5 - 0.5 * cosine, 0.85);
            break;
        case FBANK_HAMMING:
            w = 0.54 - 0.46 * cosine;
            break;
        case FBANK_HANNING:
            w = 0.5 - 0.5 * cosine;
            break;
        case FBANK_SINE:
            w = sin(0.5 * a * (double)n);
            break;
        case FBANK_RECTANGULAR:
            break;
        case FBANK_BLACKMAN:
            w = b - 0.5 * cosine + (0.5 - b) * cos(2.0 * a * (double)n);
            break;
        }
        out[n] = w;
    }
}

/* Triangles of height 1, equal steps in mel between low and high; the spectrum's last bin (Nyquist) is
 * in none. Weights of one triangle are consecutive. */
static int bins_fill(struct fbank *f, double low_hz, double high_hz)
{
    const struct fbank_options *o = &f->options;
    size_t half = f->padded / 2, used = 0;
    double width = o->sample_frequency / (double)f->padded, low = mel(low_hz);
    double step = (mel(high_hz) - low) / (o->num_mel_bins + 1);
    for (int b = 0; b < o->num_mel_bins; b++) {
        struct mel_bin *bin = &f->bins[b];
        double left = low + b * step, centre = left + step, right = centre + step;
        bin->weight = f->weights + used;
        for (size_t i = 0; i < half; i++) {
            double m = mel(width * (double)i);
            if (m <= left || m >= right) continue;
            if (!bin->count) bin->first = i;
            bin->weight[bin->count++] = (float)(m <= centre ? (m - left) / step : (right - m) / step);
        }
        if (!bin->count)
            return err_set(
                ERR_USAGE,
                "mel bin %d of %d lies between two points of the spectrum; use fewer --num-mel-bins "
                "or a longer --frame-length",
                b, o->num_mel_bins);
        used += bin->count;
        if (o->htk_mode && b == 0 && low_hz > 0) bin->weight[0] = 0;
    }
    return 0;
}

/* Every option must be finite and in range before a size is computed from it. */
static int options_check(const struct fbank_options *o, double high)
{
    double length = o->sample_frequency * o->frame_length / 1000,
           shift = o->sample_frequency * o->frame_shift / 1000;
    if (!(o->sample_frequency >= 1 && o->sample_frequency <= 1e7))
        return err_set(ERR_USAGE, "--sample-frequency must be between 1 and 1e7 Hz");
    if (!(length >= 2 && length <= MAX_FRAME_SAMPLES))
        return err_set(ERR_USAGE, "--frame-length gives %g samples; 2 to %d can be used", length,
                       MAX_FRAME_SAMPLES);
    if (!(shift >= 1 && shift <= MAX_FRAME_SAMPLES))
        return err_set(ERR_USAGE, "--frame-shift gives %g samples; 1 to %d can be used", shift,
                       MAX_FRAME_SAMPLES);
    if (o->num_mel_bins < 3 || o->num_mel_bins > MAX_MEL_BINS)
        return err_set(ERR_USAGE, "--num-mel-bins must be between 3 and %d", MAX_MEL_BINS);
    if (!(o->low_freq >= 0 && o->low_freq < high && high <= o->sample_frequency / 2))
        return err_set(ERR_USAGE, "--low-freq and --high-freq give %g to %g Hz; need 0 <= low < high <= %g",
                       o->low_freq, high, o->sample_frequency / 2);
    if (!(o->preemphasis_coefficient >= 0 && o->preemphasis_coefficient <= 1))
        return err_set(ERR_USAGE, "--preemphasis-coefficient must be between 0 and 1");
    if (!(o->dither >= 0 && o->dither <= 32768) || !(o->energy_floor >= 0 && isfinite(o->energy_floor)) ||
        !isfinite(o->blackman_coeff))
        return err_set(ERR_USAGE,
                       "--dither, --energy-floor and --blackman-coeff must be finite and not negative");
    return 0;
}

int fbank_new(const struct fbank_options *options, struct fbank **out)
{
    double high =
        options->high_freq > 0 ? options->high_freq : options->sample_frequency / 2 + options->high_freq;
    int rc = options_check(options, high);
    if (rc) return rc;
    struct fbank *f = xcalloc(1, sizeof *f);
    f->options = *options;
    f->length = (size_t)(options->sample_frequency * 0.001 * options->frame_length);
    f->shift = (size_t)(options->sample_frequency * 0.001 * options->frame_shift);
    f->padded = f->length + f->length % 2;
    if (options->round_to_power_of_two)
        for (f->padded = 2; f->padded < f->length;) f->padded *= 2;
    size_t half = f->padded / 2;
    f->window = xcalloc(f->length, sizeof *f->window);
    f->frame = fftw_alloc_real(f->padded);
    f->transform = fftw_alloc_complex(half + 1);
    f->spectrum = xcalloc(half + 1, sizeof *f->spectrum);
    f->bins = xcalloc((size_t)options->num_mel_bins, sizeof *f->bins);
    f->weights = xcalloc(2 * half, sizeof *f->weights); /* a point is in two triangles at most */
    if (f->frame && f->transform)
        f->plan = fftw_plan_dft_r2c_1d((int)f->padded, f->frame, f->transform, FFTW_ESTIMATE);
    if (!f->plan)
        rc =
            err_set(ERR_FAIL, "no memory for an FFT of %zu samples; use a shorter --frame-length", f->padded);
    window_fill(options, f->length, f->window);
    if (!rc) rc = bins_fill(f, options->low_freq, high);
    if (rc)
        fbank_free(&f);
    else
        *out = f;
    return rc;
}

void fbank_free(struct fbank **f)
{
    if (!*f) return;
    if ((*f)->plan) fftw_destroy_plan((*f)->plan);
    fftw_free((*f)->frame);
    fftw_free((*f)->transform);
    free((*f)->window);
    free((*f)->spectrum);
    free((*f)->bins);
    free((*f)->weights);
    free(*f);
    *f = NULL;
}

size_t fbank_dim(const struct fbank *f)
{
    return (size_t)f->options.num_mel_bins + (f->options.use_energy ? 1 : 0);
}

size_t fbank_frames(const struct fbank *f, size_t samples)
{
    if (!f->options.snip_edges) return (samples + f->shift / 2) / f->shift;
    return samples < f->length ? 0 : 1 + (samples - f->length) / f->shift;
}

/* Frame t of the wave into f->frame[0..L-1]. Without snip_edges it is centred on shift * (t + 1/2), and
 * the wave goes on mirrored past both ends. */
static void frame_cut(struct fbank *f, const float *wave, size_t samples, size_t t)
{
    if (f->options.snip_edges) {
        for (size_t i = 0; i < f->length; i++) f->frame[i] = wave[t * f->shift + i];
        return;
    }
    long n = (long)samples, start = (long)(t * f->shift + f->shift / 2) - (long)(f->length / 2);
    for (size_t i = 0; i < f->length; i++) {
        long s = start + (long)i;
        while (s < 0 || s >= n) s = s < 0 ? -s - 1 : 2 * n - 1 - s;
        f->frame[i] = wave[s];
    }
}

static double log_energy(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return log(fmax(sum, (double)FLT_EPSILON));
}

/* Dither, DC removal, energy, pre-emphasis, window, in this order; returns the log energy. */
static double frame_shape(struct fbank *f, struct rng *noise)
{
    const struct fbank_options *o = &f->options;
    double *x = f->frame, c = o->preemphasis_coefficient;
    size_t length = f->length;
    double energy = 0;
    if (o->dither > 0)
        for (size_t i = 0; i < length; i++) x[i] += o->dither * rng_normal(noise);
    if (o->remove_dc_offset) {
        double sum = 0;
        for (size_t i = 0; i < length; i++) sum += x[i];
        double mean = sum / (double)length;
        for (size_t i = 0; i < length; i++) x[i] -= mean;
    }
    if (o->use_energy && o->raw_energy) energy = log_energy(x, length);
    if (c > 0) {
        for (size_t i = length; i-- > 1;) x[i] -= c * x[i - 1];
        x[0] -= c * x[0];
    }
    for (size_t i = 0; i < length; i++) x[i] *= f->window[i];
    if (o->use_energy && !o->raw_energy) energy = log_energy(x, length);
    if (o->use_energy && o->energy_floor > 0) energy = fmax(energy, log(o->energy_floor));
    return energy;
}

static void frame_bins(struct fbank *f, float *out)
{
    const struct fbank_options *o = &f->options;
    for (size_t i = 0; i <= f->padded / 2; i++) {
        double re = f->transform[i][0], im = f->transform[i][1], power = re * re + im * im;
        f->spectrum[i] = o->use_power ? (float)power : (float)sqrt(power);
    }
    for (int b = 0; b < o->num_mel_bins; b++) {
        const struct mel_bin *bin = &f->bins[b];
        float sum = 0;
        for (size_t i = 0; i < bin->count; i++) sum += bin->weight[i] * f->spectrum[bin->first + i];
        if (o->htk_mode && sum < 1) sum = 1;
        out[b] = o->use_log_fbank ? logf(fmaxf(sum, FLT_EPSILON)) : sum;
    }
}

void fbank_compute(struct fbank *f, const float *wave, size_t samples, struct rng *noise, float *out)
{
    const struct fbank_options *o = &f->options;
    size_t frames = fbank_frames(f, samples), dim = fbank_dim(f);
    ASSERT(noise || !(o->dither > 0));
    for (size_t t = 0; t < frames; t++, out += dim) {
        frame_cut(f, wave, samples, t);
        double energy = frame_shape(f, noise);
        memset(f->frame + f->length, 0, (f->padded - f->length) * sizeof *f->frame);
        fftw_execute(f->plan);
        frame_bins(f, out + (o->use_energy && !o->htk_compat ? 1 : 0));
        if (o->use_energy) out[o->htk_compat ? dim - 1 : 0] = (float)energy;
    }
}
