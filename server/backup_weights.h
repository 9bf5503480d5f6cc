/* Delay compensation: the weights that each member was last sent, which its next gradient is computed from
 * (if that gradient names their version; with overlap 1 it names an older one). A whole shard of floats per
 * member, made when it is first sent something: at most BACKUP_WEIGHTS_MEMBERS members; a further one gets
 * none and is applied uncompensated. Source: Zheng 2017. One thread. */
#ifndef SERVER_BACKUP_WEIGHTS_H
#define SERVER_BACKUP_WEIGHTS_H

#include "common/blocks.h"

#include <stdint.h>

#define BACKUP_WEIGHTS_MEMBERS 64

struct backup_copy;

struct backup_weights {
    struct blocks blocks; /* of the whole vector */
    uint32_t first, count;
    uint32_t num_copies;
    struct backup_copy *copies; /* (num_copies), owned */
};

/* Of the blocks [first, first + count). */
void backup_weights_init(struct backup_weights *w, const struct blocks *b, uint32_t first, uint32_t count);
void backup_weights_fini(struct backup_weights *w);
/* Where to write the weights of a block (from 0), of that version, that the member is sent now; NULL: this
 * member gets none. */
float *backup_weights_place(struct backup_weights *w, uint64_t member, uint32_t block, uint64_t version);
/* What it was last sent of that block; NULL: nothing, or not of that version. */
const float *backup_weights_find(const struct backup_weights *w, uint64_t member, uint32_t block,
                                 uint64_t version);
/* Frees those of lower members. */
void backup_weights_drop_below(struct backup_weights *w, uint64_t oldest);

#endif
