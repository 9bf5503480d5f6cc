#include "common/snapshot.h"

#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/snapshot_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ states out of sets */

static void add_members(const struct shard_file *s, uint64_t **list, size_t *n)
{
    uint64_t *merged = xcalloc(*n + s->num_members + 1, sizeof *merged);
    size_t i = 0, j = 0, k = 0;
    while (i < *n || j < s->num_members) {
        uint64_t a = i < *n ? (*list)[i] : UINT64_MAX;
        uint64_t b = j < s->num_members ? s->members_list[j] : UINT64_MAX;
        merged[k++] = a < b ? a : b;
        if (a <= b && i < *n) i++;
        if (b <= a && j < s->num_members) j++;
    }
    free(*list);
    *list = merged;
    *n = k;
}

static int check_cover(const char *run, const struct manifest *m, uint32_t first, uint32_t count)
{
    uint8_t *seen = xcalloc((size_t)count + 1, 1);
    int rc = 0;
    for (uint32_t i = 0; i < m->num_files; i++) {
        uint64_t end = (uint64_t)m->files[i].first + m->files[i].count;
        uint64_t b = m->files[i].first > first ? m->files[i].first : first;
        for (; b < end && b - first < count; b++)
            if (seen[b - first]++)
                rc = err_set(ERR_DATA, "set %u of %s has block %" PRIu64 " twice", m->set, run, b);
    }
    for (uint32_t b = 0; rc == 0 && b < count; b++)
        if (!seen[b]) rc = err_set(ERR_DATA, "set %u of %s lacks block %u", m->set, run, first + b);
    free(seen);
    return rc;
}

/* Opens the files of the set that have some of the blocks; the others stay closed (count 0). */
static int open_files(const char *run, const struct manifest *m, const struct facts *f, uint32_t first,
                      uint32_t count, struct shard_file *files)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < m->num_files; i++) {
        const struct snapshot_file *e = &m->files[i];
        if ((uint64_t)e->first + e->count <= first || e->first >= (uint64_t)first + count || e->count == 0)
            continue;
        char *path = snapshot_set_file(run, m->set, e->name);
        rc = shard_file_open(path, f, &files[i]);
        if (rc == 0 && (files[i].first != e->first || files[i].count != e->count || files[i].set != m->set))
            rc = err_set(ERR_DATA, "%s does not have the blocks that the manifest says", path);
        free(path);
    }
    return rc;
}

/* A state with the members and the slots of all files that are open. */
static struct shard_state *state_for(const struct shard_file *files, uint32_t n, const struct blocks *b,
                                     uint32_t first, uint32_t count)
{
    uint64_t *members = NULL;
    size_t num_members = 0;
    unsigned slots = 0;
    for (uint32_t i = 0; i < n; i++) {
        add_members(&files[i], &members, &num_members);
        slots |= files[i].slots;
    }
    struct shard_state *s = shard_state_new(b, first, count, (uint32_t)num_members, slots);
    if (num_members) memcpy(s->members, members, num_members * sizeof *members);
    free(members);
    return s;
}

int snapshot_read_blocks(const char *run, const struct manifest *m, const struct facts *f, uint32_t first,
                         uint32_t count, struct shard_state **out)
{
    struct blocks b;
    blocks_cut(f->model.params, &b);
    ASSERT(first <= b.count && count <= b.count - first);
    if (m->job != f->job || m->model_hash != f->model_hash)
        return err_set(ERR_MODEL, "set %u of %s belongs to another job or model than its model.safetensors",
                       m->set, run);
    int rc = check_cover(run, m, first, count);
    if (rc < 0) return rc;
    struct shard_file *files = xcalloc(m->num_files, sizeof *files);
    struct shard_state *s = NULL;
    rc = open_files(run, m, f, first, count, files);
    if (rc == 0) s = state_for(files, m->num_files, &b, first, count);
    for (uint32_t i = 0; rc == 0 && i < m->num_files; i++)
        if (files[i].file) rc = shard_file_copy(&files[i], s);
    if (rc == 0)
        *out = s;
    else
        shard_state_free(&s);
    for (uint32_t i = 0; i < m->num_files; i++) shard_file_close(&files[i]);
    free(files);
    return rc;
}

static int read_own_of(const char *path, const struct facts *f, uint32_t set, uint32_t first, uint32_t count,
                       struct shard_state **out)
{
    struct shard_file file;
    struct blocks b;
    blocks_cut(f->model.params, &b);
    int rc = shard_file_open(path, f, &file);
    if (rc < 0) return rc;
    if (file.set != set || file.first != first || file.count != count)
        rc = err_set(ERR_DATA, "%s is not the file that its name says", path);
    if (rc == 0) {
        struct shard_state *s = shard_state_new(&b, first, count, file.num_members, file.slots);
        memcpy(s->members, file.members_list, file.num_members * sizeof *s->members);
        rc = shard_file_copy(&file, s);
        if (rc == 0) *out = s;
        if (rc < 0) shard_state_free(&s);
    }
    shard_file_close(&file);
    return rc;
}

int snapshot_read_own(const char *run, const struct facts *f, uint32_t shard, uint32_t shards, uint32_t *set,
                      struct shard_state **out)
{
    char name[64], why[512];
    struct blocks b;
    uint32_t first, count;
    size_t n, i = 0;
    blocks_cut(f->model.params, &b);
    blocks_of_shard(&b, shards, shard, &first, &count);
    snapshot_shard_name(shard, shards, name);
    uint32_t *sets = snapshot_list_sets(run, &n);
    int rc = -1;
    for (; rc < 0 && i < n; i++) {
        char *path = snapshot_set_file(run, sets[i], name);
        if (files_exists(path)) rc = read_own_of(path, f, sets[i], first, count, out);
        if (rc < 0 && files_exists(path))
            log_event(LOG_WARN, "shard_file_damaged", "\"set\":%u,\"why\":%s", sets[i],
                      log_quote(why, sizeof why, err_text()));
        free(path);
    }
    if (rc == 0) *set = sets[i - 1];
    free(sets);
    if (rc < 0) return err_set(ERR_DATA, "no checkpoint of %s has a whole file %s", run, name);
    return 0;
}

void snapshot_set_aside(const char *run, uint32_t set, uint32_t shard, uint32_t shards)
{
    char name[64];
    size_t n;
    snapshot_shard_name(shard, shards, name);
    uint32_t *sets = snapshot_list_sets(run, &n);
    for (size_t i = 0; i < n && sets[i] > set; i++) {
        char *path = snapshot_set_file(run, sets[i], name), *aside = xprintf("%s.abandoned", path);
        if (rename(path, aside) == 0)
            log_event(LOG_INFO, "shard_file_set_aside", "\"set\":%u,\"resumed_from\":%u", sets[i], set);
        free(aside);
        free(path);
    }
    free(sets);
}

void snapshot_drop_unfinished(const char *run, uint32_t set, uint32_t shard, uint32_t shards)
{
    char name[64];
    size_t n;
    snapshot_shard_name(shard, shards, name);
    uint32_t *sets = snapshot_list_sets(run, &n);
    for (size_t i = 0; i < n; i++) {
        if (sets[i] >= set) continue;
        char *path = snapshot_set_file(run, sets[i], name), *dir = snapshot_set_dir(run, sets[i]);
        if (!snapshot_is_complete(run, sets[i]) && unlink(path) == 0) (void)rmdir(dir); /* the last one out */
        free(path);
        free(dir);
    }
    free(sets);
}
