#include "server/serve.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "server/checkpoint.h"
#include "server/copies.h"
#include "server/outbox.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_MS      100 /* at most, so that clocks are looked at */
#define FULL_MS      1   /* while answers wait for room in a queue */
#define SECOND       NS_PER_S
#define SILENCE_NS   (60 * SECOND)
#define TERM_WAIT_NS (10 * SECOND)
#define MAX_ROSTER   65536

struct serve {
    const struct serve_options *o;
    struct wire *wire;
    struct link *link;
    struct shard *shard;
    struct checkpoint *checkpoint;
    struct outbox *outbox;
    struct copies copies;
    uint32_t keep_set;
    struct msg_beat is;
    uint64_t oldest_member;
    uint64_t next_line, term_at; /* ns; term_at 0: nobody asked */
    int lines;                   /* RUN/staleness/shard-NN.jsonl, -1: none */
};

/* ------------------------------------------------------------------ signals */

static volatile sig_atomic_t asked_to_stop;

static void ask_to_stop(int signal_number)
{
    (void)signal_number;
    asked_to_stop = 1;
}

void serve_catch_signals(void)
{
    struct sigaction act = {.sa_handler = ask_to_stop}; /* no SA_RESTART: the wait ends */
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
}

bool serve_was_asked_to_stop(void)
{
    return asked_to_stop != 0;
}

/* ------------------------------------------------------------------ copies of the shard */

static bool is_being_written(void *ctx, const struct shard_state *state)
{
    struct serve *s = ctx;
    return checkpoint_uses(s->checkpoint, state);
}

static void collect_written(struct serve *s)
{
    struct checkpoint_result r;
    if (!checkpoint_poll(s->checkpoint, &r)) return;
    if (r.rc < 0)
        s->is.failed_set = r.set;
    else {
        const struct shard_state *copy = copies_find(&s->copies, r.set);
        ASSERT(copy);
        shard_stable(s->shard, copy);
        s->is.written = r.set;
        s->is.file_bytes = r.file.bytes;
        s->is.file_hash = r.file.hash;
    }
    copies_drop(&s->copies, s->keep_set);
}

/* ------------------------------------------------------------------ orders */

static void take_roster(struct serve *s, uint64_t now, const struct msg_order *o, struct frame *payload)
{
    if (o->roster <= s->is.roster || !payload) return; /* rosters only rise */
    size_t n = frame_len(payload) / sizeof(uint64_t);
    bool is_empty = n == 0 && s->o->shard.mode != CONSISTENCY_SSP;
    if (is_empty || n > MAX_ROSTER || frame_len(payload) % sizeof(uint64_t) != 0) return;
    uint64_t *members = xcalloc(n + 1, sizeof *members);
    memcpy(members, frame_data(payload), n * sizeof *members);
    shard_roster(s->shard, now, o->roster, members, (uint32_t)n);
    free(members);
    s->is.roster = o->roster;
    log_event(LOG_INFO, "roster", "\"roster\":%u,\"members\":%zu", o->roster, n);
}

static void take_workers(struct serve *s, uint32_t workers)
{
    if (workers == 0 || !shard_workers(s->shard, workers)) return;
    struct pace_setting to = pace_follow(&s->o->shard.pace, workers);
    log_event(LOG_INFO, "rate_follows", "\"workers\":%u,\"factor\":%.6g,\"momentum\":%.6g", workers,
              to.rate_factor, to.momentum);
}

static int leave(const struct msg_order *o)
{
    if (o->command == COMMAND_FINISH) return 0;
    if (o->command == COMMAND_DIVERGED) return err_set(ERR_DIVERGED, "the training diverged and was stopped");
    return err_set(ERR_INTERRUPTED, "the job was interrupted; the same command resumes it");
}

