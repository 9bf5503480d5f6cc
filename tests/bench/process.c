#include "tests/bench/process.h"

#include "common/err.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT_S 900  /* no process of the bench lives longer */
#define CPUS    1024 /* that an affinity can name */

struct process process_start(void (*body)(const struct ends *e, const void *arg), const void *arg)
{
    int down[2], up[2];
    ASSERT(pipe(down) == 0 && pipe(up) == 0);
    fflush(stdout);
    pid_t parent = getpid();
    struct process p = {.pid = fork(), .to = down[1], .from = up[0]};
    ASSERT(p.pid >= 0);
    if (p.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        alarm(LIMIT_S);
        body(&(struct ends){down[0], up[1]}, arg);
        _exit(0);
    }
    close(down[0]);
    close(up[1]);
    return p;
}

void process_order(const struct process *p, const struct order *o)
{
    ASSERT(write(p->to, o, sizeof *o) == sizeof *o);
}

struct report process_report(const struct process *p)
{
    struct report r;
    if (read(p->from, &r, sizeof r) == sizeof r) return r;
    fprintf(stderr, "bench: a process of it has failed\n");
    exit(1);
}

struct report process_do(const struct process *p, enum order_type type, int what, uint32_t count)
{
    process_order(p, &(struct order){.type = type, .what = what, .count = count});
    return process_report(p);
}

bool process_stop(struct process *p)
{
    int status = 1;
    process_order(p, &(struct order){.type = ORDER_STOP});
    pid_t pid = waitpid(p->pid, &status, 0);
    close(p->to);
    close(p->from);
    return pid == p->pid && status == 0;
}

void process_kill(struct process *p)
{
    kill(p->pid, SIGKILL);
    waitpid(p->pid, NULL, 0);
    close(p->to);
    close(p->from);
}

void process_pin(bool to_last)
{
    static unsigned long all[CPUS / (8 * sizeof(long))]; /* before the first pin */
    unsigned long one[CPUS / (8 * sizeof(long))] = {0};
    const int bits = 8 * sizeof(long);
    if (!all[0]) syscall(SYS_sched_getaffinity, 0, sizeof all, all);
    int at = to_last ? CPUS - 1 : 0, step = to_last ? -1 : 1;
    while (at >= 0 && at < CPUS && !(all[at / bits] >> (at % bits) & 1)) at += step;
    if (at < 0 || at >= CPUS) return;
    one[at / bits] = 1ul << (at % bits);
    syscall(SYS_sched_setaffinity, 0, sizeof one, one);
}

bool process_next(const struct ends *e, bool waits, struct order *out)
{
    struct pollfd one = {.fd = e->orders, .events = POLLIN};
    if (!waits && poll(&one, 1, 0) <= 0) return false;
    if (read(e->orders, out, sizeof *out) != sizeof *out) _exit(1); /* the parent is gone */
    return true;
}

static uint64_t peak_kib(void)
{
    char line[128];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lu", &kib) == 1) break;
    if (f) fclose(f);
    return kib;
}

void process_tell(const struct ends *e, struct report *r)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    r->cpu_s = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
               (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
    r->faults = (uint64_t)u.ru_minflt;
    r->peak_kib = peak_kib();
    if (write(e->reports, r, sizeof *r) != sizeof *r) _exit(1);
}
