#include "server/clocks.h"

#include "common/err.h"
#include "server/admit.h"

#include <stdlib.h>
#include <string.h>

void clocks_init(struct clocks *c, uint32_t blocks)
{
    *c = (struct clocks){.blocks = blocks};
    /* + 1: nothing is asked of the allocator for nothing */
    c->members = xcalloc(1, sizeof *c->members);
    c->clock = xcalloc(1, sizeof *c->clock);
    c->least = xcalloc((size_t)blocks + 1, sizeof *c->least);
    c->largest = xcalloc((size_t)blocks + 1, sizeof *c->largest);
}

void clocks_fini(struct clocks *c)
{
    free(c->members);
    free(c->clock);
    free(c->least);
    free(c->largest);
    *c = (struct clocks){.blocks = 0};
}

/* Row of a member, or -1. */
static int64_t find(const struct clocks *c, uint64_t member)
{
    uint32_t row = admit_lower_bound(c->members, c->num_members, member);
    return row < c->num_members && c->members[row] == member ? (int64_t)row : -1;
}

/* Of what is there; nobody: the largest ever. */
static uint64_t least_of(const struct clocks *c, uint32_t block)
{
    uint64_t least = c->num_members > 0 ? UINT64_MAX : c->largest[block];
    for (uint32_t k = 0; k < c->num_members; k++) {
        uint64_t clock = c->clock[(size_t)k * c->blocks + block];
        if (clock < least) least = clock;
    }
    return least;
}

/* Keeps the rows of those that are among the n sorted ones. */
static void keep_rows(struct clocks *c, const uint64_t *members, uint32_t n)
{
    uint32_t kept = 0, at = 0;
    for (uint32_t k = 0; k < c->num_members; k++) {
        while (at < n && members[at] < c->members[k]) at++;
        if (at == n || members[at] != c->members[k]) continue;
        c->members[kept] = c->members[k];
        memmove(c->clock + (size_t)kept * c->blocks, c->clock + (size_t)k * c->blocks,
                c->blocks * sizeof *c->clock);
        kept++;
    }
    c->num_members = kept;
    for (uint32_t b = 0; b < c->blocks; b++) c->least[b] = least_of(c, b);
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The members in rising order, each once; owned by the caller. */
static uint64_t *sorted(const uint64_t *members, uint32_t *n)
{
    uint64_t *all = xcalloc((size_t)*n + 1, sizeof *all);
    uint32_t kept = 0;
    if (*n > 0) memcpy(all, members, *n * sizeof *all);
    qsort(all, *n, sizeof *all, by_number);
    for (uint32_t k = 0; k < *n; k++)
        if (kept == 0 || all[kept - 1] != all[k]) all[kept++] = all[k];
    *n = kept;
    return all;
}

void clocks_set(struct clocks *c, const uint64_t *members, uint32_t n)
{
    uint64_t *all = sorted(members, &n);
    keep_rows(c, all, n);
    uint64_t *clock = xcalloc((size_t)n * c->blocks + 1, sizeof *clock);
    for (uint32_t k = 0; k < n; k++) {
        int64_t row = find(c, all[k]);
        const uint64_t *from = row < 0 ? c->least : c->clock + (size_t)row * c->blocks;
        memcpy(clock + (size_t)k * c->blocks, from, c->blocks * sizeof *clock);
    }
    free(c->members);
    free(c->clock);
    c->members = all;
    c->clock = clock;
    c->num_members = n;
}

void clocks_drop_below(struct clocks *c, uint64_t oldest)
{
    uint32_t gone = 0;
    while (gone < c->num_members && c->members[gone] < oldest) gone++;
    if (gone > 0) clocks_set(c, c->members + gone, c->num_members - gone);
}

bool clocks_advance(struct clocks *c, uint64_t member, uint32_t block)
{
    int64_t row = find(c, member);
    if (row < 0) return false;
    uint64_t *clock = &c->clock[(size_t)row * c->blocks + block];
    bool was_least = *clock == c->least[block];
    if (++*clock > c->largest[block]) c->largest[block] = *clock;
    if (!was_least) return false;
    uint64_t before = c->least[block];
    c->least[block] = least_of(c, block);
    return c->least[block] > before;
}

void clocks_lower(struct clocks *c, uint64_t member, uint32_t block, uint64_t bound)
{
    if (!clocks_is_ahead(c, member, block, bound)) return;
    c->clock[(size_t)find(c, member) * c->blocks + block] = c->least[block] + bound;
}

bool clocks_is_ahead(const struct clocks *c, uint64_t member, uint32_t block, uint64_t bound)
{
    int64_t row = find(c, member);
    return row >= 0 && c->clock[(size_t)row * c->blocks + block] - c->least[block] > bound;
}
