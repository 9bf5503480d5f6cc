/* chorale-doctor: what this machine gives to a job, which kernels serve it, and what is wrong with it. One
 * host, this one: what it knows of it is struct host, what it says of it the findings. */
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/snapshot.h"
#include "worker/host.h"
#include "worker/nnet/plan.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAX_FINDINGS  16
#define MAX_PRODUCTS  (11 * MODEL_MAX_LAYERS + 3)
#define UNKNOWN_MODEL (512u << 20) /* bytes of a process, while the model is not known */
#define PROCESS       (32u << 20)  /* bytes of one beside its model (measured): libraries, sockets, blocks */
#define FILES_OF_ONE  64           /* descriptors of a process beside its connections */
#define SLOTS_AT_MOST 2            /* optimizer state in weights: Adam's */

static const char usage[] =
    "usage: chorale doctor [RUN] [--json]\n"
    "\n"
    "  chorale doctor\n"
    "  chorale doctor run1\n"
    "\n"
    "Looks at this machine: CPU and the kernels chosen for it, cores, memory, huge\n"
    "pages, open files, libraries. With RUN also at its job: every matrix product of a\n"
    "window with the kernel that serves it, the memory of its processes, and the disk.\n"
    "What is wrong is one line each, with what to do.\n"
    "\n"
    "  --json            one JSON object instead\n"
    "\n"
    "Exit status: 0 nothing is wrong, 1 something is, 2 usage or a RUN that is none.\n";

struct finding {
    const char *what; /* for machines: a constant */
    char *text;       /* owned */
};

struct doctor {
    struct host host;
    struct plan plan;
    const char *run; /* NULL: none was named */
    bool json, is_prepared;
    struct config config; /* of the run, else the defaults */
    struct facts facts;   /* if it is prepared */
    uint64_t disk_free;   /* bytes, of the run */
    struct plan_product products[MAX_PRODUCTS];
    size_t num_products;
    struct finding findings[MAX_FINDINGS];
    size_t num_findings;
};

static int parse_options(int argc, char **argv, struct doctor *d)
{
    static const struct option names[] = {{"json", no_argument, NULL, 'j'}, {NULL, 0, NULL, 0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":", names, NULL)) != -1;) {
        if (c != 'j')
            return err_set(ERR_USAGE, "unknown option '%.80s'; see `chorale doctor --help`",
                           argv[optind - 1]);
        d->json = true;
    }
    if (optind + 1 < argc)
        return err_set(ERR_USAGE, "one run at a time: '%.80s' is too much; see `chorale doctor --help`",
                       argv[optind + 1]);
    d->run = argv[optind]; /* NULL at the end */
    return 0;
}

/* What is wrong; `what` is a constant. */
static void __attribute__((format(printf, 3, 4)))
complain(struct doctor *d, const char *what, const char *format, ...)
{
    char text[512];
    va_list args;
    ASSERT(d->num_findings < MAX_FINDINGS);
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    d->findings[d->num_findings++] = (struct finding){what, xstrdup(text)};
}

/* ------------------------------------------------------------------ what there is */

static int load_run(struct doctor *d)
{
    char *job = files_join(d->run, "job.yaml");
    bool there = files_exists(job);
    int rc = there ? config_load_merged(job, NULL, 0, &d->config)
                   : err_set(ERR_USAGE, "%s is not a run (it has no job.yaml); make one with `chorale init`",
                             d->run);
    free(job);
    return rc;
}

/* The first training of a run makes its model. */
static void look_at_model(struct doctor *d)
{
    char *path = files_join(d->run, "model.safetensors");
    if (files_exists(path)) {
        d->is_prepared = facts_read(d->run, &d->facts) == 0;
        if (!d->is_prepared) complain(d, "model", "%s", err_text());
    }
    free(path);
}

static void look_at_run(struct doctor *d)
{
    struct statvfs disk;
    if (statvfs(d->run, &disk) == 0) d->disk_free = (uint64_t)disk.f_bavail * disk.f_frsize;
    look_at_model(d);
    if (!d->is_prepared) return;
    d->num_products = plan_products(&d->facts.model, &d->plan, (size_t)d->config.train.window,
                                    (size_t)d->config.train.streams, d->products, MAX_PRODUCTS);
    ASSERT(d->num_products <= MAX_PRODUCTS);
}

