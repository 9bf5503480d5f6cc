/* Members and the seats of the shards: joining, silence, leaving. One thread. Source: DESIGN section 4,
 * "member". */
#ifndef SERVER_COORDINATOR_MEMBERS_H
#define SERVER_COORDINATOR_MEMBERS_H

#include "server/coordinator/state.h"

struct member *members_find(const struct coordinator *c, uint64_t number);
/* Live worker of a rank, NULL if there is none. */
struct member *members_of_rank(const struct coordinator *c, uint32_t rank);
/* Frames that the workers of this life computed, as their beats tell them; of those that left, too. */
uint64_t members_frames(const struct coordinator *c);
uint32_t members_workers(const struct coordinator *c);
/* Workers whose gradients come without waiting for each other; in bsp 0. */
uint32_t members_training(const struct coordinator *c);
/* All shards have had a server in this life (the map is complete); and have one now. */
bool members_map_complete(const struct coordinator *c);
bool members_all_seated(const struct coordinator *c);

void members_receive_join(struct coordinator *c, uint64_t peer, const struct msg_join *j);
void members_receive_beat(struct coordinator *c, struct member *m, const struct msg_beat *b);
void members_receive_gone(struct coordinator *c, const struct msg_gone *g);
/* Its leases open again; of a server, its seat is empty. */
void members_retire(struct coordinator *c, struct member *m, const char *why);
void members_expire(struct coordinator *c);
uint64_t members_next(const struct coordinator *c);
void members_free(struct member *m);

json_t *members_row(const struct member *m);
json_t *members_seat_row(const struct coordinator *c, uint32_t shard);
int members_apply(struct coordinator *c, const json_t *row);
int members_apply_seat(struct coordinator *c, const json_t *row, bool counters);

#endif
