/* Log-mel features: frame counts, where energy lands, and the reference features beside the repository. */
#include "worker/tools/fbank.h"

#include <math.h>
#include <setjmp.h>
#include <sndfile.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/err.h"
#include "common/files.h"

#define MAX_SAMPLES (60 * 16000)

static struct fbank *make(const struct fbank_options *o)
{
    struct fbank *f = NULL;
    assert_int_equal(fbank_new(o, &f), 0);
    return f;
}

static struct fbank_options quiet(void)
{
    struct fbank_options o;
    fbank_defaults(&o);
    o.dither = 0;
    return o;
}

/* snip_edges: only whole frames, (n - 400) / 160 + 1 of them; otherwise n / 160 rounded to nearest. */
static void test_fbank_counts_frames(void **state)
{
    (void)state;
    struct fbank_options o = quiet();
    struct fbank *f = make(&o);
    assert_int_equal(fbank_frames(f, 0), 0);
    assert_int_equal(fbank_frames(f, 399), 0);
    assert_int_equal(fbank_frames(f, 400), 1);
    assert_int_equal(fbank_frames(f, 559), 1);
    assert_int_equal(fbank_frames(f, 560), 2);
    assert_int_equal(fbank_dim(f), 23);
    fbank_free(&f);
    o.snip_edges = false;
    o.use_energy = true;
    f = make(&o);
    assert_int_equal(fbank_frames(f, 79), 0);
    assert_int_equal(fbank_frames(f, 80), 1);
    assert_int_equal(fbank_frames(f, 239), 1);
    assert_int_equal(fbank_frames(f, 240), 2);
    assert_int_equal(fbank_dim(f), 24);
    fbank_free(&f);
    fbank_free(&f); /* nothing left: no harm */
}

static void sine(float *wave, size_t n, double hertz, double amplitude)
{
    for (size_t i = 0; i < n; i++) wave[i] = (float)(amplitude * sin(2 * M_PI * hertz * (double)i / 16000));
}

/* A tone at the centre of a mel bin is loudest in that bin, and 10 times the amplitude is + 2 ln 10. */
static void test_fbank_tone_lands_in_its_bin(void **state)
{
    (void)state;
    float wave[4000];
    struct fbank_options o = quiet();
    o.num_mel_bins = 40;
    struct fbank *f = make(&o);
    float out[40 * 40], loud[40 * 40];
    double low = 1127 * log(1 + 20.0 / 700), step = (1127 * log(1 + 8000.0 / 700) - low) / 41;
    for (int bin = 3; bin < 40; bin++) {
        double hertz = 700 * (exp((low + (bin + 1) * step) / 1127) - 1);
        sine(wave, 4000, hertz, 100);
        fbank_compute(f, wave, 4000, NULL, out);
        sine(wave, 4000, hertz, 1000);
        fbank_compute(f, wave, 4000, NULL, loud);
        for (size_t t = 0; t < fbank_frames(f, 4000); t++) {
            int best = 0;
            for (int b = 1; b < 40; b++)
                if (out[t * 40 + (size_t)b] > out[t * 40 + (size_t)best]) best = b;
            assert_int_equal(best, bin);
            size_t at = t * 40 + (size_t)bin;
            assert_true(fabs(loud[at] - out[at] - 2 * log(10)) < 1e-3);
        }
    }
    fbank_free(&f);
}

/* Silence is log of the smallest float step, not minus infinity; a constant is silence once DC is removed. */
static void test_fbank_silence_is_finite(void **state)
{
    (void)state;
    float wave[800], out[23 * 3];
    struct fbank_options o = quiet();
    struct fbank *f = make(&o);
    for (int i = 0; i < 800; i++) wave[i] = 1024;
    fbank_compute(f, wave, 800, NULL, out);
    for (int i = 0; i < 23 * 3; i++) assert_true(fabs(out[i] - log(1.1920929e-7)) < 1e-4);
    fbank_free(&f);
}

/* The same seed gives the same dither, another seed another; both stay near the undithered values. */
static void test_fbank_dither_is_seeded(void **state)
{
    (void)state;
    float wave[1600], out[4][23 * 8];
    struct fbank_options o = quiet();
    struct rng r;
    sine(wave, 1600, 440, 3000);
    for (uint64_t i = 0; i < 4; i++) {
        o.dither = i == 3 ? 0 : 1;
        struct fbank *f = make(&o);
        rng_init(&r, i == 1 ? 2 : 1);
        fbank_compute(f, wave, 1600, &r, out[i]);
        fbank_free(&f);
    }
    assert_memory_equal(out[0], out[2], sizeof out[0]);
    assert_memory_not_equal(out[0], out[1], sizeof out[0]);
    assert_memory_not_equal(out[0], out[3], sizeof out[0]);
}

