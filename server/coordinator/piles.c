#include "server/coordinator/piles.h"

#include "common/err.h"

#include <stdlib.h>
#include <string.h>

static const char *const state_names[] = {"open", "leased", "used"};

struct pile *piles_find(struct coordinator *c, uint32_t kind, uint32_t where)
{
    struct pile *p = NULL;
    if (kind == LEASE_TRAIN && where < c->num_epochs) p = &c->epochs[where].pile;
    for (uint32_t i = 0; kind == LEASE_EVAL && i < c->num_evals; i++)
        if (c->evals[i].set == where) p = &c->evals[i].pile;
    return p && p->chunks ? p : NULL;
}

void piles_append(struct pile *p, const struct chunk *k)
{
    if (p->n == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 16;
        p->chunks = realloc(p->chunks, p->capacity * sizeof *p->chunks);
        ASSERT(p->chunks);
    }
    p->chunks[p->n++] = *k;
    if (k->state == CHUNK_OPEN) p->open++;
    if (k->state == CHUNK_OPEN && p->cursor >= p->n) p->cursor = p->n - 1;
}

void piles_free(struct pile *p)
{
    free(p->chunks);
    p->chunks = NULL;
    p->capacity = 0;
}

/* ------------------------------------------------------------------ grants */

/* Index of the first lease with this id or a higher one. */
static uint32_t lower_bound(const struct coordinator *c, uint64_t id)
{
    uint32_t low = 0, high = c->num_leases;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->leases[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct lease *piles_lease(struct coordinator *c, uint64_t id)
{
    uint32_t i = lower_bound(c, id);
    return i < c->num_leases && c->leases[i].id == id ? &c->leases[i] : NULL;
}

struct lease *piles_active(struct coordinator *c, const struct place *at)
{
    for (uint32_t i = 0; i < c->num_leases; i++) {
        struct lease *l = &c->leases[i];
        if (l->kind == at->kind && l->where == at->where && l->chunk == at->chunk && !l->superseded) return l;
    }
    return NULL;
}

void piles_remove_lease(struct coordinator *c, uint64_t id)
{
    uint32_t i = lower_bound(c, id);
    if (i == c->num_leases || c->leases[i].id != id) return;
    memmove(&c->leases[i], &c->leases[i + 1], (--c->num_leases - i) * sizeof *c->leases);
}

static void insert_lease(struct coordinator *c, const struct lease *l)
{
    if (c->num_leases == c->cap_leases) {
        c->cap_leases = c->cap_leases ? 2 * c->cap_leases : 16;
        c->leases = realloc(c->leases, c->cap_leases * sizeof *c->leases);
        ASSERT(c->leases);
    }
    uint32_t i = lower_bound(c, l->id);
    memmove(&c->leases[i + 1], &c->leases[i], (c->num_leases++ - i) * sizeof *c->leases);
    c->leases[i] = *l;
}

void piles_forget(struct coordinator *c, uint32_t kind, uint32_t where)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->num_leases; i++)
        if (c->leases[i].kind != kind || c->leases[i].where != where) c->leases[n++] = c->leases[i];
    c->num_leases = n;
}

/* ------------------------------------------------------------------ changes */

void piles_set_leased(struct coordinator *c, const struct lease *l)
{
    const struct place at = {l->kind, l->where, l->chunk};
    struct pile *p = piles_find(c, l->kind, l->where);
    ASSERT(p && l->chunk < p->n);
    struct chunk *k = &p->chunks[l->chunk];
    struct lease *old = k->state == CHUNK_LEASED ? piles_active(c, &at) : NULL;
    if (old) old->superseded = true;
    if (k->state == CHUNK_OPEN) p->open--;
    if (k->state != CHUNK_LEASED) p->leased++;
    k->state = CHUNK_LEASED;
    piles_remove_lease(c, l->id);
    insert_lease(c, l);
}

void piles_set_open(struct coordinator *c, const struct place *at)
{
    struct pile *p = piles_find(c, at->kind, at->where);
    ASSERT(p && at->chunk < p->n);
    struct chunk *k = &p->chunks[at->chunk];
    struct lease *old = piles_active(c, at);
    if (old) piles_remove_lease(c, old->id);
    if (k->state == CHUNK_LEASED) p->leased--;
    if (k->state != CHUNK_OPEN) p->open++;
    k->state = CHUNK_OPEN;
    if (at->chunk < p->cursor) p->cursor = at->chunk;
}

void piles_set_used(struct coordinator *c, const struct place *at, uint64_t id, uint32_t after)
{
    struct pile *p = piles_find(c, at->kind, at->where);
    ASSERT(p && at->chunk < p->n);
    struct chunk *k = &p->chunks[at->chunk];
    if (k->state == CHUNK_LEASED) p->leased--;
    if (k->state == CHUNK_OPEN) p->open--;
    k->state = CHUNK_USED;
    k->counted = true;
    k->after = after;
    piles_remove_lease(c, id);
    struct lease *other = piles_active(c, at);
    if (other) other->superseded = true;
}

/* ------------------------------------------------------------------ rows */

