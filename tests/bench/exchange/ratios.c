#include "common/err.h"
#include "tests/bench/exchange/anchors.h"
#include "tests/bench/exchange/cluster.h"
#include "tests/bench/exchange/parts.h"

#include <stdio.h>
#include <string.h>

#define REPEATS   11
#define WARM_UP   4
#define EXCHANGES 5   /* in one repeat, of each kind */
#define TINY      200 /* in one slice */
#define SLICES    15
#define GB        (CLUSTER_BYTES / 1e9)
#define HASHES    4 /* of one exchange: before and after both ways */

enum stream { TCP, ONE_WAY, ECHO, TINY_ECHO, STREAMS };

struct lanes {
    struct cluster typed[ELEMENT_TYPES], tiny;
    struct anchor stream[STREAMS];
    struct process kernels, cores;
};

static struct lanes start(void)
{
    struct lanes l;
    memset(&l, 0, sizeof l);
    struct cluster_setup setup = {.blocks = cluster_blocks(CLUSTER_FLOATS, BLOCKS_MAX_FLOATS),
                                  .servers = 1,
                                  .crowds = 1,
                                  .in_crowd = 1,
                                  .is_apart = true};
    for (int t = 0; t < ELEMENT_TYPES; t++) {
        setup.type = (enum element_type)t;
        l.typed[t] = cluster_start(&setup);
    }
    setup.type = ELEMENT_FP32;
    setup.blocks = cluster_blocks(1, 1);
    l.tiny = cluster_start(&setup);
    struct anchor_setup big = {
        .bytes = CLUSTER_BYTES, .block = BLOCKS_MAX_FLOATS * sizeof(float), .is_apart = true};
    struct anchor_setup one = {.bytes = sizeof(float), .block = sizeof(float), .is_apart = true};
    l.stream[TCP] = anchor_start(&big, anchor_tcp_server, anchor_tcp_client);
    l.stream[ONE_WAY] = anchor_start(&big, anchor_pull_server, anchor_push_client);
    l.stream[ECHO] = anchor_start(&big, anchor_echo_server, anchor_echo_client);
    l.stream[TINY_ECHO] = anchor_start(&one, anchor_echo_server, anchor_echo_client);
    l.kernels = process_start(anchor_kernels, NULL);
    l.cores = process_start(anchor_cores, NULL);
    return l;
}

static bool stop(struct lanes *l)
{
    bool ok = true;
    for (int t = 0; t < ELEMENT_TYPES; t++) ok = cluster_stop(&l->typed[t]) && ok;
    ok = cluster_stop(&l->tiny) && ok;
    for (int i = 0; i < STREAMS; i++) ok = anchor_stop(&l->stream[i]) && ok;
    ok = process_stop(&l->cores) && ok;
    return process_stop(&l->kernels) && ok;
}

/* Seconds of one exchange of one type. */
static double measure_type(struct figures *f, const struct lanes *l, enum element_type t)
{
    char name[64];
    struct cluster_run r = cluster_exchange(&l->typed[t], EXCHANGES);
    double seconds = r.seconds / EXCHANGES, gb = GB * EXCHANGES;
    snprintf(name, sizeof name, "exchange_%s_ms", element_name(t));
    figures_add(f, name, "ms", seconds * 1e3);
    snprintf(name, sizeof name, "exchange_%s_mb", element_name(t));
    figures_add(f, name, "MB both ways", (double)r.bytes / EXCHANGES / 1e6);
    snprintf(name, sizeof name, "exchange_%s_cpu_server", element_name(t));
    figures_add(f, name, "CPU s per GB", r.cpu_server / gb);
    snprintf(name, sizeof name, "exchange_%s_cpu_worker", element_name(t));
    figures_add(f, name, "CPU s per GB", r.cpu_worker / gb);
    if (t != ELEMENT_FP32) return seconds;
    double worse = r.faults_server > r.faults_worker ? r.faults_server : r.faults_worker;
    figures_add(f, "page_faults_per_exchange", "faults", worse);
    return seconds;
}

/* In short slices in turn. */
static void measure_tiny(struct figures *f, const struct lanes *l)
{
    double ours = 0, raw = 0;
    for (int i = 0; i < SLICES; i++) {
        double p50;
        ours += cluster_exchange(&l->tiny, TINY).p50_us / SLICES;
        anchor_run(&l->stream[TINY_ECHO], TINY, &p50);
        raw += p50 / SLICES;
    }
    figures_add(f, "tiny_exchange_us", "us", ours);
    figures_add(f, "tiny_echo_us", "us", raw);
    figures_add(f, "tiny_p50_over_zmq", "ratio", ours / raw);
}

