/* What the commands of people need to know about a run directory RUN: is it one, and does its job run on this
 * machine? */
#ifndef DEPLOY_RUN_H
#define DEPLOY_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* What to type for `chorale` here: that alone where the PATH leads to this very build, else a path. Kept for
 * the life of the program. */
const char *run_command(void);
/* An absolute path without the working directory before it, if that is where it is; a part of `path`. */
const char *run_shorten(const char *path);
/* ERR_USAGE with a sentence if RUN has no job.yaml. */
int run_check(const char *run);
/* The lock that a launcher holds as long as it lives (RUN/members/lock; no crash leaves it behind): 0 and
 * *fd, which is ours until it is closed; 1: another process has it; or ERR_STORAGE. */
int run_lock(const char *run, int *fd);
/* The launcher of `chorale train`, from RUN/members/launcher {"pid", "start"}: 1 and *pid, *start if it
 * lives, 0 if nothing runs, or a negative enum err for a file that cannot be understood. */
int run_launcher(const char *run, pid_t *pid, uint64_t *start);

#endif
