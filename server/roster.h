/* bsp: who steps together, and the pushed blocks that wait for the others. The step of a block is complete
 * when its quorum of pushes is here, refused ones included: those add nothing. The quorum is the whole
 * roster, or fewer with backup workers. Source: DESIGN section 2. One thread. */
#ifndef SERVER_ROSTER_H
#define SERVER_ROSTER_H

#include "common/element.h"
#include "common/msg.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdint.h>

struct held {
    bool here;
    uint32_t verdict;    /* APPLIED, or why it was refused: told with the weights of the step */
    struct frame *frame; /* the gradient as it came, owned; NULL unless APPLIED */
    struct msg_push push;
    uint64_t peer;  /* whom to answer: who sent it last */
    uint64_t since; /* ns */
};

/* Backup workers: the right to take part in a step. */
struct ticket {
    uint32_t quorum; /* of the step; 0: none */
    uint64_t step;   /* from 1 */
};

struct roster {
    uint32_t num_members, blocks;
    uint64_t *members;     /* (num_members) in rank order, owned */
    struct ticket *ticket; /* (num_members), owned: of the last step each took part in */
    struct held *held;     /* (blocks, num_members), owned */
    uint32_t *arrived;     /* (blocks), owned */
    uint32_t *quorum;      /* (blocks), owned: of the step under way; holds if arrived > 0 */
    uint64_t *steps;       /* (blocks), owned: that were made with this roster, those without frames, too */
    bool tail;             /* backup workers: the data run out, nobody is left behind any more */
};

void roster_init(struct roster *r, uint32_t blocks);
void roster_fini(struct roster *r);
/* A new roster of n >= 1; what was held is dropped. */
void roster_set(struct roster *r, const uint64_t *members, uint32_t n);
/* Rank of a member, or -1. */
int64_t roster_rank(const struct roster *r, uint64_t member);
/* The pushes of a block in rank order, (num_members). block counts from the shard's first. */
struct held *roster_block(const struct roster *r, uint32_t block);
/* Holds a push in an empty place; quorum counts in the first one of a step. Takes *frame if verdict is
 * APPLIED. True if the step is now complete. */
bool roster_hold(struct roster *r, uint32_t block, uint32_t rank, const struct held *h, uint32_t quorum,
                 struct frame **frame);
/* The sum of the block's good gradients (n numbers of that type each) in rank order; mean: divided by their
 * number. fp32: in the frame of the first of them; other types: in scratch, (2, n). NULL: there is none.
 * *frames: the frames they stand for. */
float *roster_sum(struct roster *r, uint32_t block, enum element_type type, size_t n, bool mean,
                  float *scratch, uint64_t *frames);
/* How many steps of the block were made with this roster. */
uint64_t roster_steps(const struct roster *r, uint32_t block);
/* The block's step is done: all places are empty again (frames that are left are freed). */
void roster_clear(struct roster *r, uint32_t block);

#endif
