#include "tests/bench/exchange/cluster.h"
#include "tests/bench/exchange/parts.h"

#include <stdio.h>

#define REPEATS   5
#define WARM_UP   3
#define EXCHANGES 3 /* of each worker, in one repeat */

static void measure(struct figures *f, const struct cluster *c, const char *prefix)
{
    char name[64];
    struct cluster_run r = cluster_exchange(c, EXCHANGES);
    double gb = (double)r.exchanges * CLUSTER_BYTES / 1e9;
    const struct {
        const char *what, *unit;
        double value;
    } rows[] = {{"gb_per_s", "GB/s", gb / r.seconds},
                {"cpu_server", "CPU s per GB", r.cpu_server / gb},
                {"cpu_worker", "CPU s per GB", r.cpu_worker / gb},
                {"faults_server", "per exchange", r.faults_server},
                {"faults_worker", "per exchange", r.faults_worker}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(name, sizeof name, "%s_%s", prefix, rows[i].what);
        figures_add(f, name, rows[i].unit, rows[i].value);
    }
}

static double median(const struct figures *f, const char *prefix, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "%s_%s", prefix, what);
    return figures_median(f, name);
}

static bool measure_shape(struct figures *f, int servers, int workers, uint32_t kib)
{
    char prefix[32];
    struct cluster_setup setup = {.blocks =
                                      cluster_blocks(CLUSTER_FLOATS, kib * 1024 / (uint32_t)sizeof(float)),
                                  .servers = servers,
                                  .crowds = workers,
                                  .in_crowd = 1,
                                  .is_apart = true};
    struct cluster c = cluster_start(&setup);
    snprintf(prefix, sizeof prefix, "shape_%d_%d_%uk", servers, workers, kib);
    cluster_exchange(&c, WARM_UP);
    for (int i = 0; i < REPEATS; i++) measure(f, &c, prefix);
    printf("%d + %d %8u KiB %8.2f %14.2f %7.2f %13.1f %7.1f\n", servers, workers, kib,
           median(f, prefix, "gb_per_s"), median(f, prefix, "cpu_server"), median(f, prefix, "cpu_worker"),
           median(f, prefix, "faults_server"), median(f, prefix, "faults_worker"));
    return cluster_stop(&c);
}

bool shapes_measure(struct figures *f)
{
    static const int shapes[][2] = {{1, 1}, {1, 2}, {2, 2}};
    static const uint32_t blocks[] = {64, 256, 1024};
    bool ok = true;
    printf("\nservers + workers, block, push+pull GB/s, CPU s per GB: servers, workers; page faults per "
           "exchange: "
           "server, worker\n");
    for (int s = 0; s < 3; s++)
        for (int b = 0; b < 3; b++) ok = measure_shape(f, shapes[s][0], shapes[s][1], blocks[b]) && ok;
    return ok;
}
