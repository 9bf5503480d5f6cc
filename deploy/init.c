/* chorale init: makes a run directory with a job file that says every option. */
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/options.h"
#include "deploy/run.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct request {
    const char *run, *data, *dev, *job;
    char **sets; /* owned array of borrowed texts */
    size_t num_sets;
};

static int print_help(void)
{
    puts("chorale init RUN --data DIR [--dev DIR] [--config JOB.yaml]\n"
         "             [--set OPTION=VALUE]...\n\n"
         "  chorale init run1 --data data/train --dev data/dev\n"
         "  chorale init run2 --data data/train --set train.epochs=5 \\\n"
         "      --set 'data.silence=[102, 103]'\n"
         "  chorale init run3 --data data/train --config small.yaml --set \\\n"
         "      'model.layers=[{cells: 512, projection: 256}, {cells: 512, projection: 256}]'\n\n"
         "Writes RUN/job.yaml with every option, its unit, range and default, after a look\n"
         "at the data. A value comes from: default < --config < CHORALE_SECTION_OPTION in\n"
         "the environment < --set.\n\n"
         "  --data DIR       training data: feats.scp and an alignment, ali.scp if\n"
         "                   data.targets does not say another\n"
         "  --dev DIR        development data\n"
         "  --config FILE    a job file to start from\n"
         "  --set OPT=VALUE  one option\n\n"
         "Options of a job:");
    options_print(stdout);
    return 0;
}

/* Returns 1 if help was asked for. */
static int parse_arguments(int argc, char **argv, struct request *q)
{
    static const struct option names[] = {
        {"data", required_argument, NULL, 'd'},   {"dev", required_argument, NULL, 'v'},
        {"config", required_argument, NULL, 'c'}, {"set", required_argument, NULL, 's'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    q->sets = xcalloc((size_t)argc, sizeof *q->sets);
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 'd')
            q->data = optarg;
        else if (c == 'v')
            q->dev = optarg;
        else if (c == 'c')
            q->job = optarg;
        else if (c == 's')
            q->sets[q->num_sets++] = optarg;
        else if (c == 'h')
            return 1;
        else if (c == ':')
            return err_set(ERR_USAGE, "%s wants a value; see `chorale init --help`", argv[optind - 1]);
        else
            return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale init --help`", argv[optind - 1]);
    }
    if (optind >= argc) return err_set(ERR_USAGE, "name the run: chorale init RUN --data DIR");
    if (optind + 1 < argc)
        return err_set(ERR_USAGE, "one run at a time: '%.80s' is too much; see `chorale init --help`",
                       argv[optind + 1]);
    q->run = argv[optind];
    return q->run[0] ? 0 : err_set(ERR_USAGE, "the name of the run is empty");
}

/* ------------------------------------------------------------------ the data */

/* Replaces a path by its absolute form. */
static void make_absolute(char **path)
{
    if (!(*path)[0]) return;
    char *longer = files_absolute(*path);
    free(*path);
    *path = longer;
}

/* A targets file that is not inside `dir` but is here, as a relative path may mean, becomes absolute. */
static void place_targets(const char *dir, char **name)
{
    char *inside = files_join(dir, *name);
    if ((*name)[0] && !files_exists(inside) && files_exists(*name)) make_absolute(name);
    free(inside);
}

static int check_directory(const char *key, const char *dir, char *targets)
{
    char *feats = files_join(dir, "feats.scp");
    int rc = 0;
    if (!files_is_dir(dir))
        rc = err_set(ERR_DATA, "%s %s is not a directory; name a Kaldi data directory", key, dir);
    else if (access(feats, R_OK) != 0)
        rc = err_set(ERR_DATA, "%s cannot be read; %s must hold feats.scp", feats, key);
    else if (files_is_dir(targets) || access(targets, R_OK) != 0)
        rc = err_set(ERR_DATA,
                     "the targets %s cannot be read; name the scp of the alignment with --set %s=FILE",
                     targets, strcmp(key, "data.dev") == 0 ? "data.dev_targets" : "data.targets");
    free(feats);
    free(targets);
    return rc;
}

static int settle_data(struct config *c)
{
    make_absolute(&c->data.train);
    make_absolute(&c->data.dev);
    place_targets(c->data.train, &c->data.targets);
    place_targets(c->data.dev, &c->data.dev_targets);
    int rc = check_directory("data.train", c->data.train, config_targets_path(c));
    if (rc == 0 && c->data.dev[0]) rc = check_directory("data.dev", c->data.dev, config_dev_targets_path(c));
    return rc;
}

/* ------------------------------------------------------------------ the run */

static int set_path(struct config *c, const char *key, const char *value)
{
    return value ? options_set(c, options_find(key), value) : 0;
}

/* default < --config < environment < --data, --dev < --set. */
static int gather(const struct request *q, struct config *c)
{
    int rc = config_load(q->job, c);
    if (rc < 0) return rc;
    rc = config_apply_environment(c);
    if (rc == 0) rc = set_path(c, "data.train", q->data);
    if (rc == 0) rc = set_path(c, "data.dev", q->dev);
    for (size_t i = 0; rc == 0 && i < q->num_sets; i++) rc = config_apply_set(c, q->sets[i]);
    if (rc == 0 && !c->data.train[0])
        rc = err_set(ERR_USAGE, "name the training data: chorale init %s --data DIR", q->run);
    if (rc == 0) rc = config_check(c);
    if (rc == 0) rc = settle_data(c);
    if (rc < 0) config_free(c);
    return rc;
}

static int check_free(const char *run, const char *job)
{
    if (files_exists(job))
        return err_set(ERR_USAGE, "%s is a run already; train it, or take another name", run);
    if (files_exists(run) && !files_is_dir(run))
        return err_set(ERR_USAGE, "%s is a file; take another name", run);
    return 0;
}

/* A directory made here goes again if the file cannot be written. */
static int write_run(const struct config *c, const char *run, const char *job)
{
    bool there = files_is_dir(run);
    int rc = files_make_dirs(run);
    if (rc == 0) rc = config_write(c, job, true);
    if (rc < 0 && !there) rmdir(run);
    return rc;
}

static int init_run(const struct request *q)
{
    struct config c;
    char *job = files_join(q->run, "job.yaml");
    int rc = check_free(q->run, job);
    if (rc == 0 && (rc = gather(q, &c)) == 0) {
        rc = write_run(&c, q->run, job);
        config_free(&c);
    }
    if (rc == 0)
        fprintf(stderr, "%s is ready; look at it, then:\n  %s train %s\n", job, run_command(), q->run);
    free(job);
    return rc;
}

int main(int argc, char **argv)
{
    struct request q = {0};
    int rc = parse_arguments(argc, argv, &q);
    if (rc == 1)
        rc = print_help();
    else if (rc == 0)
        rc = init_run(&q);
    free(q.sets);
    return err_report("chorale init", rc);
}
