/* The checks that look at several options, and the job file as text. */
#include "common/config.h"

#include "common/err.h"
#include "common/files.h"
#include "common/options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STREAMS 65536 /* of one worker */

/* ------------------------------------------------------------------ cross checks */

static int check_model(const struct config *c)
{
    if (c->model.num_layers == 0)
        return err_set(ERR_USAGE,
                       "model.layers is empty; give at least one, e.g. [{cells: 256, projection: 128}]");
    for (size_t i = 0; i < c->model.num_layers; i++) {
        const struct model_layer *l = &c->model.layers[i];
        if (c->model.type == MODEL_LSTMP && l->projection == 0)
            return err_set(
                ERR_USAGE,
                "model.type is lstmp, but layer %zu of model.layers has no projection; give one or "
                "set model.type: lstm",
                i + 1);
        if (c->model.type == MODEL_LSTM && (l->projection != 0 || l->nonrecurrent != 0))
            return err_set(
                ERR_USAGE,
                "model.type is lstm, but layer %zu of model.layers has a projection; remove it or set "
                "model.type: lstmp",
                i + 1);
    }
    return 0;
}

static int check_schedule(const struct config *c)
{
    if (c->optimizer.schedule.type == SCHEDULE_NEWBOB && !c->data.dev[0])
        return err_set(ERR_USAGE, "optimizer.schedule.type newbob decides on dev results; set data.dev");
    if (c->optimizer.schedule.type == SCHEDULE_NEWBOB &&
        c->optimizer.schedule.end_improvement > c->optimizer.schedule.start_improvement)
        return err_set(ERR_USAGE, "optimizer.schedule.end_improvement must not be above start_improvement");
    if (c->optimizer.schedule.type == SCHEDULE_EXPONENTIAL && c->optimizer.schedule.per_frames <= 0)
        return err_set(
            ERR_USAGE,
            "optimizer.schedule.type exponential needs optimizer.schedule.per_frames (frames for one "
            "factor)");
    return 0;
}

static int check_streams(const struct config *c)
{
    int64_t streams = (int64_t)c->train.threads * c->train.streams;
    if (streams > MAX_STREAMS)
        return err_set(ERR_USAGE,
                       "train.threads * train.streams is %" PRId64 "; one worker has at most %d streams",
                       streams, MAX_STREAMS);
    if (c->consistency.mode == CONSISTENCY_BSP && streams * c->cluster.workers > INT32_MAX)
        return err_set(ERR_USAGE,
                       "cluster.workers * train.threads * train.streams must be at most %" PRId32
                       " in consistency.mode bsp",
                       INT32_MAX);
    return 0;
}

/* What makes no sense where nobody waits, or where all wait. */
static int check_consistency(const struct config *c)
{
    bool is_bsp = c->consistency.mode == CONSISTENCY_BSP;
    if (c->consistency.backup && !is_bsp)
        return err_set(ERR_USAGE, "consistency.backup is for consistency.mode bsp alone; set it to 0");
    if (c->cluster.workers && c->consistency.backup >= c->cluster.workers)
        return err_set(ERR_USAGE, "consistency.backup is %d, but there are only %d workers (cluster.workers)",
                       c->consistency.backup, c->cluster.workers);
    if (is_bsp && c->train.warm_start_frames > 0)
        return err_set(ERR_USAGE, "train.warm_start_frames is for async and ssp: in consistency.mode bsp all "
                                  "workers step together; set it to 0");
    if (is_bsp && c->consistency.pull_every > 1)
        return err_set(ERR_USAGE,
                       "consistency.pull_every must be 1 in consistency.mode bsp, where every step "
                       "brings the new weights");
    return 0;
}

static int check_optimizer(const struct config *c)
{
    enum optimizer_type type = c->optimizer.type;
    bool is_bsp = c->consistency.mode == CONSISTENCY_BSP;
    bool compensates = c->optimizer.delay_compensation > 0;
    if (is_bsp && c->optimizer.staleness == STALENESS_DIVIDE)
        return err_set(
            ERR_USAGE,
            "optimizer.staleness divide is for async and ssp: in bsp nothing is stale; use ignore");
    if (is_bsp && compensates)
        return err_set(ERR_USAGE, "optimizer.delay_compensation is for async and ssp: in bsp there is no "
                                  "delay; set it to 0");
    if (compensates && c->consistency.overlap)
        return err_set(ERR_USAGE,
                       "optimizer.delay_compensation needs consistency.overlap 0: with an exchange "
                       "in flight the weights of a gradient are no longer at hand");
    if (compensates && config_momentum_is_on_worker(c))
        return err_set(ERR_USAGE,
                       "optimizer.delay_compensation is of gradients, and with optimizer.momentum_at "
                       "worker these do not come alone; set that to server, or optimizer.type to sgd");
    if (compensates && type != OPTIMIZER_SGD && type != OPTIMIZER_MOMENTUM && type != OPTIMIZER_NESTEROV)
        return err_set(ERR_USAGE, "optimizer.delay_compensation goes with sgd, momentum and nesterov alone; "
                                  "set it to 0 or change optimizer.type");
    return 0;
}

static bool is_loopback(const char *network)
{
    return strcmp(network, "auto") == 0 || strcmp(network, "lo") == 0 || strcmp(network, "localhost") == 0 ||
           strcmp(network, "::1") == 0 || strncmp(network, "127.", 4) == 0;
}