static void measure_kernels(struct figures *f, const struct lanes *l, double ms[KERNELS])
{
    static const char *const names[KERNELS] = {"memcpy_ms", "landing_ms", "hash_ms",
                                               "update_ms", "shard_ms",   "checks_ms"};
    for (int k = 0; k < KERNELS; k++) {
        ms[k] = anchor_kernel(&l->kernels, (enum kernel)k) * 1e3;
        figures_add(f, names[k], "ms", ms[k]);
    }
    figures_add(f, "apply_over_kernel", "ratio", ms[KERNEL_UPDATE] / (ms[KERNEL_SHARD] - ms[KERNEL_CHECKS]));
}

static double measure_stream(struct figures *f, const struct lanes *l, enum stream s, const char *name)
{
    double seconds = anchor_run(&l->stream[s], EXCHANGES, NULL);
    figures_add(f, name, "ms", seconds * 1e3);
    return seconds;
}

static void measure_once(struct figures *f, const struct lanes *l)
{
    double ms[KERNELS], seconds[ELEMENT_TYPES];
    figures_add(f, "cores_round_trip_ns", "ns", anchor_cores_ns(&l->cores));
    double one_way = measure_stream(f, l, ONE_WAY, "zmq_oneway_ms");
    seconds[ELEMENT_FP32] = measure_type(f, l, ELEMENT_FP32);
    double echo = measure_stream(f, l, ECHO, "zmq_echo_ms");
    seconds[ELEMENT_BF16] = measure_type(f, l, ELEMENT_BF16);
    measure_stream(f, l, TCP, "tcp_oneway_ms");
    measure_kernels(f, l, ms);
    measure_type(f, l, ELEMENT_FP16);
    measure_type(f, l, ELEMENT_INT8);
    measure_tiny(f, l);
    double ours = seconds[ELEMENT_FP32], work = (ms[KERNEL_UPDATE] + ms[KERNEL_LANDING]) / 1e3;
    double hash = ms[KERNEL_HASH] / 1e3;
    figures_add(f, "push_pull", "GB/s", GB / ours);
    figures_add(f, "push_pull_over_zmq_oneway", "ratio", one_way / ours);
    figures_add(f, "exchange_over_echo_plus_update", "ratio", ours / (echo + work + HASHES * hash));
    figures_add(f, "exchange_over_echo_plus_one_hash", "ratio", ours / (echo + work + hash));
    figures_add(f, "bf16_time_over_fp32", "ratio", seconds[ELEMENT_BF16] / ours);
}

static void print_types(const struct figures *f)
{
    printf("wire type   MB both ways   ms per exchange   CPU s per GB: server, worker\n");
    for (int t = 0; t < ELEMENT_TYPES; t++) {
        double v[4];
        static const char *const what[4] = {"mb", "ms", "cpu_server", "cpu_worker"};
        for (int i = 0; i < 4; i++) {
            char name[64];
            snprintf(name, sizeof name, "exchange_%s_%s", element_name((enum element_type)t), what[i]);
            v[i] = figures_median(f, name);
        }
        printf("%-9s %14.1f %17.1f %21.2f %7.2f\n", element_name((enum element_type)t), v[0], v[1], v[2],
               v[3]);
    }
}

static void print_anchors(const struct figures *f)
{
    static const char *const names[] = {"memcpy_ms",     "landing_ms",    "hash_ms",
                                        "update_ms",     "shard_ms",      "checks_ms",
                                        "tcp_oneway_ms", "zmq_oneway_ms", "zmq_echo_ms"};
    printf("\nbeside it, ms for the same %.0f MB:", CLUSTER_BYTES / 1e6);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        printf("%s %.*s %.1f", i ? "," : "", (int)strlen(names[i]) - 3, names[i],
               figures_median(f, names[i]));
    printf("\none float: exchange %.0f us, bare libzmq %.0f us (p50)\n"
           "a cache line from one CPU to the other and back: %.0f ns (where they share no cache: some 350)\n",
           figures_median(f, "tiny_exchange_us"), figures_median(f, "tiny_echo_us"),
           figures_median(f, "cores_round_trip_ns"));
}

bool ratios_measure(struct figures *f)
{
    struct lanes l = start();
    for (int t = 0; t < ELEMENT_TYPES; t++) cluster_exchange(&l.typed[t], WARM_UP);
    cluster_exchange(&l.tiny, TINY);
    for (int i = 0; i < STREAMS; i++) anchor_run(&l.stream[i], i == TINY_ECHO ? TINY : WARM_UP, NULL);
    for (int k = 0; k < KERNELS; k++) anchor_kernel(&l.kernels, (enum kernel)k);
    for (int i = 0; i < REPEATS; i++) measure_once(f, &l);
    figures_add(f, "bf16_bytes_over_fp32", "ratio",
                figures_median(f, "exchange_bf16_mb") / figures_median(f, "exchange_fp32_mb"));
    print_types(f);
    print_anchors(f);
    return stop(&l);
}
