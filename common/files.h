/* Files written whole or not at all, and the few helpers around them. Every failure is ERR_STORAGE with a
 * sentence that names the path and the system's reason. No state; any thread. */
#ifndef COMMON_FILES_H
#define COMMON_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* path gets exactly these bytes or keeps what it had: temp file path.tmp.PID, write, fsync, close, rename,
 * fsync of the directory. On failure no temp file stays behind. Two threads must not write the same path at
 * once. */
int files_write_atomic(const char *path, const void *data, size_t len);
/* The same for a body in pieces: calls body(fd, arg), which returns 0 or a negative enum err, between open
 * and fsync. */
int files_write_with(const char *path, int (*body)(int fd, void *arg), void *arg);
/* All of a file in memory, with a 0 byte after the last one: *data is owned by the caller, *len leaves out
 * that 0. More than `max` bytes is an error. len may be NULL. */
int files_read(const char *path, size_t max, char **data, size_t *len);
/* write() until all is written, EINTR and short writes handled. `path` is for the sentence alone. */
int files_write_all(int fd, const void *data, size_t len, const char *path);
/* XXH3 (64 bits) of everything from where fd stands to the end, and its length. `path` is for the sentence.
 */
int files_hash(int fd, const char *path, uint64_t *hash, uint64_t *bytes);
/* Like mkdir -p (mode 0777 less umask). */
int files_make_dirs(const char *path);
/* Makes renames in a directory survive a power cut. */
int files_sync_dir(const char *path);
bool files_exists(const char *path);
bool files_is_dir(const char *path);
/* "a/b", or b alone if b is absolute or a is "". Owned by the caller. */
char *files_join(const char *a, const char *b);
/* Absolute path without ., .. or links if the file exists; otherwise the working directory put before it.
 * Owned by the caller. */
char *files_absolute(const char *path);
/* Like rm -rf, never following links; nothing there is no error. */
int files_remove_tree(const char *path);

#endif
