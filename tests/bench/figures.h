/* What a bench has measured, by name: medians for people, a file for programs. */
#ifndef BENCH_FIGURES_H
#define BENCH_FIGURES_H

#define FIGURES_MAX    320
#define FIGURES_VALUES 32

struct figure {
    char name[64];
    const char *unit;
    double values[FIGURES_VALUES];
    int count;
};

struct figures {
    struct figure all[FIGURES_MAX];
    int count;
};

/* What a figure is to be: '<' below, '>' at least, '}' at most. */
struct goal {
    const char *name;
    char sense;
    double limit;
};

/* One more value of that name. */
void figures_add(struct figures *f, const char *name, const char *unit, double value);
/* NaN: never measured. */
double figures_median(const struct figures *f, const char *name);
/* One line for each goal: median, range, and whether it holds. Returns how many do not. */
int figures_judge(const struct figures *f, const struct goal *goals, int n);
/* {"figures": {NAME: {"median":, "min":, "max":, "unit":}}}; 0 or an error of files.h. */
int figures_write(const struct figures *f, const char *path);

#endif
