#include "worker/data/prefetch.h"

#include "common/err.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum slot_state { SLOT_ASKED, SLOT_READY, SLOT_FAILED };

struct slot {
    enum slot_state state;
    uint32_t index;
    uint64_t lease;
    int stream, code;
    struct utterance *u; /* SLOT_READY: owned */
    char sentence[512];
};

/* A ring: taken <= loaded <= asked count entries from the start; entry n is slot n % capacity. The lock
 * covers all but corpus, frontend and input; the slot being loaded is the loader's alone. */
struct prefetch {
    const struct corpus *corpus;
    const struct frontend *frontend;
    struct input *input; /* the loader's */
    int capacity;
    struct slot *slots;
    uint64_t taken, loaded, asked;
    struct utterance **spare; /* buffers that wait for use; room for all that were made */
    int num_spare, num_made;
    uint64_t failures;
    bool stop;
    pthread_mutex_t lock;
    pthread_cond_t work, done; /* for the loader, for the owner */
    pthread_t thread;
};

static struct slot *slot_of(struct prefetch *p, uint64_t entry)
{
    return &p->slots[entry % (uint64_t)p->capacity];
}

/* Under the lock. Makes a buffer only when all are out, so their number settles at the most that were ever
 * out. */
static struct utterance *take_spare(struct prefetch *p)
{
    if (p->num_spare) return p->spare[--p->num_spare];
    struct utterance **grown = realloc(p->spare, (size_t)(p->num_made + 1) * sizeof *grown);
    if (!grown) {
        fprintf(stderr, "chorale: out of memory for utterance buffers\n");
        exit(1);
    }
    p->spare = grown;
    p->num_made++;
    return utterance_new();
}

static void load_into(struct prefetch *p, struct slot *s, struct utterance *u)
{
    u->lease = s->lease;
    u->stream = s->stream;
    u->input = p->input;
    s->code = utterance_load(p->corpus, s->index, p->frontend, u);
    u->input = NULL;
    if (s->code < 0) snprintf(s->sentence, sizeof s->sentence, "%s", err_text());
}

static void *run_loader(void *arg)
{
    struct prefetch *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        if (p->loaded == p->asked) {
            pthread_cond_wait(&p->work, &p->lock);
            continue;
        }
        struct slot *s = slot_of(p, p->loaded);
        struct utterance *u = take_spare(p);
        pthread_mutex_unlock(&p->lock);
        load_into(p, s, u);
        pthread_mutex_lock(&p->lock);
        s->state = s->code < 0 ? SLOT_FAILED : SLOT_READY;
        if (s->code < 0) {
            p->failures++;
            p->spare[p->num_spare++] = u;
        } else {
            s->u = u;
        }
        p->loaded++;
        pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

struct prefetch *prefetch_new(const struct corpus *c, const struct frontend *f, int capacity)
{
    ASSERT(capacity > 0);
    struct prefetch *p = xcalloc(1, sizeof *p);
    p->corpus = c;
    p->frontend = f;
    p->capacity = capacity;
    p->slots = xcalloc((unsigned long)capacity, sizeof *p->slots);
    p->input = input_new();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    ASSERT(pthread_create(&p->thread, NULL, run_loader, p) == 0);
    return p;
}

void prefetch_free(struct prefetch **p_in)
{
    struct prefetch *p = *p_in;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    for (uint64_t i = p->taken; i < p->loaded; i++) utterance_free(&slot_of(p, i)->u);
    for (int i = 0; i < p->num_spare; i++) utterance_free(&p->spare[i]);
    free(p->spare);
    free(p->slots);
    input_free(&p->input);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->done);
    free(p);
    *p_in = NULL;
}

bool prefetch_ask(struct prefetch *p, uint32_t index, uint64_t lease, int stream)
{
    ASSERT(index < corpus_count(p->corpus));
    pthread_mutex_lock(&p->lock);
    bool room = p->asked - p->taken < (uint64_t)p->capacity;
    if (room) {
        struct slot *s = slot_of(p, p->asked++);
        s->state = SLOT_ASKED;
        s->index = index;
        s->lease = lease;
        s->stream = stream;
        s->u = NULL;
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
    return room;
}

enum prefetch_result prefetch_take(struct prefetch *p, bool wait, struct utterance **u_out,
                                   struct prefetch_failure *failure_out)
{
    enum prefetch_result result = PREFETCH_NONE;
    pthread_mutex_lock(&p->lock);
    while (wait && p->taken == p->loaded && p->loaded < p->asked) pthread_cond_wait(&p->done, &p->lock);
    if (p->taken < p->loaded) {
        struct slot *s = slot_of(p, p->taken++);
        if (s->state == SLOT_READY) {
            result = PREFETCH_UTTERANCE;
            *u_out = s->u;
            s->u = NULL;
        } else {
            result = PREFETCH_FAILED;
            *failure_out = (struct prefetch_failure){s->index, s->lease, s->stream, s->code, s->sentence};
        }
    }
    pthread_mutex_unlock(&p->lock);
    return result;
}

void prefetch_give_back(struct prefetch *p, struct utterance **u)
{
    if (!*u) return;
    pthread_mutex_lock(&p->lock);
    ASSERT(p->num_spare < p->num_made);
    p->spare[p->num_spare++] = *u;
    pthread_mutex_unlock(&p->lock);
    *u = NULL;
}

int prefetch_pending(struct prefetch *p)
{
    pthread_mutex_lock(&p->lock);
    int n = (int)(p->asked - p->taken);
    pthread_mutex_unlock(&p->lock);
    return n;
}

uint64_t prefetch_failures(struct prefetch *p)
{
    pthread_mutex_lock(&p->lock);
    uint64_t n = p->failures;
    pthread_mutex_unlock(&p->lock);
    return n;
}

int prefetch_buffers(struct prefetch *p)
{
    pthread_mutex_lock(&p->lock);
    int n = p->num_made;
    pthread_mutex_unlock(&p->lock);
    return n;
}
