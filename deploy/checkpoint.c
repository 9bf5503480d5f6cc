/* chorale checkpoint: the sets in RUN/checkpoints/set-NNNNNN, each with a manifest.json of which this reads
 * {"set", "epoch", "done", "wall", "exact", "files": [{"name", "bytes", "xxh3": "16 hex digits"}],
 * "capsules": [the same]} (common/snapshot.h has the rest).
 * The manifest is written last: a set without one was never finished. */
#include "common/err.h"
#include "common/files.h"
#include "common/snapshot.h"
#include "deploy/run.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_MANIFEST (256u << 20)

static int print_help(void)
{
    puts("chorale checkpoint ls RUN | verify RUN\n\n"
         "  chorale checkpoint ls run1         the sets: epoch, part done, size, when\n"
         "  chorale checkpoint verify run1     reads every file, compares it with its hash\n\n"
         "A set without a manifest was never finished: it is listed as incomplete and\n"
         "nobody resumes from it.\n"
         "Exit status of verify: 0 all is well, 7 damage.");
    return 0;
}

/* ------------------------------------------------------------------ the sets of a run */

/* 0 and *out (owned), ERR_AGAIN if the set is incomplete, ERR_STORAGE if the manifest is damaged. */
static int read_manifest(const char *set, json_t **out)
{
    char *path = files_join(set, "manifest.json"), *text = NULL;
    size_t len = 0;
    json_error_t why;
    int rc = files_exists(path) ? files_read(path, MAX_MANIFEST, &text, &len) : ERR_AGAIN;
    *out = NULL;
    if (rc == 0) {
        *out = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
        if (!json_is_object(*out) || !json_is_array(json_object_get(*out, "files"))) {
            rc = err_set(ERR_STORAGE, "%s is damaged: %s", path, *out ? "it has no list of files" : why.text);
            json_decref(*out);
            *out = NULL;
        }
    }
    free(text);
    free(path);
    return rc;
}

/* Calls visit for every set, oldest first; its negative returns are counted in *bad. Returns the number of
 * sets. */
static int each_set(const char *run, int (*visit)(const char *path, const char *name), size_t *bad)
{
    size_t n;
    uint32_t *sets = snapshot_list_sets(run, &n);
    if (!sets) return ERR_STORAGE;
    for (size_t i = n; i-- > 0;) {
        char *path = snapshot_set_dir(run, sets[i]);
        if (visit(path, strrchr(path, '/') + 1) < 0) ++*bad;
        free(path);
    }
    free(sets);
    return (int)n;
}

/* ------------------------------------------------------------------ ls */

static double total_bytes(const json_t *files)
{
    double sum = 0;
    for (size_t i = 0; i < json_array_size(files); i++)
        sum += json_number_value(json_object_get(json_array_get(files, i), "bytes"));
    return sum;
}

static int list_set(const char *path, const char *name)
{
    json_t *m;
    int rc = read_manifest(path, &m);
    if (rc < 0) {
        printf("%-12s  %s\n", name, rc == ERR_AGAIN ? "incomplete (no manifest)" : err_text());
        return rc == ERR_AGAIN ? 0 : rc;
    }
    const json_t *epoch = json_object_get(m, "epoch"), *wall = json_object_get(m, "wall");
    char when[40] = "-";
    for (size_t i = 0; json_is_string(wall) && i < 39 && json_string_value(wall)[i]; i++) {
        char c = json_string_value(wall)[i];
        when[i] = c > ' ' && c < 0x7F ? c : '?';
        when[i + 1] = '\0';
    }
    printf("%-12s  %5" JSON_INTEGER_FORMAT "  %5.1f %%  %9.2f MB  %5zu  %-5s  %s\n", name,
           json_integer_value(epoch), 100 * json_number_value(json_object_get(m, "done")),
           (total_bytes(json_object_get(m, "files")) + total_bytes(json_object_get(m, "capsules"))) / 1e6,
           json_array_size(json_object_get(m, "files")),
           json_is_true(json_object_get(m, "exact")) ? "yes" : "no", when);
    json_decref(m);
    return 0;
}

static int list(const char *run)
{
    size_t bad = 0;
    printf("%-12s  %5s  %7s  %12s  %5s  %-5s  %s\n", "set", "epoch", "done", "size", "files", "exact",
           "written");
    int n = each_set(run, list_set, &bad);
    if (n == 0) puts("(none yet)");
    return n < 0 ? n : 0;
}

