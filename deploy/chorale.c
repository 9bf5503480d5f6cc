/* The command people type: `chorale VERB ...` runs chorale-VERB, which lies beside it. */
#include "common/err.h"
#include "common/files.h"
#include "common/options.h"

#include <errno.h>
#include <libgen.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION "0.1.0"

static const struct verb {
    const char *name, *help;
} verbs[] = {
    {"init", "make a run directory with a commented job file"},
    {"train", "train a run, or resume it"},
    {"status", "where a run stands: epoch, loss, shards, workers, staleness"},
    {"stop", "end a running job with a checkpoint"},
    {"set", "change options of a run, also of one that is being trained"},
    {"eval", "cross entropy and frame accuracy of a run or model"},
    {"score", "log-posteriors of a run or model to a Kaldi archive"},
    {"features", "log-mel features of audio to a Kaldi archive"},
    {"data", "check a Kaldi data directory"},
    {"checkpoint", "list and verify the checkpoints of a run"},
    {"doctor", "what this machine gives to a job, which kernels serve it, what is wrong"},
};
#define NUM_VERBS (sizeof verbs / sizeof verbs[0])

static int print_help(void)
{
    puts("Trains LSTM acoustic models by asynchronous gradient descent: servers hold the\n"
         "weights, workers compute on the speech.\n\n"
         "  chorale init RUN --data data/train --dev data/dev   make RUN/job.yaml\n"
         "  chorale train RUN --servers 2 --workers 2           train; again: resume\n"
         "  chorale status RUN                                  in another terminal\n"
         "  chorale eval RUN --data data/test                   frame accuracy\n");
    for (size_t i = 0; i < NUM_VERBS; i++) printf("  %-12s %s\n", verbs[i].name, verbs[i].help);
    puts("\n`chorale VERB --help` tells more; `chorale init --help` lists every option of a\n"
         "job. Exit status: 0 done, 1 failure, 2 usage, 3 data, 4 cannot reach, 5 model\n"
         "mismatch, 6 diverged, 7 storage, 75 interrupted but resumable.");
    return 0;
}

static int unknown_verb(const char *verb)
{
    const char *near = NULL;
    size_t least = strlen(verb) < 6 ? 3 : 4; /* so many letters to change: not meant */
    for (size_t i = 0; i < NUM_VERBS; i++) {
        size_t d = options_distance(verb, verbs[i].name);
        if (d >= least) continue;
        least = d;
        near = verbs[i].name;
    }
    if (near && least < strlen(near))
        return err_set(ERR_USAGE, "unknown command '%.40s'; did you mean `chorale %s`?", verb, near);
    return err_set(ERR_USAGE, "unknown command '%.40s'; `chorale --help` lists them", verb);
}

/* Path of chorale-VERB beside this program; owned by the caller. NULL if /proc does not say where that is. */
static char *beside(const char *verb)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return NULL;
    self[n] = '\0';
    return xprintf("%s/chorale-%s", dirname(self), verb);
}

static bool is_known(const char *verb)
{
    for (size_t i = 0; i < NUM_VERBS; i++)
        if (strcmp(verbs[i].name, verb) == 0) return true;
    return false;
}

/* Comes back only if it fails. argv[0] is the verb. */
static int run_verb(char **argv)
{
    const char *verb = argv[0];
    if (!verb[0] || strspn(verb, "abcdefghijklmnopqrstuvwxyz-") != strlen(verb)) return unknown_verb(verb);
    char *path = beside(verb);
    if (!path) return err_set(ERR_FAIL, "cannot find the directory of this program: /proc is not mounted");
    if (!is_known(verb) && !files_exists(path)) {
        free(path);
        return unknown_verb(verb);
    }
    argv[0] = path;
    execv(path, argv);
    int rc =
        err_set(ERR_FAIL, "cannot run %s: %s; build or install it beside chorale", path, strerror(errno));
    free(path);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return err_report("chorale", err_set(ERR_USAGE, "name a command; `chorale --help` lists them"));
    const char *first = argv[1];
    if (strcmp(first, "--version") == 0) return puts("chorale " VERSION) < 0;
    bool help = strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 || strcmp(first, "help") == 0;
    if (help && argc > 2 && argv[2][0] != '-') {
        char ask[] = "--help", *asked[] = {argv[2], ask, NULL};
        return err_report("chorale", run_verb(asked));
    }
    if (help) return print_help();
    if (first[0] == '-')
        return err_report(
            "chorale",
            err_set(ERR_USAGE, "unknown option '%.40s'; a command comes first, see `chorale --help`", first));
    return err_report("chorale", run_verb(argv + 1));
}
