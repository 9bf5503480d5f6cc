/* Writing archives: objects to a stream, and tables that get their names only when they are whole. */
#include "worker/data/ark.h"

#include "common/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int failed(const char *what)
{
    return err_set(ERR_STORAGE, "cannot write %.300s: %s", what, strerror(errno));
}

static void put_sized_int(FILE *to, int32_t v)
{
    fputc(4, to);
    fwrite(&v, sizeof v, 1, to);
}

/* What follows "key ". */
static void put_matrix(FILE *to, size_t rows, size_t cols, const float *data)
{
    fwrite("\0BFM ", 1, 5, to);
    put_sized_int(to, (int32_t)rows);
    put_sized_int(to, (int32_t)cols);
    fwrite(data, sizeof *data, rows * cols, to);
}

static void put_matrix_text(FILE *to, size_t rows, size_t cols, const float *data)
{
    fputs(" [", to);
    for (size_t r = 0; r < rows; r++) {
        fputs("\n ", to);
        for (size_t c = 0; c < cols; c++) fprintf(to, " %.9g", (double)data[r * cols + c]);
    }
    fputs(" ]\n", to);
}

static void put_ints(FILE *to, size_t count, const int32_t *data)
{
    fwrite("\0B", 1, 2, to);
    put_sized_int(to, (int32_t)count);
    for (size_t i = 0; i < count; i++) put_sized_int(to, data[i]);
}

static void put_ints_text(FILE *to, size_t count, const int32_t *data)
{
    for (size_t i = 0; i < count; i++) fprintf(to, "%s%d", i ? " " : "", (int)data[i]);
    fputc('\n', to);
}

static int put_key(FILE *to, const char *key)
{
    fprintf(to, "%s ", key);
    return ferror(to) ? failed(key) : 0;
}

int ark_write_matrix(FILE *to, const char *key, size_t rows, size_t cols, const float *data)
{
    put_key(to, key);
    put_matrix(to, rows, cols, data);
    return ferror(to) ? failed(key) : 0;
}

int ark_write_matrix_text(FILE *to, const char *key, size_t rows, size_t cols, const float *data)
{
    put_key(to, key);
    put_matrix_text(to, rows, cols, data);
    return ferror(to) ? failed(key) : 0;
}

int ark_write_ints(FILE *to, const char *key, size_t count, const int32_t *data)
{
    put_key(to, key);
    put_ints(to, count, data);
    return ferror(to) ? failed(key) : 0;
}

int ark_write_ints_text(FILE *to, const char *key, size_t count, const int32_t *data)
{
    put_key(to, key);
    put_ints_text(to, count, data);
    return ferror(to) ? failed(key) : 0;
}

/* --- tables */

/* A file under its temporary name; path is NULL for a stream that is written as it is. */
struct output {
    FILE *file;
    char *path, *temp; /* owned */
    bool is_command;
};

struct ark_writer {
    bool text;
    struct output ark, scp; /* scp.file is NULL if none was asked for */
};

static bool is_special(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode);
}

static int open_output(const char *name, struct output *out)
{
    if (name[0] == 0) return err_set(ERR_USAGE, "the wspecifier names no file; write ark:FILE or ark:-");
    if (strcmp(name, "-") == 0) {
        out->file = stdout;
    } else if (name[0] == '|') {
        out->file = popen(name + 1, "w");
        out->is_command = true;
    } else if (is_special(name)) { /* /dev/null, a fifo */
        out->file = fopen(name, "wb");
    } else {
        out->path = xstrdup(name);
        out->temp = xprintf("%s.tmp.%ld", name, (long)getpid());
        out->file = fopen(out->temp, "wb");
    }
    return out->file ? 0 : failed(name);
}

static int close_stream(struct output *o)
{
    int rc = 0;
    FILE *f = o->file;
    o->file = NULL;
    if (f == stdout) return fflush(f) != 0 || ferror(f) ? failed("standard output") : 0;
    if (o->is_command)
        return pclose(f) != 0
                   ? err_set(ERR_STORAGE,
                             "the command that takes the archive failed; run it by hand to see why")
                   : 0;
    if (fflush(f) != 0 || ferror(f) || (o->temp && fsync(fileno(f)) != 0))
        rc = failed(o->temp ? o->temp : "the output");
    if (fclose(f) != 0 && rc == 0) rc = failed(o->temp ? o->temp : "the output");
    return rc;
}

