#include "common/snapshot.h"

#include "common/err.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/snapshot_parts.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FEATURES 1000000

void facts_fini(struct facts *f)
{
    model_fini(&f->model);
    free(f->mean);
    free(f->scale);
    free(f->silence);
    memset(f, 0, sizeof *f);
}

/* ------------------------------------------------------------------ facts as metadata */

static char *spec_text(const struct model_spec *s)
{
    json_t *layers = json_array();
    for (uint32_t l = 0; l < s->num_layers; l++)
        json_array_append_new(layers, json_pack("{s:I, s:I, s:I}", "cells", (json_int_t)s->layers[l].cells,
                                                "projection", (json_int_t)s->layers[l].projection,
                                                "nonrecurrent", (json_int_t)s->layers[l].nonrecurrent));
    json_t *j =
        json_pack("{s:s, s:I, s:I, s:o, s:b, s:f, s:I, s:I, s:I, s:I, s:s}", "type",
                  s->type == MODEL_LSTM ? "lstm" : "lstmp", "input", (json_int_t)s->input, "targets",
                  (json_int_t)s->targets, "layers", layers, "peepholes", (int)s->peepholes, "cell_clip",
                  (double)s->cell_clip, "feature_dim", (json_int_t)s->feature_dim, "stack",
                  (json_int_t)s->stack, "skip", (json_int_t)s->skip, "delay", (json_int_t)s->delay,
                  "delay_style", s->delay_style == DELAY_KALDI ? "kaldi" : "repeat");
    ASSERT(j);
    char *text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    return text;
}

static char *data_text(const struct data_facts *d)
{
    return xprintf("{\"utterances\":%u,\"frames\":%" PRIu64 ",\"hash\":\"%016" PRIx64 "\"}", d->utterances,
                   d->frames, d->hash);
}

static char *silence_text(const struct facts *f)
{
    json_t *j = json_array();
    for (uint32_t i = 0; i < f->num_silence; i++) json_array_append_new(j, json_integer(f->silence[i]));
    char *text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    return text;
}

static void add_pair(struct facts_parts *p, const char *key, char *text)
{
    ASSERT(p->num_pairs < FACTS_PAIRS);
    p->texts[p->num_pairs] = text;
    p->pairs[p->num_pairs++] = (struct safetensors_pair){.key = key, .value = text};
}

void facts_parts_init(struct facts_parts *p, const struct facts *f, const char *format)
{
    *p = (struct facts_parts){.num_pairs = 0};
    add_pair(p, "format", xstrdup(format));
    add_pair(p, "job", xprintf("%016" PRIx64, f->job));
    add_pair(p, "model_hash", xprintf("%016" PRIx64, f->model_hash));
    add_pair(p, "spec", spec_text(&f->model.spec));
    add_pair(p, "train", data_text(&f->train));
    add_pair(p, "dev", data_text(&f->dev));
    add_pair(p, "silence", silence_text(f));
    add_pair(p, "speaker_cmvn", xstrdup(f->speaker_cmvn ? "true" : "false"));
    add_pair(p, "cmvn_var", xstrdup(f->cmvn_var ? "true" : "false"));
    ASSERT(!f->mean == !f->scale);
    if (!f->mean) return;
    struct safetensor t = {.type = TENSOR_F32, .dims = 1, .shape = {f->model.spec.feature_dim}};
    p->tensors[0] = p->tensors[1] = t;
    p->tensors[0].name = "normalise.mean";
    p->tensors[0].data = f->mean;
    p->tensors[1].name = "normalise.scale";
    p->tensors[1].data = f->scale;
    p->num_tensors = 2;
}

void facts_parts_fini(struct facts_parts *p)
{
    for (size_t i = 0; i < p->num_pairs; i++) free(p->texts[i]);
    *p = (struct facts_parts){.num_pairs = 0};
}

/* ------------------------------------------------------------------ and back */

bool facts_parse_hash(const char *text, uint64_t *out)
{
    if (!text || strlen(text) != 16 || strspn(text, "0123456789abcdefABCDEF") != 16) return false;
    *out = strtoull(text, NULL, 16);
    return true;
}

