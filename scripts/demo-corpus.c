/* demo-corpus OUTDIR [--minutes 30] [--seed 1]: synthetic speech with exact phone labels, as a Kaldi data
 * directory each for train and dev (voices that train does not have).
 *
 * Copyright (C) 2026 the Chorale authors.
 * This program is free software: you can redistribute it and/or modify it under the terms of the GNU General
 * Public License as published by the Free Software Foundation, either version 3 of the License, or (at your
 * option) any later version. It comes WITHOUT ANY WARRANTY; see <https://www.gnu.org/licenses/gpl-3.0.html>.
 *
 * It is under the GPL, unlike the rest of Chorale, because it links libespeak-ng (GPL-3-or-later). It is
 * built by scripts/demo alone, and is never installed or packaged; nothing else links it or reads it.
 *
 * eSpeak NG tells at which sample each phone begins. The wave is resampled to 16 kHz, gets silence before and
 * after and noise throughout (no frame is digital silence), and each frame of 400 samples every 160 is
 * labelled with the phone at its centre; 0 is silence. */
#include <espeak-ng/speak_lib.h>
#include <math.h>
#include <sndfile.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/err.h"
#include "common/rng.h"
#include "scripts/demo-words.h"

#define RATE        16000
#define FRAME       400 /* samples: 25 ms */
#define SHIFT       160 /* samples: 10 ms */
#define MAX_PHONES  128
#define MAX_EVENTS  4096
#define MAX_SECONDS 60
#define DEV_EVERY   10 /* one part in ten is dev */

/* Speakers in the order of their names, as Kaldi sorts its files. */
static const struct speaker {
    const char *name, *voice;
    bool is_dev;
} speakers[] = {
    {"gb-f1", "en+f1", false},    {"gb-f2", "en+f2", true},     {"gb-f3", "en+f3", false},
    {"gb-f4", "en+f4", false},    {"gb-f5", "en+f5", false},    {"gb-m1", "en+m1", false},
    {"gb-m2", "en+m2", false},    {"gb-m4", "en+m4", false},    {"gb-m5", "en+m5", false},
    {"gb-m6", "en+m6", false},    {"gb-m7", "en+m7", false},    {"us-f1", "en-us+f1", false},
    {"us-f3", "en-us+f3", false}, {"us-f4", "en-us+f4", false}, {"us-f5", "en-us+f5", false},
    {"us-m1", "en-us+m1", false}, {"us-m2", "en-us+m2", false}, {"us-m3", "en-us+m3", true},
    {"us-m4", "en-us+m4", false}, {"us-m5", "en-us+m5", false}, {"us-m6", "en-us+m6", false},
    {"us-m7", "en-us+m7", false},
};
#define SPEAKERS (sizeof speakers / sizeof *speakers)

struct span {
    long start; /* sample at eSpeak's rate */
    int phone;
};

/* What the callback of eSpeak fills: the wave and the phones of one utterance. */
static struct {
    short *wave;
    size_t samples, room;
    struct span spans[MAX_EVENTS];
    size_t count;
    bool overflow;
} said;

static char phones[MAX_PHONES][9] = {"SIL"}; /* in the order they were met */
static int phone_count = 1;

struct utterance {
    char id[32], *text;
    const struct speaker *speaker;
    int32_t *labels; /* frames */
    size_t frames;
};

static void die(const char *what, const char *name)
{
    fprintf(stderr, "demo-corpus: %s %s\n", what, name);
    exit(1);
}

/* Pauses ("_", "_:", "_!") are silence. */
static int phone_number(const char *name)
{
    if (!name[0] || name[0] == '_') return 0;
    for (int i = 1; i < phone_count; i++)
        if (!strcmp(phones[i], name)) return i;
    if (phone_count == MAX_PHONES) die("more phones than it has room for, at", name);
    memcpy(phones[phone_count], name, sizeof phones[0]);
    return phone_count++;
}

/* eSpeak's callback; 0 = go on. */
static int hear(short *wave, int samples, espeak_EVENT *events)
{
    for (; events->type != espeakEVENT_LIST_TERMINATED; events++) {
        char name[9] = "";
        if (events->type != espeakEVENT_PHONEME) continue;
        memcpy(name, events->id.string, 8);
        if (said.count < MAX_EVENTS)
            said.spans[said.count++] = (struct span){events->sample, phone_number(name)};
        else
            said.overflow = true;
    }
    if (!wave || samples <= 0) return 0;
    if (said.samples + (size_t)samples > said.room) {
        said.overflow = true;
        return 0;
    }
    memcpy(said.wave + said.samples, wave, (size_t)samples * sizeof *wave);
    said.samples += (size_t)samples;
    return 0;
}

