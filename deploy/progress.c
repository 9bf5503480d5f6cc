#include "deploy/progress.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAX_STATUS (64u << 20)
#define LOOK_NS    500000000ull
#define NEWS_NS    (20 * NS_PER_S) /* without any: something is wrong */
#define LITTLE     (1u << 20)      /* bytes left on a disk that is as good as full */
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
    uint64_t next_look, next_plain, news_at; /* ns */
    bool told_silence;
    size_t width, steps; /* of the line: columns, and how far it is narrowed */
    bool live;           /* it is on the screen */
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
    if (epochs < p->epochs_told) p->epochs_told = epochs; /* a restore went back */
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

#define LEVELS 4
#define PIECE  64
enum piece { EPOCH, DONE, RATE, LOSS, DEV, LEFT, WORKERS, STALENESS, PIECES };

/* The pieces of the live line, each in some forms from the widest to none at all. */
struct line {
    char text[PIECES][LEVELS][PIECE];
    unsigned level[PIECES]; /* the form that is shown */
};

/* What is shortened, and then left out, first where columns are few: a piece and its form from then on. */
static const struct {
    enum piece piece;
    unsigned level;
} narrower[] = {
    {STALENESS, 1}, {DEV, 1},  {RATE, 1},  {STALENESS, 2}, {WORKERS, 1}, {EPOCH, 1},
    {DONE, 1},      {DEV, 2},  {EPOCH, 2}, {LOSS, 1},      {DONE, 2},    {WORKERS, 3},
    {STALENESS, 3}, {LOSS, 3}, {LEFT, 3},  {DEV, 3},       {RATE, 3},
};

/* The form from `level` on, down to the last but one: the last is empty. */
__attribute__((format(printf, 4, 5))) static void put(struct line *l, enum piece p, unsigned level,
                                                      const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(l->text[p][level], PIECE, format, args);
    va_end(args);
    for (unsigned i = level + 1; i + 1 < LEVELS; i++) memcpy(l->text[p][i], l->text[p][level], PIECE);
}

static int digits(double v)
{
    return snprintf(NULL, 0, "%.0f", v);
}

/* Accuracy of the evaluated epoch before row `i`. */
static bool dev_before(const json_t *rows, size_t i, double *out)
{
    while (i-- > 0)
        if (number(json_array_get(rows, i), "dev_accuracy", out)) return true;
    return false;
}

static void put_dev(struct line *l, const json_t *s)
{
    const json_t *rows = json_object_get(s, "epochs_done");
    double v, before;
    size_t n = json_array_size(rows);
    if (!number(s, "dev_accuracy", &v)) return;
    while (n > 0 && !number(json_array_get(rows, n - 1), "dev_accuracy", &before)) n--;
    if (n > 0 && dev_before(rows, n - 1, &before))
        put(l, DEV, 0, "dev %.2f %% (%+.2f)", 100 * v, 100 * (v - before));
    else
        put(l, DEV, 0, "dev %.2f %%", 100 * v);
    put(l, DEV, 1, "dev %.2f %%", 100 * v);
    put(l, DEV, 2, "dev %.1f%%", 100 * v);
}

static void put_left(struct line *l, const json_t *s)
{
    const char *state = json_string_value(json_object_get(s, "state"));
    double v;
    bool settled = !state || strcmp(state, "running") == 0;
    if (state && strcmp(state, "ending") == 0)
        put(l, LEFT, 0, "last evaluation");
    else if (!settled && strspn(state, "abcdefghijklmnopqrstuvwxyz") == strlen(state))
        put(l, LEFT, 0, "%.20s", state);
    else if (!number(s, "eta_s", &v) || v < 0)
        return;
    else if (v < 100)
        put(l, LEFT, 0, "%.0f s left", v);
    else if (v < 6000)
        put(l, LEFT, 0, "%.0f min left", v / 60);
    else
        put(l, LEFT, 0, "%.1f h left", v / 3600);
}

static void put_workers(struct line *l, const json_t *workers)
{
    size_t i, live = 0;
    const json_t *w;
    if (!json_is_array(workers)) return;
    json_array_foreach(workers, i, w)
    {
        const char *state = json_string_value(json_object_get(w, "state"));
        if (state && (strcmp(state, "live") == 0 || strcmp(state, "holding") == 0)) live++;
    }
    put(l, WORKERS, 0, "%zu worker%s", live, live == 1 ? "" : "s");
    put(l, WORKERS, 1, "%zu w", live);
}

