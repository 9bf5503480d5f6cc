#include "tests/bench/compute/measure.h"

#include "tests/bench/compute/peers.h"

#include <math.h>
#include <stdio.h>

#define REPEATS 5
#define SECONDS 0.3  /* of what a named figure needs, */
#define SHORT   0.15 /* of all else, */
#define PEER    0.3  /* and of each figure of a peer */
#define KINDS   (WORK_STEP + 1)

/* One model, one number of streams, in one repeat: frames/s; NaN where it was not measured. */
struct cell {
    double speed[KINDS][MEASURE_WORKERS], gemm[MEASURE_WORKERS], peer[PEERS];
};

struct repeat {
    struct cell cells[MODELS][STREAMS];
    double score, read;
};

struct plan_of_bench {
    bool is_quick, has[PEERS];
    double gflop[MODELS], matrix_bytes; /* of a frame; of model A */
    struct process workers[MEASURE_WORKERS];
};

/* --- what is measured */

static bool is_named(struct task t, int workers)
{
    bool ratio = t.model == MODEL_A || t.model == MODEL_C;
    if (t.work == WORK_FORWARD || (t.streams != STREAMS_4 && t.streams != STREAMS_16)) return false;
    return workers == 1 || (ratio && t.streams == STREAMS_4 && t.work == WORK_STEP);
}

static bool is_beside(enum peer p, enum bench_model m, enum bench_streams s)
{
    if (p == PEER_TORCH) return m == MODEL_A && (s == STREAMS_4 || s == STREAMS_16);
    return (m == MODEL_A || m == MODEL_C) && s == STREAMS_4;
}

static double gemm_rate(const struct process *workers, int n)
{
    return worker_rate(workers, n, (struct task){.work = WORK_GEMM}, SHORT);
}

/* sgemm first, then what is held against it. */
static void measure_cell(const struct plan_of_bench *b, enum bench_model m, enum bench_streams s,
                         struct cell *out)
{
    struct task t = {WORK_STEP, m, s};
    int most = b->is_quick ? is_named(t, 1) + is_named(t, 2) : MEASURE_WORKERS;
    worker_warm(b->workers, most, t);
    if (!b->is_quick) worker_warm(b->workers, most, (struct task){WORK_FORWARD, m, s});
    for (int n = 1; n <= MEASURE_WORKERS; n++) {
        out->gemm[n - 1] = n <= most ? gemm_rate(b->workers, n) : (double)NAN;
        for (int k = 0; k < KINDS; k++) {
            t.work = (enum work)k;
            bool is_wanted = n <= most && (is_named(t, n) || !b->is_quick);
            double seconds = is_named(t, n) ? SECONDS : SHORT;
            out->speed[k][n - 1] = is_wanted ? worker_rate(b->workers, n, t, seconds) : (double)NAN;
        }
    }
    for (int p = 0; p < PEERS; p++) {
        bool is_wanted = b->has[p] && is_beside((enum peer)p, m, s);
        out->peer[p] = is_wanted ? peers_rate((enum peer)p, m, s, PEER) : (double)NAN;
    }
}

/* Reading before and after it. */
static void measure_score(const struct plan_of_bench *b, struct repeat *out)
{
    struct task score = {.work = WORK_SCORE, .model = MODEL_A}, read = {.work = WORK_READ, .model = MODEL_A};
    worker_warm(b->workers, 1, score);
    out->read = worker_rate(b->workers, 1, read, SHORT);
    out->score = worker_rate(b->workers, 1, score, SECONDS);
    out->read = (out->read + worker_rate(b->workers, 1, read, SHORT)) / 2;
}

static void measure_once(const struct plan_of_bench *b, struct repeat *out)
{
    for (int m = 0; m < MODELS; m++)
        for (int s = 0; s < STREAMS; s++)
            measure_cell(b, (enum bench_model)m, (enum bench_streams)s, &out->cells[m][s]);
    measure_score(b, out);
}

/* --- figures of a repeat */

static void add(struct figures *f, const char *name, const char *unit, double value)
{
    if (!isnan(value)) figures_add(f, name, unit, value);
}

static double share(const struct plan_of_bench *b, const struct repeat *r, int m, int s, enum work w)
{
    const struct cell *c = &r->cells[m][s];
    return b->gflop[m] * c->speed[w][0] / c->gemm[0];
}

static double worst_share(const struct plan_of_bench *b, const struct repeat *r, int s, enum work w)
{
    double big = fmin(share(b, r, MODEL_B, s, w), share(b, r, MODEL_C, s, w));
    return fmin(share(b, r, MODEL_A, s, w), big);
}

/* Two workers over one, over the same of sgemm. */
static double scaling(const struct cell *c)
{
    const double *step = c->speed[WORK_STEP];
    return step[1] / step[0] / (c->gemm[1] / c->gemm[0]);
}

void measure_name(char out[64], struct task t, int workers)
{
    static const char *const kinds[KINDS] = {"forward", "train", "step"};
    snprintf(out, 64, "%s_%s_s%d%s", kinds[t.work], models_name(t.model), models_streams(t.streams),
             workers == 2 ? "_two" : "");
}

