/* Leases: chunks granted in order, reported used, opened again. Every change is journaled before it is told.
 * One thread. Source: DESIGN section 4, "lease". */
#ifndef SERVER_COORDINATOR_LEASES_H
#define SERVER_COORDINATOR_LEASES_H

#include "server/coordinator/state.h"

void leases_receive_ask(struct coordinator *c, struct member *m, const struct msg_lease_ask *a);
void leases_receive_used(struct coordinator *c, struct member *m, const struct msg_used *u);
/* Those of a member that is gone. */
void leases_open_of(struct coordinator *c, uint64_t member);
/* After the rows. restored: every lease waits for the worker that gets its rank; else those of unknown
 * members are open. */
void leases_start(struct coordinator *c, bool restored);
/* After a restore, once the capsules are known: leases without one are open. */
void leases_settle(struct coordinator *c);
/* Leases that waited become those of the worker that got the rank. */
void leases_claim(struct coordinator *c, const struct member *m);
/* Does one worker train alone still? Told in the log when it begins and ends. */
void leases_check_warm(struct coordinator *c);
/* bsp: the asks that waited for the roster. */
void leases_answer_deferred(struct coordinator *c);
/* Used chunks that a server restored from `set` may have lost are open again. */
void leases_reopen_after(struct coordinator *c, uint32_t set);

#endif
