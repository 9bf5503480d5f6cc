/* chorale-server: one shard of a job. Loads the job, binds, joins the coordinator, restores, serves. */
#include "common/clock.h"
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/snapshot.h"
#include "common/wire.h"
#include "server/link.h"
#include "server/serve.h"

#include <getopt.h>
#include <math.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOIN_NS     (60 * NS_PER_S)
#define MAX_MEMBERS 65536
/* The worker clips the whole gradient, before its momentum; a block beyond ten times what that allows did not
 * come from there. */
#define NORM_MARGIN 10

struct server {
    const char *run, *coordinator;
    uint32_t shard, shards;
    bool recover;
    struct config config;
    struct facts facts;
    struct wire *wire;
    struct link *link;
    char endpoint[MSG_MAX_ENDPOINT];
    struct shard_state *state; /* NULL: not restored yet */
    uint32_t set;              /* that it was restored from */
    bool is_whole;             /* that set is complete */
};

static int print_help(void)
{
    puts("chorale-server RUN --shard K [--coordinator tcp://HOST:PORT] [--recover]\n\n"
         "Serves shard K (from 0) of the job in RUN. `chorale train RUN` starts it; --recover takes up the\n"
         "newest file of this shard after a fall.");
    return 1;
}

static int parse_shard(const char *text, uint32_t *out)
{
    if (strspn(text, "0123456789") != strlen(text) || !text[0] || strlen(text) > 6)
        return err_set(ERR_USAGE, "--shard %.40s: a number from 0 is needed", text);
    *out = (uint32_t)strtoul(text, NULL, 10);
    return 0;
}

/* Returns 1 if help was asked for. */
static int parse_arguments(int argc, char **argv, struct server *s)
{
    static const struct option names[] = {{"shard", required_argument, NULL, 's'},
                                          {"coordinator", required_argument, NULL, 'c'},
                                          {"recover", no_argument, NULL, 'r'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    bool has_shard = false;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 'h') return print_help();
        if (c == 's' && parse_shard(optarg, &s->shard) < 0) return ERR_USAGE;
        if (c == '?' || c == ':')
            return err_set(ERR_USAGE, "cannot use '%.80s'; see `chorale-server --help`", argv[optind - 1]);
        has_shard |= c == 's';
        s->recover |= c == 'r';
        if (c == 'c') s->coordinator = optarg;
    }
    if (optind + 1 != argc || !has_shard)
        return err_set(ERR_USAGE, "name one run and a shard: chorale-server RUN --shard K");
    if (s->coordinator && strlen(s->coordinator) >= MSG_MAX_ENDPOINT)
        return err_set(ERR_USAGE, "--coordinator: the endpoint is too long");
    s->run = argv[optind];
    if (!files_is_dir(s->run)) return err_set(ERR_USAGE, "%s is not a run directory", s->run);
    return 0;
}

static void open_log(const struct server *s)
{
    char *dir = files_join(s->run, "logs"), *path = xprintf("%s/server-%u.jsonl", dir, s->shard);
    files_make_dirs(dir);
    log_open("server", s->shard, s->run, path);
    log_set_stderr(LOG_WARN);
    free(path);
    free(dir);
}

static int load_job(struct server *s)
{
    char *path = files_join(s->run, "job.yaml");
    int rc = config_load_merged(path, NULL, 0, &s->config);
    free(path);
    if (rc == 0) rc = facts_read(s->run, &s->facts);
    if (rc < 0) return rc;
    s->shards = (uint32_t)s->config.cluster.servers;
    if (s->shard >= s->shards)
        return err_set(ERR_USAGE, "--shard %u: the job has %u servers, counted from 0", s->shard, s->shards);
    return 0;
}

/* ------------------------------------------------------------------ the state */

static int restore_set(struct server *s, uint32_t set)
{
    struct manifest m;
    struct blocks b;
    uint32_t first, count;
    int rc = snapshot_read_manifest(s->run, set, &m);
    if (rc < 0) return rc;
    blocks_cut(s->facts.model.params, &b);
    blocks_of_shard(&b, s->shards, s->shard, &first, &count);
    shard_state_free(&s->state);
    rc = snapshot_read_blocks(s->run, &m, &s->facts, first, count, &s->state);
    manifest_fini(&m);
    s->set = set;
    s->is_whole = true;
    return rc;
}

/* After a fall: our own newest file, or the newest complete set where that is as new. */
static int recover(struct server *s)
{
    uint32_t set;
    int64_t complete = snapshot_newest(s->run);
    int rc = snapshot_read_own(s->run, &s->facts, s->shard, s->shards, &set, &s->state);
    if (rc == 0 && (int64_t)set > complete) {
        s->set = set;
        return 0;
    }
    shard_state_free(&s->state);
    return complete < 0 ? rc : restore_set(s, (uint32_t)complete);
}

/* What JOINED says, where we do not have something as new already. */
static int restore(struct server *s)
{
    uint32_t wanted = link_joined(s->link)->set;
    int rc = 0;
    if (!s->state || wanted > s->set) rc = restore_set(s, wanted);
    if (rc < 0) return err_prefix(rc, "shard %u cannot be restored", s->shard);
    if (!s->recover) snapshot_set_aside(s->run, s->set, s->shard, s->shards);
    log_event(LOG_INFO, "restored", "\"set\":%u,\"blocks\":%u,\"members\":%u", s->set, s->state->count,
              s->state->num_members);
    return 0;
}

