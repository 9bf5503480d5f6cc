#include "worker/feed.h"

#include "common/err.h"
#include "common/rng.h"
#include "worker/feed_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define AHEAD_OF_ALL    16 /* async: utterances asked for beyond one per stream */
#define AHEAD_OF_STREAM 2  /* bsp: of each stream's own queue */

/* --- leases */

struct lease *feed_find_lease(const struct feed *f, uint64_t id)
{
    for (uint32_t i = 0; i < f->num_leases; i++)
        if (f->leases[i].sum.lease.id == id) return &f->leases[i];
    return NULL;
}

bool feed_seek(const struct msg_lease *l, int q, uint64_t from, uint32_t *out)
{
    uint64_t m = l->modulus, r = (uint64_t)l->residue + (uint64_t)q;
    uint64_t p = from + (r + m - from % m) % m;
    if (p >= l->end) return false;
    *out = (uint32_t)p;
    return true;
}

uint32_t feed_count_from(const struct msg_lease *l, int q, uint64_t from)
{
    uint32_t p;
    if (!feed_seek(l, q, from, &p)) return 0;
    return (l->end - 1 - p) / l->modulus + 1;
}

uint32_t feed_count_all(const struct feed *f, const struct msg_lease *l)
{
    uint32_t n = 0;
    for (int q = 0; q < f->num_queues; q++) n += feed_count_from(l, q, l->begin);
    return n;
}

void feed_end_one(struct lease *l)
{
    ASSERT(l->sum.left > 0);
    l->begun = true;
    if (--l->sum.left == 0) l->ended = true;
}

/* The place of queue q at or after position `from` of lease i, or in a later lease. */
static struct place place_from(const struct feed *f, int q, uint32_t i, uint64_t from)
{
    for (; i < f->num_leases; i++) {
        const struct msg_lease *l = &f->leases[i].sum.lease;
        struct place p = {l->id, 0};
        if (feed_seek(l, q, from > l->begin ? from : l->begin, &p.position)) return p;
        from = 0;
    }
    return (struct place){0, 0};
}

int feed_check_lease(const struct feed *f, const struct msg_lease *l)
{
    uint32_t wanted = f->options.bsp ? (uint32_t)f->options.streams : 1;
    if (l->kind != LEASE_TRAIN || l->id == 0 || feed_find_lease(f, l->id))
        return err_set(ERR_DATA, "lease %" PRIu64 " is not a new training lease", l->id);
    if (l->begin > l->end || l->end > f->options.utterances)
        return err_set(ERR_DATA,
                       "lease %" PRIu64 " asks for utterances %u to %u of %u: coordinator and worker "
                       "do not see the same data",
                       l->id, l->begin, l->end, f->options.utterances);
    bool fits = l->modulus >= 1 && l->residues == wanted && l->residue <= l->modulus &&
                wanted <= l->modulus - l->residue && (f->options.bsp || l->modulus == 1);
    if (!fits)
        return err_set(ERR_DATA,
                       "lease %" PRIu64 " is cut for %u of %u streams, but this worker has %u: start "
                       "all processes with the same job file",
                       l->id, l->residues, l->modulus, wanted);
    return 0;
}

struct lease *feed_append_lease(struct feed *f, const struct msg_lease *l)
{
    if (f->num_leases == f->room) {
        uint32_t room = f->room ? 2 * f->room : 8;
        struct lease *grown = xcalloc(room, sizeof *grown);
        if (f->num_leases) memcpy(grown, f->leases, f->num_leases * sizeof *grown);
        free(f->leases);
        f->leases = grown;
        f->room = room;
    }
    struct lease *added = &f->leases[f->num_leases++];
    *added = (struct lease){.sum = {.lease = *l}};
    return added;
}

int feed_add(struct feed *f, const struct msg_lease *l)
{
    int rc = feed_check_lease(f, l);
    if (rc < 0) return rc;
    struct lease *added = feed_append_lease(f, l);
    added->sum.left = feed_count_all(f, l);
    added->ended = added->sum.left == 0;
    for (int q = 0; q < f->num_queues; q++)
        if (!f->queues[q].ask.lease) f->queues[q].ask = place_from(f, q, f->num_leases - 1, 0);
    return 0;
}

/* --- loading ahead */