static const char *word_of(char letter, struct rng *r)
{
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (lists[i].letter == letter) return lists[i].words[rng_below(r, lists[i].count)];
    die("a template names no list that exists:", (const char[]){letter, 0});
    return NULL;
}

static void sentence_make(struct rng *r, char *out, size_t size)
{
    size_t n = 0;
    for (const char *t = templates[rng_below(r, sizeof templates / sizeof *templates)]; *t; t++) {
        char one[2] = {*t, 0};
        const char *piece = *t == '%' ? word_of(*++t, r) : one;
        n += (size_t)snprintf(out + n, size - n, "%s", piece);
        if (n >= size) die("a template is too long:", out);
    }
}

/* Punctuation steers the voice and is no part of the transcript; "A." becomes "a". */
static char *transcript(const char *sentence)
{
    char *text = xstrdup(sentence), *to = text;
    for (const char *from = sentence; *from; from++)
        if (!strchr(".,?", *from)) *to++ = *from >= 'A' && *from <= 'Z' ? (char)(*from + 'a' - 'A') : *from;
    *to = 0;
    return text;
}

/* Low-pass of linear phase, one set of taps for each of the `phases` positions between two input samples. */
struct resampler {
    int rate, phases, step, reach; /* output n is at input n * step / phases; 2 reach taps */
    float *taps;                   /* (phases, 2 reach) */
};

static void resampler_init(struct resampler *r, int rate)
{
    int a = rate, b = RATE;
    while (b) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    double cut = 0.46 * (rate > RATE ? (double)RATE / rate : 1.0); /* cycles per input sample */
    *r = (struct resampler){.rate = rate, .phases = RATE / a, .step = rate / a, .reach = 32};
    r->taps = xcalloc((size_t)(2 * r->phases * r->reach), sizeof *r->taps);
    for (int p = 0; p < r->phases; p++)
        for (int k = 0; k < 2 * r->reach; k++) {
            double x = k - r->reach + 1 - (double)p / r->phases, hann = 0.5 + 0.5 * cos(M_PI * x / r->reach);
            double sinc = x == 0 ? 2 * cut : sin(2 * M_PI * cut * x) / (M_PI * x);
            r->taps[p * 2 * r->reach + k] = (float)(sinc * hann);
        }
}

static size_t resample(const struct resampler *r, const short *in, size_t n, float *out)
{
    size_t count = n * (size_t)r->phases / (size_t)r->step;
    for (size_t i = 0; i < count; i++) {
        size_t at = i * (size_t)r->step;
        const float *taps = r->taps + (at % (size_t)r->phases) * 2 * (size_t)r->reach;
        long first = (long)(at / (size_t)r->phases) - r->reach + 1;
        float sum = 0;
        for (int k = 0; k < 2 * r->reach; k++)
            if (first + k >= 0 && first + k < (long)n) sum += taps[k] * in[first + k];
        out[i] = sum;
    }
    return count;
}

/* Noise with a random tilt, 18 to 35 dB below the speech, in int16 units and never below one of them. */
static void noise_add(struct rng *r, float *wave, size_t n, double speech_rms)
{
    double level = fmax(1.0, speech_rms * pow(10.0, -rng_range(r, 18, 35) / 20.0)),
           pole = rng_range(r, 0, 0.9f);
    double state = 0, gain = level * sqrt(1 - pole * pole);
    for (size_t i = 0; i < n; i++) {
        state = pole * state + gain * rng_normal(r);
        wave[i] += (float)state;
    }
}

static void wave_write(const char *dir, const char *id, const float *wave, size_t n)
{
    char *path = xprintf("%s/wav/%s.wav", dir, id);
    short *out = xcalloc(n, sizeof *out);
    for (size_t i = 0; i < n; i++) out[i] = (short)lrintf(fmaxf(-32768, fminf(32767, wave[i])));
    SF_INFO info = {.samplerate = RATE, .channels = 1, .format = SF_FORMAT_WAV | SF_FORMAT_PCM_16};
    SNDFILE *file = sf_open(path, SFM_WRITE, &info);
    bool is_written = file && sf_writef_short(file, out, (sf_count_t)n) == (sf_count_t)n;
    if (!file || sf_close(file) || !is_written) die("cannot write", path);
    free(out);
    free(path);
}

/* Labels of the frames of `samples` samples at 16 kHz, of which the voice begins at `lead`. */
static void label(struct utterance *u, const struct resampler *r, size_t samples, size_t lead)
{
    u->frames = samples < FRAME ? 0 : (samples - FRAME) / SHIFT + 1;
    u->labels = xcalloc(u->frames, sizeof *u->labels);
    size_t at = 0;
    for (size_t t = 0; t < u->frames; t++) {
        double centre = ((double)(t * SHIFT + FRAME / 2) - (double)lead) * r->rate / RATE;
        if (centre < 0 || centre >= (double)said.samples) continue;
        while (at < said.count && (double)said.spans[at].start <= centre) at++;
        if (at) u->labels[t] = said.spans[at - 1].phone;
    }
}

