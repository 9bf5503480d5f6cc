/* Checkpoint sets: named, held (exact ones), copied, written, complete. One at a time. One thread. Source:
 * DESIGN section 4, "checkpoint set". */
#ifndef SERVER_COORDINATOR_SETS_H
#define SERVER_COORDINATOR_SETS_H

#include "server/coordinator/state.h"

/* Names a set if one is due, moves the one in progress on. */
void sets_advance(struct coordinator *c);
void sets_receive_capsule(struct coordinator *c, struct member *m, const struct msg_capsule *p,
                          struct frame *payload);
/* The set in progress cannot be finished. */
void sets_fail(struct coordinator *c, const char *why);
void sets_done(struct coordinator *c, uint32_t set, int rc);
uint64_t sets_next(const struct coordinator *c);

json_t *sets_row(const struct coordinator *c);
int sets_apply(struct coordinator *c, const json_t *row);

#endif
