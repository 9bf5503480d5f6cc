/* chorale-coordinator: leads one job. Takes up its state, binds, publishes where it is, and lets the core
 * answer until the job is done, stopped or must be restored. */
#include "common/clock.h"
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/rendezvous.h"
#include "common/snapshot.h"
#include "common/wire.h"
#include "server/coordinator/coordinate.h"
#include "server/coordinator/journal.h"
#include "server/coordinator/next.h"
#include "server/coordinator/publish.h"
#include "server/outbox.h"
#include "server/pace.h"

#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define EXIT_RESTORE    76 /* only a restore of the last set helps; the launcher starts everything again */
#define EXIT_SWITCH     77 /* so it is, for the job file has changed */
#define STATUS_NS       (NS_PER_S / 2)
#define LEAVE_NS        (10 * NS_PER_S)
#define RESTORE_NS      (3 * NS_PER_S)
#define LIMIT_NS        (30 * NS_PER_S)
#define FULL_MS         1 /* while answers wait for room in a queue */
#define EVAL_UTTERANCES 16
#define LETTERS         16  /* for one peer that wait for room in its queue */
#define BATCH           256 /* messages between two looks at the clock's other work */

struct lead {
    const char *run;
    bool recover;
    struct config config;
    struct facts facts;
    struct pace_rule rule;
    struct wire *wire;
    struct outbox *outbox;
    struct coordinator *core;
    struct journal *journal; /* NULL while the state is taken up: it is written as a whole then */
    char *journal_path;
    char endpoint[MSG_MAX_ENDPOINT];
    struct publisher *publisher;
    struct next next;
    bool is_full;                 /* the outbox has letters that wait */
    uint64_t status_at, leave_at; /* ns; leave_at 0: nobody was told to leave */
};

static volatile sig_atomic_t stop_asked;
static int stop_fd = -1;

static void on_stop(int signal_number)
{
    const uint64_t one = 1;
    (void)signal_number;
    stop_asked = 1;
    if (write(stop_fd, &one, sizeof one) < 0) stop_asked = 1;
}

static void watch_signals(struct wire *w)
{
    struct sigaction a = {.sa_handler = on_stop};
    stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sigemptyset(&a.sa_mask);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    wire_watch(w, stop_fd);
}

/* ------------------------------------------------------------------ arguments and the job */

static int print_help(void)
{
    puts(
        "chorale-coordinator RUN [--recover]\n\n"
        "Leads the job in RUN: members, leases of data, epochs, checkpoints. `chorale train RUN` starts it.\n"
        "--recover: servers and workers are still there, take up the journal instead of a checkpoint.");
    return 1;
}

