/* RUN/job.next.yaml, the changed job file that `chorale set` leaves for a running job: found, checked, told
 * to the core. It becomes RUN/job.yaml when the core says that the job is switched (config_take_next). One
 * thread. */
#ifndef SERVER_COORDINATOR_NEXT_H
#define SERVER_COORDINATOR_NEXT_H

#include "server/coordinator/coordinate.h"

#include <sys/stat.h>

/* Zeroed at the start. */
struct next {
    uint64_t look_at;     /* ns */
    struct stat seen;     /* of the file that was read last */
    bool is_there, waits; /* waits: the core knows */
};

/* About once a second; most calls do nothing. A file that makes no sense is told in the log and passed over.
 */
void next_look(struct next *n, const char *run, uint64_t now, struct coordinator *core);

#endif
