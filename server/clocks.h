/* ssp: how many pushes of each block every member that counts has made, and who is too far ahead of the
 * slowest of them. A newcomer starts beside the slowest. Plain structure, one thread. Source: Ho 2013;
 * DESIGN section 2. */
#ifndef SERVER_CLOCKS_H
#define SERVER_CLOCKS_H

#include <stdbool.h>
#include <stdint.h>

struct clocks {
    uint32_t blocks, num_members;
    uint64_t *members;         /* (num_members), rising, owned: those that count */
    uint64_t *clock;           /* (num_members, blocks), owned */
    uint64_t *least, *largest; /* (blocks), owned: least over members; largest ever */
};

void clocks_init(struct clocks *c, uint32_t blocks);
void clocks_fini(struct clocks *c);
/* Who counts from now on, in any order; n may be 0. A newcomer gets, per block, the least clock of those that
 * stay; if nobody stays, the largest ever. */
void clocks_set(struct clocks *c, const uint64_t *members, uint32_t n);
/* Members below `oldest` no longer count. */
void clocks_drop_below(struct clocks *c, uint64_t oldest);
/* One more push of the block (from 0). True: the least clock of the block rose. A member that does not count
 * changes nothing. */
bool clocks_advance(struct clocks *c, uint64_t member, uint32_t block);
/* A member that is further ahead than the bound is there from now on, as if it had pushed less. */
void clocks_lower(struct clocks *c, uint64_t member, uint32_t block, uint64_t bound);
/* More than `bound` ahead of the least? A member that does not count never is. */
bool clocks_is_ahead(const struct clocks *c, uint64_t member, uint32_t block, uint64_t bound);

#endif
