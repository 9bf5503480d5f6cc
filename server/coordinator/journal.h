/* The coordinator's journal: one row per line, on disk before journal_write returns. What a crash leaves of
 * the last line is no row. One thread. */
#ifndef SERVER_COORDINATOR_JOURNAL_H
#define SERVER_COORDINATOR_JOURNAL_H

struct journal;

/* Appends to path, which is made if it is not there. ERR_STORAGE. */
int journal_open(const char *path, struct journal **out);
void journal_close(struct journal **j); /* accepts NULL */
/* One row, without its newline. ERR_STORAGE: the file is as it was before. */
int journal_write(struct journal *j, const char *row);
/* Calls each(ctx, row) for every row, in order. A last line without its newline is passed over, and so is a
 * last row that `each` refuses; a refusal before that ends it with its code. ERR_STORAGE. No file: no rows.
 */
int journal_replay(const char *path, int (*each)(void *ctx, const char *row), void *ctx);
/* Compaction: path holds exactly these lines, or what it had. */
int journal_rewrite(const char *path, const char *rows);

#endif
