/* The state as rows, one JSON object per line: written, read back, all of them at once. */
#include "common/err.h"
#include "server/coordinator/epochs.h"
#include "server/coordinator/leases.h"
#include "server/coordinator/members.h"
#include "server/coordinator/piles.h"
#include "server/coordinator/sets.h"

#include <stdlib.h>
#include <string.h>

#define ROW_FLAGS (JSON_COMPACT | JSON_REAL_PRECISION(17))

void rows_write(struct coordinator *c, json_t *row)
{
    ASSERT(row);
    char *text = json_dumps(row, ROW_FLAGS);
    ASSERT(text);
    if (c->started && c->io.journal) c->io.journal(c->io.ctx, text);
    free(text);
    json_decref(row);
}

int rows_number(const json_t *row, const char *key, uint64_t max, uint64_t absent, uint64_t *out)
{
    const json_t *v = json_object_get(row, key);
    if (!v && absent <= max) {
        *out = absent;
        return 0;
    }
    json_int_t n = json_is_integer(v) ? json_integer_value(v) : -1;
    if (n < 0 || (uint64_t)n > max)
        return err_set(ERR_DATA, "no number under '%s' in a row of the coordinator", key);
    *out = (uint64_t)n;
    return 0;
}

int rows_u32(const json_t *row, const char *key, uint32_t max, uint32_t absent, uint32_t *out)
{
    uint64_t n = 0;
    int rc = rows_number(row, key, max, absent, &n);
    if (rc == 0) *out = (uint32_t)n;
    return rc;
}

json_t *rows_sums(const struct sums *s)
{
    return json_pack("[I, f, I, I, I, I]", (json_int_t)s->frames, s->loss, (json_int_t)s->correct,
                     (json_int_t)s->speech_frames, (json_int_t)s->speech_correct, (json_int_t)s->failed);
}

int rows_read_sums(const json_t *a, struct sums *out)
{
    double v[6];
    if (json_array_size(a) != 6) return err_set(ERR_DATA, "sums of a row that are not six numbers");
    for (size_t i = 0; i < 6; i++) {
        const json_t *x = json_array_get(a, i);
        v[i] = json_number_value(x);
        if (!json_is_number(x) || v[i] > 9e18 || (i != 1 && (v[i] < 0 || !json_is_integer(x))))
            return err_set(ERR_DATA, "sums of a row that are not six numbers");
    }
    *out = (struct sums){.frames = (uint64_t)json_integer_value(json_array_get(a, 0)),
                         .loss = v[1],
                         .correct = (uint64_t)json_integer_value(json_array_get(a, 2)),
                         .speech_frames = (uint64_t)json_integer_value(json_array_get(a, 3)),
                         .speech_correct = (uint64_t)json_integer_value(json_array_get(a, 4)),
                         .failed = (uint64_t)json_integer_value(json_array_get(a, 5))};
    return 0;
}

json_t *rows_of_job(const struct coordinator *c)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b}", "row", "job",
                     "incarnation", (json_int_t)c->incarnation, "generation", (json_int_t)c->generation,
                     "next_member", (json_int_t)c->next_member, "next_lease", (json_int_t)c->next_lease,
                     "next_set", (json_int_t)c->next_set, "map_version", (json_int_t)c->map_version,
                     "next_roster", (json_int_t)c->next_roster, "roster", (json_int_t)c->roster,
                     "restored_set", (json_int_t)c->restored_set, "believed_from",
                     (json_int_t)c->believed_from, "shape", (json_int_t)c->shape, "restore", c->restore,
                     "switched", c->switched);
}

void rows_job(struct coordinator *c)
{
    rows_write(c, rows_of_job(c));
}

/* ------------------------------------------------------------------ reading */

static int raise_u64(const json_t *row, const char *key, uint64_t *value)
{
    uint64_t n = 0;
    int rc = rows_number(row, key, MAX_NUMBER, 0, &n);
    if (rc == 0 && n > *value) *value = n;
    return rc;
}

static int raise_u32(const json_t *row, const char *key, uint32_t *value)
{
    uint32_t n = 0;
    int rc = rows_u32(row, key, UINT32_MAX / 2, 0, &n);
    if (rc == 0 && n > *value) *value = n;
    return rc;
}

static int apply_job_counters(struct coordinator *c, const json_t *row)
{
    int rc = raise_u32(row, "incarnation", &c->incarnation);
    if (rc == 0) rc = raise_u32(row, "generation", &c->generation);
    if (rc == 0) rc = raise_u64(row, "next_member", &c->next_member);
    if (rc == 0) rc = raise_u64(row, "next_lease", &c->next_lease);
    if (rc == 0) rc = raise_u32(row, "next_set", &c->next_set);
    if (rc == 0) rc = raise_u32(row, "map_version", &c->map_version);
    if (rc == 0) rc = raise_u32(row, "next_roster", &c->next_roster);
    return rc;
}

