/* chorale status: where a run stands, from RUN/status.json, which the coordinator rewrites all the time. A
 * field that is missing there is shown as "-". */
#include "common/err.h"
#include "common/files.h"
#include "deploy/run.h"
#include "deploy/told.h"

#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_STATUS (64u << 20)

/* A column of a table: where its value is in a row, and how it is printed. */
enum shape { WHOLE, TENTHS, COUNT, SECONDS, PERCENT, LOSS, RATE, TEXT };
struct column {
    const char *title, *key;
    enum shape shape;
    int width; /* negative: to the left */
};

static const struct column shard_columns[] = {
    {"shard", "shard", WHOLE, 5},     {"blocks", "blocks", WHOLE, 6},
    {"version", "version", COUNT, 9}, {"staleness p50", "p50", TENTHS, 13},
    {"p95", "p95", TENTHS, 4},        {"max", "max", TENTHS, 4},
    {"applied", "applied", COUNT, 9}, {"refused", "refused", COUNT, 7},
    {"waits", "waits", COUNT, 7},     {"wait s", "wait_s", TENTHS, 6},
    {"life", "generation", WHOLE, 4}, {"endpoint", "endpoint", TEXT, -1},
};
static const struct column worker_columns[] = {
    {"worker", "member", WHOLE, 6},
    {"frames/s", "frames_per_s", COUNT, 9},
    {"frames", "frames", COUNT, 11},
    {"staleness", "staleness_mean", TENTHS, 9},
    {"last seen", "last_seen_s", SECONDS, 9},
    {"state", "state", TEXT, -8},
    {"host", "host", TEXT, -1},
};
static const struct column epoch_columns[] = {
    {"epoch", "epoch", WHOLE, 5},
    {"train loss", "train_loss", LOSS, 10},
    {"dev loss", "dev_loss", LOSS, 10},
    {"dev accuracy", "dev_accuracy", PERCENT, 12},
    {"w/o silence", "dev_accuracy_speech", PERCENT, 11},
    {"rate", "rate", RATE, 9},
};
#define LENGTH(a)     (sizeof(a) / sizeof(a)[0])
#define SHARD_COLUMNS LENGTH(shard_columns)

static int print_help(void)
{
    puts("chorale status RUN [--json]\n"
         "\n"
         "  chorale status run1\n"
         "  chorale status run1 --json | jq .loss\n"
         "\n"
         "Prints where a run stands, and a line per epoch, shard and worker; of a run that\n"
         "has ended, what was known last. Staleness of an update: versions of the shard\n"
         "between the weights that a gradient was computed from and the weights that it\n"
         "was applied to. Life: how often the server of a shard was started. Waits: answers\n"
         "that ssp's bound, or a step of bsp, kept back, and for how long in all. --json\n"
         "tells also why updates were refused.");
    return 0;
}

