#include "worker/evaluate.h"

#include "common/err.h"
#include "worker/data/prefetch.h"
#include "worker/data/streams.h"
#include "worker/nnet/net.h"

#include <stdlib.h>

struct evaluate {
    uint32_t targets; /* K */
    bool *is_silence; /* (K), owned; NULL without a list */
    struct net *net;  /* forward only */
    struct prefetch *prefetch;
    struct streams *streams;
    struct minibatch window;
    int S, capacity;
    uint32_t ask, end; /* next utterance to ask for; the end of the range */
    struct evaluation sums;
};

static bool *silence_table(uint32_t targets, const struct evaluate_options *o)
{
    if (!o->num_silence) return NULL;
    bool *table = xcalloc(targets, sizeof *table);
    for (uint32_t i = 0; i < o->num_silence; i++)
        if (o->silence[i] >= 0 && (uint32_t)o->silence[i] < targets) table[o->silence[i]] = true;
    return table;
}

struct evaluate *evaluate_new(const struct model *m, const struct job_data *d,
                              const struct evaluate_options *o)
{
    ASSERT(o->window > 0 && o->streams > 0);
    struct evaluate *e = xcalloc(1, sizeof *e);
    e->targets = m->spec.targets;
    e->is_silence = silence_table(e->targets, o);
    e->S = o->streams;
    e->capacity = 2 * o->streams;
    e->net = net_new(m, &(struct net_options){.window = o->window, .streams = o->streams});
    e->prefetch = prefetch_new(d->corpus, &d->frontend, e->capacity);
    e->streams = streams_new(o->window, o->streams, m->spec.input);
    minibatch_init(&e->window, o->window, o->streams, m->spec.input);
    return e;
}

void evaluate_free(struct evaluate **e_in)
{
    struct evaluate *e = *e_in;
    if (!e) return;
    minibatch_fini(&e->window);
    streams_free(&e->streams);
    prefetch_free(&e->prefetch);
    net_free(&e->net);
    free(e->is_silence);
    free(e);
    *e_in = NULL;
}

void evaluate_begin(struct evaluate *e, uint32_t begin, uint32_t end)
{
    ASSERT(begin <= end && prefetch_pending(e->prefetch) == 0);
    e->ask = begin;
    e->end = end;
    e->sums = (struct evaluation){0};
    net_clear_state(e->net);
}

static void ask_ahead(struct evaluate *e)
{
    while (e->ask < e->end && prefetch_ask(e->prefetch, e->ask, 0, -1)) e->ask++;
}

/* The next utterance that can be read, NULL at the end of the range. */
static struct utterance *next_utterance(struct evaluate *e)
{
    for (;;) {
        struct utterance *u = NULL;
        struct prefetch_failure failure;
        ask_ahead(e);
        enum prefetch_result r = prefetch_take(e->prefetch, true, &u, &failure);
        if (r == PREFETCH_NONE) return NULL;
        if (r == PREFETCH_UTTERANCE && u->frames > 0) return u;
        prefetch_give_back(e->prefetch, &u);
        e->sums.failed++;
    }
}

static void fill(struct evaluate *e)
{
    for (int s = streams_need(e->streams); s >= 0; s = streams_need(e->streams)) {
        struct utterance *u = next_utterance(e);
        if (!u) return;
        streams_give(e->streams, s, &u);
    }
}

static uint32_t argmax(const float *y, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t k = 1; k < n; k++)
        if (y[k] > y[best]) best = k;
    return best;
}

/* Of the window that went through the net last. */
static void count_speech(struct evaluate *e)
{
    const float *y = net_log_posteriors(e->net);
    size_t rows = (size_t)e->window.T * (size_t)e->window.S;
    for (size_t i = 0; i < rows; i++) {
        int32_t target = e->window.target[i];
        if (target < 0 || e->is_silence[target]) continue;
        e->sums.speech_frames++;
        e->sums.speech_correct += argmax(y + i * e->targets, e->targets) == (uint32_t)target;
    }
}

bool evaluate_step(struct evaluate *e, const float *params)
{
    fill(e);
    if (!streams_cut(e->streams, &e->window)) return false;
    struct utterance *u;
    while (streams_take_finished(e->streams, &u)) prefetch_give_back(e->prefetch, &u);
    struct net_result r;
    net_forward(e->net, params, e->window.x, e->window.reset, e->window.target, &r);
    e->sums.loss += r.loss;
    e->sums.frames += r.frames;
    e->sums.correct += r.correct;
    if (e->is_silence) {
        count_speech(e);
    } else {
        e->sums.speech_frames += r.frames;
        e->sums.speech_correct += r.correct;
    }
    return true;
}

const struct evaluation *evaluate_sums(const struct evaluate *e)
{
    return &e->sums;
}

void evaluate_range(struct evaluate *e, const float *params, uint32_t begin, uint32_t end,
                    struct evaluation *out)
{
    evaluate_begin(e, begin, end);
    while (evaluate_step(e, params)) continue;
    *out = *evaluate_sums(e);
}
