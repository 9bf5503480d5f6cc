/* The processes of one job on this machine: starts coordinator, servers and workers, keeps them running, ends
 * them all. What a death costs: async: a worker or server is started again alone, the coordinator comes back
 * from its journal; bsp, and where the coordinator asks for it: everything is started again and restores the
 * newest set; so it is, without being counted as a fall, when the job file was changed (chorale set). One
 * thread, no busy waiting. Source: DESIGN sections 4 and 6. */
#ifndef DEPLOY_LAUNCH_H
#define DEPLOY_LAUNCH_H

#include "deploy/progress.h"

#include <stdbool.h>
#include <stdint.h>

#define LAUNCH_RESTARTS 10 /* of one process, or of everything, in LAUNCH_WINDOW_S */
#define LAUNCH_WINDOW_S 600
#define LAUNCH_RESTORE  76 /* exit status of a coordinator that asks for everything to be started again */
#define LAUNCH_SWITCH   77 /* so it does, for RUN/job.yaml has changed */

struct launch_options {
    const char *run;      /* borrowed, as is all below */
    const char *programs; /* folder of chorale-coordinator and the others */
    uint32_t servers, workers;
    bool bsp; /* at the start; after a switch RUN/job.yaml tells */
    uint64_t job;
    int signal_fd; /* of child_catch_signals */
    struct progress *progress;
};

/* Workers of a job that names no number (cluster.workers 0): one for each `threads` cores that the servers
 * leave, at least one. */
int launch_workers(int cores, int servers, int threads);
/* Runs the job to its end: 0 done, ERR_INTERRUPTED after INT, TERM or HUP (the job can be resumed), another
 * negative enum err with a sentence otherwise. No child is left when it returns. */
int launch_run(const struct launch_options *o);

#endif
