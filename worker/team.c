#include "worker/team.h"

#include "common/err.h"
#include "worker/nnet/clip.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PIECE 2048 /* floats: whole cache lines, so no two members write to the same one; two fit in L1 */

struct member {
    struct team *team;
    int index;
    struct net *net;
    struct net_result result;
    double squares, slice; /* sums of squares: of its gradient; of its part of the sum over all members */
    float *grad;           /* (P); owned but by member 0, whose gradient is the caller's vector */
    /* Its columns of the window: (T*S, D), (T*S), (T*S). Views of the caller's if it is alone, else owned. */
    struct team_window own;
    float *x;
    uint8_t *reset;
    int32_t *target;
};

struct team {
    int n;
    size_t frames, streams, dim, params; /* T, S of a member, D, P */
    struct member *members;              /* (N) */
    pthread_t *threads;                  /* (N); [0] is the caller */
    struct transposed *transposed;
    /* Where all meet, four times per window: it is there; the weights are turned; all gradients are there;
     * the sum is there. A thread that waits sleeps; three meetings cost two threads on two cores about 50 us.
     */
    pthread_barrier_t barrier;
    /* The window under way; written by the caller before the first meeting. */
    const float *weights;
    struct team_window window;
    float *grad;
    bool over;
};

static void meet(struct team *t)
{
    if (t->n > 1) pthread_barrier_wait(&t->barrier);
}

/* --- what each member does with a window */

/* Columns [k*S, (k+1)*S) of every frame. */
static void take_columns(struct member *m)
{
    const struct team *t = m->team;
    const struct team_window *w = &t->window;
    size_t S = t->streams, all = S * (size_t)t->n, D = t->dim;
    for (size_t frame = 0; frame < t->frames; frame++) {
        size_t from = frame * all + (size_t)m->index * S, to = frame * S;
        memcpy(m->x + to * D, w->x + from * D, S * D * sizeof *m->x);
        memcpy(m->reset + to, w->reset + from, S * sizeof *m->reset);
        memcpy(m->target + to, w->target + from, S * sizeof *m->target);
    }
}

static void compute(struct member *m)
{
    struct team *t = m->team;
    float *grad = m->index ? m->grad : t->grad;
    if (!t->window.same_weights) {
        transposed_load(t->transposed, t->weights, (size_t)m->index, (size_t)t->n);
        meet(t);
    }
    if (t->n > 1)
        take_columns(m);
    else
        m->own = t->window;
    net_forward(m->net, t->weights, m->own.x, m->own.reset, m->own.target, &m->result);
    m->squares = m->result.frames ? net_backward(m->net, t->weights, m->own.x, m->own.reset, grad) : 0;
}

/* Its slice of the vector, in pieces that stay in L1: grad = sum over the members that have a gradient, in
 * their order. */
static void add_up_slice(struct member *m, size_t begin, size_t end)
{
    const struct team *t = m->team;
    bool any = t->members[0].result.frames > 0;
    for (int j = 1; j < t->n; j++) {
        const float *g = t->members[j].grad;
        if (t->members[j].result.frames == 0) continue;
        if (!any) memcpy(t->grad + begin, g + begin, (end - begin) * sizeof *g);
        if (any)
            for (size_t i = begin; i < end; i++) t->grad[i] += g[i];
        any = true;
    }
    if (any) m->slice += clip_squares(t->grad + begin, end - begin);
}

static void add_up(struct member *m)
{
    const struct team *t = m->team;
    size_t pieces = (t->params + PIECE - 1) / PIECE, n = (size_t)t->n, k = (size_t)m->index;
    m->slice = 0;
    if (n == 1) return;
    for (size_t i = pieces * k / n; i < pieces * (k + 1) / n; i++)
        add_up_slice(m, i * PIECE, (i + 1) * PIECE < t->params ? (i + 1) * PIECE : t->params);
}

