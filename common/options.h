/* The one table of every option (options_table.c). From it come the defaults, --set, the environment, the
 * YAML schema, the commented job file and --help. Adding an option = a field in struct config and a row
 * there. */
#ifndef COMMON_OPTIONS_H
#define COMMON_OPTIONS_H

#include "common/config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum option_type {
    OPTION_INT,    /* int */
    OPTION_COUNT,  /* uint32_t */
    OPTION_FLOAT,  /* double */
    OPTION_BOOL,   /* bool */
    OPTION_STRING, /* char *, owned */
    OPTION_PATH,   /* char *, owned */
    OPTION_ENUM,   /* an enum whose values are the indices into choices */
    OPTION_INTS,   /* struct int_list */
    OPTION_LAYERS  /* model.layers: a list of mappings with the keys of options_layer */
};

/* One row. (The name struct option belongs to getopt.h.) */
struct option_spec {
    const char *key; /* "train.window": section first */
    enum option_type type;
    size_t offset;       /* into struct config (or struct model_layer) */
    const char *preset;  /* the default, as text */
    double min, max;     /* numbers, and the numbers of a list */
    const char *unit;    /* "" if it has none */
    const char *choices; /* OPTION_ENUM: "sgd|momentum" */
    const char *help;
};

extern const struct option_spec options_table[];
extern const size_t options_count;
/* Fields of one layer, offsets into struct model_layer. */
extern const struct option_spec options_layer[];
extern const size_t options_layer_count;

/* NULL if there is no such key. */
const struct option_spec *options_find(const char *key);
/* The known key nearest to a wrong one (the option itself or a section), "" if none is near. */
const char *options_nearest(const char *key);
/* Letters to insert, delete or replace to make b out of a (Levenshtein); SIZE_MAX for words of 64 letters or
 * more. */
size_t options_distance(const char *a, const char *b);
/* Is `key` a section, i.e. the start of longer keys ("train", "optimizer.schedule")? */
bool options_is_section(const char *key);
/* A scalar from text, checked for type and range; `base` is what offset counts from. ERR_USAGE with a
 * sentence without a place: "train.window must be an integer of 1 to 10000 frames, not 'many'". Not for the
 * two list types. */
int options_set(void *base, const struct option_spec *o, const char *text);
/* List types: empty it; append one integer. */
void options_clear_list(void *base, const struct option_spec *o);
int options_append_int(void *base, const struct option_spec *o, const char *text);
int options_append_layer(void *base, const struct option_spec *o, const struct model_layer *layer);
/* The value as YAML text (text quoted), owned by the caller. Reads back equal. */
char *options_text(const void *base, const struct option_spec *o);
/* "an integer of 1 to 10000 frames"; "one of sgd, momentum". */
void options_describe(const struct option_spec *o, char *out, size_t size);
/* CHORALE_TRAIN_WINDOW */
void options_environment_name(const struct option_spec *o, char *out, size_t size);
/* The whole table for --help. */
void options_print(FILE *to);

#endif