static int jitter(struct rng *r, int base, int spread)
{
    return base + (int)rng_below(r, (uint64_t)(2 * spread + 1)) - spread;
}

/* One utterance of a voice that is set already. Returns its seconds. */
static double utterance_make(struct utterance *u, const struct resampler *r, struct rng *rng, const char *dir)
{
    char sentence[512];
    sentence_make(rng, sentence, sizeof sentence);
    u->text = transcript(sentence);
    said.samples = said.count = 0;
    if (espeak_Synth(sentence, strlen(sentence) + 1, 0, POS_CHARACTER, 0, espeakCHARS_UTF8, NULL, NULL) !=
        EE_OK)
        die("eSpeak NG cannot say:", sentence);
    if (said.overflow || !said.samples) die("eSpeak NG said nothing, or too much, for:", sentence);
    size_t lead = RATE / 10 + rng_below(rng, RATE / 5), tail = RATE / 10 + rng_below(rng, RATE / 5);
    float *wave = xcalloc(lead + said.samples + tail, sizeof *wave);
    size_t n = resample(r, said.wave, said.samples, wave + lead), total = lead + n + tail;
    double sum = 0, gain = rng_range(rng, 0.25f, 0.9f);
    for (size_t i = lead; i < lead + n; i++) {
        wave[i] *= (float)gain;
        sum += (double)wave[i] * wave[i];
    }
    noise_add(rng, wave, total, sqrt(sum / (double)n));
    label(u, r, total, lead);
    wave_write(dir, u->id, wave, total);
    free(wave);
    return (double)total / RATE;
}

