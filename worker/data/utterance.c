#include "worker/data/utterance.h"

#include "common/err.h"

#include <inttypes.h>
#include <stdlib.h>

#define ALIGNMENT 64 /* bytes: whole cache lines and vector registers */

struct utterance *utterance_new(void)
{
    struct utterance *u = xcalloc(1, sizeof *u);
    u->stream = -1;
    return u;
}

void utterance_free(struct utterance **u)
{
    if (!*u) return;
    free((*u)->x);
    free((*u)->target);
    matrix_fini(&(*u)->raw);
    free(*u);
    *u = NULL;
}

/* A quarter more than asked for, so that a run of slightly longer utterances does not allocate each time. */
static void *room(void *old, size_t *capacity, size_t wanted, size_t size)
{
    if (wanted <= *capacity) return old;
    free(old);
    *capacity = wanted + wanted / 4;
    return xaligned((*capacity * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

void utterance_make(const struct frontend *f, uint32_t speaker, uint32_t rows, float *x,
                    const int32_t *targets, struct utterance *u)
{
    ASSERT(rows > 0);
    if (f->speakers && speaker < f->speakers->num_speakers)
        feats_normalise(&f->speakers->of[speaker], rows, x);
    if (f->normaliser) feats_normalise(f->normaliser, rows, x);
    u->source_frames = rows;
    u->frames = feats_inputs(f, rows);
    u->labelled = targets ? feats_labelled(f, rows) : 0;
    u->dim = feats_input_dim(f);
    u->x = room(u->x, &u->x_capacity, (size_t)u->frames * u->dim, sizeof *u->x);
    u->target = room(u->target, &u->target_capacity, u->frames, sizeof *u->target);
    feats_compose(f, x, rows, u->x);
    feats_targets(f, targets, rows, u->target);
}

/* Frames in use: what the join counted on, less what utt2num_frames promised in vain (within the tolerance).
 */
static int count_rows(const struct corpus *c, const struct corpus_utterance *from, size_t rows, uint32_t *out)
{
    if (rows + corpus_options(c)->length_tolerance < from->frames)
        return err_set(ERR_DATA,
                       "%.200s/feats.scp line %zu: %.100s has %zu frames where %" PRIu32 " were promised",
                       corpus_dir(c), from->line, from->id, rows, from->frames);
    *out = rows < from->frames ? (uint32_t)rows : from->frames;
    return 0;
}

int utterance_load(const struct corpus *c, size_t index, const struct frontend *f, struct utterance *u)
{
    const struct corpus_utterance *from = corpus_utterance(c, index);
    uint32_t rows = 0;
    u->index = (uint32_t)index;
    u->frames = u->labelled = u->source_frames = 0;
    if (f->dim != corpus_dim(c))
        return err_set(ERR_MODEL, "%.200s has features of dimension %" PRIu32 ", the model needs %" PRIu32,
                       corpus_dir(c), corpus_dim(c), f->dim);
    int rc = corpus_read(c, index, u->input, &u->raw, NULL);
    if (rc == 0) rc = count_rows(c, from, u->raw.rows, &rows);
    if (rc == 0) utterance_make(f, from->speaker, rows, u->raw.data, from->targets, u);
    return rc;
}
