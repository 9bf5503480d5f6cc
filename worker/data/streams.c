#include "worker/data/streams.h"

#include "common/err.h"

#include <stdlib.h>
#include <string.h>

struct stream {
    struct utterance *u; /* owned; NULL = idle */
    uint32_t next;       /* input */
};

struct streams {
    int T, S;
    uint32_t dim;
    struct stream *stream;       /* (S) */
    struct utterance **finished; /* (S), owned; first .. count-1 are not taken yet */
    int first, count;
};

void minibatch_init(struct minibatch *m, int T, int S, uint32_t dim)
{
    size_t rows = (size_t)T * (size_t)S;
    *m = (struct minibatch){.T = T, .S = S, .dim = dim};
    m->x = xaligned(rows * dim * sizeof *m->x);
    m->target = xcalloc(rows, sizeof *m->target);
    m->reset = xcalloc(rows, sizeof *m->reset);
}

void minibatch_fini(struct minibatch *m)
{
    free(m->x);
    free(m->target);
    free(m->reset);
    *m = (struct minibatch){0};
}

struct streams *streams_new(int T, int S, uint32_t dim)
{
    ASSERT(T > 0 && S > 0 && dim > 0);
    struct streams *s = xcalloc(1, sizeof *s);
    s->T = T;
    s->S = S;
    s->dim = dim;
    s->stream = xcalloc((unsigned long)S, sizeof *s->stream);
    s->finished = xcalloc((unsigned long)S, sizeof *s->finished);
    return s;
}

void streams_free(struct streams **s)
{
    if (!*s) return;
    for (int i = 0; i < (*s)->S; i++) utterance_free(&(*s)->stream[i].u);
    for (int i = (*s)->first; i < (*s)->count; i++) utterance_free(&(*s)->finished[i]);
    free((*s)->stream);
    free((*s)->finished);
    free(*s);
    *s = NULL;
}

int streams_need(const struct streams *s)
{
    for (int i = 0; i < s->S; i++)
        if (!s->stream[i].u) return i;
    return -1;
}

bool streams_is_idle(const struct streams *s, int stream)
{
    ASSERT(stream >= 0 && stream < s->S);
    return !s->stream[stream].u;
}

void streams_give(struct streams *s, int stream, struct utterance **u)
{
    ASSERT(streams_is_idle(s, stream));
    ASSERT((*u)->frames > 0 && (*u)->dim == s->dim);
    s->stream[stream] = (struct stream){*u, 0};
    *u = NULL;
}

static void pad_row(struct minibatch *out, size_t row)
{
    memset(out->x + row * out->dim, 0, out->dim * sizeof *out->x);
    out->target[row] = -1;
    out->reset[row] = 0;
    out->padded++;
}

static void copy_row(struct minibatch *out, size_t row, const struct stream *from)
{
    const struct utterance *u = from->u;
    memcpy(out->x + row * out->dim, u->x + (size_t)from->next * u->dim, u->dim * sizeof *out->x);
    out->target[row] = u->target[from->next];
    out->reset[row] = from->next == 0;
    if (u->target[from->next] >= 0) out->frames++;
}

static void cut_stream(struct streams *s, int i, struct minibatch *out)
{
    struct stream *stream = &s->stream[i];
    for (int t = 0; t < s->T; t++) {
        size_t row = (size_t)t * (size_t)s->S + (size_t)i;
        if (stream->u && stream->next < stream->u->frames) {
            copy_row(out, row, stream);
            stream->next++;
        } else {
            pad_row(out, row);
        }
    }
    if (!stream->u || stream->next < stream->u->frames) return;
    s->finished[s->count++] = stream->u;
    stream->u = NULL;
}

bool streams_cut(struct streams *s, struct minibatch *out)
{
    ASSERT(s->first == s->count);
    ASSERT(out->T == s->T && out->S == s->S && out->dim == s->dim);
    int active = 0;
    for (int i = 0; i < s->S; i++) active += s->stream[i].u != NULL;
    if (active == 0) return false;
    s->first = s->count = 0;
    out->frames = out->padded = 0;
    for (int i = 0; i < s->S; i++) cut_stream(s, i, out);
    return true;
}

bool streams_take_finished(struct streams *s, struct utterance **out)
{
    if (s->first == s->count) return false;
    *out = s->finished[s->first++];
    return true;
}

bool streams_cursor(const struct streams *s, int stream, uint32_t *index, uint64_t *lease,
                    uint32_t *next_frame)
{
    if (streams_is_idle(s, stream)) return false;
    *index = s->stream[stream].u->index;
    *lease = s->stream[stream].u->lease;
    *next_frame = s->stream[stream].next;
    return true;
}

void streams_set_cursor(struct streams *s, int stream, uint32_t next_frame)
{
    ASSERT(!streams_is_idle(s, stream));
    ASSERT(next_frame < s->stream[stream].u->frames);
    s->stream[stream].next = next_frame;
}
