/* Errors. Our own bug: ASSERT, always compiled in. The environment, a file or a peer: a function returns
 * 0 or a negative enum err, and err_set() keeps one sentence that names the cause and the next step; main()
 * prints it once and exits with err_exit_code(). Any thread: the sentence is per thread. */
#ifndef COMMON_ERR_H
#define COMMON_ERR_H

enum err {
    ERR_FAIL = -1,        /* exit 1: a failure that no other code names */
    ERR_USAGE = -2,       /* exit 2: usage or configuration */
    ERR_DATA = -3,        /* exit 3: the data cannot be used */
    ERR_REACH = -4,       /* exit 4: cannot reach or authenticate */
    ERR_MODEL = -5,       /* exit 5: model or version mismatch */
    ERR_DIVERGED = -6,    /* exit 6: diverged and stopped by policy */
    ERR_STORAGE = -7,     /* exit 7: storage */
    ERR_AGAIN = -11,      /* nothing yet; never leaves a process */
    ERR_INTERRUPTED = -75 /* exit 75: interrupted but resumable */
};

/* Keeps the sentence (printf style) and returns `code`, so that a failing function can end in
 * `return err_set(ERR_DATA, "...")`. */
int err_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Puts "prefix: " before the sentence that is kept; returns `code`. */
int err_prefix(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The sentence kept last on this thread, "" if none. */
const char *err_text(void);
/* The code that was given with it: for functions that return NULL on failure. 0 if there is none. */
int err_code(void);
/* Process exit status for a code: 0, 1..7 or 75. */
int err_exit_code(int code);
/* Prints "program: sentence" to stderr and returns the exit status, for main(). */
int err_report(const char *program, int code);

/* Our own bug: says where and stops the process at once. Never for what came from outside. */
void err_bug(const char *file, int line, const char *what) __attribute__((noreturn));
#define ASSERT(condition) ((condition) ? (void)0 : err_bug(__FILE__, __LINE__, #condition))
#ifdef DEBUG_CHECKS
#define DCHECK(condition) ASSERT(condition) /* costly checks: debug and sanitizer builds */
#else
#define DCHECK(condition) ((void)sizeof(condition))
#endif

/* calloc that never returns NULL: out of memory at start is fatal and says how much was asked for. */
void *xcalloc(unsigned long count, unsigned long size);
/* Aligned to 64 bytes, zeroed; free with free(). */
void *xaligned(unsigned long bytes);
char *xstrdup(const char *text);
char *xprintf(const char *format, ...) __attribute__((format(printf, 1, 2))); /* owned by the caller */

#endif
