/* chorale-simulate: the cluster in virtual time, from one seed. */
#include "common/err.h"
#include "common/log.h"
#include "tests/sim/sim.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char under_way[96]; /* what a failed assertion leaves behind */

static void on_abort(int number)
{
    (void)number;
    ssize_t n = write(STDOUT_FILENO, under_way, strlen(under_way));
    (void)n;
}

static int usage(void)
{
    fprintf(
        stderr,
        "usage: chorale-simulate [--seed N | --seeds FROM:COUNT] [--plant NAME] [--until-broken] "
        "[--verbose]\n"
        "The whole cluster in one process and in virtual time, with faults; exit 1 if an invariant breaks.\n"
        "plants:");
    for (int i = 1; i < PLANTS; i++) fprintf(stderr, " %s", plant_names[i]);
    fprintf(stderr, "\n");
    return 2;
}

static int run_all(uint64_t from, uint64_t count, enum plant plant, bool until_broken, bool verbose)
{
    uint64_t broken = 0, seed = from;
    for (; seed < from + count && !(until_broken && broken); seed++) {
        snprintf(under_way, sizeof under_way, "  again: chorale-simulate --seed %lu%s%s --verbose\n",
                 (unsigned long)seed, plant ? " --plant " : "", plant ? plant_names[plant] : "");
        if (run_seed(seed, plant, verbose) < 0) broken++;
        fflush(stdout);
    }
    printf("%lu seeds, %lu broken\n", (unsigned long)(seed - from), (unsigned long)broken);
    return broken ? 1 : 0;
}

int main(int argc, char **argv)
{
    unsigned long from = 1, count = 1;
    enum plant plant = PLANT_NONE;
    bool verbose = false, until_broken = false;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--verbose")) {
            verbose = true;
        } else if (!strcmp(argv[i], "--until-broken")) {
            until_broken = true;
        } else if (!strcmp(argv[i], "--seed") && sscanf(value, "%lu", &from) == 1) {
            i++;
        } else if (!strcmp(argv[i], "--seeds") && sscanf(value, "%lu:%lu", &from, &count) == 2) {
            i++;
        } else if (!strcmp(argv[i], "--plant")) {
            int k = 1;
            while (k < PLANTS && strcmp(value, plant_names[k]) != 0) k++;
            if (k == PLANTS) return usage();
            plant = (enum plant)k;
            i++;
        } else {
            return usage();
        }
    }
    log_set_stderr(verbose ? LOG_INFO : LOG_NONE);
    signal(SIGABRT, on_abort);
    return run_all(from, count, plant, until_broken, verbose);
}
