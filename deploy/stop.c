/* chorale stop: TERM to the launcher of a run, which checkpoints and ends all of its processes. */
#include "common/clock.h"
#include "common/err.h"
#include "common/rendezvous.h"
#include "deploy/run.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_MS 50

static int print_help(void)
{
    puts("chorale stop RUN [--timeout SECONDS]\n"
         "\n"
         "  chorale stop run1\n"
         "\n"
         "Asks the job that runs in RUN to write a checkpoint and end, and waits for that\n"
         "(default 120 seconds). `chorale train RUN` resumes it.\n"
         "Exit status: 0 it has ended, 1 not yet, 4 nothing runs.");
    return 0;
}

static int parse_seconds(const char *text, double *out)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= 0 && v <= 86400))
        return err_set(ERR_USAGE, "--timeout must be a number of 0 to 86400 seconds, not '%.40s'", text);
    *out = v;
    return 0;
}

/* Returns 1 if help was asked for. */
static int parse_arguments(int argc, char **argv, const char **run, double *timeout_s)
{
    static const struct option names[] = {
        {"timeout", required_argument, NULL, 't'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    int rc = 0;
    opterr = 0;
    for (int c; rc == 0 && (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 't')
            rc = parse_seconds(optarg, timeout_s);
        else if (c == 'h')
            return 1;
        else
            rc = err_set(ERR_USAGE, "'%.80s' is not an option, or wants a value; see `chorale stop --help`",
                         argv[optind - 1]);
    }
    if (rc == 0 && optind + 1 != argc) rc = err_set(ERR_USAGE, "name one run: chorale stop RUN");
    if (rc == 0) *run = argv[optind];
    return rc;
}

/* Waits until that very process has gone. */
static int wait_gone(const char *run, pid_t pid, uint64_t start, double timeout_s)
{
    uint64_t begin = clock_now_ns(), limit = (uint64_t)(timeout_s * 1e9);
    while (rendezvous_process_start(pid) == start) {
        if (clock_now_ns() - begin >= limit)
            return err_set(ERR_FAIL,
                           "%s is still stopping (process %ld) after %g s; run this again to wait longer",
                           run, (long)pid, timeout_s);
        clock_sleep_ms(POLL_MS);
    }
    printf("%s has stopped (process %ld, after %.1f s); %s train %s resumes it\n", run, (long)pid,
           (double)(clock_now_ns() - begin) / 1e9, run_command(), run);
    return 0;
}

static int stop(const char *run, double timeout_s)
{
    pid_t pid = 0;
    uint64_t start = 0;
    int rc = run_check(run);
    if (rc == 0) rc = run_launcher(run, &pid, &start);
    if (rc < 0) return rc;
    if (rc == 0) return err_set(ERR_REACH, "nothing runs in %s on this machine", run);
    if (kill(pid, SIGTERM) < 0 && errno != ESRCH)
        return err_set(ERR_FAIL, "cannot stop process %ld of %s: %s", (long)pid, run, strerror(errno));
    return wait_gone(run, pid, start, timeout_s);
}

int main(int argc, char **argv)
{
    const char *run = NULL;
    double timeout_s = 120;
    int rc = parse_arguments(argc, argv, &run, &timeout_s);
    if (rc == 1)
        rc = print_help();
    else if (rc == 0)
        rc = stop(run, timeout_s);
    return err_report("chorale stop", rc);
}
