/* chorale features [options] rspecifier wspecifier: log-mel features of wav and flac files, with the option
 * names and defaults of Kaldi's compute-fbank-feats. */
#include <math.h>
#include <sndfile.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/err.h"
#include "common/options.h"
#include "common/rng.h"
#include "worker/data/ark.h"
#include "worker/data/input.h"
#include "worker/data/scp.h"
#include "worker/tools/fbank.h"

#define PROGRAM     "chorale-features"
#define INT16_SCALE 32768.0f
#define MAX_BYTES   ((size_t)1 << 31) /* of one audio file */
#define MAX_SAMPLES ((size_t)1 << 29) /* of one utterance: nine hours at 16 kHz */
#define MAX_TOLD    20                /* utterances that are named one by one */

struct settings {
    struct fbank_options fbank;
    bool allow_pipes, subtract_mean, help;
    int channel, seed;
    double min_duration;
};

#define OPT(name, type, field, preset, min, max, unit, help)                                                 \
    {                                                                                                        \
        name, OPTION_##type, offsetof(struct settings, field), preset, min, max, unit, "", help              \
    }
#define ANY 1e9
static const struct option_spec table[] = {
    OPT("--num-mel-bins", INT, fbank.num_mel_bins, "23", 3, 4096, "", "columns of the result"),
    OPT("--low-freq", FLOAT, fbank.low_freq, "20", 0, ANY, "Hz", "lower edge of the first bin"),
    OPT("--high-freq", FLOAT, fbank.high_freq, "0", -ANY, ANY, "Hz",
        "upper edge of the last bin; 0 or less: that far below half the sample frequency"),
    OPT("--sample-frequency", FLOAT, fbank.sample_frequency, "16000", 1, 1e7, "Hz",
        "that the files must have"),
    OPT("--frame-length", FLOAT, fbank.frame_length, "25", 0, ANY, "ms", "of a frame"),
    OPT("--frame-shift", FLOAT, fbank.frame_shift, "10", 0, ANY, "ms", "from frame to frame"),
    {"--window-type", OPTION_ENUM, offsetof(struct settings, fbank.window_type), "povey", 0, 0, "",
     FBANK_WINDOWS, "window of a frame"},
    OPT("--blackman-coeff", FLOAT, fbank.blackman_coeff, "0.42", -ANY, ANY, "", "of the blackman window"),
    OPT("--preemphasis-coefficient", FLOAT, fbank.preemphasis_coefficient, "0.97", 0, 1, "", "0 = none"),
    OPT("--remove-dc-offset", BOOL, fbank.remove_dc_offset, "true", 0, 0, "", "take the mean off each frame"),
    OPT("--dither", FLOAT, fbank.dither, "1", 0, 32768, "",
        "noise added to the samples (int16 units); 0 = none"),
    OPT("--seed", INT, seed, "1", 0, 2147483647, "",
        "of the dither, which depends on it and on the id alone"),
    OPT("--snip-edges", BOOL, fbank.snip_edges, "true", 0, 0, "",
        "only frames that lie wholly inside the file"),
    OPT("--use-energy", BOOL, fbank.use_energy, "false", 0, 0, "", "one more column: the log energy"),
    OPT("--energy-floor", FLOAT, fbank.energy_floor, "0", 0, 1e30, "", "of that energy; 0 = none"),
    OPT("--raw-energy", BOOL, fbank.raw_energy, "true", 0, 0, "", "energy before pre-emphasis and window"),
    OPT("--use-log-fbank", BOOL, fbank.use_log_fbank, "true", 0, 0, "", "logarithm of the bins"),
    OPT("--use-power", BOOL, fbank.use_power, "true", 0, 0, "", "power spectrum; false: magnitude"),
    OPT("--htk-compat", BOOL, fbank.htk_compat, "false", 0, 0, "", "energy in the last column"),
    OPT("--round-to-power-of-two", BOOL, fbank.round_to_power_of_two, "true", 0, 0, "", "length of the FFT"),
    OPT("--subtract-mean", BOOL, subtract_mean, "false", 0, 0, "",
        "take off each file's mean feature vector"),
    OPT("--min-duration", FLOAT, min_duration, "0", 0, ANY, "s", "shorter files are left out"),
    OPT("--channel", INT, channel, "-1", -1, 1023, "", "of a file with several; -1 = the file must have one"),
    OPT("--allow-pipes", BOOL, allow_pipes, "false", 0, 0, "",
        "run commands (\"flac -c -d -s x.flac |\") in the scp"),
    OPT("--help", BOOL, help, "false", 0, 0, "", "this text"),
};
#define OPTIONS (sizeof table / sizeof *table)

