/* chorale train: runs a job on this machine to its end, or goes on with it. The launcher of a run: it owns
 * RUN/members/launcher while it lives, prepares the job, and leaves the processes to launch.c. */
#define _GNU_SOURCE /* CPU_COUNT */
#include "common/clock.h"
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/rendezvous.h"
#include "common/options.h"
#include "common/snapshot.h"
#include "deploy/child.h"
#include "deploy/launch.h"
#include "deploy/progress.h"
#include "deploy/run.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLAIN_NS   (10 * NS_PER_S)
#define MAX_STATUS (64u << 20)

struct request {
    const char *run;
    char **sets; /* owned texts "a.b=c" */
    size_t num_sets;
    bool quiet;
};

static int print_help(void)
{
    puts("chorale train RUN [--servers N] [--workers N] [--set OPTION=VALUE]... [--quiet]\n"
         "\n"
         "  chorale train run1\n"
         "  chorale train run1 --servers 2 --workers 2\n"
         "  chorale train run1 --set optimizer.rate=0.02 --set train.epochs=15\n"
         "\n"
         "Trains RUN (made by `chorale init`) on this machine, with progress. Ctrl-C, or\n"
         "`chorale stop RUN`, ends it with a checkpoint; the same command again goes on\n"
         "from the newest one. RUN/final.safetensors is the model in the end.\n"
         "\n"
         "  --servers N     parameter servers, one shard each (cluster.servers)\n"
         "  --workers N     workers; 0: one per train.threads cores that are left\n"
         "                  (cluster.workers)\n"
         "  --set OPT=VALUE one option; the merged job is written back to RUN/job.yaml.\n"
         "                  What the model and its data are cannot change once the run\n"
         "                  has started\n"
         "  --quiet         no progress and no summary, errors alone\n"
         "\n"
         "The line of progress: epoch, part of the whole job that is done, frames per\n"
         "second of all workers, training loss of this epoch, frame accuracy on data.dev\n"
         "(and its change since the epoch before), time left, workers, and staleness:\n"
         "updates by which a gradient came too late, of the worst shard; half of them at\n"
         "most p50, 95 % at most p95. Not on a terminal: such a line every 10 seconds.\n"
         "\n"
         "`chorale init --help` lists the options of a job.\n"
         "Exit status: 0 trained, 75 interrupted but resumable, 1 failure, 2 usage,\n"
         "3 data, 4 cannot reach, 5 model mismatch, 6 diverged, 7 storage.");
    return 0;
}

