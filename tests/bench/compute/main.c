/* The speed of a worker's computing, for four models and 1 to 64 streams, beside what sgemm 2048^3 reaches in
 * the same run and, where they are installed, beside PyTorch and oneDNN. A table for people,
 * build/bench/compute.json for programs; that a goal is missed is told, and no failure.
 *
 *   compute          all of it (4 minutes)
 *   compute quick    what the named figures need
 *   compute kernels  what each product, gate and pass takes by itself; no figures */
#include "common/clock.h"
#include "common/err.h"
#include "tests/bench/compute/measure.h"
#include "worker/nnet/plan.h"

#include <stdio.h>
#include <string.h>

static const struct goal goals[] = {
    {"roofline_s4", '>', 0.83},         {"roofline_s16", '>', 0.86},  {"roofline_s4_update", '>', 0.72},
    {"roofline_s16_update", '>', 0.83}, {"roofline_tiny", '>', 0.72}, {"over_torch_s4", '>', 4.5},
    {"over_torch_s16", '>', 2.2},       {"over_onednn_s4", '>', 1.4}, {"two_over_one_s4", '>', 0.95},
    {"score_s1_bound_share", '>', 0.8},
};

static int measure(bool is_quick)
{
    static struct figures f;
    uint64_t start = clock_now_ns();
    if (!measure_all(&f, is_quick)) return err_set(ERR_FAIL, "a process of the bench has failed");
    measure_print(&f);
    figures_judge(&f, goals, (int)(sizeof goals / sizeof *goals));
    printf("\n%.0f s\n", (double)(clock_now_ns() - start) / 1e9);
    return figures_write(&f, "build/bench/compute.json");
}

int main(int argc, char **argv)
{
    const char *part = argc > 1 ? argv[1] : "";
    struct plan p = plan_make(PLAN_BEST);
    bool is_quick = strcmp(part, "quick") == 0, is_kernels = strcmp(part, "kernels") == 0;
    if (*part && !is_quick && !is_kernels)
        return err_report("compute", err_set(ERR_USAGE, "there is no part '%s': quick or kernels", part));
    printf("windows of %d frames, one thread a worker, products %s, gates %s; medians\n", MODELS_FRAMES,
           p.panels->name, p.gates->name);
    int err = is_kernels ? kernels_print() : measure(is_quick);
    return err ? err_report("compute", err) : 0;
}
