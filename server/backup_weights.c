#include "server/backup_weights.h"

#include "common/err.h"

#include <stdlib.h>

struct backup_copy {
    uint64_t member;
    float *weights;    /* floats of the shard, owned */
    uint64_t *version; /* (count), owned; + 1, 0: not sent yet */
};

void backup_weights_init(struct backup_weights *w, const struct blocks *b, uint32_t first, uint32_t count)
{
    *w = (struct backup_weights){.blocks = *b, .first = first, .count = count};
}

static void free_copy(struct backup_copy *c)
{
    free(c->weights);
    free(c->version);
}

void backup_weights_fini(struct backup_weights *w)
{
    for (uint32_t i = 0; i < w->num_copies; i++) free_copy(&w->copies[i]);
    free(w->copies);
    w->copies = NULL;
    w->num_copies = 0;
}

static struct backup_copy *find(const struct backup_weights *w, uint64_t member)
{
    for (uint32_t i = 0; i < w->num_copies; i++)
        if (w->copies[i].member == member) return &w->copies[i];
    return NULL;
}

/* First float of a block in a copy. */
static size_t offset_of(const struct backup_weights *w, uint32_t block)
{
    return blocks_span(&w->blocks, w->first, w->first + block);
}

static struct backup_copy *add(struct backup_weights *w, uint64_t member)
{
    if (w->num_copies == BACKUP_WEIGHTS_MEMBERS) return NULL;
    if (!w->copies) w->copies = xcalloc(BACKUP_WEIGHTS_MEMBERS, sizeof *w->copies);
    struct backup_copy *c = &w->copies[w->num_copies++];
    *c = (struct backup_copy){.member = member};
    c->weights = xcalloc(offset_of(w, w->count) + 1, sizeof *c->weights);
    c->version = xcalloc((size_t)w->count + 1, sizeof *c->version);
    return c;
}

float *backup_weights_place(struct backup_weights *w, uint64_t member, uint32_t block, uint64_t version)
{
    struct backup_copy *c = find(w, member);
    if (!c) c = add(w, member);
    if (!c) return NULL;
    c->version[block] = version + 1;
    return c->weights + offset_of(w, block);
}

const float *backup_weights_find(const struct backup_weights *w, uint64_t member, uint32_t block,
                                 uint64_t version)
{
    const struct backup_copy *c = find(w, member);
    return c && c->version[block] == version + 1 ? c->weights + offset_of(w, block) : NULL;
}

void backup_weights_drop_below(struct backup_weights *w, uint64_t oldest)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < w->num_copies; i++) {
        if (w->copies[i].member < oldest)
            free_copy(&w->copies[i]);
        else
            w->copies[kept++] = w->copies[i];
    }
    w->num_copies = kept;
}
