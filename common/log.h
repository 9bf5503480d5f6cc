/* One line of JSON per event, for machines, and a readable line on stderr, for people.
 * File: {"ts":"2026-01-31T12:00:00.123Z","mono":SECONDS,"run":R,"role":R,"id":N,"level":L,"ev":E, fields...}
 * Any thread may log. A line is one write() to a file opened for appending, so lines of several processes
 * never mix. A full disk or a reader that sleeps never stops the process: lines are dropped, and counted in
 * an event "log_lost" once writing works again. */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_NONE };

#define LOG_MAX_LINE 262144 /* bytes; a longer event is dropped and counted */

/* Names this process. jsonl_path NULL = stderr only; its folder must exist. A file that cannot be opened is
 * told on stderr and training goes on without it. Call it again to change the names or the file (e.g. once
 * the id is known). Ignores SIGPIPE for the whole process. */
void log_open(const char *role, uint64_t id, const char *run, const char *jsonl_path);
void log_close(void);
/* Events below `minimum` do not reach stderr (LOG_NONE: nothing does); the file gets all of them but
 * LOG_DEBUG, which it gets only if the minimum is LOG_DEBUG. At the start: LOG_INFO. */
void log_set_stderr(enum log_level minimum);
/* `fields` is the inside of a JSON object in printf style: log_event(LOG_INFO, "epoch",
 * "\"epoch\":%d,\"loss\":%.4f", e, l);
 * NULL for none (the compiler warns at ""). Strings go through log_quote first. A number printed as nan or
 * inf becomes null. */
void log_event(enum log_level level, const char *ev, const char *fields, ...)
    __attribute__((format(printf, 3, 4)));
/* Writes text as a JSON string with its quotes: "say \"a\"". Cut where `size` ends, always closed (size >=
 * 3). Bytes that are not UTF-8 become '?'. Returns out. */
char *log_quote(char *out, size_t size, const char *text);
/* Lines dropped so far. */
uint64_t log_lost(void);

#endif
