/* Events in the order of their time, the network, and processes that start and fall. */
#include "common/err.h"
#include "tests/sim/sim.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sim_broken(struct sim *s, const char *format, ...)
{
    if (s->broken[0]) return;
    va_list args;
    va_start(args, format);
    vsnprintf(s->broken, sizeof s->broken, format, args);
    va_end(args);
}

void sim_say(struct sim *s, const char *format, ...)
{
    if (!s->verbose) return;
    va_list args;
    va_start(args, format);
    printf("%12.6f  ", (double)s->now / 1e9);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
}

bool sim_chance(struct sim *s, double p)
{
    return rng_uniform(&s->rng) < p;
}

uint64_t sim_around(struct sim *s, uint64_t mean)
{
    return 1 + (uint64_t)(-log(1.0 - rng_uniform(&s->rng)) * (double)mean);
}

bool sim_faults(const struct sim *s)
{
    return s->now < s->plan.fault_end;
}

/* --- a binary heap; equal times in the order of their making */
static bool before(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void world_push(struct sim *s, struct event e)
{
    if (s->num_events == s->cap_events) {
        s->cap_events = 2 * s->cap_events + 64;
        s->heap = realloc(s->heap, s->cap_events * sizeof *s->heap);
        ASSERT(s->heap);
    }
    e.order = ++s->order;
    size_t i = s->num_events++;
    while (i > 0 && before(&e, &s->heap[(i - 1) / 2])) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = e;
    if (s->num_events > SIM_MAX_EVENTS)
        sim_broken(s, "queues are bounded: %zu events are on the way", s->num_events);
}

static struct event pop(struct sim *s)
{
    struct event top = s->heap[0], last = s->heap[--s->num_events];
    size_t i = 0;
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= s->num_events) break;
        if (c + 1 < s->num_events && before(&s->heap[c + 1], &s->heap[c])) c++;
        if (!before(&s->heap[c], &last)) break;
        s->heap[i] = s->heap[c];
        i = c;
    }
    s->heap[i] = last;
    return top;
}

static void event_fini(struct event *e)
{
    free(e->msg);
    frame_free(&e->payload);
    if (e->kind == EVENT_WRITTEN && e->data) {
        struct sim_file *f = e->data;
        shard_state_free(&f->state);
        oracle_free(&f->oracle);
        free(f);
    }
    if (e->kind == EVENT_COMPLETE && e->data) coordinator_drop_set(e->data);
    e->msg = NULL;
    e->data = NULL;
}

/* --- network */
static struct msg *through_the_wire(const struct msg *m)
{
    uint8_t header[MSG_MAX_HEADER];
    struct msg *copy = xcalloc(1, sizeof *copy);
    size_t len = msg_encode(m, header);
    int rc = msg_decode(header, len, copy);
    ASSERT(rc == 0);
    return copy;
}

static uint64_t delay_of(struct sim *s)
{
    uint64_t d = s->plan.delay / 4 + sim_around(s, s->plan.delay);
    if (sim_faults(s) && sim_chance(s, s->plan.late)) d += sim_around(s, 3 * NS_PER_S);
    return d;
}

static void mix(struct sim *s, uint64_t value)
{
    s->trace = (s->trace ^ value) * 0x100000001b3ull;
    s->trace ^= s->trace >> 29;
}

void world_send(struct sim *s, uint64_t from, uint64_t to, const struct msg *m, struct frame **payload)
{
    struct frame *bytes = payload ? *payload : NULL;
    if (payload) *payload = NULL;
    int copies = 1;
    if (sim_faults(s) && sim_chance(s, s->plan.loss)) copies = 0;
    if (sim_faults(s) && sim_chance(s, s->plan.twice)) copies++;
    for (int i = 0; i < copies; i++) {
        struct event e = {.at = s->now + delay_of(s), .kind = EVENT_MESSAGE, .pid = to, .from = from};
        e.msg = through_the_wire(m);
        if (bytes) e.payload = frame_copy(frame_data(bytes), frame_len(bytes));
        world_push(s, e);
    }
    s->messages++;
    frame_free(&bytes);
}

/* --- processes */
struct proc *world_proc(struct sim *s, uint64_t pid)
{
    if (pid == 0 || pid > s->num_procs) return NULL;
    struct proc *p = s->procs[pid - 1];
    return p->dead ? NULL : p;
}

void world_wake(struct sim *s, struct proc *p, uint64_t at)
{
    if (at == UINT64_MAX || p->dead) return;
    if (at <= s->now) at = s->now + 1;
    if (p->wake > s->now && p->wake <= at) return;
    p->wake = at;
    world_push(s, (struct event){.at = at, .kind = EVENT_WAKE, .pid = p->pid});
}

