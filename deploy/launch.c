#include "deploy/launch.h"

#include "common/clock.h"
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/rendezvous.h"
#include "common/wire.h"
#include "deploy/child.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEVER      UINT64_MAX
#define AT_ONCE_NS (30 * NS_PER_S) /* an error this soon after the start is one of configuration */
#define COME_UP_NS (60 * NS_PER_S) /* for the coordinator to publish where it is */
#define STOP_NS    (60 * NS_PER_S) /* from TERM to the coordinator until we end the rest ourselves */
#define LEAVE_NS                                                                                             \
    (10 * NS_PER_S)                /* for the others, once the coordinator has gone; then as long after TERM \
                                    */
#define ENDED_NS    (3 * NS_PER_S) /* for the others, once the job is done */
#define AFTER_75_NS (30 * NS_PER_S)   /* one that was interrupted alone is started again after this */
#define BACK_OFF_NS (500 * NS_PER_MS) /* more for every restart within the window */
#define GONE_MS     1000              /* for telling the coordinator of a death */
#define GO_ON       1                 /* no result yet */

enum role { COORDINATOR, SERVER, WORKER };

/* At most LAUNCH_RESTARTS in LAUNCH_WINDOW_S. */
struct budget {
    uint64_t at[LAUNCH_RESTARTS];
    unsigned n; /* taken so far */
};

/* A place for one process; processes come and go in it. */
struct slot {
    enum role role;
    uint32_t index;
    struct child child;
    uint64_t due;  /* when to start it, NEVER = not */
    bool recover;  /* the job has gone on without it */
    bool given_up; /* fell too often */
    struct budget budget;
};

struct launch {
    const struct launch_options *o;
    struct slot *slots; /* coordinator, servers, workers; owned */
    size_t n;
    struct budget whole;
    bool bsp;      /* now */
    bool serving;  /* RUN/members/coordinator is that of our coordinator */
    bool stopping; /* somebody wants us to end */
    uint64_t stop_limit;
    char endpoint[MSG_MAX_ENDPOINT]; /* if serving */
    int result;                      /* GO_ON, or what launch_run returns */
    char *why;                       /* the sentence of that; owned */
};

static bool budget_take(struct budget *b, uint64_t now)
{
    uint64_t *oldest = &b->at[b->n % LAUNCH_RESTARTS];
    if (b->n >= LAUNCH_RESTARTS && now - *oldest < LAUNCH_WINDOW_S * NS_PER_S) return false;
    *oldest = now;
    b->n++;
    return true;
}

/* How many within the window, the last one included. */
static unsigned budget_recent(const struct budget *b, uint64_t now)
{
    unsigned recent = 0;
    for (unsigned i = 0; i < LAUNCH_RESTARTS && i < b->n; i++)
        if (now - b->at[i] < LAUNCH_WINDOW_S * NS_PER_S) recent++;
    return recent;
}

/* The job is over with the sentence kept last; the first result stays. */
static void finish(struct launch *l, int result)
{
    if (l->result != GO_ON) return;
    l->result = result;
    l->why = xstrdup(err_text());
}

/* ------------------------------------------------------------------ starting */

static void start_slot(struct launch *l, struct slot *s)
{
    static const char *const programs[] = {"coordinator", "server", "worker"};
    char shard[16], *program = xprintf("%s/chorale-%s", l->o->programs, programs[s->role]);
    const char *words[CHILD_MAX_WORDS + 1] = {program, l->o->run};
    size_t n = 2;
    snprintf(shard, sizeof shard, "%" PRIu32, s->index);
    if (s->role == SERVER) {
        words[n++] = "--shard";
        words[n++] = shard;
    }
    if (s->recover && s->role != WORKER) words[n++] = "--recover";
    s->due = NEVER;
    if (s->role == COORDINATOR) l->serving = false;
    /* None is of use without us, and a new launcher must not meet the old ones: sets on disk are whole at any
     * instant. */
    int rc = child_start(&s->child, l->o->run, words, SIGKILL);
    if (rc < 0) finish(l, rc);
    free(program);
}