/* Energy of a frame: first column, last with htk_compat; raw_energy is that of the samples themselves. */
static void test_fbank_energy_column(void **state)
{
    (void)state;
    float wave[400], out[24];
    struct fbank_options o = quiet();
    o.use_energy = true;
    sine(wave, 400, 400, 1000); /* ten whole periods: energy 400 * 1000^2 / 2 */
    for (int i = 0; i < 2; i++) {
        o.htk_compat = i == 1;
        struct fbank *f = make(&o);
        fbank_compute(f, wave, 400, NULL, out);
        assert_true(fabs(out[o.htk_compat ? 23 : 0] - log(2e8)) < 1e-4);
        fbank_free(&f);
    }
}

/* Without snip_edges the wave is mirrored at both ends, however short it is. */
static void test_fbank_short_wave_is_mirrored(void **state)
{
    (void)state;
    float wave[100], out[23];
    struct fbank_options o = quiet();
    o.snip_edges = false;
    struct fbank *f = make(&o);
    sine(wave, 100, 1000, 500);
    assert_int_equal(fbank_frames(f, 100), 1);
    fbank_compute(f, wave, 100, NULL, out);
    for (int i = 0; i < 23; i++) assert_true(isfinite(out[i]));
    fbank_free(&f);
}

/* An option that cannot be used is refused with a sentence that names it. */
static void test_fbank_refuses_bad_options(void **state)
{
    (void)state;
    struct fbank *f = NULL;
    struct fbank_options bad[8];
    for (int i = 0; i < 8; i++) bad[i] = quiet();
    bad[0].high_freq = 9000;
    bad[1].low_freq = 8000;
    bad[2].num_mel_bins = 0;
    bad[3].num_mel_bins = 400; /* triangles narrower than the spectrum's step */
    bad[4].frame_shift = 0;
    bad[5].sample_frequency = NAN;
    bad[6].frame_length = 1e9;
    bad[7].dither = -1;
    for (int i = 0; i < 8; i++) {
        err_set(ERR_FAIL, "%s", "");
        assert_int_equal(fbank_new(&bad[i], &f), ERR_USAGE);
        assert_true(strstr(err_text(), "--") != NULL);
        assert_null(f);
    }
}

/* ---- references beside the repository ---- */

static const char *shared(void)
{
    const char *path = getenv("CHORALE_SHARED");
    return path && *path ? path : "../shared";
}

static bool have_reference(void)
{
    char *path = files_join(shared(), "an4/README.md");
    bool found = files_exists(path);
    if (!found) print_message("skipped: no %s (set CHORALE_SHARED)\n", path);
    free(path);
    return found;
}

static size_t read_wave(const char *path, float *wave)
{
    SF_INFO info = {0};
    SNDFILE *file = sf_open(path, SFM_READ, &info);
    if (!file) fail_msg("cannot open %s", path);
    assert_int_equal(info.channels, 1);
    assert_int_equal(info.samplerate, 16000);
    size_t n = (size_t)sf_readf_float(file, wave, MAX_SAMPLES);
    sf_close(file);
    for (size_t i = 0; i < n; i++) wave[i] *= 32768;
    return n;
}

/* Largest difference between the features of a wave and a Kaldi matrix ("\0BFM \4 rows \4 cols" and floats).
 */
static double compare(struct fbank *f, const char *path, const float *wave, size_t samples,
                      const char *matrix)
{
    int32_t rows, cols;
    assert_memory_equal(matrix, "\0BFM \4", 6);
    memcpy(&rows, matrix + 6, 4);
    memcpy(&cols, matrix + 11, 4);
    if ((size_t)rows != fbank_frames(f, samples) || (size_t)cols != fbank_dim(f))
        fail_msg("%s: %d x %d in the reference", path, rows, cols);
    size_t count = (size_t)rows * (size_t)cols;
    float *out = xcalloc(count, sizeof *out), *want = xcalloc(count, sizeof *want);
    fbank_compute(f, wave, samples, NULL, out);
    memcpy(want, matrix + 15, count * sizeof *want);
    double worst = 0;
    for (size_t i = 0; i < count; i++) worst = fmax(worst, fabs((double)out[i] - want[i]));
    free(out);
    free(want);
    return worst;
}

