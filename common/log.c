#include "common/log.h"

#include "common/clock.h"
#include "common/err.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A pipe that poll() calls writable takes this much without blocking (PIPE_BUF). */
#define STDERR_MAX 4096

static struct {
    pthread_mutex_t lock;
    char role[32], run[1024]; /* run: as a JSON string, with its quotes */
    uint64_t id;
    int fd;    /* -1: none */
    bool torn; /* the file ends in half a line */
    uint64_t lost, told;
    enum log_level minimum;
} state = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .role = "chorale", .run = "\"\"", .fd = -1, .minimum = LOG_INFO};

static const char *const level_names[] = {"debug", "info", "warn", "error"};

/* ------------------------------------------------------------------ JSON text */

/* Length of the UTF-8 character at s, 0 if it is none (Unicode table 3-7). */
static size_t utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80) return 1;
    size_t n = s[0] >= 0xC2 && s[0] <= 0xDF   ? 2
               : (s[0] & 0xF0) == 0xE0        ? 3
               : s[0] >= 0xF0 && s[0] <= 0xF4 ? 4
                                              : 0;
    if (n == 0) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F)) return 0;
    if ((s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F)) return 0;
    return n;
}

char *log_quote(char *out, size_t size, const char *text)
{
    ASSERT(size >= 3);
    const unsigned char *s = (const unsigned char *)text;
    size_t used = 0;
    out[used++] = '"';
    while (*s) {
        char piece[8];
        size_t n = utf8_length(s), step = n ? n : 1;
        if (n == 0)
            snprintf(piece, sizeof piece, "?");
        else if (*s == '"' || *s == '\\')
            snprintf(piece, sizeof piece, "\\%c", *s);
        else if (*s < 0x20 || *s == 0x7F)
            snprintf(piece, sizeof piece, "\\u%04x", *s);
        else
            snprintf(piece, sizeof piece, "%.*s", (int)n, (const char *)s);
        size_t len = strlen(piece);
        if (used + len + 2 > size) break;
        memcpy(out + used, piece, len);
        used += len;
        s += step;
    }
    out[used++] = '"';
    out[used] = '\0';
    return out;
}

/* A bare word of a C number that JSON does not know: [-]nan, [-]inf. Its length, or 0. */
static size_t nonfinite_length(const char *s)
{
    size_t sign = *s == '-' ? 1 : 0;
    if (strncmp(s + sign, "nan", 3) == 0 || strncmp(s + sign, "inf", 3) == 0) return sign + 3;
    return 0;
}

/* Rewrites nan and inf outside strings into null; line breaks into blanks. `out` has room for twice
 * strlen(in) + 1. */
static void clean_fields(const char *in, char *out)
{
    bool quoted = false;
    while (*in) {
        size_t n = quoted ? 0 : nonfinite_length(in);
        if (n > 0) {
            memcpy(out, "null", 4);
            out += 4;
            in += n;
            continue;
        }
        if (quoted && *in == '\\' && in[1])
            *out++ = *in++;
        else if (*in == '"')
            quoted = !quoted;
        *out++ = *in == '\n' || *in == '\r' ? ' ' : *in;
        in++;
    }
    *out = '\0';
}

/* "epoch":3,"where":{"a":1} becomes: epoch 3 where {"a":1}. `out` has room for strlen(in) + 1. */
static void plain_fields(const char *in, char *out)
{
    int depth = 0;
    bool quoted = false;
    for (; *in; in++) {
        char c = *in;
        if (quoted && c == '\\' && in[1]) {
            if (depth > 0) *out++ = c;
            *out++ = *++in;
            continue;
        }
        if (c == '"') quoted = !quoted;
        if (!quoted && (c == '{' || c == '[')) depth++;
        if (depth > 0 || (quoted && c != '"'))
            *out++ = c;
        else if (c == ':' || c == ',')
            *out++ = ' ';
        else if (c != '"')
            *out++ = c;
        if (!quoted && (c == '}' || c == ']')) depth--;
    }
    *out = '\0';
}

/* ------------------------------------------------------------------ writing */

/* Under the lock. One write(); whatever does not fit is lost and counted. */
static void append_file(const char *line, size_t len)
{
    ssize_t n;
    do n = write(state.fd, line, len);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)len) {
        state.torn = false;
        return;
    }
    state.lost++;
    if (n > 0) state.torn = true;
}

