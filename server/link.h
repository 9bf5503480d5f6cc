/* A server's tie to the coordinator: finds it (RUN/members/coordinator, read again every second), JOINs until
 * JOINED, BEATs about once a second and at once when something changed, hands ORDERs up. Everything it says
 * is said again, so losses heal; what a coordinator of a lower incarnation says is ignored. One thread.
 * Source: DESIGN section 4. */
#ifndef SERVER_LINK_H
#define SERVER_LINK_H

#include "common/msg.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdint.h>

struct link_options {
    const char *run;
    const char *coordinator; /* endpoint; NULL: RUN/members/coordinator says it */
    const char *endpoint;    /* our own */
    uint64_t job, model_hash;
    uint32_t shard;
    uint32_t restored_set; /* after a fall: the set our weights are from; else 0 */
};

enum link_news { LINK_NOTHING, LINK_JOINED, LINK_ORDER };

struct link;

/* Strings are borrowed for life. */
struct link *link_new(const struct link_options *o, struct wire *w, uint64_t now);
void link_free(struct link **l);
/* Is it time to look for the coordinator, to join, or to beat with what `is`? */
bool link_is_due(const struct link *l, uint64_t now, const struct msg_beat *is);
/* Does it. `is` is ours but for role, member and incarnation, which are filled in. */
void link_tick(struct link *l, uint64_t now, const struct msg_beat *is);
/* The wire's link to the coordinator. */
bool link_owns(const struct link *l, int wire_link);
/* A message from it: enum link_news, or negative: leave with that (refused, another model). */
int link_receive(struct link *l, uint64_t now, const struct msg *m);
/* Says LEAVE, as often as it is called. */
void link_leave(struct link *l);
/* What it said when we joined first. */
const struct msg_joined *link_joined(const struct link *l);
/* ns since the coordinator was last heard, or since the start. */
uint64_t link_silence(const struct link *l, uint64_t now);

#endif
