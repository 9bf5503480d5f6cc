#include "common/snapshot.h"

#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/snapshot_parts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define MAX_MANIFEST (256u << 20)
#define MAX_CAPSULE  (1u << 30)
#define MAX_FILES    65536

void manifest_fini(struct manifest *m)
{
    free(m->files);
    free(m->capsules);
    free(m->state);
    memset(m, 0, sizeof *m);
}

/* ------------------------------------------------------------------ manifest.json */

static json_t *describe_files(const struct snapshot_file *files, uint32_t n)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++) {
        char hash[17];
        snprintf(hash, sizeof hash, "%016" PRIx64, files[i].hash);
        json_t *j =
            json_pack("{s:s, s:I, s:s, s:I, s:I}", "name", files[i].name, "bytes", (json_int_t)files[i].bytes,
                      "xxh3", hash, "first", (json_int_t)files[i].first, "count", (json_int_t)files[i].count);
        ASSERT(j);
        json_array_append_new(list, j);
    }
    return list;
}

static json_t *describe_set(const struct manifest *m)
{
    char job[17], hash[17], wall[32];
    time_t seconds = (time_t)m->wall;
    struct tm parts;
    snprintf(job, sizeof job, "%016" PRIx64, m->job);
    snprintf(hash, sizeof hash, "%016" PRIx64, m->model_hash);
    if (!gmtime_r(&seconds, &parts) || strftime(wall, sizeof wall, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
        strcpy(wall, "-");
    json_t *j = json_pack("{s:I, s:I, s:f, s:b, s:b, s:s, s:I, s:s, s:s, s:o, s:o}", "set",
                          (json_int_t)m->set, "epoch", (json_int_t)m->epoch, "done", m->done, "exact",
                          (int)m->exact, "final", (int)m->final, "wall", wall, "wall_s", (json_int_t)m->wall,
                          "job", job, "model_hash", hash, "files", describe_files(m->files, m->num_files),
                          "capsules", describe_files(m->capsules, m->num_capsules));
    json_t *state = json_string(m->state ? m->state : "");
    ASSERT(j && state);
    json_object_set_new(j, "state", state);
    return j;
}

int snapshot_write_manifest(const char *run, const struct manifest *m)
{
    json_t *j = describe_set(m);
    char *text = json_dumps(j, JSON_INDENT(1)), *dir = snapshot_set_dir(run, m->set);
    char *path = snapshot_set_file(run, m->set, "manifest.json"), *sets = files_join(run, SNAPSHOT_SETS);
    ASSERT(text);
    int rc = files_make_dirs(dir);
    if (rc == 0) rc = files_write_atomic(path, text, strlen(text));
    if (rc == 0) rc = files_sync_dir(sets); /* the name of the set's folder itself */
    free(sets);
    free(path);
    free(dir);
    free(text);
    json_decref(j);
    return rc;
}

/* A plain name inside of the set. */
static bool is_plain_name(const char *name)
{
    return name && name[0] && name[0] != '.' && strlen(name) < sizeof((struct snapshot_file *)0)->name &&
           !strchr(name, '/');
}

static bool parse_files(const json_t *list, struct snapshot_file **files, uint32_t *n)
{
    if (!json_is_array(list) || json_array_size(list) > MAX_FILES) return false;
    uint32_t count = (uint32_t)json_array_size(list);
    *files = xcalloc((size_t)count + 1, sizeof **files);
    for (uint32_t i = 0; i < count; i++) {
        const json_t *j = json_array_get(list, i);
        struct snapshot_file *f = &(*files)[i];
        const char *name = json_string_value(json_object_get(j, "name"));
        if (!is_plain_name(name) ||
            !facts_parse_hash(json_string_value(json_object_get(j, "xxh3")), &f->hash) ||
            !facts_get_number(j, "bytes", INT64_MAX, &f->bytes) || !facts_get_u32(j, "first", &f->first) ||
            !facts_get_u32(j, "count", &f->count))
            return false;
        strcpy(f->name, name);
    }
    *n = count;
    return true;
}

static bool parse_set(const json_t *j, struct manifest *m)
{
    const json_t *done = json_object_get(j, "done"), *exact = json_object_get(j, "exact");
    const json_t *final = json_object_get(j, "final"), *state = json_object_get(j, "state");
    if (!json_is_number(done) || !json_is_boolean(exact) || !json_is_boolean(final) || !json_is_string(state))
        return false;
    m->done = json_number_value(done);
    m->exact = json_is_true(exact);
    m->final = json_is_true(final);
    m->state = xstrdup(json_string_value(state));
    return m->done >= 0 && m->done <= 1 && facts_get_u32(j, "set", &m->set) &&
           facts_get_u32(j, "epoch", &m->epoch) && facts_get_number(j, "wall_s", INT64_MAX, &m->wall) &&
           facts_parse_hash(json_string_value(json_object_get(j, "job")), &m->job) &&
           facts_parse_hash(json_string_value(json_object_get(j, "model_hash")), &m->model_hash) &&
           parse_files(json_object_get(j, "files"), &m->files, &m->num_files) && m->num_files > 0 &&
           parse_files(json_object_get(j, "capsules"), &m->capsules, &m->num_capsules);
}

int snapshot_read_manifest(const char *run, uint32_t set, struct manifest *out)
{
    char *path = snapshot_set_file(run, set, "manifest.json"), *text = NULL;
    size_t len = 0;
    struct manifest m = {.set = 0};
    int rc = files_read(path, MAX_MANIFEST, &text, &len);
    if (rc == 0) {
        json_error_t why;
        json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
        if (!json_is_object(j))
            rc = err_set(ERR_DATA, "%s is damaged: %s", path, j ? "it is not an object" : why.text);
        else if (!parse_set(j, &m) || m.set != set)
            rc = err_set(ERR_DATA, "%s is damaged: something is missing in it or not possible", path);
        json_decref(j);
    }
    if (rc == 0)
        *out = m;
    else
        manifest_fini(&m);
    free(text);
    free(path);
    return rc;
}

/* ------------------------------------------------------------------ capsules */

int snapshot_write_capsule(const char *run, uint32_t set, uint32_t rank, const void *data, size_t len,
                           struct snapshot_file *out)
{
    struct snapshot_file file = {.bytes = len, .hash = XXH3_64bits(data, len), .first = rank, .count = 1};
    snprintf(file.name, sizeof file.name, "capsule-%02u.bin", rank);
    char *dir = snapshot_set_dir(run, set), *path = snapshot_set_file(run, set, file.name);
    int rc = files_make_dirs(dir);
    if (rc == 0) rc = files_write_atomic(path, data, len);
    if (rc == 0) *out = file;
    free(path);
    free(dir);
    return rc;
}

int snapshot_read_capsule(const char *run, const struct manifest *m, uint32_t rank, char **data, size_t *len)
{
    const struct snapshot_file *file = NULL;
    for (uint32_t i = 0; i < m->num_capsules; i++)
        if (m->capsules[i].first == rank) file = &m->capsules[i];
    if (!file) return err_set(ERR_DATA, "set %u of %s has no capsule for worker %u", m->set, run, rank);
    char *path = snapshot_set_file(run, m->set, file->name), *bytes = NULL;
    size_t n = 0;
    int rc = files_read(path, MAX_CAPSULE, &bytes, &n);
    if (rc == 0 && (n != file->bytes || XXH3_64bits(bytes, n) != file->hash))
        rc = err_set(ERR_DATA, "%s is damaged: it does not match its hash in the manifest", path);
    if (rc == 0) {
        *data = bytes;
        *len = n;
    } else
        free(bytes);
    free(path);
    return rc;
}

/* ------------------------------------------------------------------ the sets of a run */

static int falling(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

/* "set-000007" is a set, "set-7" and "set-000007x" are something else. */
static bool parse_name(const char *name, uint32_t *set)
{
    char whole[32];
    uint64_t number;
    if (sscanf(name, "set-%10" SCNu64, &number) != 1 || number > UINT32_MAX) return false;
    *set = (uint32_t)number;
    snprintf(whole, sizeof whole, SNAPSHOT_SET, *set);
    return strcmp(name, whole) == 0;
}

static uint32_t *read_names(DIR *dir, size_t *count)
{
    size_t n = 0, room = 64;
    uint32_t set, *sets = xcalloc(room, sizeof *sets);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!parse_name(entry->d_name, &set)) continue;
        if (n == room) {
            uint32_t *more = xcalloc(room * 2, sizeof *more);
            memcpy(more, sets, n * sizeof *sets);
            free(sets);
            sets = more;
            room *= 2;
        }
        sets[n++] = set;
    }
    *count = n;
    return sets;
}

uint32_t *snapshot_list_sets(const char *run, size_t *count)
{
    char *path = files_join(run, SNAPSHOT_SETS);
    DIR *dir = opendir(path);
    uint32_t *sets = NULL;
    *count = 0;
    if (dir) {
        sets = read_names(dir, count);
        closedir(dir);
        qsort(sets, *count, sizeof *sets, falling);
    } else if (errno == ENOENT)
        sets = xcalloc(1, sizeof *sets);
    else
        err_set(ERR_STORAGE, "cannot list %s: %s", path, strerror(errno));
    free(path);
    return sets;
}

static int check_file(const char *run, uint32_t set, const struct snapshot_file *file, bool with_hash)
{
    char *path = snapshot_set_file(run, set, file->name);
    struct stat st;
    uint64_t hash = file->hash, bytes;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        rc = err_set(ERR_STORAGE, "cannot open %s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != file->bytes)
        rc = err_set(ERR_DATA, "%s does not have the size that the manifest says", path);
    else if (with_hash)
        rc = files_hash(fd, path, &hash, &bytes);
    if (rc == 0 && hash != file->hash)
        rc = err_set(ERR_DATA, "%s does not have the hash that the manifest says", path);
    if (fd >= 0) close(fd);
    free(path);
    return rc;
}

/* Manifest and all files there, with the right sizes and, if asked for, hashes. */
static int check_set(const char *run, uint32_t set, bool with_hash)
{
    struct manifest m;
    int rc = snapshot_read_manifest(run, set, &m);
    if (rc < 0) return rc;
    for (uint32_t i = 0; rc == 0 && i < m.num_files; i++) rc = check_file(run, set, &m.files[i], with_hash);
    for (uint32_t i = 0; rc == 0 && i < m.num_capsules; i++)
        rc = check_file(run, set, &m.capsules[i], with_hash);
    manifest_fini(&m);
    return rc;
}

bool snapshot_is_complete(const char *run, uint32_t set)
{
    char *path = snapshot_set_file(run, set, "manifest.json");
    bool there = files_exists(path);
    free(path);
    return there;
}

int64_t snapshot_newest(const char *run)
{
    size_t n;
    uint32_t *sets = snapshot_list_sets(run, &n);
    int64_t newest = -1;
    for (size_t i = 0; newest < 0 && i < n; i++) {
        if (!snapshot_is_complete(run, sets[i])) continue;
        char why[512];
        if (check_set(run, sets[i], true) == 0)
            newest = sets[i];
        else
            log_event(LOG_WARN, "set_damaged", "\"set\":%u,\"why\":%s", sets[i],
                      log_quote(why, sizeof why, err_text()));
    }
    free(sets);
    return newest;
}

static void remove_set(const char *run, uint32_t set)
{
    char *manifest = snapshot_set_file(run, set, "manifest.json"), *dir = snapshot_set_dir(run, set),
         why[512];
    unlink(manifest); /* first: a set that is half removed must not look complete */
    if (files_remove_tree(dir) < 0)
        log_event(LOG_WARN, "set_not_removed", "\"set\":%u,\"why\":%s", set,
                  log_quote(why, sizeof why, err_text()));
    free(manifest);
    free(dir);
}

void snapshot_prune(const char *run, uint32_t keep)
{
    size_t n, kept = 0, i = 0;
    uint32_t *sets = snapshot_list_sets(run, &n);
    if (keep < 1) keep = 1;
    /* a set whose files do not have their sizes does not count as kept: an older one is worth more */
    for (; i < n && kept < keep; i++)
        if (snapshot_is_complete(run, sets[i]) && check_set(run, sets[i], false) == 0) kept++;
    for (; kept == keep && i < n; i++) remove_set(run, sets[i]);
    free(sets);
}
