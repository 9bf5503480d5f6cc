#include "server/checkpoint.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/log.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct wish {
    uint32_t set;
    const struct shard_state *state; /* NULL: none */
};

struct checkpoint {
    char *run;
    const struct facts *facts;
    uint32_t shard, shards;
    int fd;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct wish next, now;
    bool has_result, stop;
    struct checkpoint_result result;
};

/* A complete set never changes, whatever an order says. */
static int write_set(const struct checkpoint *c, const struct wish *w, struct snapshot_file *file)
{
    if (snapshot_is_complete(c->run, w->set))
        return err_set(ERR_STORAGE, "set %u is complete and is not written again", w->set);
    int rc = snapshot_write_shard(c->run, w->set, c->shard, c->shards, c->facts, w->state, file);
    if (rc == 0) snapshot_drop_unfinished(c->run, w->set, c->shard, c->shards);
    return rc;
}

static void tell(const struct checkpoint_result *r, uint64_t began)
{
    char why[512];
    if (r->rc == 0)
        log_event(LOG_DEBUG, "shard_written", "\"set\":%u,\"bytes\":%" PRIu64 ",\"seconds\":%.3f", r->set,
                  r->file.bytes, (double)(clock_now_ns() - began) / NS_PER_S);
    else
        log_event(LOG_ERROR, "checkpoint_failed", "\"alarm\":true,\"set\":%u,\"why\":%s", r->set,
                  log_quote(why, sizeof why, err_text()));
}

static void *write_loop(void *arg)
{
    struct checkpoint *c = arg;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->stop && (!c->next.state || c->has_result)) pthread_cond_wait(&c->changed, &c->lock);
        if (c->stop) break;
        c->now = c->next;
        c->next = (struct wish){.set = 0};
        struct wish w = c->now;
        struct checkpoint_result r = {.set = w.set, .state = w.state};
        pthread_mutex_unlock(&c->lock);
        uint64_t began = clock_now_ns();
        r.rc = write_set(c, &w, &r.file);
        tell(&r, began);
        pthread_mutex_lock(&c->lock);
        c->now = (struct wish){.set = 0};
        c->result = r;
        c->has_result = true;
        eventfd_write(c->fd, 1);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* Signals are for the serving thread. */
static int start_thread(struct checkpoint *c)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&c->thread, NULL, write_loop, c);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

int checkpoint_new(const char *run, const struct facts *f, uint32_t shard, uint32_t shards,
                   struct checkpoint **out)
{
    struct checkpoint *c = xcalloc(1, sizeof *c);
    *c = (struct checkpoint){.run = xstrdup(run), .facts = f, .shard = shard, .shards = shards};
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (c->fd >= 0 && start_thread(c) == 0) {
        *out = c;
        return 0;
    }
    if (c->fd >= 0) close(c->fd);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->run);
    free(c);
    return err_set(ERR_FAIL, "no thread or no file descriptor is left for writing checkpoints");
}

void checkpoint_free(struct checkpoint **c)
{
    if (!*c) return;
    pthread_mutex_lock(&(*c)->lock);
    (*c)->stop = true;
    pthread_cond_signal(&(*c)->changed);
    pthread_mutex_unlock(&(*c)->lock);
    pthread_join((*c)->thread, NULL);
    close((*c)->fd);
    pthread_cond_destroy(&(*c)->changed);
    pthread_mutex_destroy(&(*c)->lock);
    free((*c)->run);
    free(*c);
    *c = NULL;
}

int checkpoint_fd(const struct checkpoint *c)
{
    return c->fd;
}

void checkpoint_write(struct checkpoint *c, uint32_t set, const struct shard_state *state)
{
    pthread_mutex_lock(&c->lock);
    if (c->next.state) log_event(LOG_WARN, "checkpoint_skipped", "\"set\":%u,\"newer\":%u", c->next.set, set);
    c->next = (struct wish){.set = set, .state = state};
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

bool checkpoint_poll(struct checkpoint *c, struct checkpoint_result *out)
{
    pthread_mutex_lock(&c->lock);
    bool has_result = c->has_result;
    if (has_result) {
        eventfd_t count;
        eventfd_read(c->fd, &count);
        *out = c->result;
        c->has_result = false;
        pthread_cond_signal(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    return has_result;
}

bool checkpoint_uses(struct checkpoint *c, const struct shard_state *state)
{
    pthread_mutex_lock(&c->lock);
    bool uses =
        c->next.state == state || c->now.state == state || (c->has_result && c->result.state == state);
    pthread_mutex_unlock(&c->lock);
    return uses;
}
