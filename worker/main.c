/* chorale-worker RUN [--coordinator tcp://HOST:PORT]: one worker of a job. Needs nothing but the run
 * directory and the data; ends by itself when the job does. */
#include "common/clock.h"
#include "common/err.h"
#include "common/log.h"
#include "common/wire.h"
#include "worker/train.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define REJOIN_MS 500 /* before a retired worker joins anew */

static volatile sig_atomic_t stop_asked;
static int stop_fd = -1;

static void on_term(int signal)
{
    (void)signal;
    const uint64_t one = 1;
    stop_asked = 1;
    if (write(stop_fd, &one, sizeof one) < 0) stop_asked = 1; /* it is full: the wait ends all the same */
}

/* TERM ends the worker, once. INT is left to the launcher: a terminal sends it to all at once, and the
 * workers are needed for the last checkpoint. */
static void catch_signals(void)
{
    struct sigaction term = {.sa_handler = on_term}, ignore = {.sa_handler = SIG_IGN};
    stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sigaction(SIGTERM, &term, NULL);
    sigaction(SIGINT, &ignore, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

static int usage(FILE *to)
{
    fprintf(to, "usage: chorale-worker RUN [--coordinator tcp://HOST:PORT]\n"
                "One worker of the job in the directory RUN. Without --coordinator it waits for "
                "RUN/members/coordinator.\n"
                "exit: 0 done, 2 usage, 3 data, 4 cannot reach the coordinator, 5 model or version mismatch, "
                "6 diverged, 75 interrupted\n");
    return to == stdout ? 0 : err_exit_code(ERR_USAGE);
}

static int run_once(const struct job *j, const char *endpoint)
{
    struct links *l = NULL;
    int rc = links_open(j, endpoint, stop_fd, &l);
    if (rc < 0) return rc;
    struct train *t = train_new(j, l, &stop_asked);
    rc = train_run(t);
    links_close(&l);
    train_free(&t);
    return rc;
}

static int run(const char *path, const char *endpoint)
{
    struct job j;
    log_open("worker", 0, path, NULL);
    int rc = job_load(path, &j);
    if (rc < 0) return rc;
    while ((rc = run_once(&j, endpoint)) == ERR_AGAIN && !stop_asked) {
        log_event(LOG_WARN, "rejoin", NULL);
        clock_sleep_ms(REJOIN_MS);
    }
    job_fini(&j);
    return rc == ERR_AGAIN ? err_set(ERR_INTERRUPTED, "stopped by a signal") : rc;
}

int main(int argc, char **argv)
{
    const char *path = NULL, *endpoint = NULL;
    wire_keep_pages();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) return usage(stdout);
        if (strcmp(argv[i], "--coordinator") == 0 && i + 1 < argc)
            endpoint = argv[++i];
        else if (argv[i][0] == '-' || path)
            return usage(stderr);
        else
            path = argv[i];
    }
    if (!path) return usage(stderr);
    catch_signals();
    int rc = run(path, endpoint);
    int status = rc < 0 ? err_report("chorale-worker", rc) : 0;
    log_close();
    return status;
}
