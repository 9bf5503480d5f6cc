#include "server/coordinator/epochs.h"

#include "common/err.h"
#include "common/log.h"
#include "server/coordinator/change.h"
#include "server/coordinator/piles.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ opening and closing */

static void fill_epoch(const struct coordinator *c, struct epoch *e, uint32_t number)
{
    uint32_t n = c->o.train.utterances, count = c->o.workers;
    if (e->span) count = (uint32_t)(((uint64_t)n + e->span - 1) / e->span);
    for (uint32_t i = 0; i < count; i++) {
        struct chunk k = {.order = number, .end = n};
        if (e->span) {
            k.begin = i * e->span;
            k.end = n - k.begin > e->span ? k.begin + e->span : n;
        }
        piles_append(&e->pile, &k);
    }
    e->base = count;
}

static struct epoch *add(struct coordinator *c)
{
    c->epochs = realloc(c->epochs, (c->num_epochs + 1) * sizeof *c->epochs);
    ASSERT(c->epochs);
    struct epoch *e = &c->epochs[c->num_epochs++];
    memset(e, 0, sizeof *e);
    return e;
}

static void lay_out(const struct coordinator *c, struct epoch *e, uint32_t number)
{
    e->span = c->bsp ? 0 : c->o.chunk_utterances;
    e->modulus = c->bsp ? c->o.workers * c->o.streams : 1;
    fill_epoch(c, e, number);
}

void epochs_add(struct coordinator *c)
{
    struct epoch *e = add(c);
    lay_out(c, e, c->num_epochs - 1);
}

bool epochs_open_next(struct coordinator *c)
{
    if (c->num_epochs >= c->limit || c->num_epochs >= change_from(c)) return false;
    epochs_add(c);
    rows_write(c, epochs_row(c, c->num_epochs - 1));
    return true;
}

static void close_epoch(struct coordinator *c, uint32_t e)
{
    piles_forget(c, LEASE_TRAIN, e);
    piles_free(&c->epochs[e].pile);
}

static void truncate_epochs(struct coordinator *c)
{
    while (c->num_epochs > c->limit) close_epoch(c, --c->num_epochs);
}

static bool fits(const struct coordinator *c, const struct epoch *e)
{
    if (!c->bsp) return e->span > 0 && e->modulus == 1;
    return e->span == 0 && e->base == c->o.workers && e->modulus == c->o.workers * c->o.streams;
}

void epochs_reshape(struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        struct epoch *e = &c->epochs[i];
        if (e->turned || fits(c, e)) continue;
        close_epoch(c, i);
        memset(e, 0, sizeof *e);
        lay_out(c, e, i);
        log_event(LOG_WARN, "epoch_restarted", "\"epoch\":%u", i + 1);
    }
    truncate_epochs(c);
}

/* ------------------------------------------------------------------ questions */

uint32_t epochs_turned(const struct coordinator *c)
{
    uint32_t n = 0;
    while (n < c->num_epochs && c->epochs[n].turned) n++;
    return n;
}

bool epochs_all_turned(const struct coordinator *c)
{
    return epochs_turned(c) >= c->limit;
}

bool epochs_all_evaluated(const struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_epochs; i++)
        if (!c->epochs[i].evaluated) return false;
    return c->num_evals == 0;
}

bool epochs_want_set(const struct coordinator *c)
{
    for (uint32_t i = 0; i < c->num_epochs; i++)
        if (c->epochs[i].turned && c->epochs[i].set == 0) return true;
    return false;
}

uint64_t epochs_frames(const struct coordinator *c)
{
    uint64_t frames = 0;
    for (uint32_t i = 0; i < c->num_epochs; i++) frames += c->epochs[i].pile.sums.frames;
    return frames;
}

uint32_t epochs_keep_set(const struct coordinator *c)
{
    uint32_t set = c->num_evals ? c->evals[0].set : 0;
    uint32_t coming = c->sets.phase != SET_NONE ? c->sets.set : 0;
    for (uint32_t i = 0; set == 0 && coming && c->o.dev.utterances && i < c->num_epochs; i++)
        if (c->epochs[i].set == coming && !c->epochs[i].evaluated) set = coming;
    return set;
}

uint32_t epochs_first_unleased(const struct coordinator *c)
{
    uint32_t n = c->num_epochs;
    for (; n > 0; n--) {
        const struct epoch *e = &c->epochs[n - 1];
        if (!e->pile.chunks || e->turned || e->pile.open != e->base || e->pile.n != e->base) break;
    }
    return n;
}

