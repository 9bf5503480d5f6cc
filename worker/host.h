/* What this machine gives to a job: for `chorale doctor` and the log. Linux; what cannot be found out is ""
 * or 0. Plain data, any thread. */
#ifndef WORKER_HOST_H
#define WORKER_HOST_H

#include <stdint.h>

struct host {
    char name[65];
    char cpu[128];                       /* "AMD EPYC 7543 32-Core Processor" */
    char sets[128];                      /* "avx2 fma f16c": the instruction sets that matter here */
    int cores;                           /* that this process may use */
    uint64_t memory, memory_free;        /* bytes; free: what could be had without swapping */
    char huge_pages[16];                 /* transparent ones: "always", "madvise" or "never" */
    uint64_t open_files, open_files_max; /* limit of a process, and how far it may raise it */
    char libzmq[32], openblas[32];       /* versions; OpenBLAS with the kind of core that it took us for */
};

void host_read(struct host *out);
/* The event "plan": this CPU, and the kernels that every net of this process uses. */
void host_log_plan(void);

#endif
