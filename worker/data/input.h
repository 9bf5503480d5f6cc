/* Bytes of one file, of standard input or of a command's output, with a small buffer of our own. Remembers
 * the regular file that it opened last, so that reading utterance after utterance of one archive opens it
 * once and allocates nothing. A command ("cmd |") runs under /bin/sh in a process group of its own, is always
 * waited for, and is killed if its output is not wanted to the end. Does not decode anything. One thread per
 * struct input. */
#ifndef WORKER_DATA_INPUT_H
#define WORKER_DATA_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define INPUT_MAX_NAME 8192

struct input {
    int fd;          /* -1: nothing is open */
    pid_t pid;       /* of the command, 0 if none */
    bool regular;    /* size is known and seeking works */
    uint64_t size;   /* bytes, if regular */
    uint64_t filled; /* position in the file after the buffer's last byte */
    size_t start, end;
    unsigned char *buffer;  /* owned */
    unsigned char *scratch; /* owned; what input_take gives a view into */
    size_t scratch_bytes;
    char name[INPUT_MAX_NAME];   /* as asked for: for sentences, and to know the open file again */
    char folder[INPUT_MAX_NAME]; /* that it was looked for in */
};

struct input *input_new(void);
void input_free(struct input **in);
/* Opens "-", "cmd |" (ERR_DATA unless allow_pipes) or a path, which is tried from the working directory and
 * then from `folder` (NULL = none; a command runs in it). What was open is closed first, unless it is this
 * very file. */
int input_open(struct input *in, const char *name, const char *folder, bool allow_pipes);
/* For a command: reads on to the end if only a little is left, waits, and gives ERR_DATA if it failed. */
int input_close(struct input *in);
/* Does the name mean a command? (its last character is a '|') */
bool input_is_pipe(const char *name);
/* Offset from the start; regular files alone. */
int input_seek(struct input *in, uint64_t offset);
uint64_t input_position(const struct input *in);
/* Bytes up to the end, UINT64_MAX if that cannot be known. */
uint64_t input_left(const struct input *in);
/* The next byte, -1 at the end (or on a read error, which counts as the end). peek leaves it there. */
int input_peek(struct input *in);
int input_byte(struct input *in);
/* Exactly n bytes or ERR_DATA with a sentence that names file and offset. */
int input_read(struct input *in, void *out, size_t n);
/* The same as a view that holds until the next call. Memory grows only as bytes arrive. */
int input_take(struct input *in, uint64_t n, const unsigned char **out);
/* ERR_DATA with the sentence "feats.ark at offset 17: WHAT". */
int input_complain(const struct input *in, uint64_t offset, const char *what);

#endif
