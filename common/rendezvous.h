/* How the processes of a job find each other: RUN/members/coordinator {"endpoint", "job" (16 hex digits),
 * "incarnation", "pid", "start"}, written by the coordinator, read by everyone else. A process is named by
 * pid and start time (field 22 of /proc/PID/stat), never by its name. No state; any thread. Source: DESIGN
 * section 4, "Finding the job". */
#ifndef COMMON_RENDEZVOUS_H
#define COMMON_RENDEZVOUS_H

#include "common/msg.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct rendezvous {
    char endpoint[MSG_MAX_ENDPOINT];
    uint32_t incarnation; /* 0: not told */
    int64_t pid;          /* 0: not told */
};

/* The calling process is the coordinator. ERR_STORAGE. */
int rendezvous_publish(const char *run, const char *endpoint, uint64_t job, uint32_t incarnation);
void rendezvous_withdraw(const char *run);
/* False if nobody has published, or nothing that makes sense. */
bool rendezvous_find(const char *run, struct rendezvous *out);
bool rendezvous_same(const struct rendezvous *a, const struct rendezvous *b);
/* Start time of a living process in clock ticks since boot; 0 if there is none (a zombie counts as none). */
uint64_t rendezvous_process_start(pid_t pid);

#endif
