#include "deploy/progress.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"
#include "deploy/line.h"
#include "deploy/told.h"

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
    char told_change[128]; /* what was said of it last */
    size_t width, steps;   /* of the line: columns, and how far it is narrowed */
    bool live;             /* it is on the screen */
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

/* ------------------------------------------------------------------ the line */

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
    char line[LINE_BYTES];
    if (p->o.quiet || (!p->o.is_terminal && now < p->next_plain)) return;
    size_t width = p->o.is_terminal ? columns(p) : LINE_BYTES - 1;
    if (width != p->width) p->steps = 0;
    line_make(p->status, p->width = width, &p->steps, line);
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
__attribute__((format(printf, 2, 3))) static void add(char line[LINE_BYTES], const char *format, ...)
{
    size_t have = strlen(line);
    if (have && have + 3 < LINE_BYTES) have += (size_t)snprintf(line + have, LINE_BYTES - have, "  ");
    va_list args;
    va_start(args, format);
    vsnprintf(line + have, LINE_BYTES - have, format, args);
    va_end(args);
}

/* Row `i` of the epochs that are done. */
static void tell_epoch(struct progress *p, const json_t *rows, size_t i)
{
    const json_t *row = json_array_get(rows, i);
    char line[LINE_BYTES] = "";
    double v, of, before;
    hide_live(p);
    if (!told_number(p->status, "epochs", &of)) of = 0;
    if (told_number(row, "epoch", &v))
        add(line, of > 0 ? "epoch %*.0f/%.0f" : "epoch %*.0f", line_digits(of), v, of);
    if (told_number(row, "train_loss", &v)) add(line, "loss %.4f", v);
    if (told_number(row, "dev_loss", &v)) add(line, "dev loss %.4f", v);
    if (told_number(row, "dev_accuracy", &v)) {
        add(line, "dev %.2f %%", 100 * v);
        if (line_dev_before(rows, i, &before))
            add(line, "%+6.2f", 100 * (v - before));
        else
            add(line, "      ");
    }
    if (told_number(row, "rate", &v)) add(line, "rate %.3g", v);
    fprintf(p->o.to, "%s\n", line);
    fflush(p->o.to);
}

/* The rows from `i` on that can be told now: one whose evaluation is under way holds back those after it. */
static size_t epochs_ready(const struct progress *p, const json_t *rows, size_t i)
{
    for (double v; i < json_array_size(rows); i++)
        if (p->o.has_dev && !told_number(json_array_get(rows, i), "dev_accuracy", &v)) break;
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

/* Once, when it is asked for. */
static void tell_change(struct progress *p)
{
    char text[sizeof p->told_change];
    told_change(p->status, text, sizeof text);
    if (strcmp(text, p->told_change) == 0) return;
    memcpy(p->told_change, text, sizeof text);
    if (text[0]) progress_say(p, false, "%s: %s", p->o.run, text);
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
    tell_change(p);
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

static void print_cell(const json_t *row, const char *key, int places, int width, FILE *to)
{
    double v;
    if (!told_number(row, key, &v))
        fprintf(to, "%*s", width, "-");
    else
        fprintf(to, fabs(v) < 1e15 ? "%*.*f" : "%*.*g", width, places, v);
}

static void print_shards(const json_t *status, const json_t *shards, FILE *to)
{
    static const struct {
        const char *key, *title;
        int width, places;
    } columns_of[] = {
        {"shard", "shard", 5, 0},     {"p50", "staleness p50", 15, 0}, {"p95", "p95", 6, 0},
        {"max", "max", 6, 0},         {"version", "version", 11, 0},   {"applied", "applied", 11, 0},
        {"refused", "refused", 9, 0}, {"waits", "waits", 9, 0},        {"wait_s", "wait s", 9, 1}};
    size_t n = sizeof columns_of / sizeof columns_of[0];
    if (json_array_size(shards) == 0) return;
    if (!told_waits(status, shards)) n -= 2;
    for (size_t k = 0; k < n; k++) fprintf(to, "%*s", columns_of[k].width, columns_of[k].title);
    fputc('\n', to);
    for (size_t i = 0; i < json_array_size(shards); i++) {
        const json_t *row = json_array_get(shards, i);
        for (size_t k = 0; k < n; k++)
            print_cell(row, columns_of[k].key, columns_of[k].places, columns_of[k].width, to);
        fputc('\n', to);
    }
}

void progress_summary(const struct progress *p, double seconds, FILE *to)
{
    const char *run = p->o.run;
    const json_t *s = p->status;
    const char *command = p->o.command ? p->o.command : "chorale", *data = p->o.data ? p->o.data : "DIR";
    char line[LINE_BYTES] = "";
    double v;
    if (told_number(s, "epochs", &v)) add(line, "%.0f epochs", v);
    if (told_number(s, "loss", &v)) add(line, "loss %.4f", v);
    if (told_number(s, "dev_loss", &v)) add(line, "dev loss %.4f", v);
    if (told_number(s, "dev_accuracy", &v)) add(line, "dev accuracy %.2f %%", 100 * v);
    if (seconds >= 0)
        add(line, seconds < 100 ? "%.0f s" : "%.1f min", seconds < 100 ? seconds : seconds / 60);
    fprintf(to, "%s is trained\n%s\n\n", run, line);
    print_shards(p->status, p->shards, to);
    fprintf(to,
            "\nthe model: %s/final.safetensors; beside it logs/ and staleness/\n"
            "every epoch, shard and worker:\n  %s status %s\n"
            "cross entropy and frame accuracy:\n  %s eval %s --data %s\n"
            "log-posteriors for a decoder:\n  %s score %s scp:%s/feats.scp ark:post.ark\n",
            run, command, run, command, run, data, command, run, data);
    fflush(to);
}
