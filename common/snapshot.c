#include "common/snapshot.h"

#include "common/err.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/snapshot_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ the state of a shard */

size_t shard_state_floats(const struct shard_state *s)
{
    return blocks_span(&s->blocks, s->first, s->first + s->count);
}

struct shard_state *shard_state_new(const struct blocks *b, uint32_t first, uint32_t count, uint32_t members,
                                    unsigned slots)
{
    ASSERT(first <= b->count && count <= b->count - first);
    struct shard_state *s = xcalloc(1, sizeof *s);
    s->blocks = *b;
    s->first = first;
    s->count = count;
    s->num_members = members;
    /* + 1: a shard without blocks or members has arrays, too */
    size_t floats = shard_state_floats(s), cells = (size_t)members * count;
    s->weights = xaligned((floats + 1) * sizeof(float));
    s->version = xcalloc((size_t)count + 1, sizeof(uint64_t));
    s->frames = xcalloc((size_t)count + 1, sizeof(uint64_t));
    s->since = xcalloc((size_t)count + 1, sizeof(uint64_t));
    s->members = xcalloc((size_t)members + 1, sizeof(uint64_t));
    s->last_seq = xcalloc(cells + 1, sizeof(uint64_t));
    s->verdict = xcalloc(cells + 1, 1);
    shard_state_set_slots(s, slots);
    return s;
}

unsigned shard_state_slots(const struct shard_state *s)
{
    unsigned slots = 0;
    for (int k = 0; k < SHARD_SLOTS; k++)
        if (s->slot[k]) slots |= 1u << k;
    return slots;
}

void shard_state_set_slots(struct shard_state *s, unsigned slots)
{
    ASSERT(slots >> SHARD_SLOTS == 0);
    for (int k = 0; k < SHARD_SLOTS; k++) {
        bool wanted = slots >> k & 1;
        if (wanted && !s->slot[k]) s->slot[k] = xaligned((shard_state_floats(s) + 1) * sizeof(float));
        if (wanted) continue;
        free(s->slot[k]);
        s->slot[k] = NULL;
    }
}

void shard_state_set_optimizer(struct shard_state *s, enum optimizer_type optimizer, unsigned slots)
{
    if (s->optimizer != optimizer) {
        shard_state_set_slots(s, 0);
        memcpy(s->since, s->version, s->count * sizeof *s->since);
    }
    s->optimizer = optimizer;
    shard_state_set_slots(s, slots);
}

void shard_state_free(struct shard_state **s)
{
    if (!*s) return;
    free((*s)->weights);
    shard_state_set_slots(*s, 0);
    free((*s)->version);
    free((*s)->frames);
    free((*s)->since);
    free((*s)->members);
    free((*s)->last_seq);
    free((*s)->verdict);
    free(*s);
    *s = NULL;
}

/* ------------------------------------------------------------------ names */

char *snapshot_set_dir(const char *run, uint32_t set)
{
    return xprintf("%s/" SNAPSHOT_SETS "/" SNAPSHOT_SET, run, set);
}

char *snapshot_set_file(const char *run, uint32_t set, const char *name)
{
    return xprintf("%s/" SNAPSHOT_SETS "/" SNAPSHOT_SET "/%s", run, set, name);
}

void snapshot_shard_name(uint32_t shard, uint32_t shards, char out[64])
{
    snprintf(out, 64, "shard-%02u-of-%02u.safetensors", shard, shards);
}

/* ------------------------------------------------------------------ writing a shard file */

static const char *const slot_names[SHARD_SLOTS] = {[SLOT_MOMENTUM] = "momentum", [SLOT_SQUARE] = "square"};

/* The 64-bit tensors first, the bytes last, so that every tensor is aligned in the file. */
static int write_state(const char *path, const struct safetensors_pair *pairs, size_t num_pairs,
                       const struct shard_state *s, struct snapshot_file *out)
{
    uint64_t count = s->count, members = s->num_members, floats = shard_state_floats(s);
    struct safetensor tensors[7 + SHARD_SLOTS] = {
        {"versions", TENSOR_U64, 1, {count}, s->version, 0, 0},
        {"frames", TENSOR_U64, 1, {count}, s->frames, 0, 0},
        {"since", TENSOR_U64, 1, {count}, s->since, 0, 0},
        {"members", TENSOR_U64, 1, {members}, s->members, 0, 0},
        {"last_seq", TENSOR_U64, 2, {members, count}, s->last_seq, 0, 0},
        {"weights", TENSOR_F32, 1, {floats}, s->weights, 0, 0},
    };
    size_t n = 6; /* of them, so far */
    for (int k = 0; k < SHARD_SLOTS; k++)
        if (s->slot[k])
            tensors[n++] = (struct safetensor){slot_names[k], TENSOR_F32, 1, {floats}, s->slot[k], 0, 0};
    tensors[n++] = (struct safetensor){"verdicts", TENSOR_U8, 2, {members, count}, s->verdict, 0, 0};
    return safetensors_write(path, pairs, num_pairs, tensors, n, &out->bytes, &out->hash);
}

