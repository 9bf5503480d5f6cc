#include "tests/bench/figures.h"

#include "common/err.h"
#include "common/files.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LINE 256

static const struct figure *find(const struct figures *f, const char *name)
{
    for (int i = 0; i < f->count; i++)
        if (strcmp(f->all[i].name, name) == 0) return &f->all[i];
    return NULL;
}

void figures_add(struct figures *f, const char *name, const char *unit, double value)
{
    int at = 0;
    while (at < f->count && strcmp(f->all[at].name, name) != 0) at++;
    ASSERT(at < FIGURES_MAX && strlen(name) < sizeof f->all[at].name);
    struct figure *one = &f->all[at];
    if (at == f->count) {
        f->count++;
        strcpy(one->name, name);
        one->unit = unit;
    }
    ASSERT(one->count < FIGURES_VALUES);
    one->values[one->count++] = value;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct range {
    double low, median, high;
};

static struct range range_of(const struct figure *one)
{
    if (!one) return (struct range){NAN, NAN, NAN};
    struct figure sorted = *one;
    int n = sorted.count;
    qsort(sorted.values, (size_t)n, sizeof *sorted.values, by_value);
    return (struct range){sorted.values[0], sorted.values[n / 2], sorted.values[n - 1]};
}

double figures_median(const struct figures *f, const char *name)
{
    return range_of(find(f, name)).median;
}

static bool holds(const struct goal *g, double value)
{
    return g->sense == '>' ? value >= g->limit : g->sense == '}' ? value <= g->limit : value < g->limit;
}

int figures_judge(const struct figures *f, const struct goal *goals, int n)
{
    int missed = 0;
    printf("\n%-32s %9s  %-22s %-10s\n", "figure", "median", "(min .. max)", "goal");
    for (int i = 0; i < n; i++) {
        const struct goal *g = &goals[i];
        const struct figure *one = find(f, g->name);
        if (!one) continue; /* its part was not asked for */
        struct range r = range_of(one);
        char spread[64];
        bool ok = holds(g, r.median);
        snprintf(spread, sizeof spread, "(%.3g .. %.3g)", r.low, r.high);
        printf("%-32s %9.3f  %-22s %s %-7g %s\n", g->name, r.median, spread,
               g->sense == '>'   ? ">="
               : g->sense == '}' ? "<="
                                 : "< ",
               g->limit, ok ? "holds" : "MISSED");
        missed += !ok;
    }
    return missed;
}

int figures_write(const struct figures *f, const char *path)
{
    char *text = xcalloc((size_t)f->count + 2, MAX_LINE), *at = text;
    at += sprintf(at, "{\"figures\": {\n");
    for (int i = 0; i < f->count; i++) {
        struct range r = range_of(&f->all[i]);
        at += snprintf(at, MAX_LINE,
                       "  \"%s\": {\"median\": %.6g, \"min\": %.6g, \"max\": %.6g, \"unit\": \"%s\"}%s\n",
                       f->all[i].name, r.median, r.low, r.high, f->all[i].unit, i + 1 < f->count ? "," : "");
    }
    at += sprintf(at, "}}\n");
    int err = files_make_dirs("build/bench");
    if (!err) err = files_write_atomic(path, text, (size_t)(at - text));
    free(text);
    return err;
}
