#include "common/config.h"

#include "common/err.h"
#include "common/files.h"
#include "common/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define MAX_YAML (1 << 20)
#define MAX_KEY  128
#define MAX_SEEN 256

extern char **environ;

/* One YAML text on its way into a config. */
struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one */
    const char *name;   /* what errors call the text */
    struct config *config;
    char seen[MAX_SEEN][MAX_KEY]; /* keys met so far, sections too */
    size_t num_seen;
};

/* ------------------------------------------------------------------ events */

/* Puts "file:line:column: " of the current event before the sentence. */
static int at_event(const struct reader *r, int code)
{
    const yaml_mark_t *m = &r->event.start_mark;
    return err_prefix(code, "%s:%zu:%zu", r->name, m->line + 1, m->column + 1);
}

static int check_plain_yaml(const struct reader *r)
{
    const yaml_event_t *e = &r->event;
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (e->type == YAML_SCALAR_EVENT) anchor = e->data.scalar.anchor, tag = e->data.scalar.tag;
    if (e->type == YAML_SEQUENCE_START_EVENT)
        anchor = e->data.sequence_start.anchor, tag = e->data.sequence_start.tag;
    if (e->type == YAML_MAPPING_START_EVENT)
        anchor = e->data.mapping_start.anchor, tag = e->data.mapping_start.tag;
    if (anchor || e->type == YAML_ALIAS_EVENT)
        return at_event(
            r, err_set(ERR_USAGE, "anchors (&) and aliases (*) are not allowed; write the value out"));
    if (tag) return at_event(r, err_set(ERR_USAGE, "tags (!) are not allowed; write the plain value"));
    if (e->type == YAML_SCALAR_EVENT && strlen((const char *)e->data.scalar.value) != e->data.scalar.length)
        return at_event(r, err_set(ERR_USAGE, "a value must not contain a 0 byte"));
    return 0;
}

static int next_event(struct reader *r)
{
    yaml_event_delete(&r->event);
    if (yaml_parser_parse(&r->parser, &r->event)) return check_plain_yaml(r);
    const yaml_parser_t *p = &r->parser;
    memset(&r->event, 0, sizeof r->event);
    if (p->error == YAML_READER_ERROR)
        return err_set(ERR_USAGE, "%s: byte %zu: %s", r->name, p->problem_offset, p->problem);
    const char *problem = p->problem ? p->problem : "not YAML";
    bool tab = strstr(problem, "cannot start any token") != NULL;
    return err_set(ERR_USAGE, "%s:%zu:%zu: %s%s", r->name, p->problem_mark.line + 1,
                   p->problem_mark.column + 1, problem,
                   tab ? " (YAML is indented with spaces, not tabs)" : "");
}

static const char *scalar_text(const struct reader *r)
{
    return r->event.type == YAML_SCALAR_EVENT ? (const char *)r->event.data.scalar.value : NULL;
}

