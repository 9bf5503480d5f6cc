/* chorale set: changes options of a run. Nothing runs: the job file is rewritten. A job runs: the changed
 * file waits as RUN/job.next.yaml until the epochs that have begun are over; the coordinator takes it up
 * then, or the next `chorale train` does. Every change is written there first, whole or not at all, so that
 * it is never lost. */
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/options.h"
#include "deploy/run.h"
#include "deploy/told.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_STATUS (64u << 20)

/* What may change in mid-training: nothing that the model, its data or its processes are. Sections end in a
 * dot. */
static const char *const changeable[] = {"consistency.",          "optimizer.",      "exchange.",
                                         "checkpoint.interval_s", "checkpoint.keep", "train.epochs",
                                         "train.norm_clip"};
#define NUM_CHANGEABLE (sizeof changeable / sizeof changeable[0])

static int print_help(void)
{
    puts("chorale set RUN OPTION=VALUE...\n"
         "\n"
         "  chorale set run1 consistency.mode=ssp consistency.bound=8\n"
         "  chorale set run1 optimizer.rate=0.02\n"
         "\n"
         "Changes options of a run. If it is being trained, the epochs that have begun end as\n"
         "they are, with a checkpoint; then all of its processes start again from that, with\n"
         "the changed options. `chorale status RUN` tells when. Setting the old value again\n"
         "before that takes the change back. If the job ends first, or is stopped, the change\n"
         "holds when it is trained again. A run that is stopped within an epoch goes on there;\n"
         "but where the mode changes to bsp or from it, that epoch begins anew.\n"
         "\n"
         "Options that can be changed: consistency.*, optimizer.*, exchange.*,\n"
         "checkpoint.interval_s, checkpoint.keep, train.epochs, train.norm_clip. Another\n"
         "optimizer begins without the state (momentum, squares) of the one before it.\n"
         "`chorale init --help` explains them.\n"
         "Exit status: 0 changed or as it was, 2 usage, 7 storage.");
    return 0;
}