/* Everything anew, from the newest set. */
static void schedule_all(struct launch *l)
{
    l->serving = false;
    for (size_t i = 0; i < l->n; i++) {
        l->slots[i].due = 0;
        l->slots[i].recover = l->slots[i].given_up = false;
    }
}

/* Has our coordinator said where it is? */
static void look_for_coordinator(struct launch *l, uint64_t now)
{
    struct child *c = &l->slots[0].child;
    struct rendezvous at;
    if (rendezvous_find(l->o->run, &at) && at.pid == (int64_t)c->pid) {
        strcpy(l->endpoint, at.endpoint);
        l->serving = true;
    }
    if (!l->serving && now > c->started_ns + COME_UP_NS)
        finish(l, err_set(ERR_REACH, "the coordinator does not come up; see %s/logs/coordinator.err",
                          l->o->run));
}

static void start_due(struct launch *l, uint64_t now)
{
    struct slot *coordinator = &l->slots[0];
    if (coordinator->child.pid == 0 && coordinator->due <= now) start_slot(l, coordinator);
    if (!l->serving && coordinator->child.pid) look_for_coordinator(l, now);
    for (size_t i = 1; i < l->n && l->serving && l->result == GO_ON; i++)
        if (l->slots[i].child.pid == 0 && l->slots[i].due <= now) start_slot(l, &l->slots[i]);
}

/* ------------------------------------------------------------------ deaths */

/* Tells the coordinator, so that leases come back at once. May get lost: silence tells it too, later. */
static void tell_gone(struct launch *l, pid_t pid)
{
    struct msg m = {.type = MSG_GONE, .job = l->o->job, .gone = {.pid = (uint64_t)pid}}, answer;
    struct frame *payload = NULL;
    uint64_t limit = clock_now_ns() + GONE_MS * NS_PER_MS, peer;
    if (!l->serving || gethostname(m.gone.host, sizeof m.gone.host - 1) != 0) return;
    struct wire *w = wire_new();
    int link = wire_connect(w, l->endpoint), from;
    while (link >= 0 && wire_send(w, link, 0, &m, NULL) == ERR_AGAIN && clock_now_ns() < limit)
        if (wire_receive(w, 10, &from, &peer, &answer, &payload) == 0) frame_free(&payload);
    wire_free(&w);
}

static void kill_all(struct launch *l, int signal)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->slots[i].child.pid) kill(l->slots[i].child.pid, signal);
}