static FILE *create(const char *dir, const char *name)
{
    char *path = xprintf("%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (!file) die("cannot write", path);
    free(path);
    return file;
}

static void done(FILE *file, const char *name)
{
    if (fclose(file)) die("cannot write", name);
}

/* Kaldi's binary vector of int32: "ID \0B", then 4 and the count, then 4 and a value for each frame. */
static void alignment_write(FILE *ark, FILE *scp, const struct utterance *u)
{
    int32_t count = (int32_t)u->frames;
    fprintf(ark, "%s ", u->id);
    fprintf(scp, "%s ali.ark:%ld\n", u->id, ftell(ark));
    fwrite("\0B\4", 1, 3, ark);
    fwrite(&count, sizeof count, 1, ark);
    for (size_t t = 0; t < u->frames; t++) {
        fputc(4, ark);
        fwrite(&u->labels[t], sizeof u->labels[t], 1, ark);
    }
}

/* The files of one data directory, from utterances in the order of their ids. */
static void tables_write(const char *dir, const struct utterance *all, size_t count, bool is_dev)
{
    FILE *scp = create(dir, "wav.scp"), *text = create(dir, "text"), *u2s = create(dir, "utt2spk");
    FILE *s2u = create(dir, "spk2utt"), *ark = create(dir, "ali.ark"), *ali = create(dir, "ali.scp");
    const struct speaker *last = NULL;
    for (size_t i = 0; i < count; i++) {
        const struct utterance *u = &all[i];
        if (u->speaker->is_dev != is_dev) continue;
        fprintf(scp, "%s wav/%s.wav\n", u->id, u->id);
        fprintf(text, "%s %s\n", u->id, u->text);
        fprintf(u2s, "%s %s\n", u->id, u->speaker->name);
        if (u->speaker != last) fprintf(s2u, "%s%s", last ? "\n" : "", u->speaker->name);
        fprintf(s2u, " %s", u->id);
        last = u->speaker;
        alignment_write(ark, ali, u);
    }
    if (last) fputc('\n', s2u);
    done(scp, "wav.scp");
    done(text, "text");
    done(u2s, "utt2spk");
    done(s2u, "spk2utt");
    done(ark, "ali.ark");
    done(ali, "ali.scp");
    FILE *table = create(dir, "phones.txt");
    for (int i = 0; i < phone_count; i++) fprintf(table, "%s %d\n", phones[i], i);
    done(table, "phones.txt");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Phones get numbers in the order of their names, so that the numbers do not hang on the text. */
static void phones_sort(struct utterance *all, size_t count)
{
    const char *order[MAX_PHONES];
    int number[MAX_PHONES] = {0};
    char sorted[MAX_PHONES][9];
    for (int i = 1; i < phone_count; i++) order[i] = phones[i];
    qsort(order + 1, (size_t)phone_count - 1, sizeof *order, by_name);
    for (int i = 1; i < phone_count; i++) {
        number[(order[i] - phones[0]) / (long)sizeof phones[0]] = i;
        memcpy(sorted[i], order[i], sizeof sorted[i]);
    }
    memcpy(phones[1], sorted[1], (size_t)(phone_count - 1) * sizeof phones[0]);
    for (size_t i = 0; i < count; i++)
        for (size_t t = 0; t < all[i].frames; t++) all[i].labels[t] = number[all[i].labels[t]];
}

static void voice_set(const struct speaker *s, struct rng *r, int rate, int pitch, int range)
{
    if (espeak_SetVoiceByName(s->voice) != EE_OK) die("eSpeak NG has no voice", s->voice);
    espeak_SetParameter(espeakRATE, jitter(r, rate, 12), 0);
    espeak_SetParameter(espeakPITCH, jitter(r, pitch, 6), 0);
    espeak_SetParameter(espeakRANGE, jitter(r, range, 10), 0);
}

/* Every speaker has a rate and a pitch; each utterance varies them a little. */
static size_t speaker_say(const struct speaker *s, const struct resampler *r, const char *dir, uint64_t seed,
                          double seconds, struct utterance **all, size_t count)
{
    struct rng rng;
    rng_init(&rng, rng_derive(seed, 1, (uint64_t)(s - speakers)));
    int rate = jitter(&rng, 170, 35), pitch = jitter(&rng, 50, 14), range = jitter(&rng, 50, 15), number = 0;
    for (double spoken = 0; spoken < seconds; count++) {
        *all = realloc(*all, (count + 1) * sizeof **all);
        if (!*all) die("out of", "memory");
        struct utterance *u = &(*all)[count];
        *u = (struct utterance){.speaker = s};
        snprintf(u->id, sizeof u->id, "%s-%04d", s->name, ++number);
        voice_set(s, &rng, rate, pitch, range);
        spoken += utterance_make(u, r, &rng, dir);
    }
    return count;
}

static void corpus_make(const char *out, double minutes, uint64_t seed, const struct resampler *r)
{
    char *dirs[2] = {xprintf("%s/train", out), xprintf("%s/dev", out)};
    struct utterance *all = NULL;
    size_t count = 0, frames[2] = {0, 0}, voices[2] = {0, 0};
    mkdir(out, 0777);
    for (int i = 0; i < 2; i++) {
        char *wav = xprintf("%s/wav", dirs[i]);
        mkdir(dirs[i], 0777);
        if (mkdir(wav, 0777)) die("cannot make (is it there already?)", wav);
        free(wav);
    }
    for (size_t i = 0; i < SPEAKERS; i++) voices[speakers[i].is_dev]++;
    for (size_t i = 0; i < SPEAKERS; i++) {
        bool is_dev = speakers[i].is_dev;
        double part = (is_dev ? 1.0 : DEV_EVERY - 1.0) / DEV_EVERY,
               seconds = 60 * minutes * part / (double)voices[is_dev];
        count = speaker_say(&speakers[i], r, dirs[is_dev], seed, seconds, &all, count);
    }
    phones_sort(all, count);
    for (int i = 0; i < 2; i++) tables_write(dirs[i], all, count, i == 1);
    for (size_t i = 0; i < count; i++) {
        frames[all[i].speaker->is_dev] += all[i].frames;
        free(all[i].text);
        free(all[i].labels);
    }
    free(all);
    free(dirs[0]);
    free(dirs[1]);
    printf(
        "%zu utterances of %zu voices; train %.1f minutes, dev %.1f minutes (%zu voices that train has not); "
        "%d phones and silence\n",
        count, SPEAKERS, (double)frames[0] / 6000, (double)frames[1] / 6000, voices[1], phone_count - 1);
}

int main(int argc, char **argv)
{
    const char *out = NULL;
    double minutes = 30;
    uint64_t seed = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--minutes") && i + 1 < argc)
            minutes = strtod(argv[++i], NULL);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 10);
        else if (argv[i][0] != '-' && !out)
            out = argv[i];
        else
            out = NULL, i = argc;
    }
    if (!out || !(minutes > 0 && minutes <= 6000)) {
        fprintf(stderr, "usage: demo-corpus OUTDIR [--minutes 30] [--seed 1]\n");
        return 2;
    }
    int rate = espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, NULL,
                                 espeakINITIALIZE_PHONEME_EVENTS | espeakINITIALIZE_DONT_EXIT);
    if (rate <= 0) die("eSpeak NG does not start; install", "espeak-ng and espeak-ng-data");
    struct resampler r;
    resampler_init(&r, rate);
    said.room = (size_t)rate * MAX_SECONDS;
    said.wave = xcalloc(said.room, sizeof *said.wave);
    espeak_SetSynthCallback(hear);
    corpus_make(out, minutes, seed, &r);
    espeak_Terminate();
    free(said.wave);
    free(r.taps);
    return 0;
}