/* Returns 1 if help was asked for. */
static int parse_arguments(int argc, char **argv, const char **run)
{
    static const struct option names[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 'h') return 1;
        return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale set --help`", argv[optind - 1]);
    }
    if (optind >= argc) return err_set(ERR_USAGE, "name the run: chorale set RUN OPTION=VALUE...");
    *run = argv[optind];
    if (optind + 1 == argc)
        return err_set(ERR_USAGE, "say what to change, e.g. chorale set %.200s consistency.mode=ssp", *run);
    return 0;
}

/* ------------------------------------------------------------------ the change */

static bool is_changeable(const char *key)
{
    for (size_t i = 0; i < NUM_CHANGEABLE; i++) {
        size_t n = strlen(changeable[i]);
        bool section = changeable[i][n - 1] == '.';
        if (section ? strncmp(key, changeable[i], n) == 0 : strcmp(key, changeable[i]) == 0) return true;
    }
    return false;
}

static int unknown_key(const char *key)
{
    const char *near = options_nearest(key);
    if (options_is_section(key)) return err_set(ERR_USAGE, "%.100s is a section; name one option of it", key);
    return err_set(ERR_USAGE, "unknown option %.100s%s%s%s", key, near[0] ? "; did you mean " : "", near,
                   near[0] ? "?" : "; `chorale init --help` lists them all");
}

/* All of them are scalars. */
static int apply(struct config *c, const char *assignment)
{
    const char *equals = strchr(assignment, '=');
    if (!equals || equals == assignment)
        return err_set(ERR_USAGE, "write option=value, e.g. consistency.mode=ssp, not '%.80s'", assignment);
    char *key = xprintf("%.*s", (int)(equals - assignment), assignment);
    const struct option_spec *o = options_find(key);
    int rc;
    if (!o)
        rc = unknown_key(key);
    else if (!is_changeable(key))
        rc = err_set(
            ERR_USAGE,
            "%s cannot be changed by `chorale set`; it changes consistency.*, optimizer.*, exchange.*, "
            "checkpoint.interval_s, checkpoint.keep, train.epochs and train.norm_clip",
            key);
    else
        rc = options_set(c, o, equals + 1);
    free(key);
    return rc;
}

/* The options as they will be. The environment has no part in it. */
static int merge(const char *path, char *const *sets, size_t count, struct config *out)
{
    int rc = config_load(path, out);
    if (rc < 0) return rc;
    for (size_t i = 0; rc == 0 && i < count; i++) rc = apply(out, sets[i]);
    if (rc == 0) rc = config_check(out);
    if (rc < 0) config_free(out);
    return rc;
}

static bool are_equal(const struct config *a, const struct config *b)
{
    char *x = config_text(a, false), *y = config_text(b, false);
    bool equal = strcmp(x, y) == 0;
    free(x);
    free(y);
    return equal;
}

/* ------------------------------------------------------------------ telling */

static bool is_in_last_epoch(const char *run, const struct config *to)
{
    char *path = files_join(run, "status.json"), *text = NULL;
    double epoch = 0, epochs = 0;
    if (files_exists(path) && files_read(path, MAX_STATUS, &text, NULL) == 0) {
        json_t *s = json_loads(text, 0, NULL);
        told_number(s, "epoch", &epoch);
        told_number(s, "epochs", &epochs);
        json_decref(s);
    }
    free(text);
    free(path);
    return epochs > 0 && epoch >= epochs && to->train.epochs <= epochs;
}

static void tell(const char *run, const struct config *to, bool runs)
{
    if (!runs)
        printf("%s/job.yaml is changed; train it with: %s train %s\n", run, run_command(), run);
    else if (is_in_last_epoch(run, to))
        printf("the last epoch of %s is being trained: the change waits in %s/%s until the run is trained "
               "further\n",
               run, run, CONFIG_NEXT);
    else
        printf("%s goes on with the change after the epoch that is being trained; %s status %s tells\n", run,
               run_command(), run);
}

/* ------------------------------------------------------------------ setting */

static int write_change(const char *run, const char *next, const struct config *to, bool runs)
{
    int rc = config_write(to, next, true);
    if (rc == 0 && !runs) rc = config_take_next(run);
    if (rc == 0) tell(run, to, runs);
    return rc;
}

/* Back to what the job file says: no change waits any more. */
static int take_back(const char *run, const char *next)
{
    if (unlink(next) != 0 && errno != ENOENT)
        return err_set(ERR_STORAGE, "cannot remove %s: %s", next, strerror(errno));
    printf("nothing to change: so it is in %s/job.yaml\n", run);
    return 0;
}

/* runs: the launcher, not we, holds the lock of the run. */
static int set_locked(const char *run, char *const *sets, size_t count, bool runs)
{
    char *job = files_join(run, "job.yaml"), *next = files_join(run, CONFIG_NEXT);
    struct config from, to;
    int rc = config_load(job, &from);
    if (rc == 0) {
        rc = merge(files_exists(next) ? next : job, sets, count, &to);
        if (rc == 0) {
            rc = are_equal(&from, &to) ? take_back(run, next) : write_change(run, next, &to, runs);
            config_free(&to);
        }
        config_free(&from);
    }
    free(job);
    free(next);
    return rc;
}

static int set(const char *run, char *const *sets, size_t count)
{
    int lock = -1, rc = run_check(run);
    if (rc == 0) rc = run_lock(run, &lock);
    if (rc < 0) return rc;
    rc = set_locked(run, sets, count, rc == 1);
    if (lock >= 0) close(lock);
    if (rc == 0 && fflush(stdout) != 0) rc = err_set(ERR_FAIL, "cannot write to the standard output");
    return rc;
}

int main(int argc, char **argv)
{
    const char *run = NULL;
    int rc = parse_arguments(argc, argv, &run);
    if (rc == 1)
        rc = print_help();
    else if (rc == 0)
        rc = set(run, argv + optind + 1, (size_t)(argc - optind - 1));
    return err_report("chorale set", rc);
}