json_t *piles_row(const struct coordinator *c, const struct place *at, const struct chunk *k, uint32_t count)
{
    const char *where = at->kind == LEASE_TRAIN ? "epoch" : "set";
    json_t *row = json_pack("{s:s, s:I, s:I, s:s}", "row", "chunk", where, (json_int_t)at->where, "chunk",
                            (json_int_t)at->chunk, "state", state_names[k->state]);
    if (count > 1) json_object_set_new(row, "count", json_integer(count));
    if (k->counted && k->state != CHUNK_USED) json_object_set_new(row, "counted", json_true());
    if (k->state == CHUNK_USED) json_object_set_new(row, "after", json_integer(k->after));
    if (at->kind == LEASE_TRAIN && at->chunk >= c->epochs[at->where].base) {
        json_object_set_new(row, "order", json_integer(k->order));
        json_object_set_new(row, "begin", json_integer(k->begin));
        json_object_set_new(row, "end", json_integer(k->end));
    }
    struct lease *l = k->state == CHUNK_LEASED ? piles_active((struct coordinator *)c, at) : NULL;
    if (l) {
        json_object_set_new(row, "lease", json_integer((json_int_t)l->id));
        json_object_set_new(row, "member", json_integer((json_int_t)l->member));
        json_object_set_new(row, "rank", json_integer(l->rank));
        json_object_set_new(row, "request", json_integer((json_int_t)l->request));
    }
    return row;
}

void piles_rows(struct coordinator *c, uint32_t kind, uint32_t where, json_t *into)
{
    const struct pile *p = piles_find(c, kind, where);
    uint32_t base = kind == LEASE_TRAIN ? c->epochs[where].base : UINT32_MAX;
    for (uint32_t i = 0, n; p && i < p->n; i += n) {
        const struct chunk *k = &p->chunks[i];
        n = 1;
        if (i < base && k->state == CHUNK_OPEN && !k->counted) continue; /* as a new pile has it */
        while (k->state == CHUNK_USED && i + n < p->n && i + n < base &&
               p->chunks[i + n].state == CHUNK_USED && p->chunks[i + n].after == k->after)
            n++;
        const struct place at = {kind, where, i};
        json_array_append_new(into, piles_row(c, &at, k, i < base ? n : 1));
        if (i >= base) n = 1;
    }
}

/* A chunk that is not among those of the epoch itself. */
static int append_foreign(struct coordinator *c, struct pile *p, const json_t *row)
{
    struct chunk k = {.state = CHUNK_OPEN, .counted = true};
    int rc = rows_u32(row, "order", UINT32_MAX - 1, UINT32_MAX, &k.order);
    if (rc == 0) rc = rows_u32(row, "begin", c->o.train.utterances, UINT32_MAX, &k.begin);
    if (rc == 0) rc = rows_u32(row, "end", c->o.train.utterances, UINT32_MAX, &k.end);
    if (rc == 0 && k.begin >= k.end) rc = err_set(ERR_DATA, "a chunk without utterances");
    if (rc == 0) piles_append(p, &k);
    return rc;
}

static int apply_leased(struct coordinator *c, const struct place *at, const json_t *row)
{
    struct lease l = {.kind = at->kind, .where = at->where, .chunk = at->chunk};
    int rc = rows_number(row, "lease", MAX_NUMBER, 0, &l.id);
    if (rc == 0) rc = rows_number(row, "member", MAX_NUMBER, 0, &l.member);
    if (rc == 0) rc = rows_u32(row, "rank", UINT32_MAX - 1, 0, &l.rank);
    if (rc == 0) rc = rows_number(row, "request", MAX_NUMBER, 0, &l.request);
    if (rc == 0 && l.id == 0) rc = err_set(ERR_DATA, "a lease without a number");
    if (rc < 0) return rc;
    piles_set_leased(c, &l);
    if (l.id >= c->next_lease) c->next_lease = l.id + 1;
    return 0;
}

static int apply_state(struct coordinator *c, struct place at, uint32_t count, const json_t *row)
{
    const char *state = json_string_value(json_object_get(row, "state"));
    struct pile *p = piles_find(c, at.kind, at.where);
    uint64_t id;
    uint32_t after;
    int rc = rows_u32(row, "after", UINT32_MAX - 1, 0, &after);
    if (rc == 0) rc = rows_number(row, "lease", MAX_NUMBER, 0, &id);
    if (rc < 0) return rc;
    if (state && strcmp(state, "leased") == 0) {
        if (json_is_true(json_object_get(row, "counted"))) p->chunks[at.chunk].counted = true;
        return apply_leased(c, &at, row);
    }
    bool used = state && strcmp(state, "used") == 0;
    if (!used && (!state || strcmp(state, "open") != 0)) return err_set(ERR_DATA, "a chunk without a state");
    for (uint32_t end = at.chunk + count; at.chunk < end; at.chunk++) {
        if (used)
            piles_set_used(c, &at, id, after);
        else
            piles_set_open(c, &at);
        if (!used && json_is_true(json_object_get(row, "counted"))) p->chunks[at.chunk].counted = true;
    }
    json_t *sums = json_object_get(row, "sums");
    return sums ? rows_read_sums(sums, &p->sums) : 0;
}

int piles_apply(struct coordinator *c, const json_t *row)
{
    struct place at = {.kind = json_object_get(row, "set") ? LEASE_EVAL : LEASE_TRAIN};
    uint32_t count;
    int rc = rows_u32(row, at.kind == LEASE_EVAL ? "set" : "epoch", UINT32_MAX - 1, UINT32_MAX, &at.where);
    if (rc == 0) rc = rows_u32(row, "chunk", UINT32_MAX - 1, UINT32_MAX, &at.chunk);
    if (rc == 0) rc = rows_u32(row, "count", UINT32_MAX - 1, 1, &count);
    if (rc < 0) return rc;
    struct pile *p = piles_find(c, at.kind, at.where);
    if (!p) return 0; /* forgotten since */
    if (at.chunk == p->n && json_object_get(row, "order")) rc = append_foreign(c, p, row);
    if (rc < 0) return rc;
    if (count == 0 || at.chunk >= p->n || count > p->n - at.chunk)
        return err_set(ERR_DATA, "chunk %u of epoch or set %u does not exist", at.chunk, at.where);
    return apply_state(c, at, count, row);
}
