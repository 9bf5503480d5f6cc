#include "common/files.h"

#include "common/err.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define PIECE (1u << 20)

static int storage_error(const char *doing, const char *path)
{
    return err_set(ERR_STORAGE, "cannot %s %s: %s", doing, path, strerror(errno));
}

int files_hash(int fd, const char *path, uint64_t *hash, uint64_t *bytes)
{
    XXH3_state_t *state = XXH3_createState();
    char *piece = xcalloc(1, PIECE);
    ssize_t n;
    uint64_t sum = 0;
    ASSERT(state);
    XXH3_64bits_reset(state);
    while ((n = read(fd, piece, PIECE)) > 0 || (n < 0 && errno == EINTR)) {
        if (n < 0) continue;
        XXH3_64bits_update(state, piece, (size_t)n);
        sum += (uint64_t)n;
    }
    int rc = n < 0 ? storage_error("read", path) : 0;
    *hash = XXH3_64bits_digest(state);
    *bytes = sum;
    XXH3_freeState(state);
    free(piece);
    return rc;
}

int files_write_all(int fd, const void *data, size_t len, const char *path)
{
    const char *at = data;
    while (len > 0) {
        ssize_t n = write(fd, at, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return storage_error("write", path);
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static int sync_open_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    int rc = fsync(fd);
    int why = errno;
    close(fd);
    errno = why;
    /* some file systems know no fsync of a directory; there is nothing more to do about it there */
    return rc < 0 && why != EINVAL ? -1 : 0;
}

int files_sync_dir(const char *path)
{
    return sync_open_dir(path) < 0 ? storage_error("sync the directory", path) : 0;
}

static int sync_parent(const char *path)
{
    char *copy = xstrdup(path);
    int rc = files_sync_dir(dirname(copy));
    free(copy);
    return rc;
}

/* Fills the temp file and closes it; the caller removes it on failure. */
static int fill_temp(const char *temp, const char *path, int (*body)(int fd, void *arg), void *arg)
{
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return storage_error("create", temp);
    int rc = body(fd, arg);
    if (rc == 0 && fsync(fd) < 0) rc = storage_error("sync", path);
    if (close(fd) < 0 && rc == 0) rc = storage_error("close", path);
    return rc;
}

int files_write_with(const char *path, int (*body)(int fd, void *arg), void *arg)
{
    char *temp = xprintf("%s.tmp.%ld", path, (long)getpid());
    int rc = fill_temp(temp, path, body, arg);
    if (rc == 0 && rename(temp, path) < 0) rc = storage_error("put in place", path);
    if (rc != 0) unlink(temp);
    if (rc == 0) rc = sync_parent(path);
    free(temp);
    return rc;
}

struct bytes {
    const void *data;
    size_t len;
    const char *path;
};

static int write_bytes(int fd, void *arg)
{
    const struct bytes *b = arg;
    return files_write_all(fd, b->data, b->len, b->path);
}

int files_write_atomic(const char *path, const void *data, size_t len)
{
    struct bytes b = {.data = data, .len = len, .path = path};
    return files_write_with(path, write_bytes, &b);
}

/* Reads to the end, at most max bytes; the size that stat tells is only a first guess (it is 0 in /proc). */
static int read_open(int fd, const char *path, size_t max, char **data, size_t *len)
{
    struct stat st;
    if (fstat(fd, &st) < 0) return storage_error("stat", path);
    if (S_ISDIR(st.st_mode)) return err_set(ERR_STORAGE, "cannot read %s: it is a directory", path);
    size_t room = st.st_size > 0 && (size_t)st.st_size <= max ? (size_t)st.st_size + 2 : 4096;
    size_t used = 0;
    char *buffer = xcalloc(1, room);
    for (;;) {
        ssize_t n = read(fd, buffer + used, room - 1 - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            free(buffer);
            return storage_error("read", path);
        }
        if (n == 0) break;
        used += (size_t)n;
        if (used > max) {
            free(buffer);
            return err_set(ERR_STORAGE, "cannot read %s: it is larger than %zu bytes", path, max);
        }
        if (used + 1 == room) {
            char *more = xcalloc(1, room * 2);
            memcpy(more, buffer, used);
            free(buffer);
            buffer = more;
            room *= 2;
        }
    }
    buffer[used] = '\0';
    *data = buffer;
    if (len) *len = used;
    return 0;
}

int files_read(const char *path, size_t max, char **data, size_t *len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return storage_error("open", path);
    int rc = read_open(fd, path, max, data, len);
    close(fd);
    return rc;
}

int files_make_dirs(const char *path)
{
    char *copy = xstrdup(path);
    int rc = 0;
    for (char *at = copy + 1; rc == 0 && copy[0]; at++) {
        if (*at != '/' && *at != '\0') continue;
        char kept = *at;
        *at = '\0';
        if (mkdir(copy, 0777) < 0 && errno != EEXIST) rc = storage_error("make the directory", copy);
        *at = kept;
        if (kept == '\0') break;
    }
    free(copy);
    if (rc == 0 && !files_is_dir(path))
        rc = err_set(ERR_STORAGE, "cannot make the directory %s: something else has that name", path);
    return rc;
}

bool files_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool files_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *files_join(const char *a, const char *b)
{
    if (b[0] == '/' || a[0] == '\0') return xstrdup(b);
    size_t n = strlen(a);
    return xprintf("%s%s%s", a, a[n - 1] == '/' ? "" : "/", b);
}

char *files_absolute(const char *path)
{
    char *real = realpath(path, NULL);
    if (real) return real;
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return xstrdup(path);
    return files_join(here, path);
}

static int remove_at(int parent, const char *name, const char *path);

static int remove_children(int fd, const char *path)
{
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return storage_error("open", path);
    }
    int rc = 0;
    struct dirent *entry;
    while (rc == 0 && (entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *child = files_join(path, entry->d_name);
        rc = remove_at(dirfd(dir), entry->d_name, child);
        free(child);
    }
    closedir(dir);
    return rc;
}

static int remove_at(int parent, const char *name, const char *path)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return storage_error("remove", path);
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return storage_error("remove", path);
    int rc = remove_children(fd, path);
    if (rc == 0 && unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        rc = storage_error("remove", path);
    return rc;
}

int files_remove_tree(const char *path)
{
    return remove_at(AT_FDCWD, path, path);
}
