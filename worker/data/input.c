#include "worker/data/input.h"

#include "common/clock.h"
#include "common/err.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BUFFER_BYTES  65536
#define GROW_BYTES    ((size_t)1 << 20) /* the step in which memory grows while the true size is unknown */
#define DRAIN_BYTES   65536             /* of a command's output after what we wanted, before we kill it */
#define WAIT_LIMIT_MS 5000              /* for a command to end once its output has ended */

struct input *input_new(void)
{
    struct input *in = xcalloc(1, sizeof *in);
    in->fd = -1;
    in->buffer = xcalloc(1, BUFFER_BYTES);
    return in;
}

bool input_is_pipe(const char *name)
{
    size_t n = strlen(name);
    while (n && (name[n - 1] == ' ' || name[n - 1] == '\t')) n--;
    return n && name[n - 1] == '|';
}

int input_complain(const struct input *in, uint64_t offset, const char *what)
{
    return err_set(ERR_DATA, "%.300s at offset %" PRIu64 ": %s", in->name, offset, what);
}

/* --- commands */

/* Between fork and exec only calls that are safe in a child of a process with threads. */
static void run_child(const char *command, const char *folder, int write_end)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    setpgid(0, 0);
    if (folder && folder[0] && chdir(folder) != 0) _exit(126);
    if (dup2(write_end, STDOUT_FILENO) < 0) _exit(126);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

static int start_command(struct input *in, const char *name, const char *folder)
{
    int ends[2];
    if (pipe(ends) != 0)
        return err_set(ERR_FAIL, "no pipe for the command '%.200s': %s", name, strerror(errno));
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    char *command = xstrdup(name);
    *strrchr(command, '|') = 0;
    pid_t pid = fork();
    if (pid == 0) run_child(command, folder, ends[1]);
    free(command);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return err_set(ERR_FAIL, "cannot start the command '%.200s': %s", name, strerror(errno));
    }
    setpgid(pid, pid); /* both sides set it, so that it holds whoever runs first */
    in->fd = ends[0];
    in->pid = pid;
    in->regular = false;
    return 0;
}

static bool wait_a_while(pid_t pid, int *status)
{
    for (int ms = 0; ms < WAIT_LIMIT_MS; ms += 5) {
        pid_t got = waitpid(pid, status, WNOHANG);
        if (got == pid) return true;
        if (got < 0 && errno != EINTR) return false;
        clock_sleep_ms(5);
    }
    return false;
}

static int end_command(struct input *in, bool ended)
{
    int status = 0;
    pid_t pid = in->pid;
    in->pid = 0;
    if (ended && wait_a_while(pid, &status)) {
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
        if (WIFEXITED(status))
            return err_set(ERR_DATA, "the command '%.300s' failed with status %d; run it by hand to see why",
                           in->name, WEXITSTATUS(status));
        return err_set(ERR_DATA, "the command '%.300s' was killed by signal %d", in->name, WTERMSIG(status));
    }
    kill(-pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    return ended ? err_set(ERR_DATA, "the command '%.300s' closed its output but did not end; it was killed",
                           in->name)
                 : 0;
}

/* --- open and close */

static int try_open(const char *name, const char *folder)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 || name[0] == '/' || !folder || !folder[0] || errno != ENOENT) return fd;
    char path[2 * INPUT_MAX_NAME];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static int open_file(struct input *in, const char *name, const char *folder)
{
    struct stat st;
    int fd = strcmp(name, "-") == 0 ? dup(STDIN_FILENO) : try_open(name, folder);
    if (fd < 0)
        return err_set(ERR_DATA, "cannot open %.300s%s%.300s: %s", name,
                       folder ? ", also looked for in " : "", folder ? folder : "", strerror(errno));
    if (fstat(fd, &st) != 0 || S_ISDIR(st.st_mode)) {
        close(fd);
        return err_set(ERR_DATA, "%.300s is a folder, not a file", name);
    }
    in->fd = fd;
    in->regular = S_ISREG(st.st_mode) && strcmp(name, "-") != 0;
    in->size = in->regular ? (uint64_t)st.st_size : 0;
    return 0;
}

static bool is_open_already(const struct input *in, const char *name, const char *folder)
{
    return in->fd >= 0 && in->regular && strcmp(in->name, name) == 0 &&
           strcmp(in->folder, folder ? folder : "") == 0;
}

int input_open(struct input *in, const char *name, const char *folder, bool allow_pipes)
{
    if (is_open_already(in, name, folder)) return input_seek(in, 0);
    input_close(in);
    if (strlen(name) >= sizeof in->name || (folder && strlen(folder) >= sizeof in->folder))
        return err_set(ERR_DATA, "the file name '%.60s...' is longer than %d letters", name, INPUT_MAX_NAME);
    if (name[0] == 0) return err_set(ERR_DATA, "an empty file name");
    if (input_is_pipe(name) && !allow_pipes)
        return err_set(ERR_DATA,
                       "'%.300s' is a command; it was not run, since commands in data need --allow-pipes",
                       name);
    int rc = input_is_pipe(name) ? start_command(in, name, folder) : open_file(in, name, folder);
    if (rc < 0) return rc;
    snprintf(in->name, sizeof in->name, "%s", name);
    snprintf(in->folder, sizeof in->folder, "%s", folder ? folder : "");
    in->filled = in->start = in->end = 0;
    return 0;
}

