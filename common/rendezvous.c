#include "common/rendezvous.h"

#include "common/err.h"
#include "common/files.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FILE 65536

static char *path_of(const char *run)
{
    return files_join(run, "members/coordinator");
}

int rendezvous_publish(const char *run, const char *endpoint, uint64_t job, uint32_t incarnation)
{
    char *dir = files_join(run, "members"), *path = path_of(run);
    char *text = xprintf("{\"endpoint\":\"%s\",\"job\":\"%016" PRIx64 "\",\"incarnation\":%u,\"pid\":%ld,"
                         "\"start\":%" PRIu64 "}\n",
                         endpoint, job, incarnation, (long)getpid(), rendezvous_process_start(getpid()));
    int rc = files_make_dirs(dir);
    if (rc == 0) rc = files_write_atomic(path, text, strlen(text));
    free(text);
    free(path);
    free(dir);
    return rc;
}

void rendezvous_withdraw(const char *run)
{
    char *path = path_of(run);
    unlink(path);
    free(path);
}

static bool parse(const char *text, size_t len, struct rendezvous *out)
{
    json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    const char *at = json_string_value(json_object_get(j, "endpoint"));
    json_int_t number = json_integer_value(json_object_get(j, "incarnation"));
    bool good = at && at[0] && strlen(at) < MSG_MAX_ENDPOINT && number >= 0 && number <= UINT32_MAX;
    if (good) {
        *out = (struct rendezvous){.incarnation = (uint32_t)number,
                                   .pid = json_integer_value(json_object_get(j, "pid"))};
        strcpy(out->endpoint, at);
    }
    json_decref(j);
    return good;
}

bool rendezvous_find(const char *run, struct rendezvous *out)
{
    char *path = path_of(run), *text = NULL;
    size_t len;
    bool found = files_exists(path) && files_read(path, MAX_FILE, &text, &len) == 0 && parse(text, len, out);
    free(text);
    free(path);
    return found;
}

bool rendezvous_same(const struct rendezvous *a, const struct rendezvous *b)
{
    return strcmp(a->endpoint, b->endpoint) == 0 && a->incarnation == b->incarnation && a->pid == b->pid;
}

uint64_t rendezvous_process_start(pid_t pid)
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