static void compare_set(const char *set, const char *extension, size_t every)
{
    struct fbank_options o = quiet();
    o.num_mel_bins = 40;
    o.high_freq = 8000;
    struct fbank *f = make(&o);
    float *wave = xcalloc(MAX_SAMPLES, sizeof *wave);
    char *dir = xprintf("%s/an4/%s", shared(), set), *scp = files_join(dir, "feats.scp");
    char *ark = files_join(dir, "feats.ark"), *data, *lines;
    size_t len, count = 0, line = 0;
    double worst = 0;
    assert_int_equal(files_read(ark, 1 << 28, &data, &len), 0);
    assert_int_equal(files_read(scp, 1 << 24, &lines, NULL), 0);
    for (char *save, *id = strtok_r(lines, " \n", &save); id; id = strtok_r(NULL, " \n", &save)) {
        const char *at = strchr(strtok_r(NULL, " \n", &save), ':');
        if (line++ % every) continue;
        char *path = xprintf("%s/%s/%s.%s", dir, extension, id, extension);
        size_t samples = read_wave(path, wave), offset = strtoul(at + 1, NULL, 10);
        assert_true(offset + 15 + fbank_frames(f, samples) * 160 <= len);
        worst = fmax(worst, compare(f, path, wave, samples, data + offset));
        free(path);
        count++;
    }
    print_message("%s: %zu utterances, largest difference %.2g\n", set, count, worst);
    assert_true(count > 0);
    assert_true(worst < 1e-3);
    free(lines);
    free(data);
    free(scp);
    free(ark);
    free(dir);
    free(wave);
    fbank_free(&f);
}

/* 1e-3 is float rounding of 400 products at the quietest bins; the formulas are the same. */
static void test_fbank_matches_reference_wav(void **state)
{
    (void)state;
    if (!have_reference()) skip();
    compare_set("tiny", "wav", 1);
}

static void test_fbank_matches_reference_flac(void **state)
{
    (void)state;
    if (!have_reference()) skip();
    compare_set("dev", "flac", 1);
}

static uint32_t big_endian(const char *bytes)
{
    const unsigned char *b = (const unsigned char *)bytes;
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* HTK's own files: 12 bytes (frames, period, bytes per frame, kind), then floats, all big-endian. 2e-5 is the
 * rounding of HTK's single-precision FFT where a bin is quiet beside the rest of the spectrum. */
static void compare_htk(const char *name, double low)
{
    char *path = xprintf("%s/an4/fbank-ref/%s", shared(), name), *data;
    char *audio = xprintf("%s/an4/fbank-ref/test.wav", shared());
    struct fbank_options o = quiet();
    size_t len;
    o.window_type = FBANK_HAMMING;
    o.preemphasis_coefficient = 0;
    o.remove_dc_offset = false;
    o.low_freq = low;
    o.htk_compat = o.htk_mode = true;
    struct fbank *f = make(&o);
    float *wave = xcalloc(MAX_SAMPLES, sizeof *wave);
    size_t samples = read_wave(audio, wave), frames = fbank_frames(f, samples);
    float *out = xcalloc(frames * 23, sizeof *out);
    double worst = 0;
    fbank_compute(f, wave, samples, NULL, out);
    assert_int_equal(files_read(path, 1 << 24, &data, &len), 0);
    assert_true(len >= 12);
    assert_int_equal(big_endian(data), frames);
    assert_int_equal(len, 12 + frames * 23 * 4);
    for (size_t i = 0; i < frames * 23; i++) {
        uint32_t bits = big_endian(data + 12 + 4 * i);
        float want;
        memcpy(&want, &bits, sizeof want);
        worst = fmax(worst, fabs((double)want - out[i]));
    }
    print_message("%s: %zu frames, largest difference %.2g\n", name, frames, worst);
    assert_true(worst < 2e-5);
    free(data);
    free(out);
    free(wave);
    free(path);
    free(audio);
    fbank_free(&f);
}

static void test_fbank_matches_htk(void **state)
{
    (void)state;
    if (!have_reference()) skip();
    compare_htk("test.wav.fbank_htk.1", 0);
    compare_htk("test.wav.fbank_htk.2", 25);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fbank_counts_frames),
        cmocka_unit_test(test_fbank_tone_lands_in_its_bin),
        cmocka_unit_test(test_fbank_silence_is_finite),
        cmocka_unit_test(test_fbank_dither_is_seeded),
        cmocka_unit_test(test_fbank_energy_column),
        cmocka_unit_test(test_fbank_short_wave_is_mirrored),
        cmocka_unit_test(test_fbank_refuses_bad_options),
        cmocka_unit_test(test_fbank_matches_reference_wav),
        cmocka_unit_test(test_fbank_matches_reference_flac),
        cmocka_unit_test(test_fbank_matches_htk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