static double per(double sum, uint64_t n)
{
    return n ? sum / (double)n : (double)NAN;
}

void epochs_result(const struct coordinator *c, uint32_t epoch, struct coordinate_epoch *out)
{
    const struct epoch *e = &c->epochs[epoch];
    const struct sums *t = &e->pile.sums, *d = &e->dev;
    *out = (struct coordinate_epoch){.epoch = epoch + 1,
                                     .halve_from = c->halve_from,
                                     .train_loss = per(t->loss, t->frames),
                                     .train_accuracy = per((double)t->correct, t->frames),
                                     .evaluated = d->frames > 0,
                                     .dev_loss = per(d->loss, d->frames),
                                     .dev_accuracy = per((double)d->correct, d->frames),
                                     .dev_accuracy_speech = per((double)d->speech_correct, d->speech_frames)};
}

/* ------------------------------------------------------------------ turning */

static void tell_epoch(struct coordinator *c, uint32_t i)
{
    struct coordinate_epoch e;
    c->epochs[i].evaluated = true;
    rows_write(c, epochs_row(c, i));
    epochs_result(c, i, &e);
    log_event(
        LOG_INFO, "epoch_done",
        "\"epoch\":%u,\"train_loss\":%.6g,\"train_accuracy\":%.6g,\"dev_loss\":%.6g,\"dev_accuracy\":%.6g,"
        "\"dev_accuracy_speech\":%.6g",
        e.epoch, e.train_loss, e.train_accuracy, e.dev_loss, e.dev_accuracy, e.dev_accuracy_speech);
    if (c->io.epoch_done) c->io.epoch_done(c->io.ctx, &e);
}

/* Used before the newest complete set was named: no fall of a server loses them any more. */
static bool is_in_newest_set(const struct coordinator *c, uint32_t epoch)
{
    const struct pile *p = &c->epochs[epoch].pile;
    for (uint32_t i = 0; i < p->n; i++)
        if (p->chunks[i].after != CHUNK_MOVED && p->chunks[i].after >= c->sets.newest) return false;
    return true;
}

/* Chunks of older epochs are kept until they are in a set: a server that falls may have lost them. */
static void turn(struct coordinator *c, uint32_t i)
{
    struct epoch *e = &c->epochs[i];
    e->turned = true;
    e->set = 0;
    for (uint32_t old = 0; old < i; old++) {
        if (!c->epochs[old].turned || !c->epochs[old].pile.chunks || !is_in_newest_set(c, old)) continue;
        close_epoch(c, old);
        rows_write(c, epochs_row(c, old));
    }
    log_event(LOG_INFO, "epoch_turn", "\"epoch\":%u,\"frames\":%llu,\"loss\":%.6g", i + 1,
              (unsigned long long)e->pile.sums.frames, per(e->pile.sums.loss, e->pile.sums.frames));
    if (c->o.dev.utterances == 0 && !e->evaluated)
        tell_epoch(c, i);
    else
        rows_write(c, epochs_row(c, i));
}

/* Kaldi's "newbob": the rate starts to fall once the dev loss improves too little; when it falls and the loss
 * improves too little again, no further epoch opens. The epochs that ended before the lower rate was in force
 * say nothing about it. */
static void decide(struct coordinator *c, uint32_t epoch)
{
    struct coordinate_epoch e;
    epochs_result(c, epoch, &e);
    if (!e.evaluated) return;
    double before = c->dev_before;
    double improvement = before > 0 ? (before - e.dev_loss) / before : INFINITY;
    c->dev_before = e.dev_loss;
    if (c->o.newbob && c->halve_from == 0 && improvement < c->o.start_improvement) {
        c->halve_from = epochs_first_unleased(c) + 1;
        c->stale_orders = true;
        log_event(LOG_INFO, "rate_falls", "\"from_epoch\":%u,\"improvement\":%.6g", c->halve_from,
                  improvement);
    } else if (c->o.newbob && c->halve_from && e.epoch >= c->halve_from &&
               improvement < c->o.end_improvement && epochs_first_unleased(c) < c->limit) {
        c->limit = epochs_first_unleased(c);
        log_event(LOG_INFO, "last_epoch", "\"epoch\":%u,\"improvement\":%.6g", c->limit, improvement);
    }
    rows_write(c, epochs_newbob_row(c));
    truncate_epochs(c);
}