static void usage(FILE *to)
{
    fprintf(
        to,
        "usage: chorale features [options] rspecifier wspecifier\n"
        "  chorale features --num-mel-bins=40 scp:wav.scp ark,scp:feats.ark,feats.scp\n"
        "wav.scp has lines \"id path\" (wav, flac) or \"id command |\" (with --allow-pipes). Relative paths\n"
        "are tried from the working directory, then from the scp's folder, where commands run.\n"
        "  --config=FILE                     options from a file, one a line\n");
    for (size_t i = 0; i < OPTIONS; i++) {
        char name[48];
        snprintf(name, sizeof name, "%s=%s", table[i].key, table[i].preset);
        fprintf(to, "  %-33s %s%s%s\n", name, table[i].unit, table[i].unit[0] ? "; " : "", table[i].help);
    }
}

/* "--name=value"; "--name" alone is true. Kaldi takes _ for - too. */
static int option_set(struct settings *s, const char *argument)
{
    char name[64];
    const char *equals = strchr(argument, '=');
    size_t n = equals ? (size_t)(equals - argument) : strlen(argument);
    if (n >= sizeof name) return err_set(ERR_USAGE, "unknown option %.80s; see --help", argument);
    for (size_t i = 0; i < n; i++) name[i] = argument[i] == '_' ? '-' : argument[i];
    name[n] = 0;
    for (size_t i = 0; i < OPTIONS; i++) {
        if (strcmp(table[i].key, name)) continue;
        if (!equals && table[i].type != OPTION_BOOL)
            return err_set(ERR_USAGE, "%s needs a value, as in %s=%s", name, name, table[i].preset);
        return options_set(s, &table[i], equals ? equals + 1 : "true");
    }
    return err_set(ERR_USAGE, "unknown option %.80s; see --help", argument);
}

/* Lines of options; # begins a comment. */
static int config_read(struct settings *s, const char *path)
{
    char line[512];
    int rc = 0, number = 0;
    FILE *file = fopen(path, "r");
    if (!file) return err_set(ERR_USAGE, "cannot open the options file %s", path);
    while (!rc && fgets(line, sizeof line, file)) {
        line[strcspn(line, "#\n")] = 0;
        char *text = line + strspn(line, " \t\r");
        for (size_t n = strlen(text); n && strchr(" \t\r", text[n - 1]);) text[--n] = 0;
        number++;
        if (*text && (rc = option_set(s, text)) != 0) err_prefix(rc, "%s line %d", path, number);
    }
    fclose(file);
    return rc;
}

/* ------------------------------------------------------------------ audio */

struct audio {
    unsigned char *bytes; /* owned; the file as it is */
    size_t len, room, at; /* at: libsndfile's position */
    float *wave;          /* owned; one channel, int16 units */
    size_t samples, wave_room;
};

static sf_count_t audio_length(void *user)
{
    return (sf_count_t)((struct audio *)user)->len;
}

static sf_count_t audio_seek(sf_count_t offset, int whence, void *user)
{
    struct audio *a = user;
    sf_count_t from = whence == SEEK_CUR ? (sf_count_t)a->at : whence == SEEK_END ? (sf_count_t)a->len : 0;
    if (offset < -from || offset > (sf_count_t)a->len - from) return -1;
    a->at = (size_t)(from + offset);
    return (sf_count_t)a->at;
}

static sf_count_t audio_fetch(void *out, sf_count_t count, void *user)
{
    struct audio *a = user;
    size_t left = a->len - a->at, n = count < 0 ? 0 : (size_t)count < left ? (size_t)count : left;
    memcpy(out, a->bytes + a->at, n);
    a->at += n;
    return (sf_count_t)n;
}

static sf_count_t audio_tell(void *user)
{
    return (sf_count_t)((struct audio *)user)->at;
}

