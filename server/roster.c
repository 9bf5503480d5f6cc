#include "server/roster.h"

#include "common/err.h"
#include "server/update.h"

#include <stdlib.h>
#include <string.h>

void roster_init(struct roster *r, uint32_t blocks)
{
    *r = (struct roster){.blocks = blocks};
}

void roster_fini(struct roster *r)
{
    for (uint32_t b = 0; b < r->blocks && r->held; b++) roster_clear(r, b);
    free(r->members);
    free(r->ticket);
    free(r->held);
    free(r->arrived);
    free(r->quorum);
    free(r->steps);
    roster_init(r, r->blocks);
}

void roster_set(struct roster *r, const uint64_t *members, uint32_t n)
{
    ASSERT(n > 0);
    roster_fini(r);
    r->num_members = n;
    r->members = xcalloc(n, sizeof *r->members);
    r->ticket = xcalloc(n, sizeof *r->ticket);
    r->held = xcalloc((size_t)n * r->blocks + 1, sizeof *r->held);
    r->arrived = xcalloc((size_t)r->blocks + 1, sizeof *r->arrived);
    r->quorum = xcalloc((size_t)r->blocks + 1, sizeof *r->quorum);
    r->steps = xcalloc((size_t)r->blocks + 1, sizeof *r->steps);
    memcpy(r->members, members, n * sizeof *r->members);
}

int64_t roster_rank(const struct roster *r, uint64_t member)
{
    for (uint32_t k = 0; k < r->num_members; k++)
        if (r->members[k] == member) return k;
    return -1;
}

struct held *roster_block(const struct roster *r, uint32_t block)
{
    ASSERT(block < r->blocks);
    return r->held + (size_t)block * r->num_members;
}

bool roster_hold(struct roster *r, uint32_t block, uint32_t rank, const struct held *h, uint32_t quorum,
                 struct frame **frame)
{
    struct held *place = roster_block(r, block) + rank;
    ASSERT(rank < r->num_members && !place->here);
    *place = *h;
    place->here = true;
    place->frame = NULL;
    if (h->verdict == VERDICT_APPLIED) {
        place->frame = *frame;
        *frame = NULL;
    }
    if (r->arrived[block]++ == 0) r->quorum[block] = quorum;
    return r->arrived[block] == r->quorum[block];
}

/* A held gradient as floats: fp32 where it lies, other types in `to`. */
static float *floats_of(struct frame *f, enum element_type type, size_t n, float *to)
{
    if (type == ELEMENT_FP32) return frame_data(f);
    element_decode(type, frame_data(f), n, to);
    return to;
}

float *roster_sum(struct roster *r, uint32_t block, enum element_type type, size_t n, bool mean,
                  float *scratch, uint64_t *frames)
{
    struct held *h = roster_block(r, block);
    float *sum = NULL;
    uint32_t count = 0;
    *frames = 0;
    for (uint32_t k = 0; k < r->num_members; k++) {
        if (!h[k].frame) continue;
        *frames += h[k].push.frames;
        if (count++ == 0)
            sum = floats_of(h[k].frame, type, n, scratch);
        else
            update_add(sum, floats_of(h[k].frame, type, n, scratch ? scratch + n : NULL), n);
    }
    if (mean && count > 1) update_divide(sum, (float)count, n); /* one gradient keeps its bits */
    return sum;
}

uint64_t roster_steps(const struct roster *r, uint32_t block)
{
    return r->steps ? r->steps[block] : 0;
}

void roster_clear(struct roster *r, uint32_t block)
{
    struct held *h = roster_block(r, block);
    for (uint32_t k = 0; k < r->num_members; k++) {
        if (h[k].frame) frame_free(&h[k].frame);
        h[k].here = false;
    }
    r->arrived[block] = 0;
    r->steps[block]++;
}
