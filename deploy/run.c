#include "deploy/run.h"

#include "common/err.h"
#include "common/files.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int run_check(const char *run)
{
    char *job = files_join(run, "job.yaml");
    bool there = files_exists(job);
    free(job);
    if (there) return 0;
    return err_set(ERR_USAGE,
                   "%s is not a run (it has no job.yaml); make one with: chorale init %s --data DIR", run,
                   run);
}

uint64_t run_process_start(pid_t pid)
{
    char path[64], *text;
    uint64_t start;
    char status;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    if (files_read(path, 8192, &text, NULL) < 0) return 0;
    /* the name in field 2 may hold anything, so count from the last bracket: field 3 is the state, field 22
     * the start */
    const char *rest = strrchr(text, ')');
    int fields =
        rest ? sscanf(rest + 1,
                      " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %" SCNu64,
                      &status, &start)
             : 0;
    free(text);
    return fields == 2 && status != 'Z' && status != 'X' ? start : 0;
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
    return there && run_process_start(*pid) == *start;
}
