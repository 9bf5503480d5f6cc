#include "deploy/child.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TAIL_BYTES 4096

char *child_programs(void)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) {
        err_set(ERR_FAIL, "cannot find the directory of this program: /proc is not mounted");
        return NULL;
    }
    self[n] = '\0';
    return xstrdup(dirname(self));
}

/* ------------------------------------------------------------------ signals */

static const int caught[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP};
#define NUM_CAUGHT (sizeof caught / sizeof caught[0])

static int signal_pipe[2] = {-1, -1};

/* Not a signalfd: a library that has started threads of its own (OpenBLAS does, when it is loaded) would take
 * blocked signals there, with their default action. A handler may run on any thread. */
static void on_signal(int number)
{
    int before = errno;
    char what = number == SIGCHLD ? 'c' : 's';
    if (write(signal_pipe[1], &what, 1) < 0) errno = before; /* full: enough is waiting there already */
    errno = before;
}

int child_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;
    if (signal_pipe[0] < 0 && pipe(signal_pipe) != 0)
        return err_set(ERR_FAIL, "no pipe to wait for signals: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        fcntl(signal_pipe[i], F_SETFD, FD_CLOEXEC);
        fcntl(signal_pipe[i], F_SETFL, O_NONBLOCK);
    }
    signal(SIGPIPE, SIG_IGN);
    sigfillset(&action.sa_mask);
    for (size_t i = 0; i < NUM_CAUGHT; i++) {
        /* what nohup or a background shell ignores stays so; an ignored CHLD would eat our children */
        if (caught[i] != SIGCHLD && sigaction(caught[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN)
            continue;
        sigaction(caught[i], &action, NULL);
    }
    return signal_pipe[0];
}

bool child_take_signals(int signal_fd)
{
    char what[64];
    bool stop = false;
    for (ssize_t n; (n = read(signal_fd, what, sizeof what)) > 0;)
        if (memchr(what, 's', (size_t)n)) stop = true;
    return stop;
}

/* A fork whose child has no handler of ours before any signal can reach it. */
static pid_t fork_quietly(pid_t *parent)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    *parent = getpid();
    pid_t pid = fork();
    if (pid != 0) pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pid;
}

/* In the child, between fork and exec: only calls that are safe there. */
static void become_ordinary(pid_t parent, int death_signal)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    for (size_t i = 0; i < NUM_CAUGHT; i++) signal(caught[i], SIG_DFL);
    prctl(PR_SET_PDEATHSIG, death_signal);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (getppid() != parent) _exit(126); /* it died before it could be watched */
}

/* ------------------------------------------------------------------ starting */

static void run_child(const char *const *words, pid_t parent, int death_signal, int null_fd, int err_fd)
{
    setpgid(0, 0);
    become_ordinary(parent, death_signal);
    if (dup2(null_fd, STDIN_FILENO) < 0 || dup2(err_fd, STDOUT_FILENO) < 0 || dup2(err_fd, STDERR_FILENO) < 0)
        _exit(126);
    execv(words[0], (char *const *)words);
    static const char sorry[] = "cannot be run; build or install it beside chorale\n";
    if (write(STDERR_FILENO, words[0], strlen(words[0])) < 0 || write(STDERR_FILENO, " ", 1) < 0 ||
        write(STDERR_FILENO, sorry, sizeof sorry - 1) < 0)
        _exit(126);
    _exit(127);
}

static char *err_path(const struct child *c, const char *run)
{
    return xprintf("%s/logs/%s.err", run, c->name);
}

int child_start(struct child *c, const char *run, const char *const words[CHILD_MAX_WORDS + 1],
                int death_signal)
{
    char *path = err_path(c, run);
    struct stat st;
    pid_t parent, pid = -1;
    int rc = 0, null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int err_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (err_fd < 0 || null_fd < 0) {
        rc = err_set(ERR_STORAGE, "cannot open %s: %s", err_fd < 0 ? path : "/dev/null", strerror(errno));
    } else {
        c->said_from = fstat(err_fd, &st) == 0 ? (long long)st.st_size : 0;
        pid = fork_quietly(&parent);
        if (pid == 0) run_child(words, parent, death_signal, null_fd, err_fd);
        if (pid < 0) rc = err_set(ERR_FAIL, "cannot start %s: %s", words[0], strerror(errno));
    }
    if (pid > 0) {
        setpgid(pid, pid); /* both sides set it, so that it holds whoever runs first */
        c->pid = pid;
        c->started_ns = clock_now_ns();
    }
    if (err_fd >= 0) close(err_fd);
    if (null_fd >= 0) close(null_fd);
    free(path);
    return rc;
}

int child_run(const char *const words[CHILD_MAX_WORDS + 1], int signal_fd, bool *stop)
{
    pid_t parent, pid = fork_quietly(&parent);
    int status;
    if (pid == 0) {
        become_ordinary(parent, SIGTERM);
        execv(words[0], (char *const *)words);
        fprintf(stderr, "chorale: cannot run %s: %s; build or install it beside chorale\n", words[0],
                strerror(errno));
        _exit(1);
    }
    if (pid < 0) return err_set(ERR_FAIL, "cannot start %s: %s", words[0], strerror(errno));
    for (pid_t got; (got = waitpid(pid, &status, WNOHANG)) != pid;) {
        if (got < 0 && errno != EINTR) return err_set(ERR_FAIL, "lost %s: %s", words[0], strerror(errno));
        struct pollfd event = {.fd = signal_fd, .events = POLLIN};
        poll(&event, 1, 1000);
        if (!child_take_signals(signal_fd)) continue;
        *stop = true;
        kill(pid, SIGTERM);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ------------------------------------------------------------------ what it said */

/* The last line that is not empty, in place. */
static char *last_line(char *text)
{
    char *end = text + strlen(text);
    while (end > text && (end[-1] == '\n' || end[-1] == ' ')) *--end = '\0';
    char *start = strrchr(text, '\n');
    return start ? start + 1 : text;
}

void child_last_line(const struct child *c, const char *run, char *out, size_t size)
{
    char text[TAIL_BYTES + 1], *path = err_path(c, run);
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = 0;
    if (fd >= 0 && fstat(fd, &st) == 0) {
        off_t from = st.st_size > TAIL_BYTES ? st.st_size - TAIL_BYTES : 0;
        if (from < c->said_from) from = c->said_from;
        n = pread(fd, text, TAIL_BYTES, from);
    }
    text[n > 0 ? n : 0] = '\0';
    snprintf(out, size, "%s", last_line(text));
    for (char *p = out; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F) *p = '?';
    if (fd >= 0) close(fd);
    free(path);
}
