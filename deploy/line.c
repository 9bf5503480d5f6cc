#include "deploy/line.h"

#include "deploy/told.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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

int line_digits(double v)
{
    return snprintf(NULL, 0, "%.0f", v);
}

bool line_dev_before(const json_t *rows, size_t i, double *out)
{
    while (i-- > 0)
        if (told_number(json_array_get(rows, i), "dev_accuracy", out)) return true;
    return false;
}

static void put_dev(struct line *l, const json_t *s)
{
    const json_t *rows = json_object_get(s, "epochs_done");
    double v, before;
    size_t n = json_array_size(rows);
    if (!told_number(s, "dev_accuracy", &v)) return;
    while (n > 0 && !told_number(json_array_get(rows, n - 1), "dev_accuracy", &before)) n--;
    if (n > 0 && line_dev_before(rows, n - 1, &before))
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
    else if (!told_number(s, "eta_s", &v) || v < 0)
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
    if (!json_is_array(workers)) return;
    size_t live = told_live(workers);
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
            if (told_number(s, keys[k], &v) && v > most[k]) most[k] = v;
    }
    if (most[0] < 0) return;
    put(l, STALENESS, 0, "staleness p50/p95/max %.0f/%.0f/%.0f", most[0], most[1], most[2]);
    put(l, STALENESS, 1, "staleness %.0f/%.0f/%.0f", most[0], most[1], most[2]);
    put(l, STALENESS, 2, "stale %.0f/%.0f/%.0f", most[0], most[1], most[2]);
}

static void put_epoch(struct line *l, const json_t *s)
{
    double v, of;
    if (told_number(s, "epoch", &v) && told_number(s, "epochs", &of)) {
        put(l, EPOCH, 0, "epoch %*.0f/%.0f", line_digits(of), v, of);
        put(l, EPOCH, 1, "epoch %.0f/%.0f", v, of);
        put(l, EPOCH, 2, "ep %.0f/%.0f", v, of);
    }
    if (told_number(s, "done", &v)) {
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
static size_t join(const struct line *l, char out[LINE_BYTES])
{
    size_t n = 0;
    out[0] = '\0';
    for (int p = 0; p < PIECES; p++) {
        const char *piece = l->text[p][l->level[p]];
        if (!piece[0] || n + strlen(piece) + 3 > LINE_BYTES) continue;
        n += (size_t)snprintf(out + n, LINE_BYTES - n, "%s%s", n ? "  " : "", piece);
    }
    return n;
}

void line_make(const json_t *s, size_t width, size_t *steps, char out[LINE_BYTES])
{
    struct line l = {0};
    double v;
    put_epoch(&l, s);
    if (told_number(s, "frames_per_s", &v) && v >= 1) put_rate(&l, v);
    if (told_number(s, "loss", &v)) {
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
