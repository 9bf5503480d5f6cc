/* What the members are told: orders (the whole wanted state, level-triggered), the bsp roster, the map of the
 * shards, the pages of a capsule. One thread. Source: DESIGN section 4. */
#ifndef SERVER_COORDINATOR_ORDERS_H
#define SERVER_COORDINATOR_ORDERS_H

#include "server/coordinator/state.h"

/* bsp: once all are there. ssp: whenever the workers change that have training data in hand; there may be
 * none.
 */
void orders_issue_roster(struct coordinator *c);
void orders_send(struct coordinator *c, struct member *m);
/* To each member whose order changed. */
void orders_send_changed(struct coordinator *c);
void orders_receive_map_ask(struct coordinator *c, const struct member *m, uint32_t first);
void orders_receive_capsule_ask(struct coordinator *c, struct member *m, uint64_t offset);

#endif
