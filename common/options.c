#include "common/options.h"

#include "common/err.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ keys */

const struct option_spec *options_find(const char *key)
{
    for (size_t i = 0; i < options_count; i++)
        if (strcmp(options_table[i].key, key) == 0) return &options_table[i];
    return NULL;
}

bool options_is_section(const char *key)
{
    size_t n = strlen(key);
    for (size_t i = 0; n > 0 && i < options_count; i++)
        if (strncmp(options_table[i].key, key, n) == 0 && options_table[i].key[n] == '.') return true;
    return false;
}

size_t options_distance(const char *a, const char *b)
{
    size_t row[64], n = strlen(b);
    if (n >= 64 || strlen(a) >= 64) return SIZE_MAX;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t corner = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = corner + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            corner = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

const char *options_nearest(const char *key)
{
    const char *wrong_leaf = strrchr(key, '.') ? strrchr(key, '.') + 1 : key, *best = "";
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < options_count; i++) {
        const char *known = options_table[i].key, *leaf = strrchr(known, '.') + 1;
        size_t whole = options_distance(key, known);
        /* the right name in the wrong section is near, too */
        if (strcmp(leaf, wrong_leaf) == 0 && whole > 1) whole = 1;
        if (whole < least) {
            least = whole;
            best = known;
        }
    }
    return least <= 2 + strlen(wrong_leaf) / 3 ? best : "";
}

void options_environment_name(const struct option_spec *o, char *out, size_t size)
{
    snprintf(out, size, "CHORALE_%s", o->key);
    for (char *c = out; *c; c++) *c = *c == '.' ? '_' : (char)toupper((unsigned char)*c);
}

/* ------------------------------------------------------------------ what a value may be */

static const char *noun(const struct option_spec *o)
{
    switch (o->type) {
    case OPTION_INT:
    case OPTION_COUNT:
        return "an integer";
    case OPTION_FLOAT:
        return "a number";
    case OPTION_BOOL:
        return "true or false";
    case OPTION_STRING:
        return "text";
    case OPTION_PATH:
        return "a path";
    case OPTION_ENUM:
        return "one of ";
    case OPTION_INTS:
        return "a list of integers";
    case OPTION_LAYERS:
        return "a list of 1 to 16 layers like {cells: 256, projection: 128}";
    }
    return "";
}

void options_describe(const struct option_spec *o, char *out, size_t size)
{
    bool range =
        o->type == OPTION_INT || o->type == OPTION_COUNT || o->type == OPTION_FLOAT || o->type == OPTION_INTS;
    if (o->type == OPTION_ENUM) {
        int n = snprintf(out, size, "%s", strchr(o->choices, '|') ? noun(o) : "");
        for (const char *c = o->choices; *c && (size_t)n + 3 < size; c++) {
            if (*c != '|')
                out[n++] = *c;
            else
                n += snprintf(out + n, size - (size_t)n, ", ");
        }
        out[n] = '\0';
    } else if (range && o->min == o->max) {
        snprintf(out, size, "%.15g", o->min);
    } else if (range) {
        snprintf(out, size, "%s of %.15g to %.15g%s%s", noun(o), o->min, o->max, o->unit[0] ? " " : "",
                 o->unit);
    } else {
        snprintf(out, size, "%s", noun(o));
    }
}

static int refuse(const struct option_spec *o, const char *text)
{
    char may[400];
    options_describe(o, may, sizeof may);
    return err_set(ERR_USAGE, "%s must be %s, not '%.80s'", o->key, may, text);
}

/* A whole decimal integer in the range, in *out. */
static int parse_integer(const struct option_spec *o, const char *text, long long *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    bool plain = isdigit((unsigned char)text[0]) || (text[0] == '-' && isdigit((unsigned char)text[1]));
    if (!plain || *end || errno || (double)v < o->min || (double)v > o->max) return refuse(o, text);
    *out = v;
    return 0;
}