/* As `chorale train` counts them. */
static int num_workers(const struct doctor *d)
{
    const struct config *c = &d->config;
    int left = (d->host.cores - c->cluster.servers) / c->train.threads;
    return c->cluster.workers ? c->cluster.workers : left > 1 ? left : 1;
}

static uint64_t weight_bytes(const struct doctor *d)
{
    return d->facts.model.params * sizeof(float);
}

/* Of the matrices that are kept turned around. */
static uint64_t turned_bytes(const struct doctor *d)
{
    uint64_t floats = 0;
    for (size_t i = 0; i < d->num_products; i++)
        if (strstr(d->products[i].kernel, "turned once")) floats += d->products[i].out * d->products[i].in;
    return floats * sizeof(float);
}

/* What one thread of a worker keeps of a window, for the way back: z c m y r_prev d_y of each layer, logits.
 */
static uint64_t window_bytes(const struct doctor *d)
{
    const struct model_spec *s = &d->facts.model.spec;
    uint64_t row = s->targets;
    for (size_t l = 0; l < s->num_layers; l++)
        row += 6ull * s->layers[l].cells + 2ull * model_upward(s, l) + model_recurrent(s, l);
    return row * (uint64_t)d->config.train.window * (uint64_t)d->config.train.streams * sizeof(float);
}

/* Weights, gradients (one of each more with overlap), a gradient per further thread, a velocity, weights to
 * evaluate. */
static uint64_t worker_bytes(const struct doctor *d)
{
    const struct config *c = &d->config;
    uint64_t threads = (uint64_t)c->train.threads, vectors = 2 * (1 + (uint64_t)c->consistency.overlap) +
                                                             threads - 1 + (c->consistency.push_every > 1) +
                                                             config_momentum_is_on_worker(c) + 1;
    return PROCESS + vectors * weight_bytes(d) + turned_bytes(d) + threads * window_bytes(d);
}

/* Of the whole job with its coordinator, if all of it runs here. */
static uint64_t job_bytes(const struct doctor *d)
{
    uint64_t workers = (uint64_t)num_workers(d), servers = (uint64_t)d->config.cluster.servers;
    if (!d->is_prepared) return (workers + servers) * UNKNOWN_MODEL;
    return workers * worker_bytes(d) + (servers + 1) * PROCESS + (1 + SLOTS_AT_MOST) * weight_bytes(d);
}

/* One set more than are kept: the new one is whole before the oldest goes. */
static uint64_t checkpoint_bytes(const struct doctor *d)
{
    return ((uint64_t)d->config.checkpoint.keep + 1) * (1 + SLOTS_AT_MOST) * weight_bytes(d);
}

/* ------------------------------------------------------------------ what is wrong */

/* "1.5 GiB"; a few may be in use at once. */
static const char *size_text(uint64_t bytes)
{
    static char texts[4][32];
    static size_t next;
    char *out = texts[next++ % 4];
    double mib = (double)bytes / (1 << 20);
    if (mib < 1024)
        snprintf(out, sizeof texts[0], "%.1f MiB", mib);
    else
        snprintf(out, sizeof texts[0], "%.1f GiB", mib / 1024);
    return out;
}

static void check_cpu(struct doctor *d)
{
    const struct host *h = &d->host;
    int threads = d->config.train.threads;
    if (d->plan.level == PLAN_PORTABLE)
        complain(
            d, "cpu",
            "this CPU has no AVX2 with FMA, so OpenBLAS serves all products: it loses more than half at few "
            "streams; set train.streams to 16 or more, or give workers a newer machine");
    if (threads > h->cores)
        complain(d, "cores",
                 "train.threads is %d, but there are %d cores: lower it, or allow this process more cores",
                 threads, h->cores);
}

static void check_memory(struct doctor *d)
{
    const struct host *h = &d->host;
    uint64_t need = job_bytes(d);
    if (h->memory_free && h->memory_free < need && d->is_prepared)
        complain(d, "memory",
                 "%s of memory are free, and the %d workers and %d servers of this job need about %s: lower "
                 "cluster.workers, train.streams or train.threads, or end other processes",
                 size_text(h->memory_free), num_workers(d), d->config.cluster.servers, size_text(need));
    else if (h->memory_free && h->memory_free < need)
        complain(d, "memory",
                 "%s of memory are free, less than %s for each of the %d processes that a job starts here by "
                 "default: "
                 "end others, or start fewer workers",
                 size_text(h->memory_free), size_text(UNKNOWN_MODEL),
                 num_workers(d) + d->config.cluster.servers);
}

