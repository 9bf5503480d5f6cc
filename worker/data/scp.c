#include "worker/data/scp.h"

#include "common/err.h"
#include "worker/data/input.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define READ_STEP ((size_t)1 << 16)

char *scp_folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return xstrdup("");
    size_t n = slash == path ? 1 : (size_t)(slash - path);
    char *folder = xcalloc(n + 1, 1);
    memcpy(folder, path, n);
    return folder;
}

/* All bytes of an open input, with a 0 after them. */
static char *read_all(struct input *in, size_t *len)
{
    size_t capacity = in->regular ? (size_t)in->size + 1 : READ_STEP, n = 0;
    char *text = xcalloc(capacity, 1);
    for (int c = input_byte(in); c >= 0; c = input_byte(in)) {
        if (n + 1 >= capacity) {
            char *grown = xcalloc(capacity, 2);
            memcpy(grown, text, n);
            free(text);
            text = grown;
            capacity *= 2;
        }
        text[n++] = (char)c;
    }
    text[n] = 0;
    *len = n;
    return text;
}

/* Splits the line in place: key, blanks, value without the blanks around it. */
static void add_line(struct scp *s, char *line, size_t number)
{
    char *end = line + strlen(line);
    while (end > line && isspace((unsigned char)end[-1])) *--end = 0;
    while (*line == ' ' || *line == '\t') line++;
    char *value = line + strcspn(line, " \t");
    if (*value) *value++ = 0;
    while (*value == ' ' || *value == '\t') value++;
    if (!*line || !*value) {
        if (!s->bad++) s->first_bad_line = number;
        return;
    }
    s->keys[s->n] = line;
    s->values[s->n] = value;
    s->lines[s->n++] = number;
}

struct sort_entry {
    const char *key;
    size_t index;
};

static int compare_entries(const void *a, const void *b)
{
    const struct sort_entry *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->index > y->index) - (x->index < y->index);
}

static void sort_entries(struct scp *s)
{
    struct sort_entry *entries = xcalloc(s->n, sizeof *entries);
    for (size_t i = 0; i < s->n; i++) entries[i] = (struct sort_entry){s->keys[i], i};
    qsort(entries, s->n, sizeof *entries, compare_entries);
    for (size_t i = 0; i < s->n; i++) s->sorted[i] = entries[i].index;
    free(entries);
}

static void split_lines(struct scp *s, size_t len)
{
    size_t lines = 1, number = 1;
    for (size_t i = 0; i < len; i++) lines += s->text[i] == '\n';
    s->keys = xcalloc(lines, sizeof *s->keys);
    s->values = xcalloc(lines, sizeof *s->values);
    s->lines = xcalloc(lines, sizeof *s->lines);
    s->sorted = xcalloc(lines, sizeof *s->sorted);
    for (char *line = s->text; line < s->text + len; number++) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        add_line(s, line, number);
        line = end ? end + 1 : s->text + len;
    }
}

int scp_read(const char *path, const char *folder, bool allow_command, struct scp *out)
{
    struct input *in = input_new();
    size_t len = 0;
    char *text = NULL;
    int rc = input_open(in, path, folder, allow_command);
    if (rc == 0) {
        text = read_all(in, &len);
        rc = input_close(in);
    }
    if (rc == 0 && memchr(text, 0, len))
        rc = err_set(ERR_DATA, "%.300s is not a text file of lines 'id value'; is it an archive?", path);
    input_free(&in);
    if (rc < 0) {
        free(text);
        return rc;
    }
    char *own = input_is_pipe(path) ? xstrdup("") : scp_folder_of(path); /* a command has no folder */
    *out = (struct scp){.text = text, .path = xstrdup(path), .folder = own};
    split_lines(out, len);
    sort_entries(out);
    return 0;
}

void scp_fini(struct scp *s)
{
    free(s->keys);
    free(s->values);
    free(s->lines);
    free(s->sorted);
    free(s->path);
    free(s->folder);
    free(s->text);
    *s = (struct scp){0};
}

/* The place in `sorted` of the first key that is not smaller. */
static size_t lower_bound(const struct scp *s, const char *key)
{
    size_t low = 0, high = s->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(s->keys[s->sorted[middle]], key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

size_t scp_find(const struct scp *s, const char *key)
{
    size_t at = lower_bound(s, key);
    return at < s->n && strcmp(s->keys[s->sorted[at]], key) == 0 ? s->sorted[at] : SCP_NONE;
}

bool scp_is_unsorted(const struct scp *s, size_t i)
{
    return i > 0 && strcmp(s->keys[i - 1], s->keys[i]) > 0;
}

bool scp_is_duplicate(const struct scp *s, size_t i)
{
    return scp_find(s, s->keys[i]) != i;
}