/* All processes give up what they hold; the newest set is the truth. */
static void start_over(struct launch *l)
{
    kill_all(l, SIGKILL);
    for (size_t i = 0; i < l->n; i++) {
        pid_t pid = l->slots[i].child.pid;
        while (pid && waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
        l->slots[i].child.pid = 0;
    }
    schedule_all(l);
}

static void restore(struct launch *l, uint64_t now, const char *why)
{
    if (!budget_take(&l->whole, now)) {
        finish(l, err_set(ERR_FAIL,
                          "%s; everything was started again %d times in %d minutes already, see %s/logs", why,
                          LAUNCH_RESTARTS, LAUNCH_WINDOW_S / 60, l->o->run));
        return;
    }
    progress_say(l->o->progress, true, "%s: everything starts again from the last checkpoint", why);
    start_over(l);
}

static bool is_bsp(const struct launch *l)
{
    char *path = files_join(l->o->run, "job.yaml");
    struct config c;
    bool bsp = l->bsp;
    if (config_load(path, &c) == 0) {
        bsp = c.consistency.mode == CONSISTENCY_BSP;
        config_free(&c);
    }
    free(path);
    return bsp;
}

/* An epoch has ended, and the next one is trained as RUN/job.yaml says now. */
static void switch_over(struct launch *l)
{
    l->bsp = is_bsp(l);
    progress_say(l->o->progress, false, "the job goes on as job.yaml says now");
    start_over(l);
}

/* "worker-1 was killed by signal 9" or "worker-1: the last thing that it said" */
static void describe_end(const struct launch *l, const struct child *c, int status, char *out, size_t size)
{
    char said[320];
    child_last_line(c, l->o->run, said, sizeof said);
    if (WIFSIGNALED(status))
        snprintf(out, size, "%s was killed by signal %d (%s)", c->name, WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else if (said[0])
        snprintf(out, size, "%s: %s", c->name, said);
    else
        snprintf(out, size, "%s ended with status %d", c->name, WEXITSTATUS(status));
}

/* 1..7 as an error of ours, 0 for anything else. */
static int error_of(int status)
{
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    return code >= 1 && code <= 7 ? -code : 0;
}

/* Something that another start would not change. */
static bool is_final(int error, uint64_t age_ns)
{
    if (error == ERR_DIVERGED) return true;
    bool setting = error == ERR_USAGE || error == ERR_DATA || error == ERR_MODEL || error == ERR_STORAGE;
    return setting && age_ns < AT_ONCE_NS;
}

static void schedule_again(struct launch *l, struct slot *s, uint64_t now, const char *why)
{
    s->due = now + (budget_recent(&s->budget, now) - 1) * BACK_OFF_NS;
    progress_say(l->o->progress, true, "%s; it is started again", why);
}

static void coordinator_ended(struct launch *l, int status, uint64_t now)
{
    struct slot *s = &l->slots[0];
    char why[400];
    bool served = l->serving;
    int error = error_of(status), code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    uint64_t age = now - s->child.started_ns;
    l->serving = false;
    describe_end(l, &s->child, status, why, sizeof why);
    if (code == 0)
        finish(l, 0);
    else if (code == 75 || (l->stopping && !is_final(error, age)))
        finish(l, ERR_INTERRUPTED);
    else if (code == LAUNCH_RESTORE)
        restore(l, now, "a process that this job cannot go on without has gone");
    else if (code == LAUNCH_SWITCH)
        switch_over(l);
    else if (is_final(error, age) || (error == ERR_REACH && !served))
        finish(l, err_set(error, "%s", why));
    else if (!budget_take(&s->budget, now))
        finish(l, err_set(ERR_FAIL, "%s; it fell %d times in %d minutes", why, LAUNCH_RESTARTS + 1,
                          LAUNCH_WINDOW_S / 60));
    else {
        s->recover = s->recover || served;
        schedule_again(l, s, now, why);
    }
}

static bool all_given_up(const struct launch *l)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->slots[i].role == WORKER && !l->slots[i].given_up) return false;
    return true;
}

/* It fell and the job goes on: a new one in its place, while that makes sense. */
static void replace(struct launch *l, struct slot *s, uint64_t now, const char *why)
{
    if (budget_take(&s->budget, now)) {
        s->recover = true;
        schedule_again(l, s, now, why);
        return;
    }
    s->given_up = true;
    if (s->role == SERVER || all_given_up(l))
        finish(l, err_set(ERR_FAIL, "%s; %s fell %d times in %d minutes, see %s/logs", why,
                          s->role == SERVER ? "it" : "every worker", LAUNCH_RESTARTS + 1,
                          LAUNCH_WINDOW_S / 60, l->o->run));
    else
        progress_say(l->o->progress, true, "%s; it fell too often, the job goes on without it", why);
}

static void member_ended(struct launch *l, struct slot *s, pid_t pid, int status, uint64_t now)
{
    char why[400];
    int error = error_of(status), code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    bool final = is_final(error, now - s->child.started_ns);
    if (code == 0 || l->stopping) return; /* it was told to leave */
    describe_end(l, &s->child, status, why, sizeof why);
    if (code == 75) { /* all leave; or it was interrupted alone, and is missed later */
        s->due = now + AFTER_75_NS;
        s->recover = true;
        return;
    }
    if (final && !(s->role == SERVER && s->recover && error != ERR_DIVERGED)) {
        finish(l, err_set(error, "%s", why));
        return;
    }
    if (l->bsp || final) {
        restore(l, now, why);
        return;
    }
    tell_gone(l, pid);
    replace(l, s, now, why);
}

