/* A folder of its own for a test of worker/data, and files in it. Included by those tests alone. */
#ifndef TESTS_UNIT_WORKER_DATA_DIR_H
#define TESTS_UNIT_WORKER_DATA_DIR_H

#include "common/err.h"
#include "common/files.h"
#include "worker/data/ark.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct data_dir {
    char path[64];
    char file[512]; /* of the last data_dir_file */
};

static inline void data_dir_make(struct data_dir *d)
{
    strcpy(d->path, "/tmp/chorale-test-XXXXXX");
    ASSERT(mkdtemp(d->path) != NULL);
}

static inline void data_dir_remove(struct data_dir *d)
{
    ASSERT(files_remove_tree(d->path) == 0);
}

static inline const char *data_dir_file(struct data_dir *d, const char *name)
{
    snprintf(d->file, sizeof d->file, "%s/%s", d->path, name);
    return d->file;
}

static inline void data_dir_put(struct data_dir *d, const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(data_dir_file(d, name), "wb");
    ASSERT(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

__attribute__((format(printf, 3, 4))) static inline void data_dir_print(struct data_dir *d, const char *name,
                                                                        const char *format, ...)
{
    va_list args;
    FILE *f = fopen(data_dir_file(d, name), "wb");
    ASSERT(f);
    va_start(args, format);
    vfprintf(f, format, args);
    va_end(args);
    ASSERT(fclose(f) == 0);
}

/* Value of frame t, dimension k of utterance u in the made-up corpora: exact in float, different everywhere.
 */
static inline float data_dir_value(size_t u, size_t t, size_t k)
{
    return (float)u * 100.0f + (float)t + (float)k / 16.0f;
}

/* feats.ark and feats.scp, ali.ark and ali.scp with n utterances "utt-00", "utt-01", ...: frames[u] x dim
 * values, and targets (u + t) % 7. */
static inline void data_dir_corpus(struct data_dir *d, size_t n, const size_t *frames, size_t dim)
{
    char spec[2048];
    snprintf(spec, sizeof spec, "ark,scp:%s/feats.ark,%s/feats.scp", d->path, d->path);
    struct ark_writer *feats = ark_writer_open(spec);
    snprintf(spec, sizeof spec, "ark,scp:%s/ali.ark,%s/ali.scp", d->path, d->path);
    struct ark_writer *ali = ark_writer_open(spec);
    ASSERT(feats && ali);
    for (size_t u = 0; u < n; u++) {
        float *x = xcalloc(frames[u] * dim, sizeof *x);
        int32_t *target = xcalloc(frames[u], sizeof *target);
        char id[32];
        snprintf(id, sizeof id, "utt-%02zu", u);
        for (size_t t = 0; t < frames[u]; t++) {
            target[t] = (int32_t)((u + t) % 7);
            for (size_t k = 0; k < dim; k++) x[t * dim + k] = data_dir_value(u, t, k);
        }
        ASSERT(ark_writer_matrix(feats, id, frames[u], dim, x) == 0);
        ASSERT(ark_writer_ints(ali, id, frames[u], target) == 0);
        free(x);
        free(target);
    }
    ASSERT(ark_writer_commit(&feats) == 0 && ark_writer_commit(&ali) == 0);
}

static inline const char *data_dir_shared(void)
{
    const char *shared = getenv("CHORALE_SHARED");
    return shared && shared[0] ? shared : "../shared";
}

#endif