/* A file or a command's output, whole: a pipe cannot seek, and libsndfile wants to. */
static int bytes_read(struct audio *a, struct input *in, const char *path, const char *folder,
                      bool allow_pipes)
{
    int rc = input_open(in, path, folder, allow_pipes);
    if (rc) return rc;
    a->len = a->at = 0;
    for (int byte; !rc && (byte = input_byte(in)) >= 0;) {
        if (a->len == a->room) {
            a->room = a->room ? 2 * a->room : 1 << 20;
            a->bytes = realloc(a->bytes, a->room);
            if (!a->bytes) rc = err_set(ERR_FAIL, "no memory for %zu bytes of audio", a->room);
        }
        if (!rc) a->bytes[a->len++] = (unsigned char)byte;
        if (a->len >= MAX_BYTES) rc = err_set(ERR_DATA, "%.300s is longer than 2 GiB; split it", path);
    }
    int closed = input_close(in);
    return rc ? rc : closed;
}

static int channel_read(SNDFILE *file, const SF_INFO *info, int channel, struct audio *a)
{
    float block[8192];
    sf_count_t got, wide = 8192 / info->channels;
    a->samples = 0;
    while ((got = sf_readf_float(file, block, wide)) > 0) {
        if (a->samples + (size_t)got > MAX_SAMPLES)
            return err_set(ERR_DATA, "more than %zu samples; split the file", MAX_SAMPLES);
        if (a->samples + (size_t)got > a->wave_room) {
            a->wave_room = 2 * (a->samples + (size_t)got);
            a->wave = realloc(a->wave, a->wave_room * sizeof *a->wave);
            if (!a->wave) return err_set(ERR_FAIL, "no memory for %zu samples", a->wave_room);
        }
        for (sf_count_t i = 0; i < got; i++) {
            float x = block[i * info->channels + channel] * INT16_SCALE;
            if (!isfinite(x)) return err_set(ERR_DATA, "sample %zu is not a number", a->samples);
            a->wave[a->samples++] = x;
        }
    }
    if (sf_error(file)) return err_set(ERR_DATA, "the audio breaks off: %s", sf_strerror(file));
    return 0;
}

/* a->bytes -> a->wave. ERR_USAGE: an option does not fit the file, so it will not fit the others. */
static int audio_decode(struct audio *a, const struct settings *s)
{
    SF_VIRTUAL_IO io = {
        .get_filelen = audio_length, .seek = audio_seek, .read = audio_fetch, .tell = audio_tell};
    SF_INFO info = {0};
    int channel = s->channel < 0 ? 0 : s->channel, rc;
    if (!a->len) return err_set(ERR_DATA, "no audio in it");
    SNDFILE *file = sf_open_virtual(&io, SFM_READ, &info, a);
    if (!file) return err_set(ERR_DATA, "no audio that libsndfile can read: %s", sf_strerror(NULL));
    if (fabs(info.samplerate - s->fbank.sample_frequency) > 0.01)
        rc = err_set(ERR_USAGE, "sampled at %d Hz, not %g; give --sample-frequency=%d or resample it",
                     info.samplerate, s->fbank.sample_frequency, info.samplerate);
    else if (info.channels > 1024 || (s->channel < 0 && info.channels != 1) || channel >= info.channels)
        rc = err_set(ERR_USAGE, "%d channels; choose one of them with --channel (0 is the first)",
                     info.channels);
    else
        rc = channel_read(file, &info, channel, a);
    sf_close(file);
    return rc;
}

/* ------------------------------------------------------------------ features */

static void subtract_mean(float *m, size_t rows, size_t cols)
{
    for (size_t c = 0; c < cols; c++) {
        double sum = 0;
        for (size_t r = 0; r < rows; r++) sum += m[r * cols + c];
        for (size_t r = 0; r < rows; r++) m[r * cols + c] -= (float)(sum / (double)rows);
    }
}

/* The dither of an utterance hangs on the seed and its id, not on its place in the list. */
static void noise_init(struct rng *r, int seed, const char *id)
{
    uint64_t state = (uint64_t)seed;
    for (; *id; id++) state = rng_derive(state, 0, (unsigned char)*id);
    rng_init(r, state);
}

struct work {
    const struct settings *settings;
    struct fbank *fbank;
    struct input *input;
    struct ark_writer *writer;
    struct audio audio;
    struct matrix out;
    size_t frames, made;
};

