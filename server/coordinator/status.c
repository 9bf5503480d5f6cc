/* Where the job stands, for RUN/status.json. The keys are those that deploy/status.c shows. */
#include "common/clock.h"
#include "common/err.h"
#include "server/coordinator/change.h"
#include "server/coordinator/epochs.h"
#include "server/coordinator/members.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *whole(uint64_t v)
{
    return json_integer((json_int_t)(v < MAX_NUMBER ? v : MAX_NUMBER));
}

static json_t *text(const char *s)
{
    json_t *t = json_string(s);
    return t ? t : json_string("?");
}

static double seconds(uint64_t from, uint64_t to)
{
    return to > from ? (double)(to - from) / NS_PER_S : 0;
}

/* Frames per second over the last minute; of a job that has just begun, what its workers say. */
static double job_rate(const struct coordinator *c)
{
    double rate = 0;
    for (uint32_t i = 0; i < c->num_members; i++)
        if (c->members[i]->role == ROLE_WORKER) rate += c->members[i]->beat.frames_per_s;
    if (c->num_samples < 2) return rate;
    uint64_t first = c->samples[0].frames, last = c->samples[c->num_samples - 1].frames;
    double span = seconds(c->samples[0].at, c->samples[c->num_samples - 1].at);
    return span > 0 && last >= first ? (double)(last - first) / span : rate;
}

/* In bsp a lease lasts a whole epoch, so what the beats tell is nearer to the truth there. */
static double frames_done(const struct coordinator *c)
{
    uint64_t used = epochs_frames(c), seen = c->frames_start + members_frames(c);
    return (double)(c->bsp && seen > used ? seen : used);
}

static const char *state_name(const struct coordinator *c)
{
    if (c->command == COMMAND_FINISH) return "finished";
    if (c->restore) return c->switched ? "switching" : "restoring";
    if (c->command == COMMAND_INTERRUPT) return "interrupted";
    if (c->interrupt_at) return "stopping";
    if (!members_map_complete(c) || members_workers(c) == 0) return "starting";
    return epochs_all_turned(c) ? "ending" : "running";
}

/* Those that occurred. */
static json_t *reasons(const struct msg_beat *b)
{
    const struct {
        const char *name;
        uint64_t count;
    } of[] = {{"nonfinite", b->nonfinite}, {"norm", b->norm},
              {"stale", b->stale},         {"generation", b->other_generation},
              {"corrupt", b->corrupt},     {"malformed", b->malformed},
              {"overrun", b->overrun},     {"stranger", b->stranger}};
    json_t *object = json_object();
    for (size_t i = 0; i < sizeof of / sizeof of[0]; i++)
        if (of[i].count) json_object_set_new(object, of[i].name, whole(of[i].count));
    return object;
}

static json_t *shard_rows(const struct coordinator *c, uint64_t now)
{
    json_t *rows = json_array();
    for (uint32_t k = 0; k < c->o.shards; k++) {
        const struct seat *s = &c->seats[k];
        uint32_t first = 0, count = 0;
        json_t *row = json_pack("{s:I, s:o, s:I}", "shard", (json_int_t)k, "endpoint", text(s->endpoint),
                                "generation", (json_int_t)s->generation);
        if (c->o.blocks.count) {
            blocks_of_shard(&c->o.blocks, c->o.shards, k, &first, &count);
            json_object_set_new(row, "blocks", json_integer(count));
        }
        /* Nothing applied yet: nothing to tell of it, and what an earlier life told stays (publish.h). */
        if (s->has_beat && s->beat.version) json_object_set_new(row, "version", whole(s->beat.version));
        if (s->has_beat && s->beat.applied) {
            json_object_set_new(row, "p50", whole(s->beat.p50));
            json_object_set_new(row, "p95", whole(s->beat.p95));
            json_object_set_new(row, "max", whole(s->beat.max));
            json_object_set_new(row, "applied", whole(s->beat.applied));
            json_object_set_new(row, "refused", whole(s->beat.refused));
            json_object_set_new(row, "refused_by", reasons(&s->beat));
            json_object_set_new(row, "waits", whole(s->beat.waits));
            json_object_set_new(row, "wait_s", real((double)s->beat.wait_us / 1e6));
        }
        json_object_set_new(row, "age_s", real(seconds(c->sets.newest_at, now)));
        json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *worker_rows(const struct coordinator *c, uint64_t now)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; i < c->num_members; i++) {
        const struct member *m = c->members[i];
        if (m->role != ROLE_WORKER) continue;
        double silent = seconds(m->seen, now);
        const char *state = !m->has_beat      ? "joining"
                            : silent > 5      ? "silent"
                            : m->beat.holding ? "holding"
                                              : "live";
        json_array_append_new(rows, json_pack("{s:o, s:o, s:o, s:s, s:o, s:o, s:o, s:o}", "member",
                                              whole(m->number), "host", text(m->host), "pid", whole(m->pid),
                                              "state", state, "frames_per_s", real(m->beat.frames_per_s),
                                              "frames", whole(m->beat.frames), "staleness_mean",
                                              real(m->beat.staleness_mean), "last_seen_s", real(silent)));
    }
    return rows;
}