static bool is_plain(const struct reader *r)
{
    return scalar_text(r) && r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

static bool is_null(const struct reader *r)
{
    const char *t = scalar_text(r);
    return is_plain(r) && (!*t || strcmp(t, "~") == 0 || strcmp(t, "null") == 0);
}

static int wrong_type(const struct reader *r, const struct option_spec *o)
{
    char may[400];
    options_describe(o, may, sizeof may);
    const char *got = scalar_text(r)                              ? "quoted text"
                      : r->event.type == YAML_MAPPING_START_EVENT ? "a mapping"
                                                                  : "a list";
    return at_event(r, err_set(ERR_USAGE, "%s must be %s, not %s", o->key, may, got));
}

/* ------------------------------------------------------------------ values */

static int read_scalar(struct reader *r, void *base, const struct option_spec *o)
{
    bool text = o->type == OPTION_STRING || o->type == OPTION_PATH;
    if (!scalar_text(r) || (!is_plain(r) && !text && o->type != OPTION_ENUM)) return wrong_type(r, o);
    int rc = options_set(base, o, text && is_null(r) ? "" : scalar_text(r));
    return rc < 0 ? at_event(r, rc) : 0;
}

/* Current event: the mapping's start. */
static int read_layer(struct reader *r, const struct option_spec *list)
{
    struct model_layer layer = {0};
    unsigned seen = 0;
    int rc;
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return at_event(
            r, err_set(ERR_USAGE, "a layer of %s must look like {cells: 256, projection: 128}", list->key));
    while ((rc = next_event(r)) == 0 && r->event.type != YAML_MAPPING_END_EVENT) {
        size_t f = 0;
        const char *key = scalar_text(r);
        while (key && f < options_layer_count && strcmp(options_layer[f].key, key) != 0) f++;
        if (!key || f == options_layer_count)
            return at_event(r,
                            err_set(ERR_USAGE, "a layer has cells, projection and nonrecurrent, not '%.80s'",
                                    key ? key : "a list"));
        if (seen & (1u << f)) return at_event(r, err_set(ERR_USAGE, "%s appears twice in one layer", key));
        seen |= 1u << f;
        if ((rc = next_event(r)) < 0 || (rc = read_scalar(r, &layer, &options_layer[f])) < 0) return rc;
    }
    if (rc < 0) return rc;
    rc = options_append_layer(r->config, list, &layer);
    return rc < 0 ? at_event(r, rc) : 0;
}

/* Current event: the list's start. */
static int read_list(struct reader *r, const struct option_spec *o)
{
    int rc;
    if (r->event.type != YAML_SEQUENCE_START_EVENT) return wrong_type(r, o);
    options_clear_list(r->config, o);
    while ((rc = next_event(r)) == 0 && r->event.type != YAML_SEQUENCE_END_EVENT) {
        if (o->type == OPTION_LAYERS) {
            if ((rc = read_layer(r, o)) < 0) return rc;
            continue;
        }
        if (!is_plain(r)) return wrong_type(r, o);
        if ((rc = options_append_int(r->config, o, scalar_text(r))) < 0) return at_event(r, rc);
    }
    return rc;
}

static int read_value(struct reader *r, const struct option_spec *o)
{
    if (o->type == OPTION_INTS || o->type == OPTION_LAYERS) return read_list(r, o);
    return read_scalar(r, r->config, o);
}

/* ------------------------------------------------------------------ keys */

static int unknown_key(const struct reader *r, const char *key)
{
    const char *near = options_nearest(key);
    return at_event(r,
                    err_set(ERR_USAGE, "unknown option %.100s%s%s%s", key, near[0] ? "; did you mean " : "",
                            near, near[0] ? "?" : "; `chorale init --help` lists them all"));
}

static int remember_key(struct reader *r, const char *key)
{
    for (size_t i = 0; i < r->num_seen; i++)
        if (strcmp(r->seen[i], key) == 0) return at_event(r, err_set(ERR_USAGE, "%s appears twice", key));
    ASSERT(r->num_seen < MAX_SEEN); /* only known keys are remembered */
    snprintf(r->seen[r->num_seen++], MAX_KEY, "%s", key);
    return 0;
}

static int read_section(struct reader *r, const char *prefix);

/* Current event: a key inside `prefix`. */
static int read_entry(struct reader *r, const char *prefix)
{
    char key[MAX_KEY];
    const char *name = scalar_text(r);
    if (!name) return at_event(r, err_set(ERR_USAGE, "a key must be a plain word"));
    int n = snprintf(key, sizeof key, "%s%s%s", prefix, prefix[0] ? "." : "", name);
    bool section = options_is_section(key);
    const struct option_spec *o = options_find(key);
    if ((size_t)n >= sizeof key || strchr(name, '.') || (!section && !o)) return unknown_key(r, key);
    int rc = remember_key(r, key);
    if (rc < 0 || (rc = next_event(r)) < 0) return rc;
    if (o) return read_value(r, o);
    if (is_null(r)) return 0;
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return at_event(r, err_set(ERR_USAGE, "%s must be a mapping of options: {option: value}", key));
    return read_section(r, key);
}

/* Current event: the mapping's start. Never deeper than the known sections are. */
static int read_section(struct reader *r, const char *prefix)
{
    int rc;
    while ((rc = next_event(r)) == 0 && r->event.type != YAML_MAPPING_END_EVENT)
        if ((rc = read_entry(r, prefix)) < 0) return rc;
    return rc;
}

/* stream start, [document start, the value, document end], stream end. `only` NULL: a job file; else the
 * value of one list. */
static int read_document(struct reader *r, const struct option_spec *only)
{
    int rc = next_event(r);
    if (rc < 0 || (rc = next_event(r)) < 0) return rc;
    bool empty = r->event.type == YAML_STREAM_END_EVENT;
    if (empty && only) return err_set(ERR_USAGE, "%s has no value", r->name);
    if (empty) return 0;
    if ((rc = next_event(r)) < 0) return rc;
    if (only)
        rc = read_value(r, only);
    else if (is_null(r))
        rc = 0;
    else if (r->event.type == YAML_MAPPING_START_EVENT)
        rc = read_section(r, "");
    else
        rc = at_event(r, err_set(ERR_USAGE, "a job file must be a mapping, e.g. train: {epochs: 10}"));
    if (rc < 0 || (rc = next_event(r)) < 0 || (rc = next_event(r)) < 0) return rc;
    if (r->event.type == YAML_STREAM_END_EVENT) return 0;
    return at_event(r, err_set(ERR_USAGE, "only one YAML document is allowed"));
}

static int read_yaml(struct config *c, const char *name, const char *text, size_t len,
                     const struct option_spec *only)
{
    struct reader *r = xcalloc(1, sizeof *r);
    r->name = name;
    r->config = c;
    if (!yaml_parser_initialize(&r->parser)) {
        free(r);
        return err_set(ERR_FAIL, "cannot start the YAML parser: out of memory");
    }
    yaml_parser_set_input_string(&r->parser, (const unsigned char *)text, len);
    int rc = read_document(r, only);
    yaml_event_delete(&r->event);
    yaml_parser_delete(&r->parser);
    free(r);
    return rc;
}

/* ------------------------------------------------------------------ loading */

/* A value from --set or the environment. */
static int apply_text(struct config *c, const struct option_spec *o, const char *text)
{
    if (o->type != OPTION_INTS && o->type != OPTION_LAYERS) return options_set(c, o, text);
    return read_yaml(c, o->key, text, strlen(text), o);
}

void config_default(struct config *out)
{
    *out = (struct config){0};
    for (size_t i = 0; i < options_count; i++) {
        int rc = apply_text(out, &options_table[i], options_table[i].preset);
        ASSERT(rc == 0);
    }
}

void config_free(struct config *c)
{
    for (size_t i = 0; i < options_count; i++) {
        const struct option_spec *o = &options_table[i];
        if (o->type == OPTION_STRING || o->type == OPTION_PATH) free(*(char **)((char *)c + o->offset));
        if (o->type == OPTION_INTS) options_clear_list(c, o);
    }
    *c = (struct config){0};
}

static int load_file(struct config *c, const char *path)
{
    char *text;
    size_t len;
    int rc = files_read(path, MAX_YAML, &text, &len);
    if (rc < 0) return err_set(ERR_USAGE, "%s", err_text());
    rc = read_yaml(c, path, text, len, NULL);
    free(text);
    return rc;
}

int config_load(const char *yaml_path, struct config *out)
{
    config_default(out);
    int rc = yaml_path ? load_file(out, yaml_path) : 0;
    if (rc < 0) config_free(out);
    return rc;
}

int config_apply_set(struct config *c, const char *assignment)
{
    const char *equals = strchr(assignment, '=');
    if (!equals || equals == assignment)
        return err_set(ERR_USAGE, "--set wants option=value, e.g. --set optimizer.rate=0.02, not '%.80s'",
                       assignment);
    char *key = xprintf("%.*s", (int)(equals - assignment), assignment);
    const struct option_spec *o = options_find(key);
    int rc;
    if (o)
        rc = apply_text(c, o, equals + 1);
    else if (options_is_section(key))
        rc = err_set(ERR_USAGE, "%s is a section; name one option of it", key);
    else {
        const char *near = options_nearest(key);
        rc = err_set(ERR_USAGE, "unknown option %.100s%s%s%s", key, near[0] ? "; did you mean " : "", near,
                     near[0] ? "?" : "; `chorale init --help` lists them all");
    }
    free(key);
    return rc < 0 ? err_prefix(rc, "--set") : 0;
}

/* Does a variable's name begin with CHORALE_<SECTION>_? Others (CHORALE_SHARED...) are not ours to judge. */
static bool names_section(const char *variable)
{
    char name[MAX_KEY];
    for (size_t i = 0; i < options_count; i++) {
        options_environment_name(&options_table[i], name, sizeof name);
        size_t section = strlen("CHORALE_") + strcspn(options_table[i].key, ".") + 1;
        if (strncmp(variable, name, section) == 0) return true;
    }
    return false;
}

static int unknown_variable(const char *name)
{
    char known[MAX_KEY], best[MAX_KEY] = "";
    size_t least = 6;
    for (size_t i = 0; i < options_count; i++) {
        options_environment_name(&options_table[i], known, sizeof known);
        size_t d = options_distance(name, known);
        if (d >= least) continue;
        least = d;
        memcpy(best, known, sizeof best);
    }
    return err_set(ERR_USAGE, "environment variable %.100s names no option%s%s%s", name,
                   best[0] ? "; did you mean " : "; unset it", best, best[0] ? "?" : "");
}

static int apply_variable(struct config *c, const char *variable)
{
    char known[MAX_KEY];
    const char *equals = strchr(variable, '=');
    if (!equals || strncmp(variable, "CHORALE_", 8) != 0 || !names_section(variable)) return 0;
    char *name = xprintf("%.*s", (int)(equals - variable), variable);
    const struct option_spec *found = NULL;
    for (size_t i = 0; i < options_count && !found; i++) {
        options_environment_name(&options_table[i], known, sizeof known);
        if (strcmp(known, name) == 0) found = &options_table[i];
    }
    int rc = found ? apply_text(c, found, equals + 1) : unknown_variable(name);
    if (rc < 0 && found) err_prefix(rc, "environment variable %s", name);
    free(name);
    return rc;
}

int config_apply_environment(struct config *c)
{
    int rc = 0;
    for (char **v = environ; rc == 0 && v && *v; v++) rc = apply_variable(c, *v);
    return rc;
}

int config_load_merged(const char *yaml_path, char *const *sets, size_t count, struct config *out)
{
    int rc = config_load(yaml_path, out);
    if (rc < 0) return rc;
    rc = config_apply_environment(out);
    for (size_t i = 0; rc == 0 && i < count; i++) rc = config_apply_set(out, sets[i]);
    if (rc == 0) rc = config_check(out);
    if (rc < 0) config_free(out);
    return rc;
}