static int unknown_option(const char *word)
{
    return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale train --help`", word);
}

/* So that the sentence names the word that was typed. */
static int check_number(const char *word, const char *key, const char *value)
{
    struct config scratch;
    config_default(&scratch);
    int rc = options_set(&scratch, options_find(key), value);
    config_free(&scratch);
    return rc < 0 ? err_prefix(rc, "%s", word) : 0;
}

/* Returns 1 if help was asked for. */
static int parse_arguments(int argc, char **argv, struct request *q)
{
    static const struct option names[] = {
        {"servers", required_argument, NULL, 'n'}, {"workers", required_argument, NULL, 'w'},
        {"set", required_argument, NULL, 's'},     {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    q->sets = xcalloc((size_t)argc, sizeof *q->sets);
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 'n' || c == 'w') {
            const char *key = c == 'n' ? "cluster.servers" : "cluster.workers";
            if (check_number(c == 'n' ? "--servers" : "--workers", key, optarg) < 0) return ERR_USAGE;
            q->sets[q->num_sets++] = xprintf("%s=%s", key, optarg);
        } else if (c == 's')
            q->sets[q->num_sets++] = xstrdup(optarg);
        else if (c == 'q')
            q->quiet = true;
        else if (c == 'h')
            return 1;
        else if (c == ':')
            return err_set(ERR_USAGE, "%s wants a value; see `chorale train --help`", argv[optind - 1]);
        else
            return unknown_option(argv[optind - 1]);
    }
    if (optind >= argc) return err_set(ERR_USAGE, "name the run: chorale train RUN");
    if (optind + 1 < argc)
        return err_set(ERR_USAGE, "one run at a time: '%.80s' is too much; see `chorale train --help`",
                       argv[optind + 1]);
    q->run = argv[optind];
    return 0;
}

/* ------------------------------------------------------------------ the job file */

static int cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* The job with all of its options settled: numbers of processes, too. */
static int settle(const struct request *q, const char *job, struct config *c)
{
    int rc = config_load_merged(job, q->sets, q->num_sets, c);
    if (rc < 0) return rc;
    if (c->cluster.workers == 0)
        c->cluster.workers = launch_workers(cores(), c->cluster.servers, c->train.threads);
    return 0;
}

/* Our children read what the job file says: the environment is merged into it already, below --set. */
static void forget_environment(void)
{
    char name[128];
    for (size_t i = 0; i < options_count; i++) {
        options_environment_name(&options_table[i], name, sizeof name);
        unsetenv(name);
    }
}

/* ------------------------------------------------------------------ one launcher at a time */

/* Its descriptor stays open as long as we live. */
static int take_lock(const char *run, int *fd)
{
    int rc = run_lock(run, fd);
    if (rc != 1) return rc;
    return err_set(ERR_FAIL, "%s is being trained already; see %s status %s, or end it with %s stop %s", run,
                   run_command(), run, run_command(), run);
}

static int write_launcher(const char *path)
{
    pid_t pid = getpid();
    char *text = xprintf("{\"pid\":%ld,\"start\":%" PRIu64 "}\n", (long)pid, rendezvous_process_start(pid));
    int rc = files_write_atomic(path, text, strlen(text));
    free(text);
    return rc;
}

static int refuse_second(const char *run)
{
    pid_t pid = 0;
    uint64_t start = 0;
    int rc = run_launcher(run, &pid, &start);
    if (rc <= 0) return rc;
    return err_set(ERR_FAIL, "%s is being trained already by process %ld; end that with: %s stop %s", run,
                   (long)pid, run_command(), run);
}

static int make_folders(const char *run)
{
    static const char *const names[] = {"members", "logs", "staleness", "checkpoints"};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof names / sizeof names[0]; i++) {
        char *path = files_join(run, names[i]);
        rc = files_make_dirs(path);
        free(path);
    }
    return rc;
}

/* ------------------------------------------------------------------ running */

/* What the run needs while it goes on. */
struct training {
    const struct request *request;
    struct config config;
    char *programs; /* owned */
    int signal_fd;
    bool stop;
    bool is_over; /* all of its epochs are trained already */
};

/* A job that has come to its end, with the epochs that are wanted now, and whose last set is the newest. */
static bool is_trained(const char *run, const struct config *c)
{
    char *path = files_join(run, "status.json"), *model = files_join(run, "final.safetensors"), *text = NULL;
    bool yes = files_exists(path) && files_exists(model) && files_read(path, MAX_STATUS, &text, NULL) == 0;
    if (yes) {
        json_t *s = json_loads(text, 0, NULL);
        const char *state = json_string_value(json_object_get(s, "state"));
        const json_t *set = json_object_get(json_object_get(s, "checkpoint"), "set");
        yes = state && strcmp(state, "finished") == 0 && json_is_integer(set) &&
              json_integer_value(json_object_get(s, "epochs")) == c->train.epochs &&
              json_integer_value(set) == snapshot_newest(run);
        json_decref(s);
    }
    free(text);
    free(model);
    free(path);
    return yes;
}

/* chorale-prepare has said itself what is wrong: *exit_status then is what we end with, too. The new job file
 * takes the place of the old one once it is good. */
static int prepare(struct training *t, const char *job, int *exit_status)
{
    char *fresh = xprintf("%s.new", job), *program = xprintf("%s/chorale-prepare", t->programs);
    const char *words[CHILD_MAX_WORDS + 1] = {program, t->request->run, "--config", fresh};
    if (t->request->quiet || t->is_over) words[4] = "--quiet";
    int rc = config_write(&t->config, fresh, true);
    if (rc == 0) rc = child_run(words, t->signal_fd, &t->stop);
    if (rc > 0) *exit_status = rc <= 7 ? rc : 1;
    if (t->stop) rc = ERR_INTERRUPTED;
    if (rc == 0 && rename(fresh, job) != 0)
        rc = err_set(ERR_STORAGE, "cannot replace %s: %s", job, strerror(errno));
    if (rc != 0) unlink(fresh);
    free(fresh);
    free(program);
    return rc;
}

static int launch(struct training *t, uint64_t job, struct progress *p)
{
    const char *run = t->request->run;
    const struct config *c = &t->config;
    struct launch_options o = {.run = run,
                               .programs = t->programs,
                               .servers = (uint32_t)c->cluster.servers,
                               .workers = (uint32_t)c->cluster.workers,
                               .bsp = c->consistency.mode == CONSISTENCY_BSP,
                               .job = job,
                               .signal_fd = t->signal_fd,
                               .progress = p};
    progress_say(p, false, "%s: %d server%s, %d worker%s; Ctrl-C stops with a checkpoint", run,
                 c->cluster.servers, c->cluster.servers == 1 ? "" : "s", c->cluster.workers,
                 c->cluster.workers == 1 ? "" : "s");
    return launch_run(&o);
}

/* To the end and the summary. */
static int finish(struct training *t)
{
    const char *run = t->request->run;
    const struct config *c = &t->config;
    struct facts facts;
    int rc = facts_read(run, &facts);
    if (rc < 0) return rc;
    struct progress_options how = {.run = run,
                                   .command = run_command(),
                                   .data = run_shorten(c->data.dev[0] ? c->data.dev : c->data.train),
                                   .is_over = t->is_over,
                                   .quiet = t->request->quiet,
                                   .is_terminal = isatty(STDERR_FILENO) == 1,
                                   .has_dev = facts.dev.utterances > 0,
                                   .plain_ns = PLAIN_NS,
                                   .to = stderr};
    struct progress *p = progress_new(&how);
    uint64_t begin = clock_now_ns();
    if (t->is_over)
        progress_say(p, false,
                     "all %d epochs are done already; for more:\n  %s train %s --set train.epochs=%d",
                     c->train.epochs, run_command(), run, c->train.epochs + 5);
    else
        rc = launch(t, facts.job, p);
    if (rc == 0 && !t->request->quiet)
        progress_summary(p, t->is_over ? -1 : (double)(clock_now_ns() - begin) / 1e9, stdout);
    progress_free(&p);
    facts_fini(&facts);
    return rc;
}

/* With the lock in hand. */
static int train_locked(struct training *t, const char *job, int *exit_status)
{
    const char *run = t->request->run;
    char *launcher = files_join(run, "members/launcher");
    int rc = refuse_second(run);
    if (rc == 0) {
        forget_environment();
        t->is_over = is_trained(run, &t->config);
        rc = write_launcher(launcher);
        if (rc == 0) rc = prepare(t, job, exit_status);
        if (rc == 0) rc = finish(t);
        unlink(launcher);
    }
    if (rc == ERR_INTERRUPTED) err_set(rc, "interrupted; go on with: %s train %s", run_command(), run);
    free(launcher);
    return rc;
}

static int train(const struct request *q, int *exit_status)
{
    struct training t = {.request = q, .signal_fd = -1};
    char *job = files_join(q->run, "job.yaml");
    int lock = -1, rc = run_check(q->run);
    if (rc == 0) rc = make_folders(q->run);
    if (rc == 0) rc = take_lock(q->run, &lock);
    if (rc == 0) rc = config_take_next(q->run); /* a change that the job did not come to (chorale set) */
    if (rc == 0) rc = settle(q, job, &t.config);
    if (rc == 0 && !(t.programs = child_programs())) rc = ERR_FAIL;
    if (rc == 0 && (t.signal_fd = child_catch_signals()) < 0) rc = t.signal_fd;
    if (rc == 0) rc = train_locked(&t, job, exit_status);
    if (lock >= 0) close(lock);
    config_free(&t.config);
    free(t.programs);
    free(job);
    return rc;
}

int main(int argc, char **argv)
{
    struct request q = {0};
    int exit_status = 0, rc = parse_arguments(argc, argv, &q);
    if (rc == 1)
        rc = print_help();
    else if (rc == 0)
        rc = train(&q, &exit_status);
    for (size_t i = 0; i < q.num_sets; i++) free(q.sets[i]);
    free(q.sets);
    return rc > 0 ? exit_status : err_report("chorale train", rc);
}
