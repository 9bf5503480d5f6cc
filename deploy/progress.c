#include "deploy/progress.h"

#include "common/err.h"
#include "common/files.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_STATUS (64u << 20)
#define LOOK_NS    500000000ull
#define MAX_LINE   400

/* Which life of status.json: every rewrite is a rename, so a new inode or time. */
struct edition {
    ino_t inode;
    struct timespec when;
    off_t size;
};

struct progress {
    struct progress_options o;
    char *path; /* of status.json, owned */
    struct edition seen;
    json_t *status;     /* owned; NULL until the job has written one */
    json_t *shards;     /* owned; the last that told staleness: at the end the servers have left */
    size_t epochs_told; /* rows of epochs_done */
    uint64_t next_look, next_plain;
    bool live; /* the live line is on the screen */
};

/* ------------------------------------------------------------------ reading */

static bool look(const char *path, struct edition *out)
{
    struct stat st;
    if (stat(path, &st) != 0) return false;
    *out = (struct edition){st.st_ino, st.st_mtim, st.st_size};
    return true;
}

static bool same(const struct edition *a, const struct edition *b)
{
    return a->inode == b->inode && a->size == b->size && a->when.tv_sec == b->when.tv_sec &&
           a->when.tv_nsec == b->when.tv_nsec;
}

/* NULL if there is none or it makes no sense. */
static json_t *read_status(const char *path)
{
    char *text;
    size_t len;
    if (!files_exists(path) || files_read(path, MAX_STATUS, &text, &len) < 0) return NULL;
    json_t *s = json_loadb(text, len, 0, NULL);
    free(text);
    if (json_is_object(s)) return s;
    json_decref(s);
    return NULL;
}

/* True if there is something new. */
static bool refresh(struct progress *p)
{
    struct edition now;
    if (!look(p->path, &now) || same(&now, &p->seen)) return false;
    json_t *fresh = read_status(p->path);
    if (!fresh) return false;
    size_t epochs = json_array_size(json_object_get(fresh, "epochs_done"));
    if (!p->status || epochs < p->epochs_told) p->epochs_told = epochs; /* resumed; or a restore went back */
    json_t *shards = json_object_get(fresh, "shards");
    if (!p->shards || json_is_number(json_object_get(json_array_get(shards, 0), "p50"))) {
        json_decref(p->shards);
        p->shards = json_incref(shards);
    }
    json_decref(p->status);
    p->status = fresh;
    p->seen = now;
    return true;
}

static bool number(const json_t *object, const char *key, double *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_number(v)) return false;
    *out = json_number_value(v);
    return isfinite(*out);
}

/* ------------------------------------------------------------------ the line */

/* Adds a piece if it fits whole into `width` columns. */
__attribute__((format(printf, 3, 4))) static void add(char *line, size_t width, const char *format, ...)
{
    char piece[128];
    va_list args;
    va_start(args, format);
    vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    size_t have = strlen(line), gap = have ? 2 : 0;
    if (have + gap + strlen(piece) > width) return;
    snprintf(line + have, MAX_LINE - have, "%s%s", gap ? "  " : "", piece);
}

static void add_time_left(char *line, size_t width, double seconds)
{
    if (seconds < 120)
        add(line, width, "%.0f s left", seconds);
    else if (seconds < 7200)
        add(line, width, "%.0f min left", seconds / 60);
    else
        add(line, width, "%.1f h left", seconds / 3600);
}

static void add_workers(char *line, size_t width, const json_t *workers)
{
    size_t i, live = 0;
    const json_t *w;
    if (!json_is_array(workers)) return;
    json_array_foreach(workers, i, w)
    {
        const char *state = json_string_value(json_object_get(w, "state"));
        if (state && (strcmp(state, "live") == 0 || strcmp(state, "holding") == 0)) live++;
    }
    add(line, width, "%zu worker%s", live, live == 1 ? "" : "s");
}

/* Of the shard that is worst in each number. */
static void add_staleness(char *line, size_t width, const json_t *shards)
{
    static const char *const keys[] = {"p50", "p95", "max"};
    double most[3] = {-1, -1, -1}, v;
    size_t i;
    const json_t *s;
    json_array_foreach(shards, i, s)
    {
        for (size_t k = 0; k < 3; k++)
            if (number(s, keys[k], &v) && v > most[k]) most[k] = v;
    }
    if (most[0] >= 0) add(line, width, "staleness %.0f/%.0f/%.0f", most[0], most[1], most[2]);
}

static void make_line(const json_t *s, size_t width, char line[MAX_LINE])
{
    double v, of;
    line[0] = '\0';
    if (width >= MAX_LINE) width = MAX_LINE - 1;
    if (number(s, "epoch", &v) && number(s, "epochs", &of)) add(line, width, "epoch %.0f/%.0f", v, of);
    if (number(s, "done", &v)) add(line, width, "%.1f %%", 100 * v);
    if (number(s, "frames_per_s", &v)) add(line, width, "%.0f frames/s", v);
    if (number(s, "loss", &v)) add(line, width, "loss %.3f", v);
    if (number(s, "dev_accuracy", &v)) add(line, width, "dev %.2f %%", 100 * v);
    if (number(s, "eta_s", &v) && v >= 0) add_time_left(line, width, v);
    add_workers(line, width, json_object_get(s, "workers"));
    add_staleness(line, width, json_object_get(s, "shards"));
}

static size_t columns(const struct progress *p)
{
    struct winsize w;
    bool known = ioctl(fileno(p->o.to), TIOCGWINSZ, &w) == 0 && w.ws_col > 1;
    return known ? w.ws_col - 1u : 79u;
}

static void hide_live(struct progress *p)
{
    if (p->live) fputs("\r\033[K", p->o.to);
    p->live = false;
}

