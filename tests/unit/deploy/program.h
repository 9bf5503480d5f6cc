/* Runs the built programs in a folder of their own and keeps what they said. Included by tests alone, after
 * cmocka.h; one test program at a time. */
#ifndef TESTS_UNIT_DEPLOY_PROGRAM_H
#define TESTS_UNIT_DEPLOY_PROGRAM_H

#include "common/err.h"
#include "common/files.h"

#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM_WORDS 14

static char *program_bin, *program_out, *program_err;
static char program_home[64];

/* The test is build/VARIANT/tests/ROOM/test_x; the programs are in build/VARIANT/bin. home: the working
 * directory of the programs. */
static inline int program_set_up(const char *home, const char *needed)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return -1;
    self[n] = '\0';
    program_bin = files_join(dirname(dirname(dirname(self))), "bin");
    snprintf(program_home, sizeof program_home, "%s", home);
    char *path = files_join(program_bin, needed);
    bool built = files_exists(path);
    if (!built) print_error("there is no %s; run make first\n", path);
    free(path);
    return built ? 0 : -1;
}

static inline void program_tear_down(void)
{
    free(program_bin);
    free(program_out);
    free(program_err);
    program_bin = program_out = program_err = NULL;
}

static inline char *program_slurp(const char *name)
{
    char *full = files_join(program_home, name), *text = NULL;
    assert_int_equal(files_read(full, 1 << 24, &text, NULL), 0);
    free(full);
    return text;
}

static inline bool program_is_there(const char *name)
{
    char *full = files_join(program_home, name);
    bool there = files_exists(full);
    free(full);
    return there;
}

static inline void program_write(const char *name, const char *text)
{
    char *full = files_join(program_home, name), *parent = xstrdup(full);
    assert_int_equal(files_make_dirs(dirname(parent)), 0);
    assert_int_equal(files_write_atomic(full, text, strlen(text)), 0);
    free(parent);
    free(full);
}

/* words: the program's name first, NULL last. Its exit status, 128 + signal. */
static inline int program_run(const char *const *words)
{
    char *argv[PROGRAM_WORDS + 1] = {files_join(program_bin, words[0])};
    for (size_t i = 1; i < PROGRAM_WORDS && words[i]; i++) argv[i] = xstrdup(words[i]);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (chdir(program_home) != 0) _exit(126);
        dup2(open(".out", O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
        dup2(open(".err", O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
        execv(argv[0], argv);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    for (size_t i = 0; argv[i]; i++) free(argv[i]);
    free(program_out);
    free(program_err);
    program_out = program_slurp(".out");
    program_err = program_slurp(".err");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
#define RUN_PROGRAM(...) program_run((const char *const[PROGRAM_WORDS + 1]){__VA_ARGS__})

/* That exit status, and the one sentence on stderr that begins with chorale and has these words in it. */
static inline void program_refuses(size_t row, const char *const *words, int exit_status, const char *says)
{
    int got = program_run(words);
    const char *end = strchr(program_err, '\n');
    if (got != exit_status || !strstr(program_err, says))
        fail_msg("row %zu: exit %d, expected %d '%s': %s", row, got, exit_status, says, program_err);
    if (strncmp(program_err, "chorale", 7) != 0 || !end || end[1])
        fail_msg("row %zu: not one sentence: %s", row, program_err);
    assert_int_equal(strlen(program_out), 0);
}

#endif