/* Returns 1 if help was asked for. */
static int parse_arguments(int argc, char **argv, const char **run, bool *as_json)
{
    static const struct option names[] = {
        {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", names, NULL)) != -1;) {
        if (c == 'j')
            *as_json = true;
        else if (c == 'h')
            return 1;
        else
            return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale status --help`",
                           argv[optind - 1]);
    }
    if (optind + 1 != argc) return err_set(ERR_USAGE, "name one run: chorale status RUN");
    *run = argv[optind];
    return 0;
}

/* ------------------------------------------------------------------ values */

/* A span of time for people: 42 s, 12 min, 3.4 h. */
static void span_text(double seconds, char *out, size_t size)
{
    if (seconds < 120)
        snprintf(out, size, "%.0f s", seconds);
    else if (seconds < 7200)
        snprintf(out, size, "%.0f min", seconds / 60);
    else
        snprintf(out, size, "%.1f h", seconds / 3600);
}

static void value_text(const json_t *row, const char *key, enum shape shape, char *out, size_t size)
{
    double v;
    const char *text = json_string_value(json_object_get(row, key));
    snprintf(out, size, "-");
    if (text) told_plain(text, out, size);
    if (!told_number(row, key, &v)) return;
    if (shape == WHOLE || shape == COUNT)
        snprintf(out, size, "%.0f", v);
    else if (shape == TENTHS)
        snprintf(out, size, v == floor(v) ? "%.0f" : "%.1f", v);
    else if (shape == SECONDS)
        span_text(v, out, size);
    else if (shape == PERCENT)
        snprintf(out, size, "%.2f %%", 100 * v);
    else if (shape == LOSS)
        snprintf(out, size, "%.4f", v);
    else
        snprintf(out, size, "%.3g", v);
}

/* ------------------------------------------------------------------ the page */

static void print_table(const json_t *rows, const struct column *columns, size_t n)
{
    if (!json_is_array(rows) || json_array_size(rows) == 0) return;
    putchar('\n');
    for (size_t i = 0; i < n; i++) printf("%s%*s", i ? "  " : "", columns[i].width, columns[i].title);
    putchar('\n');
    for (size_t r = 0; r < json_array_size(rows); r++) {
        for (size_t i = 0; i < n; i++) {
            char text[128];
            value_text(json_array_get(rows, r), columns[i].key, columns[i].shape, text, sizeof text);
            printf("%s%*s", i ? "  " : "", columns[i].width, text);
        }
        putchar('\n');
    }
}

static void print_loss(const json_t *s, const char *key, const char *title)
{
    double v;
    if (told_number(s, key, &v)) printf("  %s %.4f", title, v);
}

static void print_job(const json_t *s, const char *run, const char *state)
{
    double epoch, epochs, v;
    char text[128];
    told_plain(state, text, sizeof text);
    printf("%s: %s", run, text);
    if (told_number(s, "epoch", &epoch) && told_number(s, "epochs", &epochs))
        printf(", epoch %.0f/%.0f", epoch, epochs);
    if (told_number(s, "done", &v)) printf(", %.1f %%", 100 * v);
    const json_t *checkpoint = json_object_get(s, "checkpoint");
    if (told_number(checkpoint, "set", &v)) {
        value_text(checkpoint, "age_s", SECONDS, text, sizeof text);
        printf(", checkpoint %.0f (%s old)", v, text);
    }
    putchar('\n');
}

static void print_numbers(const json_t *s)
{
    double v, done;
    char text[128];
    if (!told_number(s, "done", &done)) return;
    print_loss(s, "loss", "loss");
    print_loss(s, "dev_loss", "dev loss");
    if (told_number(s, "dev_accuracy", &v)) printf("  dev accuracy %.2f %%", 100 * v);
    if (told_number(s, "frames_per_s", &v) && v >= 1) printf("  %.0f frames/s", v);
    if (told_number(s, "eta_s", &v) && v > 0) {
        span_text(v, text, sizeof text);
        printf("  %s left", text);
    }
    putchar('\n');
}

/* How its workers wait for each other, and whether that is to change. */
static void print_mode(const json_t *s, bool alive)
{
    char mode[128], change[128];
    told_mode(s, mode, sizeof mode);
    told_change(s, change, sizeof change);
    size_t live = alive ? told_live(json_object_get(s, "workers")) : 0;
    if (!mode[0]) return;
    printf("  %s", mode);
    if (live) printf(", %zu worker%s", live, live == 1 ? "" : "s");
    printf(change[0] ? "; %s\n" : "%s\n", change);
}

/* What a run that has ended says of ages was true when its status was written. */
static void grow(json_t *object, const char *key, double seconds)
{
    double v;
    if (told_number(object, key, &v)) json_object_set_new(object, key, json_real(v + seconds));
}

static void grow_ages(json_t *s, double seconds)
{
    json_t *row;
    size_t i;
    grow(json_object_get(s, "checkpoint"), "age_s", seconds);
    json_array_foreach(json_object_get(s, "shards"), i, row) grow(row, "age_s", seconds);
    json_array_foreach(json_object_get(s, "workers"), i, row) grow(row, "last_seen_s", seconds);
}

/* Columns of the terminal; plenty where there is none. */
static size_t room(void)
{
    struct winsize w;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 1 ? w.ws_col : 1000;
}

/* Where nobody has to wait for anybody there is nothing to tell of it; endpoints only where there is room. */
static void print_shards(const json_t *s)
{
    struct column columns[SHARD_COLUMNS];
    const json_t *shards = json_object_get(s, "shards");
    bool waits = told_waits(s, shards);
    size_t n = 0;
    for (size_t i = 0; i < SHARD_COLUMNS; i++)
        if (waits || strncmp(shard_columns[i].key, "wait", 4) != 0) columns[n++] = shard_columns[i];
    print_table(shards, columns, n - (room() < (waits ? 125 : 108)));
}

static void print_page(json_t *s, const char *run, bool alive)
{
    const char *state = json_string_value(json_object_get(s, "state"));
    bool over = state && (strcmp(state, "finished") == 0 || strcmp(state, "never trained") == 0);
    print_job(s, run, state && (alive || over) ? state : "not running");
    print_numbers(s);
    print_mode(s, alive);
    print_table(json_object_get(s, "epochs_done"), epoch_columns, LENGTH(epoch_columns));
    print_shards(s);
    print_table(json_object_get(s, "workers"), worker_columns, LENGTH(worker_columns));
    if (!alive && !over) printf("\ngo on with: %s train %s\n", run_command(), run);
}

/* ------------------------------------------------------------------ where it comes from */

/* A run that was never trained has no status.json yet. *out is owned by the caller. */
static int read_status(const char *run, json_t **out)
{
    char *path = files_join(run, "status.json"), *text = NULL;
    size_t len = 0;
    json_error_t why;
    int rc = 0;
    *out = NULL;
    if (!files_exists(path)) {
        *out = json_pack("{s:s, s:s}", "run", run, "state", "never trained");
    } else if ((rc = files_read(path, MAX_STATUS, &text, &len)) == 0) {
        *out = json_loadb(text, len, 0, &why);
        if (!json_is_object(*out))
            rc =
                err_set(ERR_FAIL, "%s cannot be understood (%s); the coordinator writes it anew once it runs",
                        path, *out ? "not an object" : why.text);
    }
    if (rc == 0 && !*out) rc = err_set(ERR_FAIL, "out of memory");
    if (rc < 0) json_decref(*out);
    free(text);
    free(path);
    return rc;
}

/* Seconds since it was written. */
static double age_of_status(const char *run)
{
    char *path = files_join(run, "status.json");
    struct stat st;
    double age = stat(path, &st) == 0 ? difftime(time(NULL), st.st_mtime) : 0;
    free(path);
    return age > 0 ? age : 0;
}

static int show(const char *run, bool as_json)
{
    json_t *s;
    pid_t pid;
    uint64_t start;
    int rc = run_check(run);
    if (rc == 0) rc = read_status(run, &s);
    if (rc < 0) return rc;
    bool alive = run_launcher(run, &pid, &start) == 1;
    if (!alive) grow_ages(s, age_of_status(run));
    if (as_json) {
        json_object_set_new(s, "alive", json_boolean(alive));
        json_dumpf(s, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
        putchar('\n');
    } else {
        print_page(s, run, alive);
    }
    json_decref(s);
    return fflush(stdout) == 0 ? 0 : err_set(ERR_FAIL, "cannot write to the standard output");
}

int main(int argc, char **argv)
{
    const char *run = NULL;
    bool as_json = false;
    int rc = parse_arguments(argc, argv, &run, &as_json);
    if (rc == 1)
        rc = print_help();
    else if (rc == 0)
        rc = show(run, as_json);
    return err_report("chorale status", rc);
}
