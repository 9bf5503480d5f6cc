/* How the job stands, for people: RUN/status.json. One thread. */
#ifndef SERVER_COORDINATOR_PUBLISH_H
#define SERVER_COORDINATOR_PUBLISH_H

#include <stdint.h>

#define PUBLISH_LEFT 16 /* workers that left and are still told */

/* RUN/status.json, with a memory: what the status of this moment lacks because its process has left is told
 * as it was known last. A shard keeps version, staleness and counts until its server tells new ones, also
 * those of an earlier life of the job; a worker that left stays for a while as state "left", those of an
 * earlier life until somebody computes in this one. */
struct publisher;
struct publisher *publish_new(const char *run); /* takes up the status.json that is there, if any */
void publish_free(struct publisher **p);
/* text: of coordinate_status; now in ns. A failure costs nothing but this one. */
void publish_status(struct publisher *p, uint64_t now, const char *text);

#endif