static bool drain(struct input *in)
{
    for (int i = 0; i < DRAIN_BYTES; i++)
        if (input_byte(in) < 0) return true;
    return false;
}

int input_close(struct input *in)
{
    if (in->fd < 0) return 0;
    bool ended = in->pid != 0 && drain(in);
    close(in->fd);
    in->fd = -1;
    in->start = in->end = 0;
    return in->pid ? end_command(in, ended) : 0;
}

void input_free(struct input **in)
{
    if (!*in) return;
    input_close(*in);
    free((*in)->buffer);
    free((*in)->scratch);
    free(*in);
    *in = NULL;
}

/* --- reading */

uint64_t input_position(const struct input *in)
{
    return in->filled - (in->end - in->start);
}

uint64_t input_left(const struct input *in)
{
    if (!in->regular) return UINT64_MAX;
    uint64_t at = input_position(in);
    return at < in->size ? in->size - at : 0;
}

int input_seek(struct input *in, uint64_t offset)
{
    if (!in->regular)
        return err_set(ERR_DATA, "%.300s is not a plain file, an offset into it cannot be used", in->name);
    if (offset > in->size)
        return input_complain(in, offset, "the file ends before this offset; it is truncated");
    uint64_t first = in->filled - in->end; /* of the buffer */
    if (offset >= first && offset <= in->filled) {
        in->start = (size_t)(offset - first);
        return 0;
    }
    if (lseek(in->fd, (off_t)offset, SEEK_SET) < 0)
        return err_set(ERR_DATA, "cannot seek in %.300s: %s", in->name, strerror(errno));
    in->filled = offset;
    in->start = in->end = 0;
    return 0;
}

static ssize_t read_some(struct input *in, void *out, size_t n)
{
    ssize_t got;
    do got = read(in->fd, out, n);
    while (got < 0 && errno == EINTR);
    if (got > 0) in->filled += (uint64_t)got;
    return got;
}

static bool fill(struct input *in)
{
    if (in->fd < 0) return false;
    in->start = in->end = 0;
    ssize_t got = read_some(in, in->buffer, BUFFER_BYTES);
    in->end = got > 0 ? (size_t)got : 0;
    return got > 0;
}

int input_peek(struct input *in)
{
    if (in->start == in->end && !fill(in)) return -1;
    return in->buffer[in->start];
}

int input_byte(struct input *in)
{
    if (in->start == in->end && !fill(in)) return -1;
    return in->buffer[in->start++];
}

static int complain_short(const struct input *in, uint64_t at, uint64_t wanted, uint64_t got)
{
    char what[200];
    snprintf(what, sizeof what,
             "needs %" PRIu64 " bytes but only %" PRIu64
             " are left; it is truncated or damaged, make it again",
             wanted, got);
    return input_complain(in, at, what);
}

int input_read(struct input *in, void *out, size_t n)
{
    uint64_t at = input_position(in);
    if (n > input_left(in)) return complain_short(in, at, n, input_left(in));
    unsigned char *to = out;
    size_t have = 0;
    while (have < n) {
        size_t ready = in->end - in->start, part = n - have < ready ? n - have : ready;
        if (part) {
            memcpy(to + have, in->buffer + in->start, part);
            in->start += part;
        } else if (n - have >= BUFFER_BYTES) { /* big: past the buffer, which is empty */
            in->start = in->end = 0;
            ssize_t got = read_some(in, to + have, n - have);
            if (got <= 0) return complain_short(in, at, n, have);
            part = (size_t)got;
        } else if (!fill(in)) {
            return complain_short(in, at, n, have);
        }
        have += part;
    }
    return 0;
}

static void grow_scratch(struct input *in, size_t n)
{
    if (n <= in->scratch_bytes) return;
    unsigned char *grown = realloc(in->scratch, n);
    if (!grown) {
        fprintf(stderr, "chorale: out of memory asking for %zu bytes\n", n);
        exit(1);
    }
    in->scratch = grown;
    in->scratch_bytes = n;
}

int input_take(struct input *in, uint64_t n, const unsigned char **out)
{
    uint64_t at = input_position(in);
    if (n > input_left(in)) return complain_short(in, at, n, input_left(in));
    if (n > SIZE_MAX / 4) return input_complain(in, at, "claims more bytes than there can be");
    if (in->regular) grow_scratch(in, (size_t)n + 1);
    for (size_t have = 0; have < n;) {
        size_t step = in->regular || n - have < GROW_BYTES ? (size_t)n - have : GROW_BYTES;
        if (have + step > in->scratch_bytes) grow_scratch(in, have + step + have / 2);
        int rc = input_read(in, in->scratch + have, step);
        if (rc < 0) return rc;
        have += step;
    }
    grow_scratch(in, 1);
    *out = in->scratch;
    return 0;
}