static void end_evaluation(struct coordinator *c, uint32_t index)
{
    struct evaluation done = c->evals[index];
    memmove(&c->evals[index], &c->evals[index + 1], (--c->num_evals - index) * sizeof *c->evals);
    piles_forget(c, LEASE_EVAL, done.set);
    piles_free(&done.pile);
    uint32_t last = UINT32_MAX;
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        if (c->epochs[i].set != done.set || c->epochs[i].evaluated || !c->epochs[i].turned) continue;
        c->epochs[i].dev = done.pile.sums;
        tell_epoch(c, i);
        last = i;
    }
    if (last != UINT32_MAX) decide(c, last); /* epochs that share a result are no step forward */
    rows_write(c, epochs_eval_row(&done, true));
    c->stale_orders = true;
}

void epochs_check(struct coordinator *c)
{
    for (uint32_t i = epochs_turned(c);
         i < c->num_epochs && c->epochs[i].pile.open == 0 && c->epochs[i].pile.leased == 0; i++)
        turn(c, i);
    for (uint32_t i = 0; i < c->num_evals;) {
        if (c->evals[i].pile.open || c->evals[i].pile.leased)
            i++;
        else
            end_evaluation(c, i);
    }
}

/* ------------------------------------------------------------------ evaluation */

static struct evaluation *add_evaluation(struct coordinator *c, uint32_t set, uint32_t span)
{
    c->evals = realloc(c->evals, (c->num_evals + 1) * sizeof *c->evals);
    ASSERT(c->evals);
    struct evaluation *e = &c->evals[c->num_evals++];
    *e = (struct evaluation){.set = set};
    for (uint32_t n = c->o.dev.utterances, at = 0; at<n; at += n - at> span ? span : n - at) {
        struct chunk k = {.begin = at, .end = n - at > span ? at + span : n};
        piles_append(&e->pile, &k);
    }
    return e;
}

void epochs_evaluate(struct coordinator *c, uint32_t set)
{
    bool wanted = false;
    for (uint32_t i = 0; i < c->num_epochs; i++)
        wanted = wanted || (c->epochs[i].turned && c->epochs[i].set == set && !c->epochs[i].evaluated);
    if (!wanted || c->o.dev.utterances == 0 || piles_find(c, LEASE_EVAL, set)) return;
    rows_write(c, epochs_eval_row(add_evaluation(c, set, c->o.eval_utterances), false));
    c->stale_orders = true;
}

void epochs_name_set(struct coordinator *c, uint32_t set)
{
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        if (!c->epochs[i].turned || c->epochs[i].set) continue;
        c->epochs[i].set = set;
        rows_write(c, epochs_row(c, i));
    }
}

void epochs_lose_set(struct coordinator *c, uint32_t set)
{
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        if (c->epochs[i].set != set || !c->epochs[i].turned) continue;
        c->epochs[i].set = 0;
        rows_write(c, epochs_row(c, i));
    }
}

void epochs_void(struct coordinator *c, uint32_t set)
{
    for (uint32_t i = 0; i < c->num_evals;) {
        struct evaluation gone = c->evals[i];
        if (set && gone.set != set) {
            i++;
            continue;
        }
        memmove(&c->evals[i], &c->evals[i + 1], (--c->num_evals - i) * sizeof *c->evals);
        piles_forget(c, LEASE_EVAL, gone.set);
        rows_write(c, epochs_eval_row(&gone, true));
        piles_free(&gone.pile);
        for (uint32_t e = 0; e < c->num_epochs; e++) {
            if (c->epochs[e].set != gone.set || c->epochs[e].evaluated) continue;
            c->epochs[e].set = 0;
            rows_write(c, epochs_row(c, e));
        }
        c->stale_orders = true;
    }
}

/* ------------------------------------------------------------------ rows */

json_t *epochs_row(const struct coordinator *c, uint32_t epoch)
{
    const struct epoch *e = &c->epochs[epoch];
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:b, s:I, s:o, s:o}", "row", "epoch", "epoch",
                     (json_int_t)epoch, "span", (json_int_t)e->span, "modulus", (json_int_t)e->modulus,
                     "base", (json_int_t)e->base, "chunks", (json_int_t)e->pile.n, "turned", e->turned,
                     "evaluated", e->evaluated, "closed", e->pile.chunks == NULL, "set", (json_int_t)e->set,
                     "train", rows_sums(&e->pile.sums), "dev", rows_sums(&e->dev));
}

json_t *epochs_eval_row(const struct evaluation *e, bool gone)
{
    uint32_t span = e->pile.chunks && e->pile.n ? e->pile.chunks[0].end : 1;
    return json_pack("{s:s, s:I, s:I, s:b, s:o}", "row", "eval", "set", (json_int_t)e->set, "span",
                     (json_int_t)span, "gone", gone, "dev", rows_sums(&e->pile.sums));
}