struct proc *world_start(struct sim *s, enum proc_kind kind, uint32_t slot, bool alone)
{
    struct proc *p = xcalloc(1, sizeof *p);
    s->procs = realloc(s->procs, (s->num_procs + 1) * sizeof *s->procs);
    ASSERT(s->procs);
    s->procs[s->num_procs++] = p;
    p->pid = s->num_procs;
    p->kind = kind;
    p->slot = slot;
    p->born = s->now;
    p->found = s->coordinator;
    if (kind == PROC_COORDINATOR) {
        s->coordinator = p->found = p->pid;
        coordinator_start(s, p, !alone);
        for (size_t i = 0; i < s->num_procs; i++) /* the others find its address after a while */
            if (!s->procs[i]->dead && s->procs[i] != p)
                world_push(s, (struct event){.at = s->now + sim_around(s, NS_PER_S),
                                             .kind = EVENT_FOUND,
                                             .pid = s->procs[i]->pid});
    } else if (kind == PROC_SERVER) {
        s->servers[slot] = p->pid;
        server_start(s, p, alone);
    } else {
        s->workers[slot] = p->pid;
        worker_start(s, p);
    }
    sim_say(s, "process %lu starts: %s %u%s", (unsigned long)p->pid,
            kind == PROC_COORDINATOR ? "coordinator"
            : kind == PROC_SERVER    ? "server"
                                     : "worker",
            slot, alone ? " alone" : "");
    world_wake(s, p, s->now + 1);
    return p;
}

/* The launcher has seen its child die: it tells the coordinator (which may not hear it), and starts another.
 */
static void launcher(struct sim *s, struct proc *p)
{
    uint64_t wait = sim_around(s, 2 * NS_PER_S);
    if (p->kind != PROC_COORDINATOR && s->coordinator) {
        struct msg m = {.type = MSG_GONE, .job = SIM_JOB};
        snprintf(m.gone.host, sizeof m.gone.host, "sim");
        m.gone.pid = p->pid;
        world_send(s, 0, s->coordinator, &m, NULL);
    }
    if (s->ended) return;
    world_push(s, (struct event){
                      .at = s->now + wait, .kind = EVENT_START, .a = p->kind, .b = p->slot, .from = s->life});
}

static void stop(struct sim *s, struct proc *p)
{
    p->dead = true;
    if (!p->away) p->away = s->now;
    if (p->kind == PROC_COORDINATOR) coordinator_stop(p);
    if (p->kind == PROC_SERVER) server_stop(p);
    if (p->kind == PROC_WORKER) worker_stop(p);
    if (s->coordinator == p->pid) s->coordinator = 0;
    if (p->kind == PROC_SERVER && s->servers[p->slot] == p->pid) s->servers[p->slot] = 0;
    if (p->kind == PROC_WORKER && s->workers[p->slot] == p->pid) s->workers[p->slot] = 0;
}

/* why NULL: it left by itself and is not started again. */
void world_kill(struct sim *s, uint64_t pid, const char *why)
{
    struct proc *p = world_proc(s, pid);
    if (!p) return;
    sim_say(s, "process %lu ends: %s", (unsigned long)pid, why ? why : "it left");
    stop(s, p);
    if (!why) return;
    s->kills++;
    launcher(s, p);
}

void world_restore(struct sim *s)
{
    sim_say(s, "everything falls; the job starts again");
    s->restores++;
    for (size_t i = 0; i < s->num_procs; i++)
        if (!s->procs[i]->dead) stop(s, s->procs[i]);
    s->life++;
    s->restoring = false;
    check_forget(s);
    s->num_steps = 0;
    world_start(s, PROC_COORDINATOR, 0, false);
    for (uint32_t k = 0; k < s->plan.shards; k++) world_start(s, PROC_SERVER, k, false);
    for (uint32_t k = 0; k < s->plan.workers; k++) world_start(s, PROC_WORKER, k, false);
}

static void start_again(struct sim *s, const struct event *e)
{
    if (e->from != s->life || s->ended) return; /* the whole job was started anew meanwhile */
    if (e->a == PROC_COORDINATOR && !s->coordinator) world_start(s, PROC_COORDINATOR, 0, true);
    if (e->a == PROC_SERVER && !s->servers[e->b]) world_start(s, PROC_SERVER, e->b, true);
    if (e->a == PROC_WORKER && !s->workers[e->b]) world_start(s, PROC_WORKER, e->b, true);
}

/* As after SIGSTOP: everything waits until SIGCONT. */
static void stand_still(struct sim *s, struct proc *p)
{
    if (!p || p->stopped > s->now) return;
    p->stopped = s->now + sim_around(s, 30 * NS_PER_S);
    p->away = s->now;
    p->was_away = true;
    s->kills++;
    sim_say(s, "process %lu stands still until %g s", (unsigned long)p->pid, (double)p->stopped / 1e9);
}

