/* Files of lines "id value": scp files, utt2spk, utt2num_frames. Read whole; looked up by id. Values are not
 * judged. Read-only after scp_read, then any thread. Source: Kaldi's data directories, sorted in the C
 * locale. */
#ifndef WORKER_DATA_SCP_H
#define WORKER_DATA_SCP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCP_NONE SIZE_MAX

struct scp {
    size_t n;
    char **keys, **values; /* views into text, in the order of the file */
    size_t *lines;         /* line numbers from 1 */
    size_t bad;            /* lines without a value, which are left out */
    size_t first_bad_line; /* 0 if none */
    char *path;            /* owned; as asked for */
    char *folder;          /* owned; of the path, "" for the working directory */
    size_t *sorted;        /* owned; entries by key, equal keys in file order */
    char *text;            /* owned */
};

/* `folder` is the second place to look for a relative path (NULL = none). ERR_DATA with a sentence. A command
 * ("cmd |") only if allow_command. Undo with scp_fini. */
int scp_read(const char *path, const char *folder, bool allow_command, struct scp *out);
void scp_fini(struct scp *s);
/* The first entry of that id, SCP_NONE if there is none. */
size_t scp_find(const struct scp *s, const char *key);
/* Entry i comes before its predecessor in the C locale; an earlier entry has the same id. */
bool scp_is_unsorted(const struct scp *s, size_t i);
bool scp_is_duplicate(const struct scp *s, size_t i);
/* "dir/" part of a path without its last slash, "" if it has none. Owned by the caller. */
char *scp_folder_of(const char *path);

#endif
