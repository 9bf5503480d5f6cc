#include "common/blocks.h"

#include "common/err.h"

void blocks_cut(size_t params, struct blocks *out)
{
    ASSERT(params > 0);
    size_t size = params / 16;
    if (size < BLOCKS_MIN_FLOATS) size = BLOCKS_MIN_FLOATS;
    if (size > BLOCKS_MAX_FLOATS) size = BLOCKS_MAX_FLOATS;
    size = (size + 15) / 16 * 16;
    out->params = params;
    out->size = (uint32_t)size;
    out->count = (uint32_t)((params + size - 1) / size);
}

size_t blocks_offset(const struct blocks *b, uint32_t block)
{
    ASSERT(block <= b->count);
    return block == b->count ? b->params : (size_t)block * b->size;
}

uint32_t blocks_floats(const struct blocks *b, uint32_t block)
{
    return (uint32_t)blocks_span(b, block, block + 1);
}

size_t blocks_span(const struct blocks *b, uint32_t from, uint32_t to)
{
    ASSERT(from <= to);
    return blocks_offset(b, to) - blocks_offset(b, from);
}

static uint32_t shard_begin(const struct blocks *b, uint32_t n, uint32_t k)
{
    return (uint32_t)((uint64_t)k * b->count / n);
}

void blocks_of_shard(const struct blocks *b, uint32_t n, uint32_t k, uint32_t *first, uint32_t *count)
{
    ASSERT(k < n);
    *first = shard_begin(b, n, k);
    *count = shard_begin(b, n, k + 1) - *first;
}

uint32_t blocks_owner(const struct blocks *b, uint32_t n, uint32_t block)
{
    ASSERT(block < b->count);
    uint32_t k = (uint32_t)((uint64_t)block * n / b->count);
    while (shard_begin(b, n, k + 1) <= block) k++;
    return k;
}
