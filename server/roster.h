/* bsp: who steps together, and the pushed blocks that wait for the others. A block of the roster is complete
 * when every member's push of it is here, refused ones included: those add nothing. Source: DESIGN section 2.
 * One thread. */
#ifndef SERVER_ROSTER_H
#define SERVER_ROSTER_H

#include "common/msg.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdint.h>

struct held {
    bool here;
    uint32_t verdict;    /* APPLIED, or why it was refused: told with the weights of the step */
    struct frame *frame; /* the gradient, owned; NULL unless APPLIED */
    struct msg_push push;
    uint64_t peer; /* whom to answer: who sent it last */
};

struct roster {
    uint32_t id; /* 0: none yet */
    uint32_t num_members, blocks;
    uint64_t *members; /* (num_members) in rank order, owned */
    struct held *held; /* (blocks, num_members), owned */
    uint32_t *arrived; /* (blocks), owned */
};

void roster_init(struct roster *r, uint32_t blocks);
void roster_fini(struct roster *r);
/* A new roster; what was held is dropped. The same id again, or a lower one, changes nothing. */
void roster_set(struct roster *r, uint32_t id, const uint64_t *members, uint32_t n);
/* Rank of a member, or -1. */
int64_t roster_rank(const struct roster *r, uint64_t member);
/* The pushes of a block in rank order, (num_members). block counts from the shard's first. */
struct held *roster_block(const struct roster *r, uint32_t block);
/* Holds a push in an empty place. Takes *frame if verdict is APPLIED. True if the block is now complete. */
bool roster_hold(struct roster *r, uint32_t block, uint32_t rank, const struct held *h, struct frame **frame);
/* The sum of the block's good gradients (n floats each) in rank order, in the frame of the first of them;
 * mean: divided by their number. NULL: there is none. *frames: the frames they stand for. */
float *roster_sum(struct roster *r, uint32_t block, size_t n, bool mean, uint64_t *frames);
/* The block's step is done: all places are empty again (frames that are left are freed). */
void roster_clear(struct roster *r, uint32_t block);

#endif
