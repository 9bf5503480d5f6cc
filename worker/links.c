#include "worker/links.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/log.h"
#include "common/rendezvous.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH      64              /* messages handled before the ticks have their turn again */
#define LOOK_NS    (1 * NS_PER_S)  /* between looks for the coordinator */
#define SILENT_NS  (3 * NS_PER_S)  /* then it is looked for: it answers every beat */
#define AGAIN_NS   (10 * NS_PER_S) /* a fixed endpoint is connected anew so often */
#define MAX_LEASES 8               /* on hand in the member, between two turns of the training loop */

static bool send_shard(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload)
{
    struct links *l = ctx;
    return l->shard[shard] >= 0 && wire_send(l->wire, l->shard[shard], 0, m, payload) == 0;
}

static bool send_coordinator(void *ctx, const struct msg *m, struct frame **payload)
{
    struct links *l = ctx;
    return l->coordinator >= 0 && wire_send(l->wire, l->coordinator, 0, m, payload) == 0;
}

/* --- the coordinator */

static int connect_coordinator(struct links *l, uint64_t now, const char *endpoint)
{
    int link = wire_connect(l->wire, endpoint);
    if (link < 0) return link;
    if (l->coordinator >= 0) wire_close(l->wire, l->coordinator);
    l->coordinator = link;
    member_reconnected(l->member, now);
    return 0;
}

/* Connects if RUN/members/coordinator says something new. */
static void look_up(struct links *l, uint64_t now)
{
    struct rendezvous at;
    if (!rendezvous_find(l->job->run, &at) || rendezvous_same(&at, &l->found)) return;
    if (connect_coordinator(l, now, at.endpoint) < 0) return;
    char quoted[2 * MSG_MAX_ENDPOINT];
    log_event(LOG_INFO, "coordinator", "\"endpoint\":%s", log_quote(quoted, sizeof quoted, at.endpoint));
    l->found = at;
}

static void find_coordinator(struct links *l, uint64_t now)
{
    if (l->coordinator >= 0 && now - l->heard < SILENT_NS) return;
    if (now - l->looked < (l->endpoint ? AGAIN_NS : LOOK_NS)) return;
    l->looked = now;
    if (l->endpoint)
        connect_coordinator(l, now, l->endpoint);
    else
        look_up(l, now);
}

/* --- the shards */

static void first_map(struct links *l)
{
    exchange_set_member(l->exchange, member_number(l->member), member_job_generation(l->member));
}

/* A server that came back has a new endpoint and a new generation. */
static int connect_shard(struct links *l, uint64_t now, uint32_t k)
{
    const char *endpoint = member_endpoint(l->member, k);
    uint32_t generation = member_shard_generation(l->member, k);
    bool moved = l->shard[k] < 0 || strcmp(l->at[k], endpoint) != 0;
    if (!moved && l->generation[k] == generation) return 0;
    if (moved) {
        int link = wire_connect(l->wire, endpoint);
        if (link < 0) return link;
        if (l->shard[k] >= 0) wire_close(l->wire, l->shard[k]);
        l->shard[k] = link;
        strncpy(l->at[k], endpoint, MSG_MAX_ENDPOINT - 1);
    }
    l->generation[k] = generation;
    exchange_connected(l->exchange, now, k);
    return 0;
}

static int follow_map(struct links *l, uint64_t now)
{
    uint32_t version = member_map_version(l->member);
    if (version == l->map_version) return 0;
    if (member_shards(l->member) != l->shards)
        return err_set(ERR_MODEL,
                       "the job has %u shards, job.yaml of this worker says %u: start all processes "
                       "of the job with the same job.yaml",
                       member_shards(l->member), l->shards);
    if (l->map_version == 0) first_map(l);
    l->map_version = version;
    for (uint32_t k = 0; k < l->shards; k++) {
        int rc = connect_shard(l, now, k);
        if (rc < 0) return rc;
    }
    return 0;
}

/* --- the pump */

static void receive(struct links *l, int link, const struct msg *m, struct frame **payload)
{
    uint64_t now = clock_now_ns();
    if (link == l->coordinator) {
        l->heard = now;
        member_receive(l->member, now, m, payload);
        return;
    }
    for (uint32_t k = 0; k < l->shards; k++)
        if (link == l->shard[k]) {
            exchange_receive(l->exchange, now, k, m, payload);
            return;
        }
    frame_free(payload); /* of a connection that was closed */
}