/* ERR_AGAIN: go on. */
static int obey(struct serve *s, uint64_t now, const struct msg_order *o, struct frame *payload)
{
    if (o->command != COMMAND_RUN) return leave(o);
    take_roster(s, now, o, payload);
    take_workers(s, o->workers);
    if (o->halve_from != s->is.halve_from) shard_halve_from(s->shard, s->is.halve_from = o->halve_from);
    if (o->oldest_member > s->oldest_member)
        shard_oldest_member(s->shard, now, s->oldest_member = o->oldest_member);
    s->keep_set = o->keep_set;
    if (o->set > s->is.copied) {
        checkpoint_write(s->checkpoint, o->set, copies_add(&s->copies, o->set));
        s->is.copied = o->set;
    }
    copies_drop(&s->copies, s->keep_set);
    return ERR_AGAIN;
}

/* ------------------------------------------------------------------ telling */

static void fill_counts(struct msg_beat *is, const struct shard_counts *n)
{
    is->applied = n->applied;
    is->refused = shard_refused(n);
    is->waits = n->waits;
    is->wait_us = n->wait_ns / 1000;
    is->nonfinite = n->nonfinite;
    is->norm = n->norm;
    is->stale = n->stale;
    is->other_generation = n->generation;
    is->corrupt = n->corrupt;
    is->malformed = n->malformed;
    is->overrun = n->overrun;
    is->stranger = n->stranger;
}

static void tell_coordinator(struct serve *s, uint64_t now)
{
    if (!link_is_due(s->link, now, &s->is)) return;
    struct staleness_summary stale;
    staleness_summarise(shard_staleness(s->shard), 0, &stale);
    s->is.version = shard_version(s->shard);
    s->is.frames = shard_frames(s->shard);
    fill_counts(&s->is, shard_counts(s->shard));
    s->is.staleness_mean = stale.mean;
    s->is.p50 = stale.p50;
    s->is.p95 = stale.p95;
    s->is.max = stale.max;
    link_tick(s->link, now, &s->is);
}

/* A line for what was applied since the last one. */
static void write_staleness(struct serve *s)
{
    char *line = staleness_line(shard_staleness(s->shard), s->o->shard.shard, shard_version(s->shard),
                                shard_num_members(s->shard));
    if (!line) return;
    char *text = xprintf("%s\n", line);
    if (s->lines >= 0 && files_write_all(s->lines, text, strlen(text), "the staleness records") < 0) {
        char why[256];
        log_event(LOG_WARN, "staleness_lost", "\"why\":%s", log_quote(why, sizeof why, err_text()));
        close(s->lines); /* a full disk: say it once, serve on */
        s->lines = -1;
    }
    free(text);
    free(line);
}

/* ERR_AGAIN: go on. */
static int check_end(struct serve *s, uint64_t now)
{
    uint64_t silence = link_silence(s->link, now);
    /* the coordinator decides: it names a last set, then it orders everyone to leave */
    if (asked_to_stop && !s->term_at) {
        s->term_at = now;
        log_event(LOG_INFO, "asked_to_stop", NULL);
    }
    if (s->term_at && silence > TERM_WAIT_NS)
        return err_set(ERR_INTERRUPTED, "stopped without a last checkpoint: the coordinator is gone");
    if (silence > SILENCE_NS)
        return err_set(ERR_REACH,
                       "no word from the coordinator for 60 s; run the same `chorale train` again");
    return ERR_AGAIN;
}

/* ------------------------------------------------------------------ the loop */

static void send_answer(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    outbox_send(ctx, peer, m, payload);
}

static bool is_crowded(void *ctx, uint64_t peer)
{
    return outbox_is_crowded(ctx, peer);
}

/* Answers with weights that a peer can have coming to it: in async what it has in flight; where others
 * release them, one of every block. */
static uint32_t most_answers(const struct shard_options *o, uint32_t blocks)
{
    return o->mode == CONSISTENCY_ASYNC || o->credit > blocks ? o->credit : blocks;
}

