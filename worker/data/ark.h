/* Kaldi objects and tables. Reads float matrices (binary FM, DM; compressed CM, CM2, CM3; text) and int
 * vectors (binary and text), by location as in an scp file or one after another from an archive; writes float
 * matrices and int vectors. Every size in a file is held against the bytes that are there before memory is
 * asked for. No posteriors, sparse matrices or models. One thread per object. Source: Kaldi's
 * matrix/compressed-matrix.h, util/kaldi-holder-inl.h, doc/io.dox; bytes are little-endian, as Kaldi writes
 * them on the machines it runs on. */
#ifndef WORKER_DATA_ARK_H
#define WORKER_DATA_ARK_H

#include "worker/data/input.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Row-major (rows, cols). Zero-initialise; memory only grows; fini frees. */
struct matrix {
    size_t rows, cols;
    size_t capacity; /* floats */
    float *data;     /* owned */
};
struct ints {
    size_t count, capacity;
    int32_t *data; /* owned */
};

void matrix_fini(struct matrix *m);
void ints_fini(struct ints *v);
/* Room for that many values; what was there stays. */
void matrix_reserve(struct matrix *m, size_t floats);
void ints_reserve(struct ints *v, size_t count);

/* Where an object is: what an scp line says after the id. */
struct ark_source {
    const char
        *location; /* path, path:offset, either with [a:b] or [a:b,c:d] (inclusive, as Kaldi), or "cmd |" */
    const char
        *folder; /* of the scp file, NULL = none: relative paths are tried here second, commands run here */
    bool allow_pipes;
    struct input *input; /* borrowed, kept open between calls; NULL = opened for this call alone */
};

/* All return 0 or ERR_DATA with a sentence that names file and offset. `out` is scratch when they fail.
 * A row range may end up to 3 rows late, as in Kaldi: it is cut to the rows that are there. */
int ark_read_matrix(const struct ark_source *s, struct matrix *out);
int ark_read_ints(const struct ark_source *s, struct ints *out);
/* Sizes (after the range) from the header alone where the object is binary; checks that its bytes are in the
 * file. */
int ark_read_shape(const struct ark_source *s, size_t *rows_out, size_t *cols_out);

/* The object that starts at the input's position, binary or text by its first bytes. */
int ark_decode_matrix(struct input *in, struct matrix *out);
int ark_decode_ints(struct input *in, struct ints *out);
int ark_decode_shape(struct input *in, size_t *rows_out, size_t *cols_out);

/* --- reading a table in its own order */
struct ark_options {
    const char *folder; /* second place for the table's own file */
    bool allow_pipes;   /* commands inside an scp file */
    bool allow_command; /* the rspecifier itself may be a command: true only for what a person typed */
};
struct ark_reader;

/* "ark:FILE", "ark,t:-", "scp:FILE", also with Kaldi's other options (b f nf o p s ns cs ncs bg), which
 * change nothing here. NULL with a sentence in err_text() on failure. */
struct ark_reader *ark_open(const char *rspecifier, const struct ark_options *o);
/* 1 and the next key (valid until the next call), 0 at the end, negative on error. After 1, call one of the
 * next two once. When reading an object of an scp table fails, one may go on with ark_next. */
int ark_next(struct ark_reader *r, const char **key);
int ark_next_matrix(struct ark_reader *r, struct matrix *out);
int ark_next_ints(struct ark_reader *r, struct ints *out);
/* The line of the scp file, or the number of the entry in an archive, from 1. */
size_t ark_line(const struct ark_reader *r);
/* Where the present object is, as the scp file says; "" for an archive. */
const char *ark_location(const struct ark_reader *r);
/* ERR_DATA if a command failed. Accepts NULL. */
int ark_close(struct ark_reader **r);

/* --- writing. Negative: ERR_STORAGE with a sentence. */
int ark_write_matrix(FILE *to, const char *key, size_t rows, size_t cols, const float *data); /* binary FM */
int ark_write_matrix_text(FILE *to, const char *key, size_t rows, size_t cols, const float *data);
int ark_write_ints(FILE *to, const char *key, size_t count, const int32_t *data);
int ark_write_ints_text(FILE *to, const char *key, size_t count, const int32_t *data);

struct ark_writer;
/* "ark:FILE", "ark,t:FILE", "ark,scp:A,B", "ark:-", "ark:| cmd" (a person typed it). Files get their names
 * only when ark_writer_commit succeeds. NULL with a sentence on failure. */
struct ark_writer *ark_writer_open(const char *wspecifier);
int ark_writer_matrix(struct ark_writer *w, const char *key, size_t rows, size_t cols, const float *data);
int ark_writer_ints(struct ark_writer *w, const char *key, size_t count, const int32_t *data);
int ark_writer_commit(struct ark_writer **w);
/* Gives up: temporary files are removed. Accepts NULL. */
void ark_writer_free(struct ark_writer **w);

#endif