/* Of the shard that is worst in each number. */
static void put_staleness(struct line *l, const json_t *shards)
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
    if (most[0] < 0) return;
    put(l, STALENESS, 0, "staleness p50/p95/max %.0f/%.0f/%.0f", most[0], most[1], most[2]);
    put(l, STALENESS, 1, "staleness %.0f/%.0f/%.0f", most[0], most[1], most[2]);
    put(l, STALENESS, 2, "stale %.0f/%.0f/%.0f", most[0], most[1], most[2]);
}

static void put_epoch(struct line *l, const json_t *s)
{
    double v, of;
    if (number(s, "epoch", &v) && number(s, "epochs", &of)) {
        put(l, EPOCH, 0, "epoch %*.0f/%.0f", digits(of), v, of);
        put(l, EPOCH, 1, "epoch %.0f/%.0f", v, of);
        put(l, EPOCH, 2, "ep %.0f/%.0f", v, of);
    }
    if (number(s, "done", &v)) {
        put(l, DONE, 0, "%4.1f %%", 100 * v);
        put(l, DONE, 1, "%.1f%%", 100 * v);
        put(l, DONE, 2, "%.0f%%", 100 * v);
    }
}

static void put_rate(struct line *l, double v)
{
    const char *unit = v < 1e6 ? "" : "M";
    int places = v < 1e6 ? 0 : 2;
    if (v >= 1e6) v /= 1e6;
    put(l, RATE, 0, "%.*f%s frames/s", places, v, unit);
    put(l, RATE, 1, "%.*f%s f/s", places, v, unit);
}

/* Returns its length. */
static size_t join(const struct line *l, char out[MAX_LINE])
{
    size_t n = 0;
    out[0] = '\0';
    for (int p = 0; p < PIECES; p++) {
        const char *piece = l->text[p][l->level[p]];
        if (!piece[0] || n + strlen(piece) + 3 > MAX_LINE) continue;
        n += (size_t)snprintf(out + n, MAX_LINE - n, "%s%s", n ? "  " : "", piece);
    }
    return n;
}

/* *steps: how far it had to be narrowed so far; it stays so, for an even look. */
static void make_line(const json_t *s, size_t width, size_t *steps, char out[MAX_LINE])
{
    struct line l = {0};
    double v;
    put_epoch(&l, s);
    if (number(s, "frames_per_s", &v) && v >= 1) put_rate(&l, v);
    if (number(s, "loss", &v)) {
        put(&l, LOSS, 0, "loss %.3f", v);
        if (v >= 0.1) put(&l, LOSS, 1, "loss %.2f", v);
    }
    put_dev(&l, s);
    put_left(&l, s);
    put_workers(&l, json_object_get(s, "workers"));
    put_staleness(&l, json_object_get(s, "shards"));
    size_t most = sizeof narrower / sizeof narrower[0], i = 0;
    for (; (join(&l, out) > width || i < *steps) && i < most; i++)
        l.level[narrower[i].piece] = narrower[i].level;
    *steps = i;
    if (strlen(out) > width) out[width] = '\0';
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
    size_t width = p->o.is_terminal ? columns(p) : MAX_LINE - 1;
    if (width != p->width) p->steps = 0;
    make_line(p->status, p->width = width, &p->steps, line);
    if (!line[0]) return;
    if (p->o.is_terminal)
        fprintf(p->o.to, "\r%s\033[K\r", line); /* the cursor in front: what is typed does not wrap */
    else
        fprintf(p->o.to, "%s\n", line);
    fflush(p->o.to);
    p->live = p->o.is_terminal;
    p->next_plain = now + p->o.plain_ns;
}

/* ------------------------------------------------------------------ epochs */

/* Adds a piece of a line that stays. */
__attribute__((format(printf, 2, 3))) static void add(char line[MAX_LINE], const char *format, ...)
{
    size_t have = strlen(line);
    if (have && have + 3 < MAX_LINE) have += (size_t)snprintf(line + have, MAX_LINE - have, "  ");
    va_list args;
    va_start(args, format);
    vsnprintf(line + have, MAX_LINE - have, format, args);
    va_end(args);
}

