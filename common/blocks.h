/* The cut of the parameter vector into blocks, the unit of exchange, and of blocks into shards. A function of
 * P and of the number of shards alone. Source: DESIGN section 2. Plain data, any thread. */
#ifndef COMMON_BLOCKS_H
#define COMMON_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#define BLOCKS_MIN_FLOATS 16384  /* 64 KiB of fp32: smaller ones cost more in messages than in numbers */
#define BLOCKS_MAX_FLOATS 262144 /* 1 MiB of fp32 */

struct blocks {
    size_t params; /* P */
    uint32_t size; /* floats of every block but the last, a multiple of 16 */
    uint32_t count;
};

/* size = clamp(P / 16, BLOCKS_MIN_FLOATS, BLOCKS_MAX_FLOATS) rounded up to 16; params >= 1. */
void blocks_cut(size_t params, struct blocks *out);
/* First float of a block (block == count gives P), and its floats. */
size_t blocks_offset(const struct blocks *b, uint32_t block);
uint32_t blocks_floats(const struct blocks *b, uint32_t block);
/* Floats of blocks [from, to), from <= to <= count: also the place of block `to` in a vector that begins with
 * block `from`, as that of a shard does. */
size_t blocks_span(const struct blocks *b, uint32_t from, uint32_t to);
/* Shard k of n owns blocks [first, first + count), count may be 0 if n > blocks; 1 <= n, k < n. */
void blocks_of_shard(const struct blocks *b, uint32_t n, uint32_t k, uint32_t *first, uint32_t *count);
uint32_t blocks_owner(const struct blocks *b, uint32_t n, uint32_t block);

#endif