/* ------------------------------------------------------------------ verify */

static int hash_file(const char *path, uint64_t *hash, uint64_t *bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return err_set(ERR_STORAGE, "cannot open %s: %s", path, strerror(errno));
    int rc = files_hash(fd, path, hash, bytes);
    close(fd);
    return rc;
}

static bool is_hash(const char *text)
{
    return text && strlen(text) == 16 && strspn(text, "0123456789abcdefABCDEF") == 16;
}

/* One entry of the list of files: a plain name inside the set. */
static int verify_file(const char *set, const json_t *entry)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *expected = json_string_value(json_object_get(entry, "xxh3"));
    const json_t *size = json_object_get(entry, "bytes");
    uint64_t hash = 0, bytes = 0;
    if (!name || !name[0] || strchr(name, '/') || strcmp(name, "..") == 0 || !is_hash(expected) ||
        !json_is_integer(size))
        return err_set(ERR_STORAGE, "%s/manifest.json is damaged: an entry without name, bytes or hash", set);
    char *path = files_join(set, name);
    int rc = hash_file(path, &hash, &bytes);
    if (rc == 0 && bytes != (uint64_t)json_integer_value(size))
        rc = err_set(ERR_STORAGE, "%s has %" PRIu64 " bytes, the manifest says %" JSON_INTEGER_FORMAT, path,
                     bytes, json_integer_value(size));
    else if (rc == 0 && hash != strtoull(expected, NULL, 16))
        rc = err_set(ERR_STORAGE, "%s differs: hash %016" PRIx64 ", the manifest says %s", path, hash,
                     expected);
    free(path);
    return rc;
}

static int verify_set(const char *path, const char *name)
{
    json_t *m;
    int rc = read_manifest(path, &m);
    if (rc == ERR_AGAIN) {
        printf("%-12s  incomplete (no manifest)\n", name);
        return 0;
    }
    if (rc < 0) {
        printf("%-12s  DAMAGED: %s\n", name, err_text());
        return rc;
    }
    const json_t *files = json_object_get(m, "files"), *capsules = json_object_get(m, "capsules");
    size_t shards = json_array_size(files), n = shards + json_array_size(capsules);
    for (size_t i = 0; i < n; i++) {
        int file_rc =
            verify_file(path, i < shards ? json_array_get(files, i) : json_array_get(capsules, i - shards));
        /* a running job removes its oldest set while we read */
        if (file_rc < 0 && !files_is_dir(path)) break;
        if (file_rc < 0) printf("%-12s  DAMAGED: %s\n", name, err_text());
        if (file_rc < 0) rc = file_rc;
    }
    if (!files_is_dir(path))
        printf("%-12s  removed meanwhile\n", name);
    else if (rc == 0)
        printf("%-12s  ok, %zu files\n", name, n);
    json_decref(m);
    return rc;
}

static int verify(const char *run)
{
    size_t bad = 0;
    int n = each_set(run, verify_set, &bad);
    if (n < 0) return n;
    if (n == 0) puts("(none yet)");
    if (bad == 0) return 0;
    return err_set(ERR_STORAGE,
                   "%zu of %d sets of %s are damaged; the newest whole set is the one to resume from", bad, n,
                   run);
}

/* ------------------------------------------------------------------ main */

static int checkpoint(int argc, char **argv)
{
    static const struct option names[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 'h') return print_help();
        return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale checkpoint --help`",
                       argv[optind - 1]);
    }
    if (optind >= argc) return err_set(ERR_USAGE, "say what to do: chorale checkpoint ls RUN, or verify RUN");
    const char *verb = argv[optind];
    bool ls = strcmp(verb, "ls") == 0;
    if (!ls && strcmp(verb, "verify") != 0)
        return err_set(ERR_USAGE, "unknown checkpoint command '%.40s'; there are ls and verify", verb);
    if (optind + 2 != argc) return err_set(ERR_USAGE, "name one run: chorale checkpoint %s RUN", verb);
    const char *run = argv[optind + 1];
    int rc = run_check(run);
    if (rc < 0) return rc;
    return ls ? list(run) : verify(run);
}

int main(int argc, char **argv)
{
    return err_report("chorale checkpoint", checkpoint(argc, argv));
}
