#include "server/coordinator/publish.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_STATUS (64u << 20)

struct publisher {
    char *run;    /* owned */
    json_t *last; /* owned; what was told last, NULL: nothing */
    uint64_t at;  /* ns, of `last`; 0: an earlier life told it */
};

struct publisher *publish_new(const char *run)
{
    struct publisher *p = xcalloc(1, sizeof *p);
    char *path = files_join(run, "status.json"), *text = NULL;
    size_t len;
    p->run = xstrdup(run);
    if (files_exists(path) && files_read(path, MAX_STATUS, &text, &len) == 0)
        p->last = json_loadb(text, len, 0, NULL);
    free(text);
    free(path);
    return p;
}

void publish_free(struct publisher **p)
{
    if (!*p) return;
    json_decref((*p)->last);
    free((*p)->run);
    free(*p);
    *p = NULL;
}

static json_int_t whole(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

/* Another number of shards: they are cut differently, and nothing old is true of them. */
static void keep_shards(json_t *now, const json_t *last)
{
    static const char *const keys[] = {"version", "p50",        "p95",   "max",   "applied",
                                       "refused", "refused_by", "waits", "wait_s"};
    json_t *shards = json_object_get(now, "shards"), *before = json_object_get(last, "shards");
    if (json_array_size(shards) != json_array_size(before)) return;
    for (size_t i = 0; i < json_array_size(shards); i++) {
        json_t *shard = json_array_get(shards, i);
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
            json_t *old = json_object_get(json_array_get(before, i), keys[k]);
            if (!json_object_get(shard, keys[k]) && (json_is_number(old) || json_is_object(old)))
                json_object_set(shard, keys[k], old);
        }
    }
}

static bool is_listed(const json_t *workers, json_int_t member)
{
    size_t i;
    const json_t *w;
    json_array_foreach(workers, i, w)
    {
        if (whole(w, "member") == member) return true;
    }
    return false;
}

static bool any_computed(const json_t *workers)
{
    size_t i;
    const json_t *w;
    json_array_foreach(workers, i, w)
    {
        if (whole(w, "frames") > 0) return true;
    }
    return false;
}

/* What a worker computes while the job ends is nothing: its last rate says more. */
static void keep_rates(json_t *now, const json_t *last)
{
    const char *state = json_string_value(json_object_get(now, "state"));
    size_t i, k;
    json_t *w, *old;
    if (!state || strcmp(state, "running") == 0) return;
    json_array_foreach(json_object_get(now, "workers"), i, w)
    {
        json_array_foreach(json_object_get(last, "workers"), k, old)
        {
            json_t *rate = json_object_get(old, "frames_per_s");
            if (whole(old, "member") == whole(w, "member") && json_is_number(rate))
                json_object_set(w, "frames_per_s", rate);
        }
    }
}

/* The row of a worker that is not there any more, owned by the caller. */
static json_t *left_row(json_t *old, json_int_t generation, double passed)
{
    json_t *row = json_copy(old);
    double silent = json_number_value(json_object_get(old, "last_seen_s"));
    json_object_set_new(row, "state", json_string("left"));
    json_object_set_new(row, "last_seen_s", json_real(silent + passed));
    if (!json_object_get(row, "generation")) json_object_set_new(row, "generation", json_integer(generation));
    return row;
}

/* The newest of those that left, newest first, behind those that are there. */
static void keep_workers(json_t *now, const json_t *last, double passed)
{
    json_t *workers = json_object_get(now, "workers"), *left = json_array(), *old;
    json_int_t generation = whole(now, "generation");
    bool fresh = any_computed(workers);
    size_t i;
    json_array_foreach(json_object_get(last, "workers"), i, old)
    {
        bool known = json_is_integer(json_object_get(old, "member")) && whole(old, "frames") > 0;
        if (!known || is_listed(workers, whole(old, "member"))) continue;
        json_t *row = left_row(old, whole(last, "generation"), passed);
        if (whole(row, "generation") == generation) fresh = true;
        json_array_append_new(left, row);
    }
    for (i = 0; i < json_array_size(left);)
        if (fresh && whole(json_array_get(left, i), "generation") != generation)
            json_array_remove(left, i);
        else
            i++;
    while (json_array_size(left) > PUBLISH_LEFT) json_array_remove(left, json_array_size(left) - 1);
    json_array_extend(workers, left);
    json_decref(left);
}

/* Not synced: it is written again all the time, and a whole file at any moment is all that is promised. */
static void write_whole(const char *run, const char *text)
{
    char *path = files_join(run, "status.json"), *temp = files_join(run, "status.json.tmp");
    FILE *f = fopen(temp, "w");
    bool good = f && fputs(text, f) >= 0 && fputc('\n', f) != EOF;
    if (f && fclose(f) != 0) good = false;
    if (!good || rename(temp, path) != 0) unlink(temp);
    free(temp);
    free(path);
}

void publish_status(struct publisher *p, uint64_t now, const char *text)
{
    json_t *s = json_loads(text, 0, NULL);
    ASSERT(json_is_object(s));
    keep_shards(s, p->last);
    keep_rates(s, p->last);
    keep_workers(s, p->last, p->at && now > p->at ? (double)(now - p->at) / NS_PER_S : 0);
    char *out = json_dumps(s, JSON_COMPACT | JSON_REAL_PRECISION(9));
    ASSERT(out);
    write_whole(p->run, out);
    free(out);
    json_decref(p->last);
    p->last = s;
    p->at = now;
}