static void add_cell(struct figures *f, const struct plan_of_bench *b, const struct repeat *r, int m, int s)
{
    static const char *const peers[PEERS] = {"torch", "onednn"};
    const struct cell *c = &r->cells[m][s];
    char name[64], of[72];
    for (int k = 0; k < KINDS; k++)
        for (int n = 1; n <= MEASURE_WORKERS; n++) {
            measure_name(name, (struct task){(enum work)k, (enum bench_model)m, (enum bench_streams)s}, n);
            add(f, name, "frames/s", c->speed[k][n - 1]);
            snprintf(of, sizeof of, "%s_share", name);
            if (n == 1 && k != WORK_FORWARD) add(f, of, "of sgemm 2048^3", share(b, r, m, s, (enum work)k));
        }
    for (int p = 0; p < PEERS; p++) {
        snprintf(name, sizeof name, "%s_%s_s%d", peers[p], models_name((enum bench_model)m),
                 models_streams((enum bench_streams)s));
        add(f, name, "frames/s", c->peer[p]);
    }
}

static double mean_gemm(const struct repeat *r, int workers)
{
    double sum = 0;
    int count = 0;
    for (int m = 0; m < MODELS; m++)
        for (int s = 0; s < STREAMS; s++) {
            double one = r->cells[m][s].gemm[workers - 1];
            if (isnan(one)) continue;
            sum += one;
            count++;
        }
    return sum / count;
}

static void add_named(struct figures *f, const struct plan_of_bench *b, const struct repeat *r)
{
    const char *const of = "of sgemm 2048^3", *const ratio = "ratio";
    const struct cell *a4 = &r->cells[MODEL_A][STREAMS_4], *a16 = &r->cells[MODEL_A][STREAMS_16];
    const struct cell *c4 = &r->cells[MODEL_C][STREAMS_4];
    add(f, "roofline_s4", of, worst_share(b, r, STREAMS_4, WORK_TRAIN));
    add(f, "roofline_s16", of, worst_share(b, r, STREAMS_16, WORK_TRAIN));
    add(f, "roofline_s4_update", of, worst_share(b, r, STREAMS_4, WORK_STEP));
    add(f, "roofline_s16_update", of, worst_share(b, r, STREAMS_16, WORK_STEP));
    add(f, "roofline_tiny", of,
        fmin(share(b, r, MODEL_D, STREAMS_4, WORK_TRAIN), share(b, r, MODEL_D, STREAMS_16, WORK_TRAIN)));
    add(f, "over_torch_s4", ratio, a4->speed[WORK_STEP][0] / a4->peer[PEER_TORCH]);
    add(f, "over_torch_s16", ratio, a16->speed[WORK_STEP][0] / a16->peer[PEER_TORCH]);
    if (b->has[PEER_ONEDNN])
        add(f, "over_onednn_s4", ratio,
            fmin(a4->speed[WORK_TRAIN][0] / a4->peer[PEER_ONEDNN],
                 c4->speed[WORK_TRAIN][0] / c4->peer[PEER_ONEDNN]));
    add(f, "two_over_one_s4", ratio, fmin(scaling(a4), scaling(c4)));
    add(f, "score_s1_bound_share", "of read bandwidth", b->matrix_bytes * r->score / (r->read * 1e9));
    add(f, "score_A_s1", "frames/s", r->score);
    add(f, "read_A", "GB/s", r->read);
    add(f, "busy", "of the time, at least", worker_busy());
    add(f, "sgemm_2048", "GFLOP/s", mean_gemm(r, 1));
    add(f, "sgemm_2048_two", "GFLOP/s", mean_gemm(r, 2));
}

/* --- all of it */

static void look_at_models(struct plan_of_bench *b)
{
    for (int m = 0; m < MODELS; m++) {
        struct model model;
        models_build((enum bench_model)m, &model);
        b->gflop[m] = models_train_gflop(&model);
        if (m == MODEL_A) b->matrix_bytes = models_matrix_bytes(&model);
        model_fini(&model);
    }
}

static void look_for_peers(struct plan_of_bench *b)
{
    for (int p = 0; p < PEERS; p++) {
        b->has[p] = !isnan(peers_rate((enum peer)p, MODEL_A, STREAMS_4, SHORT));
        if (!b->has[p]) printf("%s is not installed: not beside it\n", peers_name((enum peer)p));
    }
}

bool measure_all(struct figures *f, bool is_quick)
{
    struct plan_of_bench b = {.is_quick = is_quick};
    bool ok = true;
    look_at_models(&b);
    look_for_peers(&b);
    for (int k = 0; k < MEASURE_WORKERS; k++) b.workers[k] = worker_start(k);
    for (int i = 0; i < REPEATS; i++) {
        static struct repeat r;
        measure_once(&b, &r);
        add_named(f, &b, &r);
        for (int m = 0; m < MODELS; m++)
            for (int s = 0; s < STREAMS; s++) add_cell(f, &b, &r, m, s);
    }
    for (int k = 0; k < MEASURE_WORKERS; k++) ok = process_stop(&b.workers[k]) && ok;
    return ok;
}