/* ------------------------------------------------------------------ joining and serving */

/* A worker may have our address before we hear that we have joined. */
static void put_off(struct server *s, uint64_t peer)
{
    struct msg m = {.type = MSG_REFUSED, .job = s->facts.job};
    m.refused.reason = REFUSAL_NOT_READY;
    snprintf(m.refused.text, sizeof m.refused.text, "shard %u is still joining: try again a little later",
             s->shard);
    wire_send(s->wire, WIRE_ROUTER, peer, &m, NULL);
}

static int join(struct server *s)
{
    uint64_t begin = clock_now_ns(), now = begin;
    const struct msg_beat nothing = {.role = ROLE_SERVER};
    struct link_options o = {.run = s->run,
                             .coordinator = s->coordinator,
                             .endpoint = s->endpoint,
                             .job = s->facts.job,
                             .model_hash = s->facts.model_hash,
                             .shard = s->shard,
                             .restored_set = s->state ? s->set : 0};
    s->link = link_new(&o, s->wire, now);
    for (int news = LINK_NOTHING; news != LINK_JOINED; now = clock_now_ns()) {
        struct msg m;
        struct frame *payload = NULL;
        uint64_t peer;
        int from;
        if (serve_was_asked_to_stop())
            return err_set(ERR_INTERRUPTED, "stopped before it had joined the job");
        if (now - begin > JOIN_NS)
            return err_set(ERR_REACH, "no coordinator of %s answers; is `chorale train` running?", s->run);
        if (link_is_due(s->link, now, &nothing)) link_tick(s->link, now, &nothing);
        if (wire_receive(s->wire, 50, &from, &peer, &m, &payload) < 0) continue;
        if (link_owns(s->link, from)) news = link_receive(s->link, now, &m);
        if (from == WIRE_ROUTER) put_off(s, peer);
        frame_free(&payload);
        if (news < 0) return news;
    }
    const struct msg_joined *j = link_joined(s->link);
    if (j->shards != s->shards)
        return err_set(ERR_MODEL, "the coordinator counts %u servers, job.yaml %u: start the job anew",
                       j->shards, s->shards);
    log_event(LOG_INFO, "joined", "\"member\":%" PRIu64 ",\"generation\":%u,\"set\":%u", j->member,
              j->generation, j->set);
    return 0;
}

static double largest_norm(const struct config *c)
{
    double momentum = config_momentum_is_on_worker(c) ? fmax(c->optimizer.momentum, PACE_MAX_MOMENTUM) : 0;
    double gain = 1 / (1 - momentum);
    return NORM_MARGIN * c->train.norm_clip * gain;
}

static int serve(struct server *s)
{
    const struct msg_joined *j = link_joined(s->link);
    const struct config *c = &s->config;
    struct serve_options o = {.run = s->run, .facts = &s->facts, .is_whole = s->is_whole};
    /* a file of ours alone does not make a set complete: it may be asked for once more */
    o.set = s->is_whole || s->set == 0 ? s->set : s->set - 1;
    o.shard = (struct shard_options){.shard = s->shard,
                                     .shards = s->shards,
                                     .job = s->facts.job,
                                     .model_hash = s->facts.model_hash,
                                     .job_generation = j->job_generation,
                                     .generation = j->generation,
                                     .mode = c->consistency.mode,
                                     .bound = (uint32_t)c->consistency.bound,
                                     .backup = (uint32_t)c->consistency.backup,
                                     .max_staleness = (uint32_t)c->consistency.max_staleness,
                                     .mean = c->train.gradient == GRADIENT_MEAN,
                                     .max_norm = largest_norm(c),
                                     .gradients = c->exchange.gradients,
                                     .weights = c->exchange.weights,
                                     .max_members = MAX_MEMBERS,
                                     .credit = (uint32_t)c->exchange.credit};
    update_rule_from(c, &o.shard.rule);
    pace_rule_from(c, s->facts.train.frames, &o.shard.pace);
    return serve_run(&o, s->wire, s->link, &s->state);
}

static int run_server(struct server *s)
{
    int rc = load_job(s);
    if (rc == 0 && s->recover) rc = recover(s);
    if (rc < 0) return rc;
    s->wire = wire_new();
    rc = wire_bind(s->wire, "127.0.0.1", s->endpoint); /* without keys: loopback only */
    if (rc == 0) rc = join(s);
    if (rc == 0) rc = restore(s);
    if (rc == 0) rc = serve(s);
    return rc;
}

int main(int argc, char **argv)
{
    struct server s = {.run = NULL};
    char why[512];
    int rc = parse_arguments(argc, argv, &s);
    if (rc != 0) return rc > 0 ? 0 : err_report("chorale-server", rc);
    wire_keep_pages();
    serve_catch_signals();
    open_log(&s);
    rc = run_server(&s);
    if (rc < 0) log_event(LOG_INFO, "left", "\"why\":%s", log_quote(why, sizeof why, err_text()));
    link_free(&s.link);
    wire_free(&s.wire);
    shard_state_free(&s.state);
    facts_fini(&s.facts);
    config_free(&s.config);
    log_close();
    return rc == 0 ? 0 : err_report("chorale-server", rc);
}