static const uint32_t *order_of(struct feed *f, uint32_t epoch)
{
    for (int i = 0; i < ORDERS; i++)
        if (f->orders[i].known && f->orders[i].epoch == epoch) return f->orders[i].perm;
    struct order *o = &f->orders[f->next_order];
    f->next_order = (f->next_order + 1) % ORDERS;
    rng_epoch_order(f->options.seed, epoch, o->perm, f->options.utterances);
    o->known = true;
    o->epoch = epoch;
    return o->perm;
}

struct entry *feed_entry_at(struct queue *q, int i)
{
    return &q->ahead[(q->head + i) % q->capacity];
}

static void ask_ahead(struct feed *f, int q)
{
    struct queue *queue = &f->queues[q];
    while (queue->ask.lease && queue->count < queue->capacity) {
        struct place at = queue->ask;
        struct lease *l = feed_find_lease(f, at.lease);
        ASSERT(l != NULL);
        uint32_t index = order_of(f, l->sum.lease.epoch)[at.position];
        if (!prefetch_ask(f->prefetch, index, at.lease, q)) return;
        *feed_entry_at(queue, queue->count++) = (struct entry){at, ENTRY_ASKED, NULL};
        queue->ask = place_from(f, q, (uint32_t)(l - f->leases), (uint64_t)at.position + 1);
    }
}

/* What the prefetch has ready, or (wait) the next that it will have. False if there was nothing. */
static bool collect_one(struct feed *f, bool wait)
{
    struct utterance *u = NULL;
    struct prefetch_failure failure;
    enum prefetch_result r = prefetch_take(f->prefetch, wait, &u, &failure);
    if (r == PREFETCH_NONE) return false;
    struct queue *q = &f->queues[r == PREFETCH_UTTERANCE ? u->stream : failure.stream];
    int i = 0;
    while (i < q->count && feed_entry_at(q, i)->state != ENTRY_ASKED) i++;
    ASSERT(i < q->count);
    struct entry *e = feed_entry_at(q, i);
    if (u && u->frames == 0) prefetch_give_back(f->prefetch, &u);
    e->u = u;
    e->state = u ? ENTRY_LOADED : ENTRY_FAILED;
    return true;
}

static void drop_head(struct queue *q)
{
    q->head = (q->head + 1) % q->capacity;
    q->count--;
}

/* The head of the queue once it is loaded; failures take their turn and are counted. NULL if there is none.
 */
static struct entry *loaded_head(struct feed *f, int q, bool wait)
{
    struct queue *queue = &f->queues[q];
    for (;;) {
        ask_ahead(f, q);
        if (queue->count == 0) return NULL;
        struct entry *e = feed_entry_at(queue, 0);
        if (e->state == ENTRY_LOADED) return e;
        if (e->state == ENTRY_FAILED) {
            struct lease *l = feed_find_lease(f, e->place.lease);
            l->sum.failed++;
            feed_end_one(l);
            drop_head(queue);
        } else if (!collect_one(f, wait)) {
            return NULL;
        }
    }
}

enum feed_state feed_fill(struct feed *f, bool more, bool wait)
{
    enum feed_state state = FEED_READY;
    bool active = false;
    for (int q = 0; q < f->num_queues; q++) ask_ahead(f, q);
    while (collect_one(f, false)) continue;
    for (int s = 0; s < f->options.streams; s++) {
        int q = f->num_queues == 1 ? 0 : s;
        struct entry *e = streams_is_idle(f->streams, s) ? loaded_head(f, q, wait) : NULL;
        if (e) {
            feed_find_lease(f, e->place.lease)->begun = true;
            streams_give(f->streams, s, &e->u);
            drop_head(&f->queues[q]);
        }
        if (!streams_is_idle(f->streams, s)) {
            active = true;
        } else if (f->queues[q].count) {
            state = FEED_NEEDS_LOAD;
        } else if (more && state == FEED_READY) {
            state = FEED_NEEDS_LEASE;
        }
    }
    for (int q = 0; q < f->num_queues; q++) ask_ahead(f, q);
    return state == FEED_READY && !active ? FEED_EMPTY : state;
}

/* --- windows and accounts */

static void count_rows(struct feed_rows *r, const struct minibatch *m)
{
    uint64_t all = (uint64_t)m->T * (uint64_t)m->S;
    r->all += all;
    r->padded += m->padded;
    r->unlabelled += all - m->padded - m->frames;
}

struct feed_rows feed_rows(const struct feed *f)
{
    return f->rows;
}