/* Returns 1 if help was asked for. */
static int parse_arguments(int argc, char **argv, struct lead *l)
{
    static const struct option names[] = {
        {"recover", no_argument, NULL, 'r'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 'h') return print_help();
        if (c != 'r')
            return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale-coordinator --help`",
                           argv[optind - 1]);
        l->recover = true;
    }
    if (optind + 1 != argc) return err_set(ERR_USAGE, "name one run: chorale-coordinator RUN");
    l->run = argv[optind];
    return files_is_dir(l->run) ? 0 : err_set(ERR_USAGE, "%s is not a run directory", l->run);
}

static int load_job(struct lead *l)
{
    char *path = files_join(l->run, "job.yaml");
    int rc = config_load_merged(path, NULL, 0, &l->config);
    free(path);
    if (rc == 0) rc = facts_read(l->run, &l->facts);
    if (rc < 0) return rc;
    if (l->config.cluster.workers < 1)
        return err_set(ERR_USAGE,
                       "cluster.workers must be a number of workers here; `chorale train` writes it");
    if (l->facts.train.utterances == 0 || l->facts.train.frames == 0)
        return err_set(ERR_DATA, "%s has no training data; run chorale-prepare", l->run);
    pace_rule_from(&l->config, l->facts.train.frames, &l->rule);
    return 0;
}

static void open_log(const struct lead *l)
{
    char *dir = files_join(l->run, "logs"), *path = files_join(dir, "coordinator.jsonl");
    files_make_dirs(dir);
    log_open("coordinator", 0, l->run, path);
    log_set_stderr(LOG_WARN);
    free(path);
    free(dir);
}

/* ------------------------------------------------------------------ what the core asks for */

static void send_message(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct lead *l = ctx;
    outbox_send(l->outbox, peer, m, payload);
}

static void write_row(void *ctx, const char *row)
{
    struct lead *l = ctx;
    char text[512];
    if (l->journal && journal_write(l->journal, row) < 0)
        log_event(LOG_ERROR, "journal_failed", "\"why\":%s", log_quote(text, sizeof text, err_text()));
}

static int write_capsules(struct lead *l, struct manifest *m, const struct coordinate_capsule *capsules,
                          uint32_t n)
{
    int rc = 0;
    if (n) m->capsules = xcalloc(n, sizeof *m->capsules);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        rc = snapshot_write_capsule(l->run, m->set, capsules[i].rank, capsules[i].data, capsules[i].len,
                                    &m->capsules[i]);
        m->capsules[i].first = capsules[i].rank;
        if (rc == 0) m->num_capsules = i + 1;
    }
    return rc;
}

/* A set that cannot be written costs nothing but itself: the old ones stay and training goes on. */
static void complete_set(void *ctx, struct manifest *m, const struct coordinate_capsule *capsules, uint32_t n)
{
    struct lead *l = ctx;
    char text[512];
    uint32_t set = m->set;
    m->wall = (uint64_t)time(NULL);
    int rc = write_capsules(l, m, capsules, n);
    if (rc == 0) rc = snapshot_write_manifest(l->run, m);
    if (rc < 0)
        log_event(LOG_ERROR, "checkpoint_failed", "\"set\":%u,\"why\":%s", set,
                  log_quote(text, sizeof text, err_text()));
    else
        snapshot_prune(l->run, (uint32_t)l->config.checkpoint.keep);
    coordinate_set_done(l->core, clock_now_ns(), set, rc);
}

/* The rate of the last update of an epoch. */
static double rate_of(void *ctx, uint32_t epoch, uint32_t halve_from)
{
    const struct lead *l = ctx;
    struct pace_rule rule = l->rule;
    if (rule.schedule == SCHEDULE_NEWBOB) rule.from_epoch = halve_from;
    return pace_rate(&rule, (uint64_t)epoch * l->facts.train.frames - 1);
}

static double rate_factor_of(void *ctx, uint32_t workers)
{
    const struct lead *l = ctx;
    return pace_follow(&l->rule, workers).rate_factor;
}

static double momentum_of(void *ctx, uint32_t workers)
{
    const struct lead *l = ctx;
    return l->rule.at_worker ? pace_follow(&l->rule, workers).momentum : 0;
}

/* The lines that users of Kaldi's nnet1 grep for. */
static void write_epoch(void *ctx, const struct coordinate_epoch *e)
{
    struct lead *l = ctx;
    char *path = xprintf("%s/logs/train.log", l->run);
    FILE *f = fopen(path, "a");
    if (f) {
        fprintf(f, "ITERATION %02u: TRAIN AVG.LOSS %.4f, (lrate%.6g)", e->epoch, e->train_loss,
                rate_of(l, e->epoch, e->halve_from));
        if (e->evaluated) fprintf(f, ", CROSSVAL AVG.LOSS %.4f", e->dev_loss);
        fputc('\n', f);
        if (e->evaluated) fprintf(f, "FRAME_ACCURACY >> %.2f%% <<\n", 100 * e->dev_accuracy);
    }
    if (!f || fclose(f) != 0) log_event(LOG_ERROR, "train_log_failed", "\"epoch\":%u", e->epoch);
    free(path);
}

/* ------------------------------------------------------------------ taking up the state */

/* What a capsule is made for: leases of that layout, streams by thread, the rounding that is owed. */
static uint64_t shape_of(const struct config *c)
{
    int ranks = c->consistency.mode == CONSISTENCY_BSP ? c->cluster.workers : 0;
    const int of[] = {(int)c->consistency.mode, ranks, c->train.streams, c->train.threads,
                      (int)c->exchange.gradients};
    return wire_hash(of, sizeof of) >> 2;
}

static void make_core(struct lead *l)
{
    const struct config *c = &l->config;
    struct coordinate_options o = {.job = l->facts.job,
                                   .model_hash = l->facts.model_hash,
                                   .shards = (uint32_t)c->cluster.servers,
                                   .epochs = (uint32_t)c->train.epochs,
                                   .mode = c->consistency.mode,
                                   .bound = (uint32_t)c->consistency.bound,
                                   .backup = (uint32_t)c->consistency.backup,
                                   .workers = (uint32_t)c->cluster.workers,
                                   .streams = (uint32_t)(c->train.streams * c->train.threads),
                                   .shape = shape_of(c),
                                   .warm_start_frames = (uint64_t)c->train.warm_start_frames,
                                   .train = l->facts.train,
                                   .dev = l->facts.dev,
                                   .chunk_utterances = (uint32_t)c->train.chunk_utterances,
                                   .lease_ns = (uint64_t)(c->train.lease_s * NS_PER_S),
                                   .interval_ns = (uint64_t)(c->checkpoint.interval_s * NS_PER_S),
                                   .limit_ns = LIMIT_NS,
                                   .eval_utterances = EVAL_UTTERANCES,
                                   .newbob = c->optimizer.schedule.type == SCHEDULE_NEWBOB,
                                   .start_improvement = c->optimizer.schedule.start_improvement,
                                   .end_improvement = c->optimizer.schedule.end_improvement};
    const struct coordinate_io io = {.ctx = l,
                                     .send = send_message,
                                     .journal = write_row,
                                     .complete = complete_set,
                                     .epoch_done = write_epoch,
                                     .rate = rate_of,
                                     .rate_factor = rate_factor_of,
                                     .momentum = momentum_of};
    blocks_cut(l->facts.model.params, &o.blocks);
    l->core = coordinate_new(&o, &io);
}

static int apply_row(void *ctx, const char *row)
{
    return coordinate_apply_row(ctx, row);
}
static int apply_counters(void *ctx, const char *row)
{
    return coordinate_apply_counters(ctx, row);
}

/* Numbers of sets are never used again, even where the journal is lost. */
static int skip_used_sets(struct lead *l)
{
    char row[96];
    size_t n, i = 0;
    uint32_t *sets = snapshot_list_sets(l->run, &n);
    while (i < n && sets[i] >= UINT32_MAX / 4) i++; /* not one of ours: room is left above it */
    snprintf(row, sizeof row, "{\"row\":\"job\",\"next_set\":%u}", i < n ? sets[i] + 1 : 1);
    free(sets);
    return coordinate_apply_counters(l->core, row);
}

static int give_capsules(struct lead *l, const struct manifest *m)
{
    for (uint32_t i = 0; i < m->num_capsules; i++) {
        char *data;
        size_t len;
        int rc = snapshot_read_capsule(l->run, m, m->capsules[i].first, &data, &len);
        if (rc < 0) return rc;
        coordinate_give_capsule(l->core, m->capsules[i].first, data, len);
        free(data);
    }
    return 0;
}

static int restore(struct lead *l)
{
    int64_t set = snapshot_newest(l->run);
    struct manifest m;
    if (set < 0) return err_set(ERR_DATA, "%s has no checkpoint set; run chorale-prepare", l->run);
    int rc = snapshot_read_manifest(l->run, (uint32_t)set, &m);
    if (rc < 0) return rc;
    if (m.state && m.state[0]) rc = coordinate_apply_state(l->core, m.state);
    if (rc == 0) rc = journal_replay(l->journal_path, apply_counters, l->core);
    if (rc == 0) rc = skip_used_sets(l);
    if (rc == 0) {
        coordinate_start(l->core, clock_now_ns(), true, (uint32_t)set);
        rc = give_capsules(l, &m);
    }
    manifest_fini(&m);
    return rc;
}

static int give_capsules_again(struct lead *l)
{
    struct manifest m;
    uint32_t set = coordinate_capsules_of(l->core);
    int rc = set > 0 ? snapshot_read_manifest(l->run, set, &m) : 0;
    if (set == 0 || rc < 0) return 0; /* a set that is gone by now: its capsules were fetched long ago */
    rc = give_capsules(l, &m);
    manifest_fini(&m);
    return rc;
}

static int take_up(struct lead *l)
{
    l->journal_path = files_join(l->run, "journal");
    int rc;
    if (l->recover && files_exists(l->journal_path)) {
        rc = journal_replay(l->journal_path, apply_row, l->core);
        if (rc == 0) coordinate_start(l->core, clock_now_ns(), false, 0);
        if (rc == 0) rc = give_capsules_again(l);
    } else {
        rc = restore(l);
    }
    if (rc < 0) return rc;
    char *rows = coordinate_rows(l->core);
    rc = journal_rewrite(l->journal_path, rows);
    free(rows);
    return rc < 0 ? rc : journal_open(l->journal_path, &l->journal);
}

/* ------------------------------------------------------------------ leading */

static void write_status(const struct lead *l)
{
    uint64_t now = clock_now_ns();
    char *text = coordinate_status(l->core, now, l->run);
    publish_status(l->publisher, now, text);
    free(text);
}

static void receive_some(struct lead *l, int timeout_ms)
{
    struct msg m;
    struct frame *payload = NULL;
    uint64_t peer;
    int from;
    for (int i = 0; i < BATCH; i++) {
        if (wire_receive(l->wire, i ? 0 : timeout_ms, &from, &peer, &m, &payload) < 0) return;
        coordinate_receive(l->core, clock_now_ns(), peer, &m, &payload);
        frame_free(&payload);
    }
}

static int wait_ms(const struct lead *l, uint64_t now)
{
    if (l->is_full) return FULL_MS;
    uint64_t next = coordinate_next(l->core);
    if (l->status_at < next) next = l->status_at;
    if (next <= now) return 0;
    return (int)((next - now) / NS_PER_MS > 200 ? 200 : (next - now) / NS_PER_MS + 1);
}

static void begin_to_leave(struct lead *l, uint64_t now)
{
    if (l->leave_at || coordinate_command(l->core) == COMMAND_RUN) return;
    l->leave_at = now + (coordinate_needs_restore(l->core) ? RESTORE_NS : LEAVE_NS);
}

static bool is_over(const struct lead *l, uint64_t now)
{
    return l->leave_at && (coordinate_is_empty(l->core) || now >= l->leave_at);
}

static void lead(struct lead *l)
{
    bool told = false;
    for (uint64_t now = clock_now_ns(); !is_over(l, now); now = clock_now_ns()) {
        receive_some(l, wait_ms(l, now));
        now = clock_now_ns();
        if (stop_asked && !told) {
            uint64_t count;
            told = true;
            if (read(stop_fd, &count, sizeof count) < 0) log_event(LOG_DEBUG, "stop", NULL);
            wire_watch(l->wire, -1); /* further signals change nothing */
            coordinate_interrupt(l->core, now);
        }
        next_look(&l->next, l->run, now, l->core);
        coordinate_tick(l->core, now);
        l->is_full = outbox_flush(l->outbox);
        begin_to_leave(l, now);
        if (now >= l->status_at) {
            l->status_at = now + STATUS_NS;
            write_status(l);
        }
    }
}

static int export_final(const struct lead *l)
{
    struct coordinate_account a;
    coordinate_account(l->core, &a);
    char *path = files_join(l->run, "final.safetensors");
    int rc = snapshot_export(l->run, a.newest_set, path);
    free(path);
    return rc < 0 ? err_prefix(rc, "the final model could not be written") : 0;
}

static int begin(struct lead *l)
{
    int rc = load_job(l);
    if (rc < 0) return rc;
    open_log(l);
    make_core(l);
    l->publisher = publish_new(l->run);
    if ((rc = take_up(l)) < 0) return rc;
    l->wire = wire_new();
    if ((rc = wire_bind(l->wire, "127.0.0.1", l->endpoint)) < 0) return rc;
    l->outbox = outbox_new(l->wire, LETTERS);
    watch_signals(l->wire);
    rc = rendezvous_publish(l->run, l->endpoint, l->facts.job, coordinate_incarnation(l->core));
    if (rc < 0) return rc;
    log_event(LOG_INFO, "started", "\"endpoint\":\"%s\",\"generation\":%" PRIu64 ",\"recover\":%s",
              l->endpoint, coordinate_generation(l->core), l->recover ? "true" : "false");
    return 0;
}

/* The exit status: 0, 75, 76, 77 or that of an error. */
static int end(struct lead *l)
{
    int rc = 0;
    if (coordinate_command(l->core) == COMMAND_FINISH) rc = export_final(l);
    if (coordinate_switched(l->core)) rc = config_take_next(l->run);
    write_status(l);
    rendezvous_withdraw(l->run);
    if (rc < 0) return err_report("chorale-coordinator", rc);
    if (coordinate_needs_restore(l->core)) return coordinate_switched(l->core) ? EXIT_SWITCH : EXIT_RESTORE;
    return coordinate_command(l->core) == COMMAND_FINISH ? 0 : err_exit_code(ERR_INTERRUPTED);
}

int main(int argc, char **argv)
{
    struct lead l = {0};
    int rc = parse_arguments(argc, argv, &l);
    if (rc == 1) return 0;
    wire_keep_pages();
    if (rc == 0) rc = begin(&l);
    int status;
    if (rc == 0) {
        lead(&l);
        status = end(&l);
    } else {
        status = err_report("chorale-coordinator", rc);
    }
    log_event(LOG_INFO, "ended", "\"exit\":%d", status);
    outbox_free(&l.outbox);
    wire_free(&l.wire);
    journal_close(&l.journal);
    publish_free(&l.publisher);
    coordinate_free(&l.core);
    facts_fini(&l.facts);
    config_free(&l.config);
    free(l.journal_path);
    log_close();
    return status;
}
