/* One child process of a launcher: a program of ours, its output in RUN/logs/NAME.err. It has a process group
 * of its own, so that Ctrl-C in the terminal reaches the launcher alone, and gets a signal if the launcher
 * dies, so that it never outlives it. No policy. One thread, the one that lives longest (the kernel ties the
 * signal to it). */
#ifndef DEPLOY_CHILD_H
#define DEPLOY_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CHILD_MAX_WORDS 8

struct child {
    char name[32]; /* "worker-3" */
    pid_t pid;     /* 0: does not run */
    uint64_t started_ns;
    long long said_from; /* bytes of its .err file that are older than this life */
};

/* The folder of this very program, where the others lie; owned by the caller. NULL with a sentence in
 * err_text() if /proc does not say. */
char *child_programs(void);
/* words: program first, NULL last. death_signal: what it gets if we die. ERR_FAIL or ERR_STORAGE with a
 * sentence. A program that cannot be run exits 127 and says so in its .err file. */
int child_start(struct child *c, const char *run, const char *const words[CHILD_MAX_WORDS + 1],
                int death_signal);
/* Runs a program in our own process group, with our own output, to its end: its exit status, 128 + signal, or
 * a negative enum err. signal_fd: as of child_catch_signals; a signal that asks to stop is passed on as TERM
 * and *stop is set. */
int child_run(const char *const words[CHILD_MAX_WORDS + 1], int signal_fd, bool *stop);
/* Catches CHLD, INT, TERM and HUP from now on (but for those that are ignored) and gives a descriptor that
 * can be read when one has come, or ERR_FAIL. Ignores PIPE. Children do without. */
int child_catch_signals(void);
/* Takes what is there without waiting; true if one of them asks to stop. */
bool child_take_signals(int signal_fd);
/* The last line that it said in this life, without control characters; "" if none. */
void child_last_line(const struct child *c, const char *run, char *out, size_t size);

#endif
