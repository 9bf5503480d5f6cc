#define _GNU_SOURCE /* CPU_COUNT */
#include "worker/host.h"

#include "common/files.h"
#include "common/log.h"
#include "common/wire.h"
#include "worker/nnet/blas.h"
#include "worker/nnet/plan.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define MAX_FILE (16u << 20)

/* A file of /proc or /sys; NULL if there is none. Owned by the caller. */
static char *slurp(const char *path)
{
    char *text = NULL;
    return files_exists(path) && files_read(path, MAX_FILE, &text, NULL) == 0 ? text : NULL;
}

/* The first line "key : value" of a file of such lines; "" if there is none. */
static void take_value(const char *text, const char *key, char *out, size_t size)
{
    size_t n = strlen(key);
    snprintf(out, size, "%s", "");
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL) {
        const char *at = line + n;
        if (strncmp(line, key, n) != 0) continue;
        at += strspn(at, " \t");
        if (*at++ != ':') continue;
        at += strspn(at, " \t");
        snprintf(out, size, "%.*s", (int)strcspn(at, "\n"), at);
        return;
    }
}

/* Is `word` one of the words of `list`? */
static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += n)
        if ((at == list || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0')) return true;
    return false;
}

static void read_cpu(struct host *h)
{
    static const char *const wanted[] = {"avx",      "avx2",     "fma",      "f16c",  "avx512f",
                                         "avx512dq", "avx512bw", "avx512vl", "asimd", "sve"};
    char flags[8192], *text = slurp("/proc/cpuinfo");
    take_value(text, "model name", h->cpu, sizeof h->cpu);
    take_value(text, "flags", flags, sizeof flags);
    if (!flags[0]) take_value(text, "Features", flags, sizeof flags);
    for (size_t i = 0, at = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        if (has_word(flags, wanted[i]))
            at += (size_t)snprintf(h->sets + at, sizeof h->sets - at, "%s%s", at ? " " : "", wanted[i]);
    free(text);
}

static uint64_t kilobytes(const char *meminfo, const char *key)
{
    char value[64];
    take_value(meminfo, key, value, sizeof value);
    return strtoull(value, NULL, 10) * 1024;
}

static void read_memory(struct host *h)
{
    char *text = slurp("/proc/meminfo");
    h->memory = kilobytes(text, "MemTotal");
    h->memory_free = kilobytes(text, "MemAvailable");
    free(text);
    /* "always [madvise] never" */
    text = slurp("/sys/kernel/mm/transparent_hugepage/enabled");
    const char *chosen = text ? strchr(text, '[') : NULL;
    if (chosen)
        snprintf(h->huge_pages, sizeof h->huge_pages, "%.*s", (int)strcspn(chosen + 1, "]"), chosen + 1);
    free(text);
}

static void read_limits(struct host *h)
{
    cpu_set_t set;
    struct rlimit files;
    h->cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
    h->open_files = files.rlim_cur;
    h->open_files_max = files.rlim_max;
}

/* "OpenBLAS 0.3.21 DYNAMIC_ARCH ..." */
static void read_libraries(struct host *h)
{
    const char *config = openblas_get_config();
    const char *version = config + strcspn(config, "0123456789");
    snprintf(h->openblas, sizeof h->openblas, "%.*s %s", (int)strcspn(version, " "), version,
             openblas_get_corename());
    wire_library(h->libzmq, sizeof h->libzmq);
}

void host_read(struct host *out)
{
    *out = (struct host){.cores = 1};
    if (gethostname(out->name, sizeof out->name - 1) != 0) out->name[0] = '\0';
    read_cpu(out);
    read_memory(out);
    read_limits(out);
    read_libraries(out);
}

void host_log_plan(void)
{
    struct host h = {0};
    struct plan p = plan_make(PLAN_BEST);
    char cpu[2 * sizeof h.cpu];
    read_cpu(&h);
    log_event(LOG_INFO, "plan",
              "\"kernels\":\"%s\",\"gates\":\"%s\",\"products\":\"%s\",\"cpu\":%s,\"sets\":\"%s\"",
              plan_level_name(p.level), p.gates->name, p.panels->name, log_quote(cpu, sizeof cpu, h.cpu),
              h.sets);
}
