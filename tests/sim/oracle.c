#include "common/err.h"
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

struct oracle *oracle_new(uint32_t first, uint32_t blocks)
{
    struct oracle *o = xcalloc(1, sizeof *o);
    o->first = first;
    o->blocks = blocks;
    o->lists = xcalloc(blocks + 1ul, sizeof *o->lists);
    return o;
}

struct oracle *oracle_copy(const struct oracle *o)
{
    struct oracle *c = oracle_new(o->first, o->blocks);
    for (uint32_t b = 0; b < o->blocks; b++) {
        size_t n = o->lists[b].n;
        c->lists[b] = (struct oracle_list){xcalloc(n + 1, sizeof(struct oracle_entry)), n, n + 1,
                                           o->lists[b].updates, o->lists[b].frames};
        if (n > 0) memcpy(c->lists[b].entries, o->lists[b].entries, n * sizeof(struct oracle_entry));
    }
    return c;
}

void oracle_free(struct oracle **o)
{
    if (!*o) return;
    for (uint32_t b = 0; b < (*o)->blocks; b++) free((*o)->lists[b].entries);
    free((*o)->lists);
    free(*o);
    *o = NULL;
}

static struct oracle_list *list_of(const struct oracle *o, uint32_t block)
{
    ASSERT(block >= o->first && block - o->first < o->blocks);
    return &o->lists[block - o->first];
}

bool oracle_has(const struct oracle *o, uint32_t block, uint64_t member, uint64_t seq)
{
    const struct oracle_list *l = list_of(o, block);
    for (size_t i = l->n; i-- > 0;)
        if (l->entries[i].member == member && l->entries[i].seq == seq) return true;
    return false;
}

void oracle_add(struct oracle *o, uint32_t block, uint64_t member, uint64_t seq)
{
    struct oracle_list *l = list_of(o, block);
    if (l->n == l->capacity) {
        l->capacity = 2 * l->capacity + 8;
        l->entries = realloc(l->entries, l->capacity * sizeof *l->entries);
        ASSERT(l->entries);
    }
    l->entries[l->n++] = (struct oracle_entry){member, seq};
}