/* Row `i` of the epochs that are done. */
static void tell_epoch(struct progress *p, const json_t *rows, size_t i)
{
    const json_t *row = json_array_get(rows, i);
    char line[MAX_LINE] = "";
    double v, of, before;
    hide_live(p);
    if (!number(p->status, "epochs", &of)) of = 0;
    if (number(row, "epoch", &v)) add(line, of > 0 ? "epoch %*.0f/%.0f" : "epoch %*.0f", digits(of), v, of);
    if (number(row, "train_loss", &v)) add(line, "loss %.4f", v);
    if (number(row, "dev_loss", &v)) add(line, "dev loss %.4f", v);
    if (number(row, "dev_accuracy", &v)) {
        add(line, "dev %.2f %%", 100 * v);
        if (dev_before(rows, i, &before))
            add(line, "%+6.2f", 100 * (v - before));
        else
            add(line, "      ");
    }
    if (number(row, "rate", &v)) add(line, "rate %.3g", v);
    fprintf(p->o.to, "%s\n", line);
    fflush(p->o.to);
}

/* The rows from `i` on that can be told now: one whose evaluation is under way holds back those after it. */
static size_t epochs_ready(const struct progress *p, const json_t *rows, size_t i)
{
    for (double v; i < json_array_size(rows); i++)
        if (p->o.has_dev && !number(json_array_get(rows, i), "dev_accuracy", &v)) break;
    return i;
}

static void tell_epochs(struct progress *p, bool all)
{
    const json_t *rows = json_object_get(p->status, "epochs_done");
    size_t end = all ? json_array_size(rows) : epochs_ready(p, rows, p->epochs_told);
    for (; p->epochs_told < end; p->epochs_told++)
        if (!p->o.quiet) tell_epoch(p, rows, p->epochs_told);
}

/* ------------------------------------------------------------------ from outside */

struct progress *progress_new(const struct progress_options *o)
{
    struct progress *p = xcalloc(1, sizeof *p);
    p->o = *o;
    p->path = files_join(o->run, "status.json");
    if (!look(p->path, &p->seen)) return p;
    json_t *before = read_status(p->path);
    p->epochs_told = epochs_ready(p, json_object_get(before, "epochs_done"), 0);
    if (o->is_over) {
        p->status = json_incref(before);
        p->shards = json_incref(json_object_get(before, "shards"));
    }
    json_decref(before);
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

/* The coordinator writes its status twice a second, unless the disk is full or it is stuck. */
static void tell_silence(struct progress *p, uint64_t now)
{
    struct statvfs disk;
    if (p->told_silence || now - p->news_at < NEWS_NS) return;
    p->told_silence = true;
    if (statvfs(p->o.run, &disk) == 0 && disk.f_bavail < LITTLE / (disk.f_frsize ? disk.f_frsize : 1))
        progress_say(p, true, "the disk of %s is full: checkpoints cannot be written until there is space",
                     p->o.run);
    else
        progress_say(p, true, "no news for %u s; see %s/logs/coordinator.err", (unsigned)(NEWS_NS / NS_PER_S),
                     p->o.run);
}

void progress_tick(struct progress *p, uint64_t now)
{
    if (now < p->next_look) return;
    p->next_look = now + LOOK_NS;
    if (refresh(p) || !p->news_at) {
        p->news_at = now;
        p->told_silence = false;
    }
    tell_silence(p, now);
    if (!p->status || p->told_silence) return;
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
    const char *command = p->o.command ? p->o.command : "chorale", *data = p->o.data ? p->o.data : "DIR";
    char line[MAX_LINE] = "";
    double v;
    if (number(s, "epochs", &v)) add(line, "%.0f epochs", v);
    if (number(s, "loss", &v)) add(line, "loss %.4f", v);
    if (number(s, "dev_loss", &v)) add(line, "dev loss %.4f", v);
    if (number(s, "dev_accuracy", &v)) add(line, "dev accuracy %.2f %%", 100 * v);
    if (seconds >= 0)
        add(line, seconds < 100 ? "%.0f s" : "%.1f min", seconds < 100 ? seconds : seconds / 60);
    fprintf(to, "%s is trained\n%s\n\n", run, line);
    print_shards(p->shards, to);
    fprintf(to,
            "\nthe model: %s/final.safetensors; beside it logs/ and staleness/\n"
            "every epoch, shard and worker:\n  %s status %s\n"
            "cross entropy and frame accuracy:\n  %s eval %s --data %s\n"
            "log-posteriors for a decoder:\n  %s score %s scp:%s/feats.scp ark:post.ark\n",
            run, command, run, command, run, data, command, run, data);
    fflush(to);
}