static int give_name(const struct output *o)
{
    if (o->path && rename(o->temp, o->path) != 0) return failed(o->path);
    return 0;
}

static void drop_output(struct output *o)
{
    if (o->file) close_stream(o);
    if (o->temp) unlink(o->temp); /* gone already if it got its name */
    free(o->path);
    free(o->temp);
    *o = (struct output){0};
}

static int open_outputs(struct ark_writer *w, bool ark, bool scp, const char *names)
{
    if (!(ark && scp)) return open_output(names, &w->ark);
    const char *comma = strchr(names, ',');
    if (!comma) return err_set(ERR_USAGE, "ark,scp: needs two files: ark,scp:FILE.ark,FILE.scp");
    size_t n = (size_t)(comma - names);
    if (strlen(comma + 1) == n && memcmp(names, comma + 1, n) == 0)
        return err_set(ERR_USAGE, "ark,scp: needs two files, and both are to be '%.200s'", comma + 1);
    char *first = xcalloc(n + 1, 1);
    memcpy(first, names, n);
    int rc = open_output(first, &w->ark);
    if (rc == 0 && !w->ark.path)
        rc = err_set(ERR_USAGE, "'%.200s' is no plain file, and an scp file needs offsets into one", first);
    free(first);
    return rc < 0 ? rc : open_output(comma + 1, &w->scp);
}

struct ark_writer *ark_writer_open(const char *wspecifier)
{
    bool ark = false, scp = false, text = false, good = true;
    const char *colon = strchr(wspecifier, ':'), *at = wspecifier;
    while (colon && good && at < colon) {
        size_t n = strcspn(at, ",:");
        bool is_ark = n == 3 && memcmp(at, "ark", 3) == 0, is_scp = n == 3 && memcmp(at, "scp", 3) == 0;
        bool is_text = n == 1 && *at == 't';
        good = is_ark || (is_scp && ark) || is_text || (n == 1 && (*at == 'b' || *at == 'f')) ||
               (n == 2 && memcmp(at, "nf", 2) == 0);
        ark = ark || is_ark;
        scp = scp || is_scp;
        text = text || is_text;
        at += n + 1;
    }
    if (!colon || !good || !ark) {
        err_set(ERR_USAGE,
                "'%.200s' is no wspecifier: write ark:FILE, ark,t:FILE, ark,scp:FILE,FILE or ark:-",
                wspecifier);
        return NULL;
    }
    struct ark_writer *w = xcalloc(1, sizeof *w);
    w->text = text;
    if (open_outputs(w, ark, scp, colon + 1) < 0) ark_writer_free(&w);
    return w;
}

/* "key " to the archive and, where there is one, "key ark:offset" to the scp file. */
static int start_entry(struct ark_writer *w, const char *key)
{
    int rc = put_key(w->ark.file, key);
    if (rc < 0 || !w->scp.file) return rc;
    long long at = (long long)ftello(w->ark.file);
    if (at < 0 || fprintf(w->scp.file, "%s %s:%lld\n", key, w->ark.path, at) < 0)
        return failed("the scp file");
    return 0;
}

int ark_writer_matrix(struct ark_writer *w, const char *key, size_t rows, size_t cols, const float *data)
{
    int rc = start_entry(w, key);
    if (rc < 0) return rc;
    (w->text ? put_matrix_text : put_matrix)(w->ark.file, rows, cols, data);
    return ferror(w->ark.file) ? failed("the archive") : 0;
}

int ark_writer_ints(struct ark_writer *w, const char *key, size_t count, const int32_t *data)
{
    int rc = start_entry(w, key);
    if (rc < 0) return rc;
    (w->text ? put_ints_text : put_ints)(w->ark.file, count, data);
    return ferror(w->ark.file) ? failed("the archive") : 0;
}

int ark_writer_commit(struct ark_writer **w)
{
    int rc = close_stream(&(*w)->ark);
    if ((*w)->scp.file) {
        int scp_rc = close_stream(&(*w)->scp);
        rc = rc < 0 ? rc : scp_rc;
    }
    if (rc == 0) rc = give_name(&(*w)->ark);
    if (rc == 0) rc = give_name(&(*w)->scp);
    ark_writer_free(w);
    return rc;
}

void ark_writer_free(struct ark_writer **w)
{
    if (!*w) return;
    drop_output(&(*w)->ark);
    drop_output(&(*w)->scp);
    free(*w);
    *w = NULL;
}
