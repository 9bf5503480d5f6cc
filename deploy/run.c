#include "deploy/run.h"

#include "common/err.h"
#include "common/files.h"
#include "common/rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

const char *run_shorten(const char *path)
{
    char here[4096];
    size_t n = getcwd(here, sizeof here) ? strlen(here) : 0;
    bool inside = n > 1 && strncmp(path, here, n) == 0 && path[n] == '/' && path[n + 1];
    return inside ? path + n + 1 : path;
}

/* Is the first `chorale` of the PATH this file? */
static bool path_leads_to(const struct stat *own)
{
    const char *path = getenv("PATH");
    char *dirs = xstrdup(path ? path : ""), *save = NULL;
    struct stat st;
    bool found = false, same = false;
    for (char *dir = strtok_r(dirs, ":", &save); dir && !found; dir = strtok_r(NULL, ":", &save)) {
        char *name = files_join(dir, "chorale");
        found = stat(name, &st) == 0 && S_ISREG(st.st_mode);
        same = found && st.st_dev == own->st_dev && st.st_ino == own->st_ino;
        free(name);
    }
    free(dirs);
    return same;
}

const char *run_command(void)
{
    static char command[4200] = "";
    char self[4096];
    struct stat own;
    ssize_t n = command[0] ? 0 : readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) {
        self[n] = '\0';
        snprintf(command, sizeof command, "%s/chorale", dirname(self));
        if (stat(command, &own) != 0 || path_leads_to(&own)) strcpy(command, "chorale");
    }
    return command[0] ? run_shorten(command) : "chorale";
}

int run_check(const char *run)
{
    char *job = files_join(run, "job.yaml");
    bool there = files_exists(job);
    free(job);
    if (there) return 0;
    return err_set(ERR_USAGE, "%s is not a run (it has no job.yaml); make one with: %s init %s --data DIR",
                   run, run_command(), run);
}

int run_lock(const char *run, int *fd_out)
{
    char *dir = files_join(run, "members"), *path = files_join(dir, "lock");
    int rc = files_make_dirs(dir), fd = -1;
    if (rc == 0 && (fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666)) < 0)
        rc = err_set(ERR_STORAGE, "cannot open %s: %s", path, strerror(errno));
    if (rc == 0 && flock(fd, LOCK_EX | LOCK_NB) != 0)
        rc = errno == EWOULDBLOCK ? 1 : err_set(ERR_STORAGE, "cannot lock %s: %s", path, strerror(errno));
    if (rc != 0 && fd >= 0) close(fd);
    if (rc == 0) *fd_out = fd;
    free(path);
    free(dir);
    return rc;
}

static int parse_launcher(const char *path, const char *text, pid_t *pid, uint64_t *start)
{
    json_t *root = json_loads(text, 0, NULL);
    json_int_t p = json_integer_value(json_object_get(root, "pid"));
    json_int_t s = json_integer_value(json_object_get(root, "start"));
    json_decref(root);
    if (p < 1 || p > INT32_MAX || s <= 0)
        return err_set(ERR_FAIL, "%s names no process; if nothing runs here, remove that file", path);
    *pid = (pid_t)p;
    *start = (uint64_t)s;
    return 0;
}

int run_launcher(const char *run, pid_t *pid, uint64_t *start)
{
    char *path = files_join(run, "members/launcher"), *text = NULL;
    int rc = 0;
    bool there = files_exists(path);
    if (there) rc = files_read(path, 4096, &text, NULL);
    if (there && rc == 0) rc = parse_launcher(path, text, pid, start);
    free(text);
    free(path);
    if (rc < 0) return rc;
    return there && rendezvous_process_start(*pid) == *start;
}
