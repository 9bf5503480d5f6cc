#include "tests/bench/compute/measure.h"

#include <math.h>
#include <stdio.h>

/* Width 9; '-': not measured. */
static void print_speed(const struct figures *f, struct task t, int workers)
{
    char name[64];
    measure_name(name, t, workers);
    double v = figures_median(f, name);
    if (isnan(v))
        printf("%10s", "-");
    else
        printf("%10.0f", v);
}

static void print_share(const struct figures *f, struct task t)
{
    char name[64], of[72];
    measure_name(name, t, 1);
    snprintf(of, sizeof of, "%s_share", name);
    double v = figures_median(f, of);
    if (isnan(v))
        printf("%8s", "-");
    else
        printf("%8.3f", v);
}

static bool is_measured(const struct figures *f, struct task t)
{
    char name[64];
    measure_name(name, t, 1);
    return !isnan(figures_median(f, name));
}

static void print_row(const struct figures *f, int m, int s)
{
    static const enum work kinds[] = {WORK_FORWARD, WORK_TRAIN, WORK_STEP};
    struct task t = {WORK_STEP, (enum bench_model)m, (enum bench_streams)s};
    if (!is_measured(f, t)) return;
    printf("%-5s %3d", models_name(t.model), models_streams(t.streams));
    for (int n = 1; n <= MEASURE_WORKERS; n++) {
        printf("  ");
        for (int k = 0; k < 3; k++) {
            t.work = kinds[k];
            print_speed(f, t, n);
        }
        if (n > 1) continue;
        for (t.work = WORK_TRAIN; t.work <= WORK_STEP; t.work++) print_share(f, t);
    }
    printf("\n");
}

static void print_peer(const struct figures *f, const char *figure, const char *text)
{
    double v = figures_median(f, figure);
    if (!isnan(v)) printf("%s %.0f\n", text, v);
}

void measure_print(const struct figures *f)
{
    printf("\nsgemm 2048^3: one %.1f, two together %.1f GFLOP/s; the weights of A are read at %.0f GB/s; "
           "scored frame by frame: %.0f frames/s\n",
           figures_median(f, "sgemm_2048"), figures_median(f, "sgemm_2048_two"), figures_median(f, "read_A"),
           figures_median(f, "score_A_s1"));
    printf("a worker had its CPU %.2f of the time at least\n", figures_median(f, "busy"));
    print_peer(f, "torch_A_s4", "PyTorch A S=4, with its update:");
    print_peer(f, "torch_A_s16", "PyTorch A S=16, with its update:");
    print_peer(f, "onednn_A_s4", "oneDNN A S=4, forward and backward:");
    print_peer(f, "onednn_C_s4", "oneDNN C S=4, forward and backward:");
    printf("\n%9s  %30s%16s  %30s\n", "", "frames/s of one worker", "share of sgemm", "of two together");
    printf("%-5s %3s  %10s%10s%10s%8s%8s  %10s%10s%10s\n", "model", "S", "forward", "+backward", "step",
           "fwd+bwd", "step", "forward", "+backward", "step");
    for (int m = 0; m < MODELS; m++)
        for (int s = 0; s < STREAMS; s++) print_row(f, m, s);
}
