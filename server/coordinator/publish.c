#include "server/coordinator/publish.h"

#include "common/files.h"
#include "common/err.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Field 22 of /proc/self/stat: with the pid it names this process and no other. */
static uint64_t own_start(void)
{
    char *text;
    uint64_t start = 0;
    if (files_read("/proc/self/stat", 8192, &text, NULL) < 0) return 0;
    const char *p = strrchr(text, ')'); /* the name in field 2 may hold anything */
    for (int field = 2; p && field < 22; field++) p = strchr(p + 1, ' ');
    if (p) start = strtoull(p, NULL, 10);
    free(text);
    return start;
}

int publish_endpoint(const char *run, const char *endpoint, uint64_t job, uint32_t incarnation)
{
    char *dir = files_join(run, "members"), *path = files_join(dir, "coordinator");
    char *text = xprintf("{\"endpoint\":\"%s\",\"job\":\"%016" PRIx64 "\",\"incarnation\":%u,\"pid\":%ld,"
                         "\"start\":%" PRIu64 "}\n",
                         endpoint, job, incarnation, (long)getpid(), own_start());
    int rc = files_make_dirs(dir);
    if (rc == 0) rc = files_write_atomic(path, text, strlen(text));
    free(text);
    free(path);
    free(dir);
    return rc;
}

void publish_withdraw(const char *run)
{
    char *path = files_join(run, "members/coordinator");
    unlink(path);
    free(path);
}

/* Not synced: it is written again all the time, and a whole file at any moment is all that is promised. */
void publish_status(const char *run, const char *text)
{
    char *path = files_join(run, "status.json"), *temp = files_join(run, "status.json.tmp");
    FILE *f = fopen(temp, "w");
    bool good = f && fputs(text, f) >= 0 && fputc('\n', f) != EOF;
    if (f && fclose(f) != 0) good = false;
    if (!good || rename(temp, path) != 0) unlink(temp);
    free(temp);
    free(path);
}
