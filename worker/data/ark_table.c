/* Reading a table in its own order: archives (ark:) and lists of locations (scp:). */
#include "worker/data/ark.h"

#include "common/err.h"
#include "worker/data/scp.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_KEY 1024

struct ark_reader {
    bool is_scp, pending; /* pending: ark_next gave a key whose object was not read yet */
    bool allow_pipes;
    struct input *in; /* owned */
    struct scp scp;   /* is_scp only */
    size_t count;     /* entries given so far */
    char key[MAX_KEY];
};

/* "ark", "scp" with options after commas; the part up to the colon. */
static bool parse_kind(const char *text, size_t len, bool *is_scp)
{
    static const char *const options[] = {"t",  "b", "f",  "nf", "p",   "np", "o",
                                          "no", "s", "ns", "cs", "ncs", "bg"};
    bool seen = false;
    while (len) {
        const char *comma = memchr(text, ',', len);
        size_t n = comma ? (size_t)(comma - text) : len;
        bool known = false;
        if (n == 3 && (memcmp(text, "ark", 3) == 0 || memcmp(text, "scp", 3) == 0)) {
            if (seen) return false;
            known = seen = true;
            *is_scp = text[0] == 's';
        }
        for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
            known = known || (strlen(options[i]) == n && memcmp(options[i], text, n) == 0);
        if (!known) return false;
        len -= comma ? n + 1 : n;
        text += comma ? n + 1 : n;
    }
    return seen;
}

static int open_table(struct ark_reader *r, const char *name, const struct ark_options *o)
{
    if (!r->is_scp) return input_open(r->in, name, o->folder, o->allow_command);
    int rc = scp_read(name, o->folder, o->allow_command, &r->scp);
    if (rc == 0 && r->scp.bad)
        rc = err_set(ERR_DATA, "%.300s line %zu has no location after the id", name, r->scp.first_bad_line);
    return rc;
}

struct ark_reader *ark_open(const char *rspecifier, const struct ark_options *o)
{
    const char *colon = strchr(rspecifier, ':');
    bool is_scp = false;
    if (!colon || !parse_kind(rspecifier, (size_t)(colon - rspecifier), &is_scp)) {
        err_set(ERR_USAGE, "'%.200s' is no rspecifier: write ark:FILE, scp:FILE or ark:-", rspecifier);
        return NULL;
    }
    const char *name = colon + 1;
    while (*name == ' ') name++;
    if (!*name) {
        err_set(ERR_USAGE, "'%.200s' names no file: write ark:FILE, scp:FILE or ark:-", rspecifier);
        return NULL;
    }
    struct ark_reader *r = xcalloc(1, sizeof *r);
    r->is_scp = is_scp;
    r->allow_pipes = o->allow_pipes;
    r->in = input_new();
    if (open_table(r, name, o) == 0) return r;
    ark_close(&r);
    return NULL;
}

int ark_close(struct ark_reader **r)
{
    if (!*r) return 0;
    int rc = input_close((*r)->in);
    input_free(&(*r)->in);
    if ((*r)->is_scp) scp_fini(&(*r)->scp);
    free(*r);
    *r = NULL;
    return rc;
}

static int next_in_archive(struct ark_reader *r)
{
    size_t n = 0;
    int c;
    while ((c = input_peek(r->in)) >= 0 && isspace(c)) input_byte(r->in);
    if (c < 0) return 0;
    uint64_t at = input_position(r->in);
    while ((c = input_peek(r->in)) >= 0 && !isspace(c)) {
        if (!isgraph(c) && c < 128)
            return input_complain(r->in, at, "no id starts here; this is not a Kaldi archive");
        if (n + 1 == MAX_KEY)
            return input_complain(r->in, at, "the id is too long; this is not a Kaldi archive");
        r->key[n++] = (char)input_byte(r->in);
    }
    r->key[n] = 0;
    if (c < 0) return input_complain(r->in, at, "the archive ends after an id; it is truncated");
    if (c != '\n') input_byte(r->in);
    return 1;
}

int ark_next(struct ark_reader *r, const char **key)
{
    ASSERT(!r->pending || r->is_scp);
    if (r->is_scp) {
        if (r->count == r->scp.n) return 0;
        *key = r->scp.keys[r->count];
    } else {
        int rc = next_in_archive(r);
        if (rc <= 0) return rc;
        *key = r->key;
    }
    r->count++;
    r->pending = true;
    return 1;
}

size_t ark_line(const struct ark_reader *r)
{
    return r->is_scp && r->count ? r->scp.lines[r->count - 1] : r->count;
}

const char *ark_location(const struct ark_reader *r)
{
    return r->is_scp && r->count ? r->scp.values[r->count - 1] : "";
}

static struct ark_source source_of(const struct ark_reader *r)
{
    return (struct ark_source){r->scp.values[r->count - 1], r->scp.folder, r->allow_pipes, r->in};
}

int ark_next_matrix(struct ark_reader *r, struct matrix *out)
{
    ASSERT(r->pending);
    r->pending = false;
    if (!r->is_scp) return ark_decode_matrix(r->in, out);
    struct ark_source s = source_of(r);
    return ark_read_matrix(&s, out);
}

int ark_next_ints(struct ark_reader *r, struct ints *out)
{
    ASSERT(r->pending);
    r->pending = false;
    if (!r->is_scp) return ark_decode_ints(r->in, out);
    struct ark_source s = source_of(r);
    return ark_read_ints(&s, out);
}