/* Under the lock: starts a new line after a torn one, and says how many lines were lost, once. */
static void mend_file(void)
{
    if (state.torn && write(state.fd, "\n", 1) == 1) state.torn = false;
    if (state.torn || state.lost == state.told) return;
    char ts[40], line[1400];
    clock_wall_text(ts, sizeof ts);
    int n = snprintf(
        line, sizeof line,
        "{\"ts\":\"%s\",\"run\":%s,\"role\":\"%s\",\"id\":%llu,\"level\":\"warn\",\"ev\":\"log_lost\","
        "\"lines\":%llu}\n",
        ts, state.run, state.role, (unsigned long long)state.id, (unsigned long long)state.lost);
    if (n <= 0 || (size_t)n >= sizeof line) return;
    ssize_t wrote = write(state.fd, line, (size_t)n);
    if (wrote == n)
        state.told = state.lost;
    else if (wrote > 0)
        state.torn = true;
}

static void write_file(enum log_level level, const char *ev, const char *ts, const char *fields)
{
    char *line = xprintf("{\"ts\":\"%s\",\"mono\":%.3f,\"run\":%s,\"role\":\"%s\",\"id\":%llu,\"level\":\"%"
                         "s\",\"ev\":\"%s\"%s%s}\n",
                         ts, (double)clock_now_ns() / 1e9, state.run, state.role,
                         (unsigned long long)state.id, level_names[level], ev, fields[0] ? "," : "", fields);
    size_t len = strlen(line);
    if (state.torn || state.lost != state.told) mend_file();
    if (len > LOG_MAX_LINE)
        state.lost++;
    else
        append_file(line, len);
    free(line);
}

/* A reader that sleeps must not stop training: only when a whole line fits without waiting. */
static void write_stderr(enum log_level level, const char *ev, const char *ts, const char *fields)
{
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT)) return;
    char line[STDERR_MAX];
    int n = snprintf(line, sizeof line, "%.8s %s %llu: %s%s%s%s", strlen(ts) > 19 ? ts + 11 : ts, state.role,
                     (unsigned long long)state.id, level >= LOG_WARN ? level_names[level] : "",
                     level >= LOG_WARN ? ": " : "", ev, fields[0] ? " " : "");
    if (n < 0 || (size_t)n + 2 >= sizeof line) return;
    size_t used = (size_t)n, rest = strlen(fields), room = sizeof line - used - 1;
    if (rest > room) rest = room;
    memcpy(line + used, fields, rest);
    line[used + rest] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, used + rest + 1);
    (void)ignored;
}

/* ------------------------------------------------------------------ public */

void log_open(const char *role, uint64_t id, const char *run, const char *jsonl_path)
{
    signal(SIGPIPE, SIG_IGN);
    int fd = -1;
    if (jsonl_path) fd = open(jsonl_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int why = errno;
    pthread_mutex_lock(&state.lock);
    if (state.fd >= 0) close(state.fd);
    state.fd = fd;
    state.torn = false;
    state.id = id;
    snprintf(state.role, sizeof state.role, "%s", role);
    log_quote(state.run, sizeof state.run, run ? run : "");
    pthread_mutex_unlock(&state.lock);
    if (!jsonl_path || fd >= 0) return;
    char path[1024];
    log_event(LOG_WARN, "log_unwritable", "\"path\":%s,\"reason\":\"%s\"",
              log_quote(path, sizeof path, jsonl_path), strerror(why));
}

void log_close(void)
{
    pthread_mutex_lock(&state.lock);
    if (state.fd >= 0) close(state.fd);
    state.fd = -1;
    pthread_mutex_unlock(&state.lock);
}

void log_set_stderr(enum log_level minimum)
{
    pthread_mutex_lock(&state.lock);
    state.minimum = minimum;
    pthread_mutex_unlock(&state.lock);
}

void log_event(enum log_level level, const char *ev, const char *format, ...)
{
    ASSERT(level < LOG_NONE);
    if (!format) {
        log_event(level, ev, "%s", "");
        return;
    }
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    char probe[1];
    int n = vsnprintf(probe, sizeof probe, format, args);
    va_end(args);
    ASSERT(n >= 0);
    size_t len = (size_t)n;
    char *raw = xcalloc(1, len + 1), *fields = xcalloc(2, len + 1), *plain = xcalloc(2, len + 1), ts[40];
    vsnprintf(raw, len + 1, format, again);
    va_end(again);
    clean_fields(raw, fields);
    plain_fields(fields, plain);
    clock_wall_text(ts, sizeof ts);

    pthread_mutex_lock(&state.lock);
    if (state.fd >= 0 && (level > LOG_DEBUG || state.minimum == LOG_DEBUG)) write_file(level, ev, ts, fields);
    if (level >= state.minimum) write_stderr(level, ev, ts, plain);
    pthread_mutex_unlock(&state.lock);
    free(raw);
    free(fields);
    free(plain);
}

uint64_t log_lost(void)
{
    pthread_mutex_lock(&state.lock);
    uint64_t lost = state.lost;
    pthread_mutex_unlock(&state.lock);
    return lost;
}
