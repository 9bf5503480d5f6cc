/* What the coordinator tells through files of the run directory: where it is, and how the job stands. One
 * thread. Source: DESIGN section 4, "Finding the job". */
#ifndef SERVER_COORDINATOR_PUBLISH_H
#define SERVER_COORDINATOR_PUBLISH_H

#include <stdint.h>

/* RUN/members/coordinator {"endpoint", "job" (16 hex digits), "incarnation", "pid", "start"}. ERR_STORAGE. */
int publish_endpoint(const char *run, const char *endpoint, uint64_t job, uint32_t incarnation);
void publish_withdraw(const char *run);
/* RUN/status.json; a failure costs nothing but this one. */
void publish_status(const char *run, const char *text);

#endif