int snapshot_write_shard(const char *run, uint32_t set, uint32_t shard, uint32_t shards,
                         const struct facts *f, const struct shard_state *s, struct snapshot_file *out)
{
    char *texts[] = {xstrdup("chorale-shard"),
                     xprintf("%016" PRIx64, f->job),
                     xprintf("%016" PRIx64, f->model_hash),
                     xprintf("%u", set),
                     xprintf("%u", shard),
                     xprintf("%u", shards),
                     xprintf("%u", s->first),
                     xprintf("%u", s->count),
                     xprintf("%zu", s->blocks.params),
                     xprintf("%u", s->blocks.size),
                     xprintf("%u", s->optimizer)};
    static const char *const keys[] = {"format", "job",   "model_hash", "set",        "shard",    "shards",
                                       "first",  "count", "params",     "block_size", "optimizer"};
    struct safetensors_pair pairs[sizeof keys / sizeof keys[0]];
    struct snapshot_file file = {.first = s->first, .count = s->count};
    snapshot_shard_name(shard, shards, file.name);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        pairs[i] = (struct safetensors_pair){keys[i], texts[i]};
    char *dir = snapshot_set_dir(run, set), *path = snapshot_set_file(run, set, file.name);
    int rc = files_make_dirs(dir);
    if (rc == 0) rc = write_state(path, pairs, sizeof keys / sizeof keys[0], s, &file);
    if (rc == 0) *out = file;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) free(texts[i]);
    free(dir);
    free(path);
    return rc;
}

/* ------------------------------------------------------------------ reading one */

static bool metadata_number(const struct safetensors *s, const char *key, uint64_t max, uint64_t *out)
{
    const char *text = safetensors_metadata(s, key);
    if (!text || !text[0] || strlen(text) > 18 || strspn(text, "0123456789") != strlen(text)) return false;
    *out = strtoull(text, NULL, 10);
    return *out <= max;
}

/* Is it a shard of this job and this cut? */
static int check_identity(struct shard_file *s, const char *path, const struct facts *f)
{
    const char *format = safetensors_metadata(s->file, "format");
    uint64_t job, hash, set, first, count, params, size, optimizer;
    if (!format || strcmp(format, "chorale-shard") != 0)
        return err_set(ERR_DATA, "%s is not a shard of a checkpoint", path);
    if (!facts_parse_hash(safetensors_metadata(s->file, "job"), &job) ||
        !facts_parse_hash(safetensors_metadata(s->file, "model_hash"), &hash) ||
        !metadata_number(s->file, "set", UINT32_MAX, &set) ||
        !metadata_number(s->file, "first", UINT32_MAX, &first) ||
        !metadata_number(s->file, "count", UINT32_MAX, &count) ||
        !metadata_number(s->file, "params", UINT64_MAX, &params) ||
        !metadata_number(s->file, "block_size", UINT32_MAX, &size))
        return err_set(ERR_DATA, "%s is damaged: its metadata is not complete", path);
    if (job != f->job || hash != f->model_hash)
        return err_set(ERR_MODEL,
                       "%s belongs to job %016" PRIx64 ", model %016" PRIx64 "; this run is job %016" PRIx64
                       ", model %016" PRIx64,
                       path, job, hash, f->job, f->model_hash);
    struct blocks b;
    blocks_cut(f->model.params, &b);
    if (params != b.params || size != b.size || first > b.count || count > b.count - first)
        return err_set(
            ERR_MODEL,
            "%s is cut in another way than this version of Chorale does it; go on with the version "
            "that began this run",
            path);
    if (!metadata_number(s->file, "optimizer", OPTIMIZER_ADAMW, &optimizer)) optimizer = OPTIMIZER_MOMENTUM;
    s->optimizer = (enum optimizer_type)optimizer; /* files of before there were others do not say */
    s->set = (uint32_t)set;
    s->first = (uint32_t)first;
    s->count = (uint32_t)count;
    return 0;
}

static int check_slots(struct shard_file *s, uint64_t floats)
{
    int rc = 0;
    for (int k = 0; rc == 0 && k < SHARD_SLOTS; k++) {
        if (!safetensors_find(s->file, slot_names[k])) continue;
        s->slots |= 1u << k;
        rc = safetensors_expect(s->file, slot_names[k], TENSOR_F32, 1, &floats, &s->slot[k]);
    }
    return rc;
}