bool facts_get_number(const json_t *object, const char *key, uint64_t max, uint64_t *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

bool facts_get_u32(const json_t *object, const char *key, uint32_t *out)
{
    uint64_t value;
    if (!facts_get_number(object, key, UINT32_MAX, &value)) return false;
    *out = (uint32_t)value;
    return true;
}

static json_t *load_text(const char *text)
{
    return text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
}

static bool parse_layers(const json_t *j, struct model_spec *s)
{
    if (!json_is_array(j) || json_array_size(j) < 1 || json_array_size(j) > MODEL_MAX_LAYERS) return false;
    s->num_layers = (uint32_t)json_array_size(j);
    for (uint32_t l = 0; l < s->num_layers; l++) {
        const json_t *y = json_array_get(j, l);
        if (!facts_get_u32(y, "cells", &s->layers[l].cells) ||
            !facts_get_u32(y, "projection", &s->layers[l].projection) ||
            !facts_get_u32(y, "nonrecurrent", &s->layers[l].nonrecurrent))
            return false;
    }
    return true;
}

static bool parse_spec(const json_t *j, struct model_spec *s)
{
    const char *type = json_string_value(json_object_get(j, "type"));
    const char *style = json_string_value(json_object_get(j, "delay_style"));
    const json_t *clip = json_object_get(j, "cell_clip"), *peepholes = json_object_get(j, "peepholes");
    if (!type || (strcmp(type, "lstm") != 0 && strcmp(type, "lstmp") != 0)) return false;
    if (!style || (strcmp(style, "kaldi") != 0 && strcmp(style, "repeat") != 0)) return false;
    if (!json_is_number(clip) || !(json_number_value(clip) >= 0) || json_number_value(clip) > 1e30)
        return false;
    if (!json_is_boolean(peepholes)) return false;
    s->type = strcmp(type, "lstm") == 0 ? MODEL_LSTM : MODEL_LSTMP;
    s->delay_style = strcmp(style, "kaldi") == 0 ? DELAY_KALDI : DELAY_REPEAT;
    s->cell_clip = (float)json_number_value(clip);
    s->peepholes = json_is_true(peepholes);
    return facts_get_u32(j, "input", &s->input) && facts_get_u32(j, "targets", &s->targets) &&
           facts_get_u32(j, "feature_dim", &s->feature_dim) && s->feature_dim <= MAX_FEATURES &&
           facts_get_u32(j, "stack", &s->stack) && s->stack <= MAX_FEATURES &&
           facts_get_u32(j, "skip", &s->skip) && facts_get_u32(j, "delay", &s->delay) &&
           parse_layers(json_object_get(j, "layers"), s);
}

static bool parse_data(const char *text, struct data_facts *d)
{
    json_t *j = load_text(text);
    bool good = facts_get_u32(j, "utterances", &d->utterances) &&
                facts_get_number(j, "frames", INT64_MAX, &d->frames) &&
                facts_parse_hash(json_string_value(json_object_get(j, "hash")), &d->hash);
    json_decref(j);
    return good;
}

static bool parse_silence(const char *text, struct facts *f)
{
    json_t *j = load_text(text);
    bool good = json_is_array(j);
    size_t n = json_array_size(j);
    f->silence = n ? xcalloc(n, sizeof *f->silence) : NULL;
    for (size_t i = 0; good && i < n; i++) {
        const json_t *v = json_array_get(j, i);
        good = json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= INT32_MAX;
        if (good) f->silence[i] = (int32_t)json_integer_value(v);
    }
    f->num_silence = good ? (uint32_t)n : 0;
    json_decref(j);
    return good;
}

static bool parse_flag(const char *text, bool *out)
{
    if (!text || (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)) return false;
    *out = text[0] == 't';
    return true;
}

static int parse_normalisation(const struct safetensors *s, const char *path, struct facts *f)
{
    const struct safetensor *mean, *scale;
    uint64_t dim = f->model.spec.feature_dim;
    if (!safetensors_find(s, "normalise.mean") && !safetensors_find(s, "normalise.scale")) return 0;
    int rc = safetensors_expect(s, "normalise.mean", TENSOR_F32, 1, &dim, &mean);
    if (rc == 0) rc = safetensors_expect(s, "normalise.scale", TENSOR_F32, 1, &dim, &scale);
    if (rc < 0) return rc;
    f->mean = xcalloc(dim, sizeof(float));
    f->scale = xcalloc(dim, sizeof(float));
    rc = safetensors_read(s, mean, 0, mean->bytes, f->mean);
    if (rc == 0) rc = safetensors_read(s, scale, 0, scale->bytes, f->scale);
    for (size_t i = 0; rc == 0 && i < dim; i++)
        if (!isfinite(f->mean[i]) || !isfinite(f->scale[i]))
            rc = err_set(ERR_DATA, "%s is damaged: its normalisation has values that are not finite", path);
    return rc;
}

static int parse_model(const struct safetensors *s, const char *path, struct facts *f)
{
    struct model_spec spec;
    memset(&spec, 0, sizeof spec);
    json_t *j = load_text(safetensors_metadata(s, "spec"));
    bool good = parse_spec(j, &spec);
    json_decref(j);
    if (!good) return err_set(ERR_DATA, "%s is damaged: it does not say what model it has", path);
    int rc = model_build(&spec, &f->model);
    return rc < 0 ? err_prefix(ERR_DATA, "%s", path) : 0;
}

int facts_parse(const struct safetensors *s, const char *path, const char *format, struct facts *out,
                uint64_t *stored)
{
    const char *found = safetensors_metadata(s, "format");
    struct facts f = {.job = 0};
    if (!found || strcmp(found, format) != 0)
        return err_set(ERR_DATA, "%s is not a file of the format %s", path, format);
    int rc = parse_model(s, path, &f);
    if (rc == 0) rc = parse_normalisation(s, path, &f);
    if (rc == 0 && (!facts_parse_hash(safetensors_metadata(s, "job"), &f.job) ||
                    !facts_parse_hash(safetensors_metadata(s, "model_hash"), stored) ||
                    !parse_data(safetensors_metadata(s, "train"), &f.train) ||
                    !parse_data(safetensors_metadata(s, "dev"), &f.dev) ||
                    !parse_silence(safetensors_metadata(s, "silence"), &f) ||
                    !parse_flag(safetensors_metadata(s, "speaker_cmvn"), &f.speaker_cmvn) ||
                    !parse_flag(safetensors_metadata(s, "cmvn_var"), &f.cmvn_var)))
        rc = err_set(ERR_DATA, "%s is damaged: its metadata is not complete", path);
    if (rc == 0) {
        f.model_hash = model_hash(&f.model, f.mean, f.scale);
        *out = f;
    } else
        facts_fini(&f);
    return rc;
}

/* ------------------------------------------------------------------ RUN/model.safetensors */

int facts_write(const char *run, const struct facts *f)
{
    struct facts_parts p;
    facts_parts_init(&p, f, "chorale-facts");
    char *path = files_join(run, "model.safetensors");
    int rc = safetensors_write(path, p.pairs, p.num_pairs, p.tensors, p.num_tensors, NULL, NULL);
    free(path);
    facts_parts_fini(&p);
    return rc;
}

int facts_read(const char *run, struct facts *out)
{
    char *path = files_join(run, "model.safetensors");
    struct safetensors *s = NULL;
    struct facts f;
    uint64_t stored = 0;
    int rc = safetensors_open(path, &s);
    if (rc == 0) rc = safetensors_verify(s, NULL);
    if (rc == 0) rc = facts_parse(s, path, "chorale-facts", &f, &stored);
    if (rc == 0 && stored != f.model_hash) {
        rc = err_set(ERR_MODEL,
                     "%s was written by another version of Chorale: its model has hash %016" PRIx64
                     ", here it is %016" PRIx64 "; go on with the version that began this run",
                     path, stored, f.model_hash);
        facts_fini(&f);
    }
    if (rc == 0) *out = f;
    safetensors_close(&s);
    free(path);
    return rc;
}