static bool waits(struct sim *s, struct proc *p, const struct event *e)
{
    if (p->stopped <= s->now) return false;
    struct event later = *e;
    later.at = p->stopped;
    world_push(s, later);
    return true;
}

/* a: what falls; the next fall of that kind is planned here. */
static void fall(struct sim *s, const struct event *e)
{
    const struct plan *p = &s->plan;
    uint64_t mean[] = {p->kill_coordinator, p->kill_server, p->kill_worker, p->kill_all, p->stop_worker};
    uint64_t next = s->now + sim_around(s, mean[e->a]);
    if (next < p->fault_end) world_push(s, (struct event){.at = next, .kind = EVENT_KILL, .a = e->a});
    if (s->ended) return;
    if (e->a == PROC_COORDINATOR) world_kill(s, s->coordinator, "killed");
    if (e->a == PROC_SERVER) world_kill(s, s->servers[rng_below(&s->rng, p->shards)], "killed");
    if (e->a == PROC_WORKER) world_kill(s, s->workers[rng_below(&s->rng, p->workers)], "killed");
    if (e->a == PROC_WORKER + 1) world_restore(s);
    if (e->a == PROC_WORKER + 2) stand_still(s, world_proc(s, s->workers[rng_below(&s->rng, p->workers)]));
}

static void deliver(struct sim *s, struct proc *p, struct event *e)
{
    if (p->kind == PROC_COORDINATOR) coordinator_receive(s, p, e->msg, e->from, &e->payload);
    if (p->kind == PROC_SERVER) server_receive(s, p, e->msg, e->from, &e->payload);
    if (p->kind == PROC_WORKER) worker_receive(s, p, e->msg, e->from, &e->payload);
}

static void wake(struct sim *s, struct proc *p)
{
    if (p->kind == PROC_COORDINATOR) coordinator_tick(s, p);
    if (p->kind == PROC_SERVER) server_tick(s, p);
    if (p->kind == PROC_WORKER) worker_tick(s, p);
}

static void found(struct sim *s, struct proc *p)
{
    if (!s->coordinator || p->found == s->coordinator) return;
    p->found = s->coordinator;
    if (p->kind == PROC_SERVER) server_found(s, p);
    if (p->kind == PROC_WORKER) worker_found(s, p);
}

bool world_step(struct sim *s)
{
    if (s->num_events == 0) return false;
    struct event e = pop(s);
    s->now = e.at;
    struct proc *p = world_proc(s, e.pid);
    if (p && waits(s, p, &e)) return true;
    if (p && p->stopped) p->stopped = p->away = 0;
    if (p) mix(s, e.at ^ e.pid << 40 ^ (uint64_t)e.kind << 60 ^ (e.msg ? e.msg->type : 0));
    if (e.kind == EVENT_START) start_again(s, &e);
    if (e.kind == EVENT_KILL) fall(s, &e);
    if (p && e.kind == EVENT_MESSAGE) deliver(s, p, &e);
    if (p && e.kind == EVENT_WAKE) wake(s, p);
    if (p && e.kind == EVENT_FOUND) found(s, p);
    if (p && e.kind == EVENT_WRITTEN) server_written(s, p, &e);
    if (p && e.kind == EVENT_COMPLETE) coordinator_complete(s, p, &e);
    event_fini(&e);
    if (s->restoring && !s->ended) world_restore(s);
    return true;
}

static void disk_fini(struct disk *d)
{
    for (size_t i = 0; i < d->num_files; i++) {
        shard_state_free(&d->files[i].state);
        oracle_free(&d->files[i].oracle);
    }
    for (size_t i = 0; i < d->num_sets; i++) {
        for (uint32_t k = 0; k < d->sets[i].num_capsules; k++) free(d->sets[i].capsules[k].data);
        free(d->sets[i].capsules);
        free(d->sets[i].state);
    }
    for (size_t i = 0; i < d->num_rows; i++) free(d->journal[i]);
    free(d->files);
    free(d->sets);
    free(d->journal);
}

void world_fini(struct sim *s)
{
    s->ended = true;
    for (size_t i = 0; i < s->num_procs; i++) {
        if (!s->procs[i]->dead) stop(s, s->procs[i]);
        free(s->procs[i]);
    }
    while (s->num_events > 0) event_fini(&s->heap[--s->num_events]);
    disk_fini(&s->disk);
    free(s->procs);
    free(s->heap);
    free(s->workers);
    free(s->uses);
    free(s->generations);
    free(s->stables);
    oracle_free(&s->refused);
    free(s->steps);
    free(s->pads);
}