static int check_tensors(struct shard_file *s, const char *path, const struct facts *f)
{
    struct blocks b;
    blocks_cut(f->model.params, &b);
    uint64_t floats = blocks_span(&b, s->first, s->first + s->count);
    const struct safetensor *members = safetensors_find(s->file, "members");
    if (!members || members->type != TENSOR_U64 || members->dims != 1 || members->shape[0] > UINT32_MAX)
        return err_set(ERR_DATA, "%s has no list of members", path);
    const uint64_t table[2] = {members->shape[0], s->count};
    int rc = safetensors_expect(s->file, "versions", TENSOR_U64, 1, &table[1], &s->versions);
    if (rc == 0) rc = safetensors_expect(s->file, "frames", TENSOR_U64, 1, &table[1], &s->frames);
    if (rc == 0 && safetensors_find(s->file, "since"))
        rc = safetensors_expect(s->file, "since", TENSOR_U64, 1, &table[1], &s->since);
    if (rc == 0) rc = safetensors_expect(s->file, "weights", TENSOR_F32, 1, &floats, &s->weights);
    if (rc == 0) rc = check_slots(s, floats);
    if (rc == 0) rc = safetensors_expect(s->file, "last_seq", TENSOR_U64, 2, table, &s->last_seq);
    if (rc == 0) rc = safetensors_expect(s->file, "verdicts", TENSOR_U8, 2, table, &s->verdicts);
    s->members = members;
    s->num_members = (uint32_t)members->shape[0];
    return rc;
}

static int read_members(struct shard_file *s, const char *path)
{
    s->members_list = xcalloc((size_t)s->num_members + 1, sizeof(uint64_t));
    int rc = safetensors_read(s->file, s->members, 0, s->members->bytes, s->members_list);
    for (uint32_t i = 1; rc == 0 && i < s->num_members; i++)
        if (s->members_list[i] <= s->members_list[i - 1])
            rc = err_set(ERR_DATA, "%s is damaged: its members are not in order", path);
    return rc;
}

int shard_file_open(const char *path, const struct facts *f, struct shard_file *out)
{
    struct shard_file s = {.file = NULL};
    int rc = safetensors_open(path, &s.file);
    if (rc == 0) rc = check_identity(&s, path, f);
    if (rc == 0) rc = check_tensors(&s, path, f);
    if (rc == 0) rc = safetensors_verify(s.file, NULL);
    if (rc == 0) rc = read_members(&s, path);
    if (rc == 0)
        *out = s;
    else
        shard_file_close(&s);
    return rc;
}

void shard_file_close(struct shard_file *s)
{
    safetensors_close(&s->file);
    free(s->members_list);
    s->members_list = NULL;
}

/* Row i of the file's table goes to the row of the same member. Both lists rise. */
static int copy_table(const struct shard_file *s, uint32_t from, uint32_t to, struct shard_state *into)
{
    size_t n = to - from;
    int rc = 0;
    for (uint32_t i = 0, at = 0; rc == 0 && i < s->num_members; i++) {
        while (at < into->num_members && into->members[at] < s->members_list[i]) at++;
        ASSERT(at < into->num_members && into->members[at] == s->members_list[i]);
        size_t cell = (size_t)i * s->count + (from - s->first);
        size_t there = (size_t)at * into->count + (from - into->first);
        rc = safetensors_read(s->file, s->last_seq, cell * 8, n * 8, into->last_seq + there);
        if (rc == 0) rc = safetensors_read(s->file, s->verdicts, cell, n, into->verdict + there);
    }
    return rc;
}

int shard_file_copy(const struct shard_file *s, struct shard_state *into)
{
    const struct blocks *b = &into->blocks;
    uint32_t from = s->first > into->first ? s->first : into->first;
    uint32_t end = s->first + s->count, other = into->first + into->count, to = end < other ? end : other;
    if (from >= to) return 0;
    size_t source = blocks_span(b, s->first, from) * sizeof(float);
    size_t target = blocks_span(b, into->first, from);
    uint64_t skip = (uint64_t)(from - s->first) * 8;
    size_t n = (size_t)(to - from) * 8, at = from - into->first;
    size_t bytes = blocks_span(b, from, to) * sizeof(float);
    int rc = safetensors_read(s->file, s->weights, source, bytes, into->weights + target);
    for (int k = 0; rc == 0 && k < SHARD_SLOTS; k++)
        if (s->slot[k]) rc = safetensors_read(s->file, s->slot[k], source, bytes, into->slot[k] + target);
    if (rc == 0) rc = safetensors_read(s->file, s->versions, skip, n, into->version + at);
    if (rc == 0) rc = safetensors_read(s->file, s->frames, skip, n, into->frames + at);
    if (rc == 0 && s->since) rc = safetensors_read(s->file, s->since, skip, n, into->since + at);
    into->optimizer = s->optimizer;
    if (rc == 0) rc = copy_table(s, from, to, into);
    return rc;
}
