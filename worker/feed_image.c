#include "common/err.h"
#include "worker/feed_state.h"

#include <stdlib.h>

void feed_image_fini(struct feed_image *i)
{
    free(i->leases);
    free(i->queues);
    free(i->cursors);
    *i = (struct feed_image){0};
}

/* Where queue q stands: the first utterance that no stream has been given. */
static struct place stand_of(struct queue *q)
{
    return q->count ? feed_entry_at(q, 0)->place : q->ask;
}

void feed_save(const struct feed *f, struct feed_image *out)
{
    uint32_t S = (uint32_t)f->options.streams;
    *out = (struct feed_image){
        .num_leases = f->num_leases, .num_queues = (uint32_t)f->num_queues, .num_cursors = S};
    out->leases = xcalloc(f->num_leases + 1, sizeof *out->leases);
    out->queues = xcalloc(out->num_queues, sizeof *out->queues);
    out->cursors = xcalloc(S, sizeof *out->cursors);
    for (uint32_t i = 0; i < f->num_leases; i++) {
        ASSERT(!f->leases[i].ended);
        out->leases[i] = f->leases[i].sum;
    }
    for (uint32_t q = 0; q < out->num_queues; q++) {
        struct place p = stand_of(&f->queues[q]);
        out->queues[q] = (struct feed_queue){p.lease, p.position};
    }
    for (uint32_t s = 0; s < S; s++) {
        struct feed_cursor *c = &out->cursors[s];
        streams_cursor(f->streams, (int)s, &c->index, &c->lease, &c->next_frame);
    }
}

static int misfit(const char *what)
{
    return err_set(ERR_DATA, "the capsule of a checkpoint does not fit this job: %s", what);
}

static int restore_leases(struct feed *f, const struct feed_image *i)
{
    for (uint32_t k = 0; k < i->num_leases; k++) {
        int rc = feed_check_lease(f, &i->leases[k].lease);
        if (rc < 0) return rc;
        struct lease *l = feed_append_lease(f, &i->leases[k].lease);
        l->sum = i->leases[k];
    }
    return 0;
}

static int restore_queues(struct feed *f, const struct feed_image *i)
{
    for (int q = 0; q < f->num_queues; q++) {
        struct place at = {i->queues[q].lease, i->queues[q].position};
        struct lease *l = at.lease ? feed_find_lease(f, at.lease) : NULL;
        uint32_t position;
        if (at.lease && (!l || at.position < l->sum.lease.begin ||
                         !feed_seek(&l->sum.lease, q, at.position, &position) || position != at.position))
            return misfit("a queue stands where none of its leases is");
        f->queues[q].ask = at;
    }
    return 0;
}

/* Every lease must have exactly what its streams and queues still hold of it. */
static int check_left(const struct feed *f, const struct feed_image *i)
{
    for (uint32_t k = 0; k < f->num_leases; k++) {
        const struct msg_lease *l = &f->leases[k].sum.lease;
        uint64_t waiting = 0, active = 0;
        for (int q = 0; q < f->num_queues; q++) {
            struct place at = f->queues[q].ask;
            const struct lease *stands = at.lease ? feed_find_lease(f, at.lease) : f->leases + f->num_leases;
            if (stands == &f->leases[k])
                waiting += feed_count_from(l, q, at.position);
            else if (stands < &f->leases[k])
                waiting += feed_count_from(l, q, l->begin);
        }
        for (uint32_t s = 0; s < i->num_cursors; s++) active += i->cursors[s].lease == l->id;
        uint64_t left = f->leases[k].sum.left;
        if (left == 0 || left != waiting + active || f->leases[k].sum.failed > feed_count_all(f, l))
            return misfit("the account of a lease is wrong");
        f->leases[k].begun = waiting < feed_count_all(f, l);
    }
    return 0;
}

static int restore_stream(struct feed *f, int s, const struct feed_cursor *c)
{
    struct lease *l = feed_find_lease(f, c->lease);
    if (!l || c->index >= f->options.utterances) return misfit("a stream holds an utterance of no lease");
    ASSERT(prefetch_ask(f->prefetch, c->index, c->lease, s));
    struct utterance *u = NULL;
    struct prefetch_failure failure;
    if (prefetch_take(f->prefetch, true, &u, &failure) == PREFETCH_FAILED) {
        l->sum.failed++;
        feed_end_one(l);
        return 0;
    }
    if (c->next_frame >= u->frames) {
        prefetch_give_back(f->prefetch, &u);
        return misfit("a stream stands beyond the end of its utterance");
    }
    streams_give(f->streams, s, &u);
    streams_set_cursor(f->streams, s, c->next_frame);
    return 0;
}

int feed_restore(struct feed *f, const struct feed_image *i)
{
    ASSERT(f->num_leases == 0);
    if (i->num_queues != (uint32_t)f->num_queues || i->num_cursors != (uint32_t)f->options.streams)
        return misfit("another number of streams");
    int rc = restore_leases(f, i);
    if (rc == 0) rc = restore_queues(f, i);
    if (rc == 0) rc = check_left(f, i);
    for (int s = 0; rc == 0 && s < f->options.streams; s++)
        if (i->cursors[s].lease) rc = restore_stream(f, s, &i->cursors[s]);
    return rc;
}