static int utterance_make(struct work *w, const char *id, const char *path, const char *folder)
{
    const struct settings *s = w->settings;
    int rc = bytes_read(&w->audio, w->input, path, folder, s->allow_pipes);
    if (!rc) rc = audio_decode(&w->audio, s);
    if (rc) return rc;
    size_t rows = fbank_frames(w->fbank, w->audio.samples), cols = fbank_dim(w->fbank);
    if ((double)w->audio.samples < s->min_duration * s->fbank.sample_frequency || !rows)
        return err_set(ERR_DATA, "%zu samples are too short for a frame or for --min-duration",
                       w->audio.samples);
    struct rng noise;
    noise_init(&noise, s->seed, id);
    matrix_reserve(&w->out, rows * cols);
    fbank_compute(w->fbank, w->audio.wave, w->audio.samples, &noise, w->out.data);
    if (s->subtract_mean) subtract_mean(w->out.data, rows, cols);
    rc = ark_writer_matrix(w->writer, id, rows, cols, w->out.data);
    if (rc) return rc;
    w->frames += rows;
    w->made++;
    return 0;
}

/* Each line of the scp. A file that cannot be used is named, counted and left out; what would hold for all
 * files (an option, the disk) ends the run. */
static int list_make(struct work *w, const struct scp *list)
{
    size_t left_out = list->bad;
    if (list->bad)
        fprintf(stderr, PROGRAM ": %s line %zu has an id and nothing else; left out\n", list->path,
                list->first_bad_line);
    for (size_t i = 0; i < list->n; i++) {
        if (!w->settings->allow_pipes && input_is_pipe(list->values[i]))
            return err_set(ERR_USAGE, "%s line %zu is a command; add --allow-pipes to run it", list->path,
                           list->lines[i]);
    }
    for (size_t i = 0; i < list->n; i++) {
        int rc = utterance_make(w, list->keys[i], list->values[i], list->folder);
        if (!rc) continue;
        if (rc != ERR_DATA)
            return err_prefix(rc, "%s line %zu (%s)", list->path, list->lines[i], list->keys[i]);
        if (left_out++ < MAX_TOLD)
            fprintf(stderr, PROGRAM ": %s line %zu (%s): %s; left out\n", list->path, list->lines[i],
                    list->keys[i], err_text());
    }
    if (!w->made) return err_set(ERR_DATA, "%s: no utterance of %zu could be used", list->path, left_out);
    fprintf(stderr, PROGRAM ": %zu utterances, %zu frames of %zu values, %zu left out\n", w->made, w->frames,
            fbank_dim(w->fbank), left_out);
    return 0;
}

static int features(const struct settings *s, const char *rspecifier, const char *wspecifier)
{
    struct work w = {.settings = s};
    struct scp list = {0};
    const char *colon = strchr(rspecifier, ':');
    if (strncmp(rspecifier, "scp", 3) || !colon || (rspecifier[3] != ':' && rspecifier[3] != ','))
        return err_set(ERR_USAGE, "%s is no list of audio files; give scp:wav.scp", rspecifier);
    int rc = fbank_new(&s->fbank, &w.fbank);
    if (rc) return rc;
    rc = scp_read(colon + 1, NULL, true, &list);
    if (rc) goto done;
    w.input = input_new();
    w.writer = ark_writer_open(wspecifier);
    rc = w.writer ? list_make(&w, &list) : err_code();
    if (!rc) rc = ark_writer_commit(&w.writer);
    ark_writer_free(&w.writer);
    input_free(&w.input);
    scp_fini(&list);
done:
    fbank_free(&w.fbank);
    matrix_fini(&w.out);
    free(w.audio.bytes);
    free(w.audio.wave);
    return rc;
}

int main(int argc, char **argv)
{
    struct settings s;
    memset(&s, 0, sizeof s);
    fbank_defaults(&s.fbank);
    int rc = 0, at = 1;
    for (size_t i = 0; i < OPTIONS && !rc; i++) rc = options_set(&s, &table[i], table[i].preset);
    for (; !rc && at < argc && !strncmp(argv[at], "--", 2); at++) {
        if (!strcmp(argv[at], "--")) {
            at++;
            break;
        }
        rc = strncmp(argv[at], "--config=", 9) ? option_set(&s, argv[at]) : config_read(&s, argv[at] + 9);
    }
    if (rc) return err_report(PROGRAM, rc);
    if (s.help) return usage(stdout), 0;
    if (argc - at != 2) {
        usage(stderr);
        return err_exit_code(ERR_USAGE);
    }
    rc = features(&s, argv[at], argv[at + 1]);
    return rc ? err_report(PROGRAM, rc) : 0;
}