static int serve_loop(struct serve *s)
{
    int rc = ERR_AGAIN;
    bool is_full = false;
    while (rc == ERR_AGAIN) {
        struct msg m;
        struct frame *payload = NULL;
        int from;
        uint64_t peer;
        bool has_message =
            wire_receive(s->wire, is_full ? FULL_MS : WAIT_MS, &from, &peer, &m, &payload) == 0;
        uint64_t now = clock_now_ns();
        if (has_message && from == WIRE_ROUTER)
            shard_receive(s->shard, now, peer, &m, &payload);
        else if (has_message && link_owns(s->link, from)) {
            int news = link_receive(s->link, now, &m);
            if (news == LINK_ORDER) rc = obey(s, now, &m.order, payload);
            if (news < 0) rc = news;
        }
        frame_free(&payload);
        is_full = outbox_flush(s->outbox);
        collect_written(s);
        if (now >= s->next_line) {
            s->next_line = now + SECOND;
            write_staleness(s);
        }
        tell_coordinator(s, now);
        if (rc == ERR_AGAIN) rc = check_end(s, now);
    }
    return rc;
}

static int open_lines(const struct serve_options *o)
{
    char *dir = files_join(o->run, "staleness"), *path = xprintf("%s/shard-%02u.jsonl", dir, o->shard.shard);
    int fd = -1;
    if (files_make_dirs(dir) == 0) fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) log_event(LOG_WARN, "no_staleness_file", NULL);
    free(path);
    free(dir);
    return fd;
}

static void tell_leave(const struct serve *s)
{
    const struct shard_counts *n = shard_counts(s->shard);
    log_event(LOG_INFO, "leave",
              "\"applied\":%" PRIu64 ",\"duplicate\":%" PRIu64 ",\"late\":%" PRIu64 ",\"nonfinite\":%" PRIu64
              ",\"norm\":%" PRIu64 ",\"stale\":%" PRIu64 ",\"generation\":%" PRIu64 ",\"corrupt\":%" PRIu64
              ",\"stranger\":%" PRIu64 ",\"malformed\":%" PRIu64 ",\"overrun\":%" PRIu64 ",\"waits\":%" PRIu64
              ",\"wait_s\":%.3f,\"answers_dropped\":%" PRIu64 ",\"messages_dropped\":%" PRIu64,
              n->applied, n->duplicate, n->late, n->nonfinite, n->norm, n->stale, n->generation, n->corrupt,
              n->stranger, n->malformed, n->overrun, n->waits, (double)n->wait_ns / (double)NS_PER_S,
              outbox_dropped(s->outbox), wire_dropped(s->wire));
}

int serve_run(const struct serve_options *o, struct wire *w, struct link *l, struct shard_state **state)
{
    struct serve s = {.o = o, .wire = w, .link = l, .keep_set = o->set};
    int rc = checkpoint_new(o->run, o->facts, o->shard.shard, o->shard.shards, &s.checkpoint);
    if (rc < 0) return rc;
    s.outbox = outbox_new(w, most_answers(&o->shard, (*state)->count));
    struct shard_io io = {.ctx = s.outbox, .send = send_answer, .crowded = is_crowded};
    s.shard = shard_new(&o->shard, &io, state);
    s.lines = open_lines(o);
    s.is.copied = s.is.written = o->set;
    s.copies = (struct copies){.shard = s.shard, .in_use = is_being_written, .ctx = &s};
    if (o->is_whole && o->set > 0) copies_add(&s.copies, o->set);
    wire_watch(w, checkpoint_fd(s.checkpoint));
    rc = serve_loop(&s);
    write_staleness(&s);
    tell_leave(&s);
    link_leave(l);
    wire_watch(w, -1);
    checkpoint_free(&s.checkpoint);
    shard_free(&s.shard);
    outbox_free(&s.outbox);
    copies_fini(&s.copies);
    if (s.lines >= 0) close(s.lines);
    return rc;
}
