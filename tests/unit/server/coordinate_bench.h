/* A coordinator without sockets: what it sends, journals and completes is kept for the test to look at. */
#ifndef TESTS_UNIT_SERVER_COORDINATE_BENCH_H
#define TESTS_UNIT_SERVER_COORDINATE_BENCH_H

#include "common/clock.h"
#include "common/err.h"
#include "common/log.h"
#include "server/coordinator/coordinate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define S NS_PER_S

struct bench {
    struct coordinate_options o;
    struct coordinator *c;
    uint64_t now;
    uint64_t server[2]; /* members that are shards 0 and 1, of processes 8 and 9 */
    struct msg sent[4096];
    uint64_t to[4096];
    size_t num_sent;
    uint64_t roster[8]; /* of the last order that had one */
    size_t roster_bytes;
    char *journal; /* lines */
    uint32_t completed;
    char *state;                  /* of the last complete set */
    bool exact, final, hold_done; /* hold_done: the test answers with coordinate_set_done itself */
    uint32_t num_capsules;
    struct coordinate_epoch epochs[16];
    uint32_t num_epochs;
};

static inline void bench_send(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct bench *b = ctx;
    assert_true(b->num_sent < 4096);
    b->to[b->num_sent] = peer;
    b->sent[b->num_sent++] = *m;
    if (m->type == MSG_ORDER && payload && *payload) b->roster_bytes = frame_len(*payload);
    if (m->type == MSG_ORDER && payload && *payload && b->roster_bytes)
        memcpy(b->roster, frame_data(*payload), frame_len(*payload) < 64 ? frame_len(*payload) : 64);
}

static inline void bench_journal(void *ctx, const char *row)
{
    struct bench *b = ctx;
    char *all = xprintf("%s%s\n", b->journal ? b->journal : "", row);
    free(b->journal);
    b->journal = all;
}

static inline void bench_complete(void *ctx, struct manifest *m, const struct coordinate_capsule *x,
                                  uint32_t n)
{
    struct bench *b = ctx;
    (void)x;
    b->completed = m->set;
    b->exact = m->exact;
    b->final = m->final;
    b->num_capsules = n;
    free(b->state);
    b->state = xstrdup(m->state);
    if (!b->hold_done) coordinate_set_done(b->c, b->now, m->set, 0);
}

static inline void bench_epoch(void *ctx, const struct coordinate_epoch *e)
{
    struct bench *b = ctx;
    b->epochs[b->num_epochs++ % 16] = *e;
}

/* Any function of the number of workers. */
static inline double bench_momentum(void *ctx, uint32_t workers)
{
    (void)ctx;
    return workers / 8.0;
}

static inline struct coordinator *bench_core(struct bench *b)
{
    const struct coordinate_io io = {.ctx = b,
                                     .send = bench_send,
                                     .journal = bench_journal,
                                     .complete = bench_complete,
                                     .epoch_done = bench_epoch,
                                     .momentum = bench_momentum};
    return coordinate_new(&b->o, &io);
}

/* 2 shards, 2 workers, async, 2 epochs of 10 utterances in chunks of 4: 0-4, 4-8, 8-10. */
static inline struct bench *bench_new(void)
{
    struct bench *b = xcalloc(1, sizeof *b);
    log_set_stderr(LOG_NONE);
    b->now = 100 * S;
    b->o = (struct coordinate_options){.job = 7,
                                       .model_hash = 9,
                                       .shards = 2,
                                       .epochs = 2,
                                       .workers = 2,
                                       .streams = 3,
                                       .train = {.utterances = 10, .frames = 1000},
                                       .chunk_utterances = 4,
                                       .lease_ns = 120 * S,
                                       .limit_ns = 30 * S,
                                       .eval_utterances = 16,
                                       .start_improvement = 0.01,
                                       .end_improvement = 0.001};
    return b;
}

static inline void bench_start(struct bench *b)
{
    b->c = bench_core(b);
    coordinate_start(b->c, b->now, true, 0);
}

static inline void bench_free(struct bench *b)
{
    coordinate_free(&b->c);
    free(b->journal);
    free(b->state);
    free(b);
}

static inline int bench_tear_down(void **state)
{
    bench_free(*state);
    return 0;
}

/* --- what others say. Peers are 100 + pid. */
static inline void say(struct bench *b, uint64_t peer, struct msg *m)
{
    m->job = m->job ? m->job : b->o.job;
    coordinate_receive(b->c, b->now, peer, m, NULL);
}

/* The newest message of a type to a peer, NULL if there is none. */
static inline const struct msg *last_to(const struct bench *b, uint64_t peer, enum msg_type type)
{
    for (size_t i = b->num_sent; i-- > 0;)
        if (b->to[i] == peer && b->sent[i].type == type) return &b->sent[i];
    return NULL;
}

static inline struct msg_joined join_as(struct bench *b, uint32_t role, uint64_t pid, uint32_t shard,
                                        uint32_t set)
{
    struct msg m = {.type = MSG_JOIN};
    m.join = (struct msg_join){.role = role,
                               .host = "h",
                               .pid = pid,
                               .shard = shard,
                               .model_hash = b->o.model_hash,
                               .restored_set = set};
    snprintf(m.join.endpoint, sizeof m.join.endpoint, "tcp://h:%u", (unsigned)pid);
    b->num_sent = 0;
    say(b, 100 + pid, &m);
    const struct msg *r = last_to(b, 100 + pid, MSG_JOINED);
    return r ? r->joined : (struct msg_joined){0};
}

static inline uint64_t worker(struct bench *b, uint64_t pid)
{
    return join_as(b, ROLE_WORKER, pid, 0, 0).member;
}
static inline uint64_t server(struct bench *b, uint64_t pid, uint32_t shard)
{
    return join_as(b, ROLE_SERVER, pid, shard, 0).member;
}