static void check_limits(struct doctor *d)
{
    const struct host *h = &d->host;
    int peers = num_workers(d) + d->config.cluster.servers;
    uint64_t need = FILES_OF_ONE + 2 * (uint64_t)peers;
    if (!h->open_files || h->open_files >= need) return;
    complain(d, "open_files",
             "a process may open %" PRIu64 " files, and with %d peers it needs %" PRIu64
             ": ulimit -n %" PRIu64 "%s",
             h->open_files, peers, need, need,
             h->open_files_max < need ? ", and raise its hard limit first" : "");
}

static void check_disk(struct doctor *d)
{
    if (access(d->run, W_OK | X_OK) != 0)
        complain(d, "disk", "%s cannot be written: checkpoints and logs go there; see its owner and mode",
                 d->run);
    if (d->is_prepared && d->disk_free < checkpoint_bytes(d))
        complain(d, "disk",
                 "the disk of %s has %s left, and its %d checkpoints need up to %s: make room, or lower "
                 "checkpoint.keep",
                 d->run, size_text(d->disk_free), d->config.checkpoint.keep, size_text(checkpoint_bytes(d)));
}

static void examine(struct doctor *d)
{
    check_cpu(d);
    check_memory(d);
    check_limits(d);
    if (d->run) check_disk(d);
}

/* ------------------------------------------------------------------ for people */

static double mflop(const struct plan_product *p)
{
    return 2e-6 * (double)p->out * (double)p->in * (double)p->rows * (double)p->calls;
}

static double mflop_of_window(const struct doctor *d)
{
    double sum = 0;
    for (size_t i = 0; i < d->num_products; i++) sum += mflop(&d->products[i]);
    return sum;
}

static const char *or_unknown(const char *text)
{
    return text[0] ? text : "unknown";
}

static void print_host(const struct doctor *d)
{
    const struct host *h = &d->host;
    printf("host              %s\n", or_unknown(h->name));
    printf("CPU               %s\n", or_unknown(h->cpu));
    printf("instruction sets  %s\n", or_unknown(h->sets));
    printf("kernels           %s (gates %s, products %s)\n", plan_level_name(d->plan.level),
           d->plan.gates->name, d->plan.panels->name);
    printf("cores             %d; %s: cluster.servers %d, cluster.workers %d, train.threads %d\n", h->cores,
           d->run ? "this job" : "a job by default", d->config.cluster.servers, num_workers(d),
           d->config.train.threads);
    printf("memory            %s, of it free %s\n", size_text(h->memory), size_text(h->memory_free));
    printf("huge pages        %s\n", or_unknown(h->huge_pages));
    printf("open files        %" PRIu64 ", at most %" PRIu64 "\n", h->open_files, h->open_files_max);
    printf("libraries         libzmq %s, OpenBLAS %s\n", h->libzmq, h->openblas);
}

static void print_products(const struct doctor *d)
{
    double all = mflop_of_window(d);
    printf("\n%-20s %12s  %13s  %9s  %6s  %s\n", "product", "matrix", "rows x calls", "Mflop", "share",
           "kernel");
    for (size_t i = 0; i < d->num_products; i++) {
        const struct plan_product *p = &d->products[i];
        char matrix[32], calls[32];
        snprintf(matrix, sizeof matrix, "%zu x %zu", p->out, p->in);
        snprintf(calls, sizeof calls, "%zu x %zu", p->rows, p->calls);
        printf("%-20s %12s  %13s  %9.2f  %4.1f %%  %s\n", p->what, matrix, calls, mflop(p),
               100 * mflop(p) / all, p->kernel);
    }
}

static void print_run(const struct doctor *d)
{
    const struct config *c = &d->config;
    char model[256];
    printf("\nrun               %s\n", d->run);
    printf("disk              %s free\n", size_text(d->disk_free));
    if (!d->is_prepared) {
        printf("model             not known; the first training of a run makes it\n");
        return;
    }
    model_describe(&d->facts.model, model, sizeof model);
    printf("model             %s\n", model);
    printf("window            T = %d frames of S = %d streams for each of %d threads, %.1f Mflop\n",
           c->train.window, c->train.streams, c->train.threads, mflop_of_window(d));
    printf("weights           %s, turned around once more %s\n", size_text(weight_bytes(d)),
           size_text(turned_bytes(d)));
    printf("memory            about %s for a worker, %s for the job\n", size_text(worker_bytes(d)),
           size_text(job_bytes(d)));
    print_products(d);
}

