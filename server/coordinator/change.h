/* A change of a running job, between two epochs: the next epoch is held back until everything before it is
 * done and in a set; then all start again from that set, with the changed job. One thread. */
#ifndef SERVER_COORDINATOR_CHANGE_H
#define SERVER_COORDINATOR_CHANGE_H

#include "server/coordinator/state.h"

/* No lease is granted of this epoch (from 0) or a later one; UINT32_MAX: none is held back. */
uint32_t change_from(const struct coordinator *c);
/* There is another epoch for the changed job. */
bool change_has_epoch(const struct coordinator *c);
/* A change waits, and all before change_from has turned and has its dev result. */
bool change_is_settled(const struct coordinator *c);
/* Leaves, once a complete set holds that. */
void change_check(struct coordinator *c);

#endif