static void receive_all(struct links *l, int timeout_ms)
{
    for (int n = 0; n < BATCH; n++) {
        struct msg m;
        struct frame *payload = NULL;
        int link;
        uint64_t peer;
        if (wire_receive(l->wire, n ? 0 : timeout_ms, &link, &peer, &m, &payload) < 0) return;
        receive(l, link, &m, &payload);
    }
}

static int until_next(const struct links *l, uint64_t now, int timeout_ms)
{
    uint64_t a = member_next(l->member), b = exchange_next(l->exchange), next = a < b ? a : b;
    if (next <= now) return timeout_ms > 0 ? 1 : 0;
    uint64_t ms = (next - now) / NS_PER_MS + 1;
    return ms < (uint64_t)timeout_ms ? (int)ms : timeout_ms;
}

static int tick(struct links *l)
{
    uint64_t now = clock_now_ns();
    find_coordinator(l, now);
    member_tick(l->member, now);
    exchange_tick(l->exchange, now);
    int rc = member_trouble(l->member);
    if (rc == 0) rc = follow_map(l, now);
    return rc < 0 ? rc : exchange_trouble(l->exchange);
}

int links_pump(struct links *l, int timeout_ms)
{
    uint64_t emptied;
    int rc = tick(l);
    if (rc < 0) return rc;
    receive_all(l, until_next(l, clock_now_ns(), timeout_ms));
    if (l->stop_fd >= 0 && read(l->stop_fd, &emptied, sizeof emptied) < 0) emptied = 0;
    return tick(l);
}

uint64_t links_silence(const struct links *l)
{
    return clock_now_ns() - l->heard;
}

/* --- life */

static struct member *make_member(struct links *l)
{
    struct member_options o = {.job = l->job->facts.job,
                               .model_hash = l->job->facts.model_hash,
                               .pid = (uint64_t)getpid(),
                               .max_leases = MAX_LEASES,
                               .beat_ns = NS_PER_S,
                               .retry_ns = NS_PER_S};
    if (gethostname(o.host, sizeof o.host - 1) < 0) strcpy(o.host, "unknown");
    return member_new(&o, &(struct member_io){l, send_coordinator});
}

static struct exchange *make_exchange(struct links *l)
{
    const struct config *c = &l->job->config;
    struct exchange_options o = {.job = l->job->facts.job,
                                 .model_hash = l->job->facts.model_hash,
                                 .blocks = l->job->blocks,
                                 .shards = l->shards,
                                 .credit = (uint32_t)c->exchange.credit,
                                 .deadline_ns = (uint64_t)c->exchange.deadline_ms * NS_PER_MS,
                                 .consistency = c->consistency.mode,
                                 .optimizer = config_server_optimizer(c),
                                 .gradients = c->exchange.gradients,
                                 .weights = c->exchange.weights,
                                 .tickets =
                                     c->consistency.mode == CONSISTENCY_BSP && c->consistency.backup > 0};
    return exchange_new(&o, &(struct exchange_io){l, send_shard});
}

int links_open(const struct job *j, const char *endpoint, int stop_fd, struct links **out)
{
    struct links *l = xcalloc(1, sizeof *l);
    l->job = j;
    l->coordinator = -1;
    l->stop_fd = stop_fd;
    l->shards = (uint32_t)j->config.cluster.servers;
    l->shard = xcalloc(l->shards, sizeof *l->shard);
    for (uint32_t k = 0; k < l->shards; k++) l->shard[k] = -1;
    l->at = xcalloc(l->shards, sizeof *l->at);
    l->generation = xcalloc(l->shards, sizeof *l->generation);
    l->wire = wire_new();
    if (stop_fd >= 0) wire_watch(l->wire, stop_fd);
    l->member = make_member(l);
    l->exchange = make_exchange(l);
    l->heard = clock_now_ns();
    int rc = 0;
    if (endpoint) {
        l->endpoint = xstrdup(endpoint);
        l->looked = l->heard;
        rc = connect_coordinator(l, l->heard, endpoint);
    }
    if (rc < 0) {
        links_close(&l);
        return rc;
    }
    *out = l;
    return 0;
}

void links_close(struct links **l_in)
{
    struct links *l = *l_in;
    if (!l) return;
    wire_free(&l->wire);
    exchange_free(&l->exchange);
    member_free(&l->member);
    free(l->endpoint);
    free(l->shard);
    free(l->at);
    free(l->generation);
    free(l);
    *l_in = NULL;
}