static void *run(void *arg)
{
    struct member *m = arg;
    struct team *t = m->team;
    for (;;) {
        meet(t);
        if (t->over) return NULL;
        compute(m);
        meet(t);
        add_up(m);
        meet(t);
    }
}

double team_compute(struct team *t, const float *params, const struct team_window *w, float *grad,
                    struct net_result *out)
{
    t->weights = params;
    t->window = *w;
    t->grad = grad;
    meet(t);
    compute(&t->members[0]);
    meet(t);
    add_up(&t->members[0]);
    meet(t);
    *out = t->members[0].result;
    double squares = t->n > 1 ? t->members[0].slice : t->members[0].squares;
    for (int k = 1; k < t->n; k++) {
        const struct net_result *r = &t->members[k].result;
        squares += t->members[k].slice;
        out->loss += r->loss;
        out->frames += r->frames;
        out->correct += r->correct;
    }
    return squares;
}

/* --- state */

void team_clear_state(struct team *t)
{
    for (int k = 0; k < t->n; k++) net_clear_state(t->members[k].net);
}

size_t team_state_size(const struct team *t)
{
    return (size_t)t->n * net_state_size(t->members[0].net);
}

void team_get_state(const struct team *t, float *out)
{
    size_t each = net_state_size(t->members[0].net);
    for (int k = 0; k < t->n; k++) net_get_state(t->members[k].net, out + (size_t)k * each);
}

void team_set_state(struct team *t, const float *in)
{
    size_t each = net_state_size(t->members[0].net);
    for (int k = 0; k < t->n; k++) net_set_state(t->members[k].net, in + (size_t)k * each);
}

const pthread_t *team_threads(const struct team *t)
{
    return t->threads;
}

/* --- life */

static void make_member(struct team *t, int k, const struct model *m, const struct team_options *o)
{
    struct member *me = &t->members[k];
    struct net_options net = o->net;
    net.transposed = t->transposed;
    size_t rows = t->frames * t->streams;
    *me = (struct member){.team = t, .index = k};
    if (k > 0) {
        net.between = NULL;
        me->grad = xaligned(t->params * sizeof *me->grad);
    }
    me->net = net_new(m, &net);
    if (t->n == 1) return;
    me->x = xaligned(rows * t->dim * sizeof *me->x);
    me->reset = xcalloc(rows, sizeof *me->reset);
    me->target = xcalloc(rows, sizeof *me->target);
    me->own = (struct team_window){.x = me->x, .reset = me->reset, .target = me->target};
}

struct team *team_new(const struct model *m, const struct team_options *o)
{
    ASSERT(o->threads > 0);
    struct team *t = xcalloc(1, sizeof *t);
    t->n = o->threads;
    t->frames = (size_t)o->net.window;
    t->streams = (size_t)o->net.streams;
    t->dim = m->spec.input;
    t->params = m->params;
    t->transposed = transposed_new(m, plan_make(o->net.level).panels);
    t->members = xcalloc((unsigned long)t->n, sizeof *t->members);
    t->threads = xcalloc((unsigned long)t->n, sizeof *t->threads);
    for (int k = 0; k < t->n; k++) make_member(t, k, m, o);
    t->threads[0] = pthread_self();
    ASSERT(pthread_barrier_init(&t->barrier, NULL, (unsigned)t->n) == 0);
    for (int k = 1; k < t->n; k++) ASSERT(pthread_create(&t->threads[k], NULL, run, &t->members[k]) == 0);
    return t;
}

void team_free(struct team **t_in)
{
    struct team *t = *t_in;
    if (!t) return;
    t->over = true;
    meet(t);
    for (int k = 1; k < t->n; k++) pthread_join(t->threads[k], NULL);
    pthread_barrier_destroy(&t->barrier);
    for (int k = 0; k < t->n; k++) {
        struct member *m = &t->members[k];
        net_free(&m->net);
        free(m->grad);
        free(m->x);
        free(m->reset);
        free(m->target);
    }
    transposed_free(&t->transposed);
    free(t->members);
    free(t->threads);
    free(t);
    *t_in = NULL;
}