json_t *epochs_newbob_row(const struct coordinator *c)
{
    json_t *row = json_pack("{s:s, s:I, s:f}", "row", "newbob", "halve_from", (json_int_t)c->halve_from,
                            "dev_before", c->dev_before);
    if (c->limit < c->o.epochs) json_object_set_new(row, "limit", json_integer(c->limit));
    return row;
}

/* A new epoch of a row: its own shape, whatever the options say now. */
static int apply_new(struct coordinator *c, const json_t *row)
{
    uint32_t span, modulus, base, chunks, n = c->o.train.utterances;
    bool closed = json_is_true(json_object_get(row, "closed"));
    int rc = rows_u32(row, "span", UINT32_MAX - 1, 0, &span);
    if (rc == 0) rc = rows_u32(row, "modulus", UINT32_MAX - 1, 1, &modulus);
    if (rc == 0) rc = rows_u32(row, "base", UINT32_MAX - 1, 0, &base);
    if (rc == 0) rc = rows_u32(row, "chunks", UINT32_MAX - 1, 0, &chunks);
    if (rc < 0) return rc;
    if (base > (span ? n : 100000) || (span && base != ((uint64_t)n + span - 1) / span))
        return err_set(ERR_DATA, "epoch of %u chunks, but there are %u utterances", base, n);
    struct epoch *e = add(c);
    e->span = span;
    e->modulus = modulus;
    e->base = base;
    uint32_t workers = c->o.workers;
    if (span == 0) c->o.workers = base;
    if (!closed) fill_epoch(c, e, c->num_epochs - 1);
    c->o.workers = workers;
    if (closed) e->pile.n = chunks;
    return 0;
}

int epochs_apply(struct coordinator *c, const json_t *row)
{
    uint32_t number;
    int rc = rows_u32(row, "epoch", 1000000, UINT32_MAX, &number);
    if (rc < 0) return rc;
    if (number > c->num_epochs)
        return err_set(ERR_DATA, "epoch %u comes before epoch %u", number, c->num_epochs);
    if (number == c->num_epochs) rc = apply_new(c, row);
    if (rc < 0) return rc;
    struct epoch *e = &c->epochs[number];
    rc = rows_u32(row, "set", UINT32_MAX - 1, 0, &e->set);
    if (rc == 0) rc = rows_read_sums(json_object_get(row, "train"), &e->pile.sums);
    if (rc == 0) rc = rows_read_sums(json_object_get(row, "dev"), &e->dev);
    e->turned = json_is_true(json_object_get(row, "turned"));
    e->evaluated = json_is_true(json_object_get(row, "evaluated"));
    if (json_is_true(json_object_get(row, "closed")) && e->pile.chunks) {
        close_epoch(c, number);
        e->pile.open = e->pile.leased = 0;
    }
    return rc;
}

int epochs_apply_eval(struct coordinator *c, const json_t *row)
{
    uint32_t set, span;
    int rc = rows_u32(row, "set", UINT32_MAX - 1, UINT32_MAX, &set);
    if (rc == 0) rc = rows_u32(row, "span", UINT32_MAX - 1, 1, &span);
    if (rc < 0) return rc;
    uint32_t i = 0;
    while (i < c->num_evals && c->evals[i].set != set) i++;
    if (json_is_true(json_object_get(row, "gone"))) {
        if (i == c->num_evals) return 0;
        piles_forget(c, LEASE_EVAL, set);
        piles_free(&c->evals[i].pile);
        memmove(&c->evals[i], &c->evals[i + 1], (--c->num_evals - i) * sizeof *c->evals);
        return 0;
    }
    if (span == 0 || c->o.dev.utterances == 0) return err_set(ERR_DATA, "an evaluation without utterances");
    struct evaluation *e = i < c->num_evals ? &c->evals[i] : add_evaluation(c, set, span);
    return rows_read_sums(json_object_get(row, "dev"), &e->pile.sums);
}

int epochs_apply_newbob(struct coordinator *c, const json_t *row)
{
    int rc = rows_u32(row, "halve_from", UINT32_MAX - 1, 0, &c->halve_from);
    uint32_t limit;
    if (rc == 0) rc = rows_u32(row, "limit", UINT32_MAX - 1, c->o.epochs, &limit);
    if (rc < 0) return rc;
    c->dev_before = json_number_value(json_object_get(row, "dev_before"));
    c->limit = limit < c->o.epochs ? limit : c->o.epochs;
    truncate_epochs(c);
    return 0;
}
