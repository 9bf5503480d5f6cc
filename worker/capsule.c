#include "worker/capsule.h"

#include "common/err.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const char word[8] = "CHORALE3"; /* the last letter is the version */

/* A limit on every count: above it the bytes are nonsense, whatever their length. */
#define MAX_COUNT (1u << 20)

void capsule_fini(struct capsule *c)
{
    free(c->state);
    free(c->residual);
    free(c->velocity);
    feed_image_fini(&c->feed);
    *c = (struct capsule){0};
}

/* --- one description for both ways: a cursor that writes, reads, or (bytes NULL) only counts */

struct pass {
    uint8_t *out;      /* writing; NULL = not */
    const uint8_t *in; /* reading; NULL = not */
    size_t at, len;
    bool failed; /* reading: beyond the end, or a count above MAX_COUNT */
};

static void pass_u64(struct pass *p, uint64_t *v)
{
    if (p->in && p->len - p->at < 8) p->failed = true;
    if (p->failed) return;
    if (p->in) *v = 0;
    for (int i = 0; i < 8; i++) {
        if (p->in) *v |= (uint64_t)p->in[p->at + (size_t)i] << (8 * i);
        if (p->out) p->out[p->at + (size_t)i] = (uint8_t)(*v >> (8 * i));
    }
    p->at += 8;
}

static void pass_u32(struct pass *p, uint32_t *v)
{
    uint64_t wide = *v;
    pass_u64(p, &wide);
    if (wide > UINT32_MAX) p->failed = true;
    if (!p->failed) *v = (uint32_t)wide;
}

static void pass_double(struct pass *p, double *v)
{
    uint64_t bits;
    memcpy(&bits, v, sizeof bits);
    pass_u64(p, &bits);
    memcpy(v, &bits, sizeof bits);
}

/* A count of things of at least `each` bytes that follow; reading makes the array. */
static void *pass_array(struct pass *p, uint32_t *count, void *array, size_t each, size_t size)
{
    pass_u32(p, count);
    if (!p->in) return array;
    if (*count > MAX_COUNT || *count > (p->len - p->at) / each) p->failed = true;
    if (p->failed) *count = 0;
    return xcalloc((unsigned long)*count + 1, size);
}

static void pass_floats(struct pass *p, size_t *count, float **values)
{
    uint64_t size = *count;
    pass_u64(p, &size);
    if (p->in) {
        if (p->failed || size > (p->len - p->at) / sizeof **values) {
            p->failed = true;
            return;
        }
        *count = (size_t)size;
        *values = xcalloc((unsigned long)size + 1, sizeof **values);
    }
    size_t bytes = *count * sizeof **values;
    if (p->in) memcpy(*values, p->in + p->at, bytes);
    if (p->out && bytes) memcpy(p->out + p->at, *values, bytes);
    p->at += bytes;
}

static void pass_lease(struct pass *p, struct feed_lease *l)
{
    pass_u64(p, &l->lease.id);
    pass_u32(p, &l->lease.kind);
    pass_u32(p, &l->lease.epoch);
    pass_u32(p, &l->lease.begin);
    pass_u32(p, &l->lease.end);
    pass_u32(p, &l->lease.modulus);
    pass_u32(p, &l->lease.residue);
    pass_u32(p, &l->lease.residues);
    pass_double(p, &l->loss);
    pass_u64(p, &l->frames);
    pass_u64(p, &l->correct);
    pass_u32(p, &l->left);
    pass_u32(p, &l->failed);
}

static void pass_feed(struct pass *p, struct feed_image *f)
{
    f->leases = pass_array(p, &f->num_leases, f->leases, 13 * 8, sizeof *f->leases);
    for (uint32_t i = 0; i < f->num_leases; i++) pass_lease(p, &f->leases[i]);
    f->queues = pass_array(p, &f->num_queues, f->queues, 2 * 8, sizeof *f->queues);
    for (uint32_t i = 0; i < f->num_queues; i++) {
        pass_u64(p, &f->queues[i].lease);
        pass_u32(p, &f->queues[i].position);
    }
    f->cursors = pass_array(p, &f->num_cursors, f->cursors, 3 * 8, sizeof *f->cursors);
    for (uint32_t i = 0; i < f->num_cursors; i++) {
        pass_u64(p, &f->cursors[i].lease);
        pass_u32(p, &f->cursors[i].index);
        pass_u32(p, &f->cursors[i].next_frame);
    }
}

static void pass_all(struct pass *p, struct capsule *c)
{
    pass_u64(p, &c->model_hash);
    pass_u64(p, &c->windows);
    pass_u64(p, &c->frames);
    pass_u64(p, &c->nonfinite);
    pass_u32(p, &c->threads);
    pass_floats(p, &c->state_size, &c->state);
    pass_floats(p, &c->residual_size, &c->residual);
    pass_floats(p, &c->velocity_size, &c->velocity);
    pass_feed(p, &c->feed);
}

void *capsule_write(const struct capsule *c, size_t *len)
{
    struct capsule view = *c; /* a pass that writes leaves it as it is */
    struct pass count = {0};
    pass_all(&count, &view);
    size_t body = sizeof word + count.at;
    uint8_t *bytes = xcalloc(body + 8, 1);
    memcpy(bytes, word, sizeof word);
    struct pass p = {.out = bytes + sizeof word};
    pass_all(&p, &view);
    uint64_t hash = wire_hash(bytes, body);
    struct pass tail = {.out = bytes + body};
    pass_u64(&tail, &hash);
    *len = body + 8;
    return bytes;
}

int capsule_read(const void *bytes, size_t len, struct capsule *out)
{
    struct capsule c = {0};
    uint64_t hash = 0;
    if (len < sizeof word + 8 || memcmp(bytes, word, sizeof word - 1) != 0)
        return err_set(ERR_DATA, "%zu bytes are no capsule of a worker", len);
    if (memcmp(bytes, word, sizeof word) != 0)
        return err_set(ERR_DATA,
                       "a capsule of another version of Chorale: resume with the version that made the "
                       "checkpoint, or begin a new run from its model");
    size_t body = len - 8;
    struct pass tail = {.in = (const uint8_t *)bytes + body, .len = 8};
    pass_u64(&tail, &hash);
    if (hash != wire_hash(bytes, body))
        return err_set(ERR_DATA, "a capsule of %zu bytes is damaged: its hash does not match", len);
    struct pass p = {.in = (const uint8_t *)bytes + sizeof word, .len = body - sizeof word};
    pass_all(&p, &c);
    if (p.failed || p.at != p.len) {
        capsule_fini(&c);
        return err_set(ERR_DATA, "a capsule of %zu bytes has sizes that do not fit its length", len);
    }
    *out = c;
    return 0;
}
