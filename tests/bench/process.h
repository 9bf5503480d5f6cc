/* Child processes that do what they are told: an order goes down one pipe, a report comes back by another.
 * Each ends with the bench, whatever becomes of it. */
#ifndef BENCH_PROCESS_H
#define BENCH_PROCESS_H

#include "common/msg.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum order_type { ORDER_LOOK, ORDER_RUN, ORDER_STOP };

struct order {
    enum order_type type;
    int what;       /* which of the things that the process can do */
    uint32_t count; /* so many times; of a crowd: each worker's exchanges; 0: until seconds are over */
    double seconds;
    uint32_t sleep_ms; /* of a crowd: in the place of computing */
};

struct report {
    char endpoint[MSG_MAX_ENDPOINT]; /* the first report of a server */
    uint64_t begin_ns, end_ns;       /* of a RUN, on the clock that all processes share */
    uint64_t count;                  /* of what was done: exchanges, frames */
    double p50_us;                   /* of one exchange */
    double busy;                     /* of a RUN: the share of its time that it had a CPU */
    uint64_t bytes, resent;          /* a crowd, since it began: payload both ways, blocks */
    uint64_t applied, low, high;     /* a server, since it began: blocks; smallest and largest version */
    uint32_t stale50, stale95;
    double cpu_s; /* the process so far */
    uint64_t faults, peak_kib;
};

struct process {
    pid_t pid;
    int to, from;
};

/* The child's ends. */
struct ends {
    int orders, reports;
};

/* The parent must have no other thread. body returns when it is told to stop. */
struct process process_start(void (*body)(const struct ends *e, const void *arg), const void *arg);
void process_order(const struct process *p, const struct order *o);
struct report process_report(const struct process *p);
struct report process_do(const struct process *p, enum order_type type, int what, uint32_t count);
/* False: it has failed. */
bool process_stop(struct process *p);
void process_kill(struct process *p);

/* In the child: this thread and its later ones stay on the first CPU (a server) or the last one (a worker),
 * as on two hosts. Otherwise it is the scheduler that is measured: with all threads of bare libzmq on one CPU
 * nothing has to go from one to the other. */
void process_pin(bool to_last);
/* In the child: the next order. False, if it does not wait: there is none. */
bool process_next(const struct ends *e, bool waits, struct order *out);
/* Fills in what the process has used so far. */
void process_tell(const struct ends *e, struct report *r);

#endif
