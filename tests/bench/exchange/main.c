/* The exchange of blocks between workers and servers over loopback TCP, and beside it in the same run what it
 * is held against. A table for people, build/bench/exchange.json for programs; that a goal is missed is told,
 * and no failure. `exchange PART...` measures these parts alone: ratios, shapes, crowds, cold. */
#include "common/clock.h"
#include "common/err.h"
#include "tests/bench/exchange/cluster.h"
#include "tests/bench/exchange/parts.h"

#include <stdio.h>
#include <string.h>

#define CROWD_MIB                                                                                            \
    (2 * CLUSTER_BYTES / 1048576.0 + 256 * 4) /* weights, momentum, four blocks for each worker */

static const struct goal goals[] = {
    {"push_pull_over_zmq_oneway", '>', 0.40},
    {"exchange_over_echo_plus_update", '}', 1.15},
    {"page_faults_per_exchange", '<', 50},
    {"tiny_p50_over_zmq", '}', 1.2},
    {"apply_over_kernel", '>', 0.9},
    {"server_mib_256_workers", '<', CROWD_MIB},
    {"cold_starts_ok", '>', 20},
    {"bf16_bytes_over_fp32", '}', 0.51},
    {"bf16_time_over_fp32", '}', 0.75},
};

static const struct {
    const char *name;
    bool (*measure)(struct figures *f);
} parts[] = {
    {"ratios", ratios_measure},
    {"shapes", shapes_measure},
    {"crowds", crowds_measure},
    {"cold", crowds_cold_starts},
};

static bool is_wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0) return true;
    return argc < 2;
}

int main(int argc, char **argv)
{
    static struct figures figures;
    uint64_t start = clock_now_ns();
    printf("exchange of %d floats, credit %d, loopback TCP, momentum applied; medians\n"
           "servers on the first CPU, workers on the last, as on two hosts; crowds where the scheduler "
           "likes\n\n",
           CLUSTER_FLOATS, CLUSTER_CREDIT);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (is_wanted(parts[i].name, argc, argv) && !parts[i].measure(&figures))
            return err_report("exchange", err_set(ERR_FAIL, "a process of the bench has failed"));
    figures_judge(&figures, goals, (int)(sizeof goals / sizeof *goals));
    printf("\n%.0f s\n", (double)(clock_now_ns() - start) / 1e9);
    int err = figures_write(&figures, "build/bench/exchange.json");
    return err ? err_report("exchange", err) : 0;
}