static void reap(struct launch *l)
{
    for (size_t i = 0; i < l->n; i++) {
        struct slot *s = &l->slots[i];
        pid_t pid = s->child.pid;
        int status;
        if (pid == 0 || waitpid(pid, &status, WNOHANG) != pid) continue;
        s->child.pid = 0;
        if (l->result != GO_ON) continue;
        if (s->role == COORDINATOR)
            coordinator_ended(l, status, clock_now_ns());
        else
            member_ended(l, s, pid, status, clock_now_ns());
    }
}

/* ------------------------------------------------------------------ the life of a job */

/* The coordinator names a last set and tells everyone to leave. */
static void stop(struct launch *l, uint64_t now)
{
    if (l->stopping) return;
    l->stopping = true;
    l->stop_limit = now + STOP_NS;
    progress_say(l->o->progress, false, "stopping with a checkpoint...");
    if (l->slots[0].child.pid)
        kill(l->slots[0].child.pid, SIGTERM);
    else
        finish(l, ERR_INTERRUPTED);
}

/* Waits for a signal at most timeout_ms, and takes in what it means. */
static void wait_a_while(struct launch *l, int timeout_ms)
{
    struct pollfd event = {.fd = l->o->signal_fd, .events = POLLIN};
    poll(&event, 1, timeout_ms);
    bool asked = child_take_signals(l->o->signal_fd);
    reap(l);
    if (asked && l->result == GO_ON) stop(l, clock_now_ns());
}

static bool any_left(const struct launch *l)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->slots[i].child.pid) return true;
    return false;
}

static void wait_for_all(struct launch *l, uint64_t limit_ns)
{
    uint64_t limit = clock_now_ns() + limit_ns;
    for (uint64_t now; any_left(l) && (now = clock_now_ns()) < limit;)
        wait_a_while(l, (int)((limit - now) / NS_PER_MS) + 1);
}

/* After a good end the others leave by themselves; but for one that came too late to be told. */
static void clear(struct launch *l)
{
    if (l->result == 0 || l->result == ERR_INTERRUPTED) wait_for_all(l, l->result == 0 ? ENDED_NS : LEAVE_NS);
    kill_all(l, SIGTERM);
    wait_for_all(l, LEAVE_NS);
    kill_all(l, SIGKILL);
    wait_for_all(l, LEAVE_NS);
}

static void init(struct launch *l, const struct launch_options *o)
{
    *l = (struct launch){.o = o, .bsp = o->bsp, .result = GO_ON, .n = 1 + (size_t)o->servers + o->workers};
    l->slots = xcalloc(l->n, sizeof *l->slots);
    for (size_t i = 0; i < l->n; i++) {
        struct slot *s = &l->slots[i];
        s->role = i == 0 ? COORDINATOR : i <= o->servers ? SERVER : WORKER;
        s->index = (uint32_t)(s->role == COORDINATOR ? 0 : s->role == SERVER ? i - 1 : i - 1 - o->servers);
        if (s->role == COORDINATOR)
            snprintf(s->child.name, sizeof s->child.name, "coordinator");
        else
            snprintf(s->child.name, sizeof s->child.name, "%s-%" PRIu32,
                     s->role == SERVER ? "server" : "worker", s->index);
    }
    schedule_all(l);
}

int launch_workers(int cores, int servers, int threads)
{
    int workers = (cores - servers) / threads;
    return workers > 1 ? workers : 1;
}

int launch_run(const struct launch_options *o)
{
    struct launch l;
    init(&l, o);
    while (l.result == GO_ON) {
        uint64_t now = clock_now_ns();
        start_due(&l, now);
        progress_tick(o->progress, now);
        if (l.stopping && now > l.stop_limit) finish(&l, ERR_INTERRUPTED);
        if (l.result == GO_ON) wait_a_while(&l, l.serving ? 250 : 50);
    }
    progress_end(o->progress);
    clear(&l);
    int rc = l.result;
    if (rc < 0 && l.why) err_set(rc, "%s", l.why);
    free(l.why);
    free(l.slots);
    return rc;
}
