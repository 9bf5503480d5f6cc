/* Piles of chunks and the table of grants: the changes of state themselves, the same whether they happen or
 * are read from rows. One thread. */
#ifndef SERVER_COORDINATOR_PILES_H
#define SERVER_COORDINATOR_PILES_H

#include "server/coordinator/state.h"

/* Names a chunk. */
struct place {
    uint32_t kind, where, chunk; /* as in struct lease */
};

/* NULL: there is no such pile (any more). */
struct pile *piles_find(struct coordinator *c, uint32_t kind, uint32_t where);
void piles_append(struct pile *p, const struct chunk *k);
void piles_free(struct pile *p);

/* NULL if there is none. Borrowed until the table changes. */
struct lease *piles_lease(struct coordinator *c, uint64_t id);
struct lease *piles_active(struct coordinator *c, const struct place *at);
void piles_remove_lease(struct coordinator *c, uint64_t id);
/* The pile is no more: so are its leases. */
void piles_forget(struct coordinator *c, uint32_t kind, uint32_t where);

/* at must exist. A chunk that is leased already goes to the new lease. */
void piles_set_leased(struct coordinator *c, const struct lease *l);
void piles_set_open(struct coordinator *c, const struct place *at);
/* id: the lease that did it; `after`: newest set named by then. */
void piles_set_used(struct coordinator *c, const struct place *at, uint64_t id, uint32_t after);

json_t *piles_row(const struct coordinator *c, const struct place *at, const struct chunk *k, uint32_t count);
/* Rows of a pile, equal neighbours as one. */
void piles_rows(struct coordinator *c, uint32_t kind, uint32_t where, json_t *into);
int piles_apply(struct coordinator *c, const json_t *row);

#endif
