#include "server/admit.h"

#include "common/err.h"
#include "common/options.h"
#include "common/wire.h"
#include "server/update.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAME 48 /* of a value, as a sentence shows it */

void admit_init(struct admit_table *t, struct shard_state *state, uint32_t max_members)
{
    ASSERT(max_members > 0);
    size_t cells = (size_t)state->num_members * state->count;
    *t = (struct admit_table){.state = state, .capacity = state->num_members, .max_members = max_members};
    t->stable = xcalloc(cells + 1, sizeof *t->stable);
    if (cells > 0) memcpy(t->stable, state->last_seq, cells * sizeof *t->stable);
}

void admit_fini(struct admit_table *t)
{
    free(t->stable);
    t->stable = NULL;
}

uint32_t admit_lower_bound(const uint64_t *members, uint32_t n, uint64_t member)
{
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (members[middle] < member)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The same of the table. */
static uint32_t lower_bound(const struct admit_table *t, uint64_t member)
{
    return admit_lower_bound(t->state->members, t->state->num_members, member);
}

int64_t admit_find(const struct admit_table *t, uint64_t member)
{
    uint32_t row = lower_bound(t, member);
    return row < t->state->num_members && t->state->members[row] == member ? (int64_t)row : -1;
}

static void *grown(void *old, size_t count, size_t size)
{
    void *p = realloc(old, (count + 1) * size); /* + 1: a shard without blocks asks for nothing */
    ASSERT(p);
    return p;
}

static void reserve(struct admit_table *t)
{
    struct shard_state *s = t->state;
    if (s->num_members < t->capacity) return;
    uint64_t capacity = t->capacity < 4 ? 8 : 2 * (uint64_t)t->capacity;
    if (capacity > t->max_members) capacity = t->max_members;
    t->capacity = (uint32_t)capacity;
    size_t cells = (size_t)capacity * s->count;
    s->members = grown(s->members, capacity, sizeof *s->members);
    s->last_seq = grown(s->last_seq, cells, sizeof *s->last_seq);
    s->verdict = grown(s->verdict, cells, sizeof *s->verdict);
    t->stable = grown(t->stable, cells, sizeof *t->stable);
}

/* Moves rows [from, num_members) to begin at `to`; the caller counts. */
static void move_rows(struct admit_table *t, uint32_t to, uint32_t from)
{
    struct shard_state *s = t->state;
    size_t rows = s->num_members - from, cells = rows * s->count;
    size_t a = (size_t)to * s->count, b = (size_t)from * s->count;
    memmove(s->members + to, s->members + from, rows * sizeof *s->members);
    memmove(s->last_seq + a, s->last_seq + b, cells * sizeof *s->last_seq);
    memmove(s->verdict + a, s->verdict + b, cells * sizeof *s->verdict);
    memmove(t->stable + a, t->stable + b, cells * sizeof *t->stable);
}

uint32_t admit_member(struct admit_table *t, uint64_t member)
{
    struct shard_state *s = t->state;
    if (member < t->oldest) return REFUSAL_RETIRED;
    if (admit_find(t, member) >= 0) return 0;
    if (s->num_members >= t->max_members) return REFUSAL_FULL;
    reserve(t);
    uint32_t row = lower_bound(t, member);
    size_t cell = (size_t)row * s->count;
    move_rows(t, row + 1, row);
    s->members[row] = member;
    memset(s->last_seq + cell, 0, s->count * sizeof *s->last_seq);
    memset(s->verdict + cell, VERDICT_NONE, s->count * sizeof *s->verdict);
    memset(t->stable + cell, 0, s->count * sizeof *t->stable);
    s->num_members++;
    return 0;
}

/* The name of an option's value, from the option table: "bf16". */
static void name_choice(const char *key, uint32_t value, char out[MAX_NAME])
{
    const char *at = options_find(key)->choices;
    for (uint32_t i = 0; i < value && at; i++) {
        at = strchr(at, '|');
        if (at) at++;
    }
    if (at)
        snprintf(out, MAX_NAME, "%.*s", (int)strcspn(at, "|"), at);
    else
        snprintf(out, MAX_NAME, "a kind %u that is not known", value);
}

/* Writes the sentence if the two do not go about the job in one way. */
static bool differs(const struct admit_identity *us, const struct msg_hello *h, char text[MSG_TEXT])
{
    const struct {
        const char *key, *ours, *theirs;
        uint32_t our, their;
    } rows[] = {
        {"consistency.mode", "consistency is", "", us->consistency, h->consistency},
        {"optimizer.type", "optimizer on the servers is", "", us->optimizer, h->optimizer},
        {"exchange.gradients", "gradients travel as", "as ", us->gradients, h->gradients},
        {"exchange.weights", "weights travel as", "as ", us->weights, h->weights},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].our == rows[i].their) continue;
        char our[MAX_NAME], their[MAX_NAME];
        name_choice(rows[i].key, rows[i].our, our);
        name_choice(rows[i].key, rows[i].their, their);
        snprintf(text, MSG_TEXT, "the job's %s %s, the worker's %s%s: start both from the same run directory",
                 rows[i].ours, our, rows[i].theirs, their);
        return true;
    }
    return false;
}