static int apply_job(struct coordinator *c, const json_t *row)
{
    int rc = apply_job_counters(c, row);
    if (rc == 0) rc = rows_u32(row, "roster", UINT32_MAX - 1, 0, &c->roster);
    if (rc == 0) rc = rows_u32(row, "restored_set", UINT32_MAX - 1, 0, &c->restored_set);
    if (rc == 0) rc = raise_u64(row, "believed_from", &c->believed_from);
    if (rc == 0) rc = rows_number(row, "shape", MAX_NUMBER, c->o.shape, &c->shape);
    c->restore = json_is_true(json_object_get(row, "restore"));
    c->switched = json_is_true(json_object_get(row, "switched"));
    return rc;
}

static const char *kind_of(const json_t *row)
{
    const char *kind = json_string_value(json_object_get(row, "row"));
    return kind ? kind : "";
}

static int apply(struct coordinator *c, const json_t *row)
{
    const char *kind = kind_of(row);
    if (strcmp(kind, "job") == 0) return apply_job(c, row);
    if (strcmp(kind, "shard") == 0) return members_apply_seat(c, row, false);
    if (strcmp(kind, "member") == 0) return members_apply(c, row);
    if (strcmp(kind, "chunk") == 0) return piles_apply(c, row);
    if (strcmp(kind, "epoch") == 0) return epochs_apply(c, row);
    if (strcmp(kind, "eval") == 0) return epochs_apply_eval(c, row);
    if (strcmp(kind, "newbob") == 0) return epochs_apply_newbob(c, row);
    if (strcmp(kind, "set") == 0) return sets_apply(c, row);
    return err_set(ERR_DATA, "a row of no known kind");
}

/* Numbers that are given away in rows of other kinds. */
static int apply_counters(struct coordinator *c, const json_t *row)
{
    const char *kind = kind_of(row);
    uint64_t n = 0;
    int rc = 0;
    if (strcmp(kind, "job") == 0) return apply_job_counters(c, row);
    if (strcmp(kind, "shard") == 0) return members_apply_seat(c, row, true);
    if (strcmp(kind, "member") == 0) {
        rc = rows_number(row, "member", MAX_NUMBER, 0, &n);
        if (rc == 0 && n >= c->next_member) c->next_member = n + 1;
    } else if (strcmp(kind, "chunk") == 0) {
        rc = rows_number(row, "lease", MAX_NUMBER, 0, &n);
        if (rc == 0 && n >= c->next_lease) c->next_lease = n + 1;
    } else if (strcmp(kind, "set") == 0) {
        rc = rows_number(row, "set", UINT32_MAX / 2, 0, &n);
        if (rc == 0 && n >= c->next_set) c->next_set = (uint32_t)n + 1;
    }
    return rc;
}

static int parse(struct coordinator *c, const char *text, int (*then)(struct coordinator *, const json_t *))
{
    json_error_t why;
    ASSERT(!c->started);
    json_t *row = json_loads(text, 0, &why);
    int rc = json_is_object(row)
                 ? then(c, row)
                 : err_set(ERR_DATA, "a row that is no JSON object: %.80s", row ? "" : why.text);
    json_decref(row);
    return rc < 0 ? err_prefix(rc, "the state of the coordinator is damaged") : 0;
}

int coordinate_apply_row(struct coordinator *c, const char *row)
{
    return parse(c, row, apply);
}

int coordinate_apply_counters(struct coordinator *c, const char *row)
{
    return parse(c, row, apply_counters);
}

static int apply_rows(struct coordinator *c, const json_t *state)
{
    const json_t *rows = json_object_get(state, "rows");
    int rc = 0;
    for (size_t i = 0; i < json_array_size(rows) && rc == 0; i++) rc = apply(c, json_array_get(rows, i));
    return rc;
}

int coordinate_apply_state(struct coordinator *c, const char *state)
{
    return parse(c, state, apply_rows);
}

/* ------------------------------------------------------------------ all of it */

static json_t *all_rows(struct coordinator *c)
{
    json_t *rows = json_array();
    json_array_append_new(rows, rows_of_job(c));
    for (uint32_t k = 0; k < c->o.shards; k++) json_array_append_new(rows, members_seat_row(c, k));
    for (uint32_t i = 0; i < c->num_members; i++) json_array_append_new(rows, members_row(c->members[i]));
    json_array_append_new(rows, sets_row(c));
    for (uint32_t i = 0; i < c->num_epochs; i++) {
        json_array_append_new(rows, epochs_row(c, i));
        piles_rows(c, LEASE_TRAIN, i, rows);
    }
    json_array_append_new(rows, epochs_newbob_row(c));
    for (uint32_t i = 0; i < c->num_evals; i++) {
        json_array_append_new(rows, epochs_eval_row(&c->evals[i], false));
        piles_rows(c, LEASE_EVAL, c->evals[i].set, rows);
    }
    return rows;
}

char *coordinate_rows(const struct coordinator *c)
{
    json_t *rows = all_rows((struct coordinator *)c);
    size_t len = 0, capacity = 4096;
    char *out = xcalloc(capacity, 1);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        char *line = json_dumps(json_array_get(rows, i), ROW_FLAGS);
        ASSERT(line);
        size_t n = strlen(line);
        while (len + n + 2 > capacity) capacity *= 2;
        out = realloc(out, capacity);
        ASSERT(out);
        memcpy(out + len, line, n);
        len += n;
        out[len++] = '\n';
        out[len] = '\0';
        free(line);
    }
    json_decref(rows);
    return out;
}