static json_t *epoch_rows(const struct coordinator *c, struct coordinate_epoch *last_dev)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        struct coordinate_epoch e;
        if (!c->epochs[i].turned) continue;
        epochs_result(c, i, &e);
        if (e.evaluated) *last_dev = e;
        double rate = c->io.rate ? c->io.rate(c->io.ctx, i + 1, c->halve_from) : (double)NAN;
        json_array_append_new(
            rows, json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "epoch", (json_int_t)e.epoch, "train_loss",
                            real(e.train_loss), "train_accuracy", real(e.train_accuracy), "rate", real(rate),
                            "dev_loss", real(e.dev_loss), "dev_accuracy", real(e.dev_accuracy),
                            "dev_accuracy_speech", real(e.dev_accuracy_speech)));
    }
    return rows;
}

/* Of the epoch under way; before its first report, of the one before. */
static double train_loss(const struct coordinator *c)
{
    for (uint32_t i = c->num_epochs; i-- > 0;) {
        const struct sums *s = &c->epochs[i].pile.sums;
        if (s->frames) return s->loss / (double)s->frames;
    }
    return NAN;
}

static void add_progress(const struct coordinator *c, json_t *s)
{
    double total = (double)c->limit * (double)c->o.train.frames, used = frames_done(c), rate = job_rate(c);
    bool over = c->command == COMMAND_FINISH || epochs_all_turned(c);
    double done = over ? 1 : total > 0 ? fmin(used / total, 0.999999) : 0;
    uint32_t epoch = epochs_turned(c) + 1;
    json_object_set_new(s, "epoch", json_integer(epoch < c->limit ? epoch : c->limit));
    json_object_set_new(s, "epochs", json_integer(c->limit));
    json_object_set_new(s, "done", real(done));
    json_object_set_new(s, "frames_per_s", real(over ? (double)NAN : rate));
    json_object_set_new(s, "loss", real(train_loss(c)));
    json_object_set_new(s, "eta_s", real(over ? 0 : rate > 0 ? (1 - done) * total / rate : (double)NAN));
}

/* "ssp, bound 4" */
static json_t *mode_text(enum consistency_mode mode, uint32_t bound, uint32_t backup)
{
    if (mode == CONSISTENCY_SSP) return json_sprintf("ssp, bound %u", bound);
    if (mode == CONSISTENCY_ASYNC) return json_string("async");
    return backup ? json_sprintf("bsp, %u backup", backup) : json_string("bsp");
}

static void add_mode(const struct coordinator *c, json_t *s)
{
    const struct coordinate_next *to = &c->change.to;
    uint32_t training = members_training(c);
    json_object_set_new(s, "mode", mode_text(c->o.mode, c->o.bound, c->o.backup));
    if (training && c->io.rate_factor)
        json_object_set_new(s, "rate_factor", real(c->io.rate_factor(c->io.ctx, training)));
    if (c->warm) json_object_set_new(s, "warm_start", json_true());
    if (!c->change.wanted) return;
    json_object_set_new(s, "next", mode_text(to->mode, to->bound, to->backup));
    json_object_set_new(s, "next_after", change_has_epoch(c) ? json_integer(c->change.from) : json_null());
}

char *coordinate_status(const struct coordinator *c, uint64_t now, const char *run)
{
    struct coordinate_epoch dev = {.dev_loss = NAN, .dev_accuracy = NAN};
    json_t *s = json_pack("{s:o, s:s}", "run", text(run), "state", state_name(c));
    add_progress(c, s);
    add_mode(c, s);
    json_t *epochs = epoch_rows(c, &dev);
    json_object_set_new(s, "dev_loss", real(dev.dev_loss));
    json_object_set_new(s, "dev_accuracy", real(dev.dev_accuracy));
    json_object_set_new(s, "incarnation", json_integer(c->incarnation));
    json_object_set_new(s, "generation", json_integer(c->generation));
    json_object_set_new(s, "checkpoint",
                        json_pack("{s:I, s:o, s:b}", "set", (json_int_t)c->sets.newest, "age_s",
                                  real(seconds(c->sets.newest_at, now)), "exact",
                                  coordinate_is_exact(c) && c->o.backup == 0));
    json_object_set_new(s, "shards", shard_rows(c, now));
    json_object_set_new(s, "workers", worker_rows(c, now));
    json_object_set_new(s, "epochs_done", epochs);
    char *out = json_dumps(s, JSON_COMPACT | JSON_REAL_PRECISION(9));
    ASSERT(out);
    json_decref(s);
    return out;
}