/* Writes the sentence if the two are not of one job, shard, model and generation. */
static bool mismatch(const struct admit_identity *us, const struct msg *m, char text[MSG_TEXT])
{
    const struct msg_hello *h = &m->hello;
    if (m->job != us->job)
        snprintf(text, MSG_TEXT,
                 "this server belongs to job %016" PRIx64 ", the worker to job %016" PRIx64
                 ": give the worker the right coordinator",
                 us->job, m->job);
    else if (h->shard != us->shard)
        snprintf(text, MSG_TEXT,
                 "this server holds shard %u, the worker asks for shard %u: its shard map is out of date",
                 us->shard, h->shard);
    else if (h->model_hash != us->model_hash)
        snprintf(text, MSG_TEXT,
                 "the server's model is %016" PRIx64 ", the worker's is %016" PRIx64
                 ": start both from the same run directory",
                 us->model_hash, h->model_hash);
    else if (h->job_generation != us->job_generation)
        snprintf(
            text, MSG_TEXT,
            "the server is in generation %u of the job, the worker in generation %u: start the worker anew",
            us->job_generation, h->job_generation);
    else
        return differs(us, h, text);
    return true;
}

uint32_t admit_hello(struct admit_table *t, const struct admit_identity *us, const struct msg *m,
                     char text[MSG_TEXT])
{
    if (mismatch(us, m, text)) return REFUSAL_MISMATCH;
    uint32_t reason = admit_member(t, m->hello.member);
    if (reason == REFUSAL_RETIRED)
        snprintf(text, MSG_TEXT, "member %" PRIu64 " is retired (the oldest is %" PRIu64 "): join anew",
                 m->hello.member, t->oldest);
    if (reason == REFUSAL_FULL)
        snprintf(text, MSG_TEXT, "shard %u has its %u members: no room for another", us->shard,
                 t->max_members);
    return reason;
}

void admit_set_oldest(struct admit_table *t, uint64_t oldest)
{
    if (oldest <= t->oldest) return;
    t->oldest = oldest;
    uint32_t gone = lower_bound(t, oldest);
    if (gone == 0) return;
    move_rows(t, 0, gone);
    t->state->num_members -= gone;
}

void admit_stable(struct admit_table *t, const struct shard_state *written)
{
    ASSERT(written->first == t->state->first && written->count == t->state->count);
    for (uint32_t i = 0; i < written->num_members; i++) {
        int64_t row = admit_find(t, written->members[i]);
        if (row < 0) continue;
        for (uint32_t b = 0; b < written->count; b++) {
            uint64_t seq = written->last_seq[(size_t)i * written->count + b];
            uint64_t *stable = &t->stable[(size_t)row * written->count + b];
            if (seq > *stable) *stable = seq;
        }
    }
}

enum admission admit_push(const struct admit_limits *l, const struct msg_push *p, const void *payload,
                          size_t len, uint64_t last, uint32_t stored, uint32_t *verdict)
{
    *verdict = VERDICT_GENERATION;
    if (p->job_generation != l->job_generation || p->generation != l->generation) return ADMIT_RETURN;
    *verdict = stored;
    if (p->seq == last) return ADMIT_DUPLICATE;
    if (p->seq < last) return ADMIT_LATE;
    *verdict = VERDICT_CORRUPT;
    return wire_hash(payload, len) == p->hash ? ADMIT_NEW : ADMIT_RETURN;
}

uint32_t admit_gradient(const struct admit_limits *l, uint64_t staleness, double norm)
{
    if (l->max_staleness > 0 && staleness > l->max_staleness) return VERDICT_STALE;
    if (!isfinite(norm)) return VERDICT_NONFINITE;
    return l->max_norm > 0 && norm > l->max_norm ? VERDICT_NORM : VERDICT_APPLIED;
}