static void print_page(const struct doctor *d)
{
    print_host(d);
    if (d->run) print_run(d);
    putchar('\n');
    for (size_t i = 0; i < d->num_findings; i++) printf("%s\n", d->findings[i].text);
    if (d->num_findings == 0) puts("nothing is wrong");
}

/* ------------------------------------------------------------------ for machines */

static const char *quoted(const char *text)
{
    static char out[4][4096];
    static size_t next;
    return log_quote(out[next++ % 4], sizeof out[0], text);
}

static void print_host_json(const struct doctor *d)
{
    const struct host *h = &d->host;
    printf("{\"host\":{\"name\":%s,\"cpu\":%s,\"sets\":%s", quoted(h->name), quoted(h->cpu), quoted(h->sets));
    printf(",\"kernels\":\"%s\",\"gates\":\"%s\",\"products\":\"%s\"", plan_level_name(d->plan.level),
           d->plan.gates->name, d->plan.panels->name);
    printf(",\"cores\":%d,\"servers\":%d,\"workers\":%d,\"threads\":%d", h->cores, d->config.cluster.servers,
           num_workers(d), d->config.train.threads);
    printf(",\"memory\":%" PRIu64 ",\"memory_free\":%" PRIu64 ",\"huge_pages\":%s", h->memory, h->memory_free,
           quoted(h->huge_pages));
    printf(",\"open_files\":%" PRIu64 ",\"open_files_max\":%" PRIu64, h->open_files, h->open_files_max);
    printf(",\"libzmq\":%s,\"openblas\":%s},\n", quoted(h->libzmq), quoted(h->openblas));
}

static void print_products_json(const struct doctor *d)
{
    for (size_t i = 0; i < d->num_products; i++) {
        const struct plan_product *p = &d->products[i];
        printf("%s\n  {\"what\":\"%s\",\"out\":%zu,\"in\":%zu,\"rows\":%zu,\"calls\":%zu,\"kernel\":\"%s\"}",
               i ? "," : "", p->what, p->out, p->in, p->rows, p->calls, p->kernel);
    }
}

static void print_run_json(const struct doctor *d)
{
    const struct config *c = &d->config;
    printf("\"run\":{\"path\":%s,\"disk_free\":%" PRIu64 ",\"prepared\":%s", quoted(d->run), d->disk_free,
           d->is_prepared ? "true" : "false");
    if (d->is_prepared) {
        printf(",\"window\":%d,\"streams\":%d,\"parameters\":%zu", c->train.window, c->train.streams,
               d->facts.model.params);
        printf(",\"weights\":%" PRIu64 ",\"turned\":%" PRIu64 ",\"worker_memory\":%" PRIu64
               ",\"job_memory\":%" PRIu64,
               weight_bytes(d), turned_bytes(d), worker_bytes(d), job_bytes(d));
        printf(",\"products\":[");
        print_products_json(d);
        printf("]");
    }
    printf("},\n");
}

static void print_json(const struct doctor *d)
{
    print_host_json(d);
    if (d->run) print_run_json(d);
    printf("\"findings\":[");
    for (size_t i = 0; i < d->num_findings; i++)
        printf("%s\n  {\"what\":\"%s\",\"text\":%s}", i ? "," : "", d->findings[i].what,
               quoted(d->findings[i].text));
    printf("]}\n");
}

/* ------------------------------------------------------------------ all of it */

static int run_doctor(struct doctor *d)
{
    host_read(&d->host);
    d->plan = plan_make(PLAN_BEST);
    if (d->run) look_at_run(d);
    examine(d);
    if (d->json)
        print_json(d);
    else
        print_page(d);
    if (fflush(stdout) != 0) return err_set(ERR_FAIL, "cannot write to the standard output");
    return d->num_findings > 0;
}

int main(int argc, char **argv)
{
    static struct doctor d;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    int rc = parse_options(argc, argv, &d);
    if (rc == 0 && !d.run) config_default(&d.config);
    if (rc == 0 && d.run) rc = load_run(&d);
    if (rc == 0) rc = run_doctor(&d);
    for (size_t i = 0; i < d.num_findings; i++) free(d.findings[i].text);
    facts_fini(&d.facts);
    config_free(&d.config);
    return rc < 0 ? err_report("chorale doctor", rc) : rc;
}
