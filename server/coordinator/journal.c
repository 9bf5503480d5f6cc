#include "server/coordinator/journal.h"

#include "common/err.h"
#include "common/files.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_JOURNAL (1ul << 31)

struct journal {
    int fd;
    char *path;
    char *line; /* with its newline */
    size_t capacity;
};

int journal_open(const char *path, struct journal **out)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) return err_set(ERR_STORAGE, "cannot open the journal %s: %s", path, strerror(errno));
    struct journal *j = xcalloc(1, sizeof *j);
    j->fd = fd;
    j->path = xstrdup(path);
    *out = j;
    return 0;
}

void journal_close(struct journal **j)
{
    if (!*j) return;
    close((*j)->fd);
    free((*j)->path);
    free((*j)->line);
    free(*j);
    *j = NULL;
}

int journal_write(struct journal *j, const char *row)
{
    size_t len = strlen(row);
    if (len + 1 > j->capacity) {
        free(j->line);
        j->capacity = 2 * len + 256;
        j->line = xcalloc(j->capacity, 1);
    }
    memcpy(j->line, row, len);
    j->line[len] = '\n';
    off_t before = lseek(j->fd, 0, SEEK_END);
    int rc = files_write_all(j->fd, j->line, len + 1, j->path);
    if (rc == 0 && fdatasync(j->fd) != 0)
        rc = err_set(ERR_STORAGE, "cannot sync the journal %s: %s", j->path, strerror(errno));
    if (rc < 0 && before >= 0 && ftruncate(j->fd, before) != 0)
        log_event(LOG_ERROR, "journal_torn", NULL); /* the next row would join a torn one: told, not hidden */
    return rc;
}

int journal_replay(const char *path, int (*each)(void *ctx, const char *row), void *ctx)
{
    char *text;
    if (!files_exists(path)) return 0;
    int rc = files_read(path, MAX_JOURNAL, &text, NULL);
    if (rc < 0) return rc;
    for (char *line = text, *end; rc == 0 && (end = strchr(line, '\n')); line = end + 1) {
        *end = '\0';
        if (*line) rc = each(ctx, line);
        if (rc < 0 && !strchr(end + 1, '\n')) { /* nothing whole comes after it */
            log_event(LOG_WARN, "journal_tail", "\"bytes\":%zu", strlen(line));
            rc = 0;
        }
    }
    free(text);
    return rc;
}

int journal_rewrite(const char *path, const char *rows)
{
    return files_write_atomic(path, rows, strlen(rows));
}