static uint64_t oldest_in_streams(const struct feed *f)
{
    struct lease *oldest = NULL;
    for (int s = 0; s < f->options.streams; s++) {
        uint32_t index, next;
        uint64_t id;
        if (!streams_cursor(f->streams, s, &index, &id, &next)) continue;
        struct lease *l = feed_find_lease(f, id);
        if (!oldest || l < oldest) oldest = l;
    }
    ASSERT(oldest != NULL);
    return oldest->sum.lease.id;
}

void feed_cut(struct feed *f, struct minibatch *out)
{
    f->window_lease = oldest_in_streams(f);
    ASSERT(streams_cut(f->streams, out));
    count_rows(&f->rows, out);
    struct utterance *u;
    while (streams_take_finished(f->streams, &u)) {
        feed_end_one(feed_find_lease(f, u->lease));
        prefetch_give_back(f->prefetch, &u);
    }
}

void feed_account(struct feed *f, double loss, uint64_t frames, uint64_t correct)
{
    struct lease *l = feed_find_lease(f, f->window_lease);
    ASSERT(l != NULL);
    l->sum.loss += loss;
    l->sum.frames += frames;
    l->sum.correct += correct;
}

void feed_pushed(struct feed *f, uint64_t seq)
{
    for (uint32_t i = 0; i < f->num_leases; i++) {
        struct lease *l = &f->leases[i];
        if (!l->ended || l->pushed) continue;
        l->pushed = true;
        l->last_seq = seq;
    }
}

bool feed_take_used(struct feed *f, uint64_t ended, struct msg_used *out)
{
    for (uint32_t i = 0; i < f->num_leases; i++) {
        const struct lease *l = &f->leases[i];
        if (!l->pushed || l->last_seq > ended) continue;
        *out = (struct msg_used){.id = l->sum.lease.id,
                                 .kind = LEASE_TRAIN,
                                 .last_seq = l->last_seq,
                                 .frames = l->sum.frames,
                                 .loss = l->sum.loss,
                                 .correct = l->sum.correct,
                                 .failed = l->sum.failed};
        f->num_leases--;
        memmove(&f->leases[i], &f->leases[i + 1], (f->num_leases - i) * sizeof *f->leases);
        return true;
    }
    return false;
}

uint64_t feed_waiting(const struct feed *f)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < f->num_leases; i++) n += f->leases[i].sum.left;
    for (int s = 0; s < f->options.streams; s++) n -= !streams_is_idle(f->streams, s);
    return n;
}

uint32_t feed_unbegun(const struct feed *f)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < f->num_leases; i++) n += !f->leases[i].begun && !f->leases[i].ended;
    return n;
}

uint32_t feed_leases(const struct feed *f)
{
    return f->num_leases;
}

/* --- life */

int feed_capacity(const struct feed_options *o)
{
    return o->bsp ? o->streams * AHEAD_OF_STREAM : o->streams + AHEAD_OF_ALL;
}

struct feed *feed_new(const struct feed_options *o, struct prefetch *p, struct streams *s)
{
    ASSERT(o->streams > 0);
    struct feed *f = xcalloc(1, sizeof *f);
    f->options = *o;
    f->prefetch = p;
    f->streams = s;
    f->num_queues = o->bsp ? o->streams : 1;
    f->queues = xcalloc((unsigned long)f->num_queues, sizeof *f->queues);
    for (int q = 0; q < f->num_queues; q++) {
        f->queues[q].capacity = feed_capacity(o) / f->num_queues;
        f->queues[q].ahead = xcalloc((unsigned long)f->queues[q].capacity, sizeof *f->queues[q].ahead);
    }
    for (int i = 0; i < ORDERS; i++)
        f->orders[i].perm = xcalloc((unsigned long)o->utterances + 1, sizeof *f->orders[i].perm);
    return f;
}

void feed_free(struct feed **f_in)
{
    struct feed *f = *f_in;
    if (!f) return;
    for (int q = 0; q < f->num_queues; q++) {
        for (int i = 0; i < f->queues[q].count; i++) utterance_free(&feed_entry_at(&f->queues[q], i)->u);
        free(f->queues[q].ahead);
    }
    for (int i = 0; i < ORDERS; i++) free(f->orders[i].perm);
    free(f->queues);
    free(f->leases);
    free(f);
    *f_in = NULL;
}