/* Starts with both servers and worker 1, whose number is returned. */
static inline uint64_t bench_begin(struct bench *b)
{
    bench_start(b);
    b->server[0] = server(b, 8, 0);
    b->server[1] = server(b, 9, 1);
    return worker(b, 1);
}

/* The launcher of its host says so. */
static inline void dies(struct bench *b, uint64_t pid)
{
    struct msg m = {.type = MSG_GONE, .gone = {.host = "h", .pid = pid}};
    say(b, 1, &m);
}

static inline void beat(struct bench *b, uint64_t pid, const struct msg_beat *beat)
{
    struct msg m = {.type = MSG_BEAT, .beat = *beat};
    say(b, 100 + pid, &m);
}

static inline struct msg_order order_of(const struct bench *b, uint64_t pid)
{
    const struct msg *m = last_to(b, 100 + pid, MSG_ORDER);
    return m ? m->order : (struct msg_order){0};
}

static inline struct msg_lease ask(struct bench *b, uint64_t pid, uint64_t member, uint64_t request)
{
    struct msg m = {.type = MSG_LEASE_ASK, .lease_ask = {member, request}};
    b->num_sent = 0;
    say(b, 100 + pid, &m);
    const struct msg *r = last_to(b, 100 + pid, MSG_LEASE);
    return r ? r->lease : (struct msg_lease){.kind = 99};
}

static inline void used(struct bench *b, uint64_t pid, uint64_t member, const struct msg_lease *l,
                        uint64_t frames)
{
    struct msg m = {.type = MSG_USED,
                    .used = {.member = member,
                             .id = l->id,
                             .kind = l->kind,
                             .frames = frames,
                             .loss = 2.0 * (double)frames,
                             .correct = frames / 2,
                             .speech_frames = frames / 2,
                             .speech_correct = frames / 4}};
    b->num_sent = 0;
    say(b, 100 + pid, &m);
    const struct msg *r = last_to(b, 100 + pid, MSG_USED_OK);
    assert_non_null(r);
    assert_int_equal(r->used_ok.id, l->id);
}

/* The next n leases of worker 1, asked for from this question on and used at once. */
static inline void use_leases(struct bench *b, uint64_t member, uint64_t request, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct msg_lease l = ask(b, 1, member, request + i);
        assert_int_equal(l.kind, LEASE_TRAIN);
        used(b, 1, member, &l, 100);
    }
}

/* Server `pid` has copied and, if asked, written what its order says. */
static inline void serve_set(struct bench *b, uint64_t pid, uint64_t member, bool write)
{
    struct msg_beat x = {.role = ROLE_SERVER, .member = member};
    beat(b, pid, &x);
    x.copied = order_of(b, pid).set;
    if (write) x.written = x.copied;
    x.file_bytes = 10;
    beat(b, pid, &x);
}

static inline void serve_both(struct bench *b, bool write)
{
    serve_set(b, 8, b->server[0], write);
    serve_set(b, 9, b->server[1], write);
}

/* What the status has, or does not have. */
static inline void told(const struct bench *b, const char *what, bool is_there)
{
    char *s = coordinate_status(b->c, b->now, "r");
    if (!strstr(s, what) == is_there) fail_msg("%s %s: %s", what, is_there ? "is not told" : "is told", s);
    free(s);
}

static inline struct coordinate_account account(const struct bench *b)
{
    struct coordinate_account a;
    coordinate_account(b->c, &a);
    return a;
}

static inline void wait_until(struct bench *b, uint64_t now)
{
    b->now = now;
    coordinate_tick(b->c, now);
}

/* Each line of text through `apply`. */
static inline void apply_lines(struct coordinator *c, const char *text,
                               int (*apply)(struct coordinator *, const char *))
{
    char *copy = xstrdup(text), *save = NULL;
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        int rc = apply(c, line);
        if (rc < 0) fail_msg("%s: %s", err_text(), line);
    }
    free(copy);
}

/* --- coming back: another process, with the options as they are now, that has not started yet */
static inline void renew(struct bench *b)
{
    coordinate_free(&b->c);
    b->c = bench_core(b);
}

/* Killed, and back from its rows; the others are still there. */
static inline void come_back(struct bench *b, const char *rows)
{
    renew(b);
    apply_lines(b->c, rows, coordinate_apply_row);
    coordinate_start(b->c, b->now, false, 0);
}

/* Everything is new, and takes up the last complete set, which is set 1. */
static inline void restore_set_1(struct bench *b)
{
    renew(b);
    assert_int_equal(coordinate_apply_state(b->c, b->state), 0);
    coordinate_start(b->c, b->now, true, 1);
}

/* A worker's nth capsule for a set, in two pages; it has the lease of that question, and all before. */
static inline void give_capsule(struct bench *b, uint64_t pid, uint64_t member, uint32_t set,
                                const char *text, uint32_t attempt, uint64_t request)
{
    size_t len = strlen(text), n;
    for (size_t at = 0; at < len; at += n) {
        n = at == 0 ? (len + 1) / 2 : len - at;
        struct frame *page = frame_copy(text + at, n);
        struct msg m = {.type = MSG_CAPSULE, .job = b->o.job};
        m.capsule = (struct msg_capsule){.member = member,
                                         .set = set,
                                         .offset = at,
                                         .total = len,
                                         .hash = wire_hash(text + at, n),
                                         .attempt = attempt,
                                         .request = request};
        coordinate_receive(b->c, b->now, 100 + pid, &m, &page);
        assert_null(page);
    }
}

#endif