static int parse_number(const struct option_spec *o, const char *text, double *out)
{
    char *end;
    bool plain = text[0] && strspn(text, "0123456789.eE+-") == strlen(text); /* no hex, no nan, no inf */
    double v = plain ? strtod(text, &end) : 0;
    if (!plain || *end || !isfinite(v) || v < o->min || v > o->max) return refuse(o, text);
    *out = v;
    return 0;
}

static int parse_choice(const struct option_spec *o, const char *text, unsigned *out)
{
    size_t n = strlen(text);
    unsigned index = 0;
    for (const char *at = o->choices;; index++) {
        size_t len = strcspn(at, "|");
        if (len == n && n > 0 && memcmp(at, text, n) == 0) {
            *out = index;
            return 0;
        }
        if (!at[len]) return refuse(o, text);
        at += len + 1;
    }
}

/* Text goes to a YAML file and to logs, and comes back from there: printable UTF-8 alone. libyaml checks what
 * comes from a file; this is for --set and the environment. */
static int check_text(const struct option_spec *o, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    for (; *s; s++) {
        size_t more = *s < 0x80                 ? 0
                      : *s >= 0xC2 && *s < 0xE0 ? 1
                      : *s >= 0xE0 && *s < 0xF0 ? 2
                      : *s >= 0xF0 && *s < 0xF5 ? 3
                                                : 9;
        bool good = more <= 3 && *s >= 0x20 && *s != 0x7F;
        for (; good && more > 0; more--) good = (*++s & 0xC0) == 0x80;
        if (!good) return err_set(ERR_USAGE, "%s must be printable UTF-8 text in one line", o->key);
    }
    return strlen(text) < 4096 ? 0 : err_set(ERR_USAGE, "%s must be shorter than 4096 bytes", o->key);
}

/* ------------------------------------------------------------------ values in and out */

static int set_text(char **slot, const struct option_spec *o, const char *text)
{
    int rc = check_text(o, text);
    if (rc < 0) return rc;
    char *copy = xstrdup(text);
    free(*slot);
    *slot = copy;
    return 0;
}

int options_set(void *base, const struct option_spec *o, const char *text)
{
    void *slot = (char *)base + o->offset;
    long long integer;
    unsigned choice = 0;
    int rc;
    switch (o->type) {
    case OPTION_INT:
        if ((rc = parse_integer(o, text, &integer)) == 0) *(int *)slot = (int)integer;
        return rc;
    case OPTION_COUNT:
        if ((rc = parse_integer(o, text, &integer)) == 0) *(uint32_t *)slot = (uint32_t)integer;
        return rc;
    case OPTION_FLOAT:
        return parse_number(o, text, slot);
    case OPTION_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0) return refuse(o, text);
        *(bool *)slot = text[0] == 't';
        return 0;
    case OPTION_STRING:
    case OPTION_PATH:
        return set_text(slot, o, text);
    case OPTION_ENUM:
        if ((rc = parse_choice(o, text, &choice)) == 0) memcpy(slot, &choice, sizeof choice);
        return rc;
    case OPTION_INTS:
    case OPTION_LAYERS:
        break;
    }
    return refuse(o, text);
}

static size_t *layer_count(void *base)
{
    return &((struct config *)base)->model.num_layers;
}

void options_clear_list(void *base, const struct option_spec *o)
{
    ASSERT(o->type == OPTION_INTS || o->type == OPTION_LAYERS);
    if (o->type == OPTION_LAYERS) {
        memset((char *)base + o->offset, 0, sizeof(struct model_layer) * MODEL_MAX_LAYERS);
        *layer_count(base) = 0;
        return;
    }
    struct int_list *list = (struct int_list *)((char *)base + o->offset);
    free(list->values);
    *list = (struct int_list){0};
}