static void show_line(struct progress *p, uint64_t now)
{
    char line[MAX_LINE];
    if (p->o.quiet || (!p->o.is_terminal && now < p->next_plain)) return;
    make_line(p->status, p->o.is_terminal ? columns(p) : MAX_LINE - 1, line);
    if (!line[0]) return;
    if (p->o.is_terminal)
        fprintf(p->o.to, "\r%s\033[K", line);
    else
        fprintf(p->o.to, "%s\n", line);
    fflush(p->o.to);
    p->live = p->o.is_terminal;
    p->next_plain = now + p->o.plain_ns;
}

/* ------------------------------------------------------------------ epochs */

static void tell_epoch(struct progress *p, const json_t *row)
{
    char line[MAX_LINE] = "";
    double v;
    hide_live(p);
    if (number(row, "epoch", &v)) add(line, MAX_LINE, "epoch %.0f ended:", v);
    if (number(row, "train_loss", &v)) add(line, MAX_LINE, "train loss %.4f", v);
    if (number(row, "dev_loss", &v)) add(line, MAX_LINE, "dev loss %.4f", v);
    if (number(row, "dev_accuracy", &v)) add(line, MAX_LINE, "dev accuracy %.2f %%", 100 * v);
    if (number(row, "rate", &v)) add(line, MAX_LINE, "rate %.4g", v);
    fprintf(p->o.to, "%s\n", line);
    fflush(p->o.to);
}

/* In order; one whose evaluation is still under way holds the later ones back unless `all`. */
static void tell_epochs(struct progress *p, bool all)
{
    const json_t *rows = json_object_get(p->status, "epochs_done");
    for (double v; p->epochs_told < json_array_size(rows); p->epochs_told++) {
        const json_t *row = json_array_get(rows, p->epochs_told);
        if (!all && p->o.has_dev && !number(row, "dev_accuracy", &v)) return;
        if (!p->o.quiet) tell_epoch(p, row);
    }
}

/* ------------------------------------------------------------------ from outside */

struct progress *progress_new(const struct progress_options *o)
{
    struct progress *p = xcalloc(1, sizeof *p);
    p->o = *o;
    p->path = files_join(o->run, "status.json");
    look(p->path, &p->seen);
    return p;
}

void progress_free(struct progress **p)
{
    if (!*p) return;
    json_decref((*p)->status);
    json_decref((*p)->shards);
    free((*p)->path);
    free(*p);
    *p = NULL;
}

void progress_tick(struct progress *p, uint64_t now)
{
    if (now < p->next_look) return;
    p->next_look = now + LOOK_NS;
    refresh(p);
    if (!p->status) return;
    tell_epochs(p, false);
    show_line(p, now);
}

void progress_say(struct progress *p, bool matters, const char *format, ...)
{
    va_list args;
    if (p->o.quiet && !matters) return;
    hide_live(p);
    va_start(args, format);
    vfprintf(p->o.to, format, args);
    va_end(args);
    fputc('\n', p->o.to);
    fflush(p->o.to);
}

void progress_end(struct progress *p)
{
    refresh(p);
    if (p->status) tell_epochs(p, true);
    hide_live(p);
    fflush(p->o.to);
}

/* ------------------------------------------------------------------ summary */

static void cell_text(const json_t *row, const char *key, char out[24])
{
    double v;
    snprintf(out, 24, "-");
    if (number(row, key, &v)) snprintf(out, 24, fabs(v) < 1e15 ? "%.0f" : "%.3g", v);
}

static void print_shards(const json_t *shards, FILE *to)
{
    static const struct {
        const char *key, *title;
        int width;
    } columns_of[] = {{"shard", "shard", 5},    {"p50", "staleness p50", 15}, {"p95", "p95", 6},
                      {"max", "max", 6},        {"version", "version", 11},   {"applied", "applied", 11},
                      {"refused", "refused", 9}};
    size_t n = sizeof columns_of / sizeof columns_of[0];
    char cell[24];
    if (json_array_size(shards) == 0) return;
    for (size_t k = 0; k < n; k++) fprintf(to, "%*s", columns_of[k].width, columns_of[k].title);
    fputc('\n', to);
    for (size_t i = 0; i < json_array_size(shards); i++) {
        for (size_t k = 0; k < n; k++) {
            cell_text(json_array_get(shards, i), columns_of[k].key, cell);
            fprintf(to, "%*s", columns_of[k].width, cell);
        }
        fputc('\n', to);
    }
}

void progress_summary(const struct progress *p, double seconds, FILE *to)
{
    const char *run = p->o.run;
    const json_t *s = p->status;
    char line[MAX_LINE] = "";
    double v;
    add(line, MAX_LINE, "%.100s is trained:", run);
    if (number(s, "epochs", &v)) add(line, MAX_LINE, "%.0f epochs", v);
    if (number(s, "dev_accuracy", &v)) add(line, MAX_LINE, "dev accuracy %.2f %%", 100 * v);
    if (number(s, "dev_loss", &v)) add(line, MAX_LINE, "dev loss %.4f", v);
    if (number(s, "loss", &v)) add(line, MAX_LINE, "train loss %.4f", v);
    add(line, MAX_LINE, "%.0f s", seconds);
    fprintf(to, "%s\n\n", line);
    print_shards(p->shards, to);
    fprintf(to,
            "\nwhere to look next:\n"
            "  chorale status %s                         every epoch, shard and worker\n"
            "  chorale eval %s --data DIR                cross entropy and frame accuracy\n"
            "  chorale score %s scp:feats.scp ark:out    log-posteriors for a decoder\n"
            "  %s/final.safetensors, %s/logs, %s/staleness\n",
            run, run, run, run, run, run);
    fflush(to);
}