static int check_ports(const char *ports)
{
    unsigned low, high;
    char rest;
    if (strcmp(ports, "auto") == 0) return 0;
    if (strspn(ports, "0123456789-") == strlen(ports) &&
        sscanf(ports, "%5u-%5u%c", &low, &high, &rest) == 2 && low >= 1 && low <= high && high <= 65535)
        return 0;
    return err_set(ERR_USAGE, "cluster.ports must be auto or a range like 41000-41999, not '%.80s'", ports);
}

static int check_cluster(const struct config *c)
{
    if (c->cluster.security == SECURITY_CURVE)
        return err_set(
            ERR_USAGE,
            "cluster.security curve does not exist yet; use none, which listens on loopback alone");
    if (!c->cluster.network[0])
        return err_set(ERR_USAGE,
                       "cluster.network is empty; use auto, an interface, an address or a network");
    if (!is_loopback(c->cluster.network))
        return err_set(
            ERR_USAGE,
            "cluster.network %.80s is not loopback, and cluster.security is none; without keys a process "
            "listens on loopback alone (network: auto)",
            c->cluster.network);
    return check_ports(c->cluster.ports);
}

int config_check(const struct config *c)
{
    if (!c->data.train[0])
        return err_set(ERR_USAGE, "data.train is not set; name the directory of the training data");
    if (!c->data.targets[0])
        return err_set(ERR_USAGE, "data.targets is empty; name the scp of the alignment, e.g. ali.scp");
    int rc = check_model(c);
    if (rc == 0) rc = check_schedule(c);
    if (rc == 0) rc = check_streams(c);
    if (rc == 0) rc = check_consistency(c);
    if (rc == 0) rc = check_optimizer(c);
    if (rc == 0) rc = check_cluster(c);
    return rc;
}

/* ------------------------------------------------------------------ who has the momentum */

bool config_momentum_is_on_worker(const struct config *c)
{
    bool has_momentum = c->optimizer.type == OPTIMIZER_MOMENTUM || c->optimizer.type == OPTIMIZER_NESTEROV;
    return has_momentum && c->optimizer.momentum_at == MOMENTUM_AT_WORKER &&
           c->consistency.mode != CONSISTENCY_BSP;
}

enum optimizer_type config_server_optimizer(const struct config *c)
{
    return config_momentum_is_on_worker(c) ? OPTIMIZER_SGD : c->optimizer.type;
}

/* ------------------------------------------------------------------ where the targets are */

char *config_targets_path(const struct config *c)
{
    return files_join(c->data.train, c->data.targets);
}

char *config_dev_targets_path(const struct config *c)
{
    const char *name = c->data.dev_targets;
    if (!name[0]) name = c->data.targets;
    if (!c->data.dev_targets[0] && name[0] == '/') name = strrchr(name, '/') + 1;
    return files_join(c->data.dev, name);
}

/* ------------------------------------------------------------------ the job file */

/* A comment, wrapped at 100 columns. */
static void print_comment(FILE *to, int indent, const char *text)
{
    size_t room = 98 - (size_t)indent;
    while (*text) {
        size_t n = strlen(text);
        if (n > room)
            for (n = room; n > 0 && text[n] != ' ';) n--;
        if (n == 0) n = strcspn(text, " ");
        fprintf(to, "%*s# %.*s\n", indent, "", (int)n, text);
        text += n;
        text += *text == ' ';
    }
}

/* Opens the sections that `key` is in and the key before it was not. Returns the depth of the key. */
static int print_sections(FILE *to, const char *before, const char *key)
{
    int depth = 0;
    bool same = true;
    for (const char *dot; (dot = strchr(key, '.')); key = dot + 1, depth++) {
        size_t n = (size_t)(dot - key) + 1;
        same = same && before && strncmp(before, key, n) == 0;
        if (same)
            before += n;
        else
            fprintf(to, "%s%*s%.*s:\n", depth == 0 && before ? "\n" : "", 2 * depth, "", (int)n - 1, key);
    }
    return depth;
}

static void print_help(FILE *to, int indent, const struct option_spec *o)
{
    char may[400];
    options_describe(o, may, sizeof may);
    char *text = xprintf("(%s; default %s)", may, o->preset[0] ? o->preset : "empty");
    print_comment(to, indent, o->help);
    print_comment(to, indent, text);
    free(text);
}

static void print_config(FILE *to, const struct config *c, bool commented)
{
    const char *before = NULL;
    if (commented)
        fputs("# A job of Chorale. Change it here, with --set section.option=value, or with "
              "CHORALE_SECTION_OPTION=value in\n"
              "# the environment. An unknown option or a value out of range stops the start with line and "
              "column.\n\n",
              to);
    for (size_t i = 0; i < options_count; i++) {
        const struct option_spec *o = &options_table[i];
        int indent = 2 * print_sections(to, before, o->key);
        if (commented) print_help(to, indent, o);
        char *value = options_text(c, o);
        fprintf(to, "%*s%s: %s\n", indent, "", strrchr(o->key, '.') + 1, value);
        free(value);
        before = o->key;
    }
}

char *config_text(const struct config *c, bool commented)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    ASSERT(to);
    print_config(to, c, commented);
    int rc = fclose(to);
    ASSERT(rc == 0 && text);
    return text;
}

int config_write(const struct config *c, const char *path, bool commented)
{
    char *text = config_text(c, commented);
    int rc = files_write_atomic(path, text, strlen(text));
    free(text);
    return rc;
}

int config_take_next(const char *run)
{
    char *next = files_join(run, CONFIG_NEXT), *job = files_join(run, "job.yaml");
    int rc = 0;
    if (rename(next, job) == 0)
        rc = files_sync_dir(run);
    else if (errno != ENOENT)
        rc = err_set(ERR_STORAGE, "cannot replace %s: %s", job, strerror(errno));
    free(next);
    free(job);
    return rc;
}