int options_append_int(void *base, const struct option_spec *o, const char *text)
{
    long long v;
    ASSERT(o->type == OPTION_INTS);
    int rc = parse_integer(o, text, &v);
    if (rc < 0) return rc;
    struct int_list *list = (struct int_list *)((char *)base + o->offset);
    int *longer = xcalloc(list->count + 1, sizeof *longer);
    if (list->count) memcpy(longer, list->values, list->count * sizeof *longer);
    longer[list->count] = (int)v;
    free(list->values);
    list->values = longer;
    list->count++;
    return 0;
}

int options_append_layer(void *base, const struct option_spec *o, const struct model_layer *layer)
{
    size_t *n = layer_count(base);
    if (*n >= MODEL_MAX_LAYERS)
        return err_set(ERR_USAGE, "%s has more than %d layers", o->key, MODEL_MAX_LAYERS);
    if (layer->cells == 0)
        return err_set(ERR_USAGE, "layer %zu of %s does not say its cells", *n + 1, o->key);
    ((struct config *)base)->model.layers[(*n)++] = *layer;
    return 0;
}

/* The shortest decimal that reads back as the same bits. */
static char *float_text(double v)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) { /* from 6: 50, not 5e+01 */
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    return xstrdup(text);
}

static char *quoted_text(const char *text)
{
    char *out = xcalloc(2, strlen(text) + 2), *at = out;
    *at++ = '"';
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') *at++ = '\\';
        *at++ = *text;
    }
    *at = '"';
    return out;
}

static char *choice_text(const struct option_spec *o, const void *slot)
{
    unsigned index;
    memcpy(&index, slot, sizeof index);
    const char *at = o->choices;
    for (; index > 0; index--) at += strcspn(at, "|") + 1;
    return xprintf("%.*s", (int)strcspn(at, "|"), at);
}

/* Takes both; returns "a b". */
static char *append_text(char *a, char *b)
{
    char *both = xprintf("%s%s", a, b);
    free(a);
    free(b);
    return both;
}

static char *ints_text(const struct int_list *list)
{
    char *text = xstrdup("[");
    for (size_t i = 0; i < list->count; i++)
        text = append_text(text, xprintf("%s%d", i ? ", " : "", list->values[i]));
    return append_text(text, xstrdup("]"));
}

static char *layers_text(const struct config *c)
{
    char *text = xstrdup("[");
    for (size_t i = 0; i < c->model.num_layers; i++) {
        for (size_t f = 0; f < options_layer_count; f++) {
            const char *before = f ? ", " : i ? ", {" : "{";
            text = append_text(text, xprintf("%s%s: ", before, options_layer[f].key));
            text = append_text(text, options_text(&c->model.layers[i], &options_layer[f]));
        }
        text = append_text(text, xstrdup("}"));
    }
    return append_text(text, xstrdup("]"));
}

char *options_text(const void *base, const struct option_spec *o)
{
    const void *slot = (const char *)base + o->offset;
    switch (o->type) {
    case OPTION_INT:
        return xprintf("%d", *(const int *)slot);
    case OPTION_COUNT:
        return xprintf("%u", *(const uint32_t *)slot);
    case OPTION_FLOAT:
        return float_text(*(const double *)slot);
    case OPTION_BOOL:
        return xstrdup(*(const bool *)slot ? "true" : "false");
    case OPTION_STRING:
    case OPTION_PATH:
        return quoted_text(*(char *const *)slot);
    case OPTION_ENUM:
        return choice_text(o, slot);
    case OPTION_INTS:
        return ints_text(slot);
    case OPTION_LAYERS:
        return layers_text(base);
    }
    return xstrdup("");
}

void options_print(FILE *to)
{
    char may[400];
    for (size_t i = 0; i < options_count; i++) {
        const struct option_spec *o = &options_table[i];
        options_describe(o, may, sizeof may);
        fprintf(to, "  %s (%s; default %s)\n      %s\n", o->key, may, o->preset[0] ? o->preset : "empty",
                o->help);
    }
}
