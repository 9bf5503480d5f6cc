#include "worker/data/data_check.h"

#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "worker/data/feats.h"

#include <inttypes.h>
#include <stdlib.h>

#define FRAMES_PER_MINUTE 6000.0 /* of 10 ms */

static bool has_file(const char *dir, const char *name)
{
    char *path = files_join(dir, name);
    bool there = files_exists(path);
    free(path);
    return there;
}

static void print_kind(const struct corpus_report *r, enum corpus_problem k, FILE *to)
{
    fprintf(to, "%9" PRIu64 "  %s: %s\n", r->count[k], corpus_problem_name(k), corpus_problem_effect(k));
    uint64_t shown = r->count[k] < CORPUS_EXAMPLES ? r->count[k] : CORPUS_EXAMPLES;
    for (uint64_t i = 0; i < shown; i++)
        if (r->example[k][i][0]) fprintf(to, "           %s\n", r->example[k][i]);
}

static void print_table(const struct corpus *c, const char *targets, const struct corpus_report *r, FILE *to)
{
    fprintf(to,
            "%s: %" PRIu64 " utterances listed, %" PRIu64 " usable, %" PRIu32 " speakers, %" PRIu64
            " frames (%.1f min of 10 ms)\n",
            corpus_dir(c), r->listed, r->usable, corpus_num_speakers(c), r->frames,
            (double)r->frames / FRAMES_PER_MINUTE);
    fprintf(to, "features of dimension %" PRIu32 "; ", corpus_dim(c));
    if (targets)
        fprintf(to, "targets 0..%" PRId64 " from %s\n", (int64_t)corpus_num_targets(c) - 1, targets);
    else
        fprintf(to, "no targets: there is no ali.scp and no --targets\n");
    if (r->cut)
        fprintf(to, "%9" PRIu64 "  cut to the shorter of features and alignment, within %" PRIu32 " frames\n",
                r->cut, corpus_options(c)->length_tolerance);
    if (r->unwanted) fprintf(to, "%9" PRIu64 "  alignments without features, not used\n", r->unwanted);
    for (int k = 0; k < CORPUS_PROBLEMS; k++)
        if (r->count[k]) print_kind(r, (enum corpus_problem)k, to);
    uint64_t total = corpus_report_total(r);
    if (total)
        fprintf(to, "%" PRIu64 " problems\n", total);
    else
        fprintf(to, "no problems\n");
}

static void print_json(const struct corpus *c, const char *targets, const struct corpus_report *r, FILE *to)
{
    char text[CORPUS_EXAMPLE_SIZE * 6 + 3], more[4096];
    const char *separator = "";
    fprintf(to,
            "{\"dir\":%s,\"targets_file\":%s,\"listed\":%" PRIu64 ",\"usable\":%" PRIu64
            ",\"frames\":%" PRIu64,
            log_quote(text, sizeof text, corpus_dir(c)),
            targets ? log_quote(more, sizeof more, targets) : "null", r->listed, r->usable, r->frames);
    fprintf(to,
            ",\"speakers\":%" PRIu32 ",\"dim\":%" PRIu32 ",\"targets\":%" PRIu32 ",\"hash\":\"%016" PRIx64
            "\"",
            corpus_num_speakers(c), corpus_dim(c), corpus_num_targets(c), corpus_hash(c));
    fprintf(to, ",\"cut\":%" PRIu64 ",\"alignments_without_features\":%" PRIu64 ",\"problems\":[", r->cut,
            r->unwanted);
    for (int k = 0; k < CORPUS_PROBLEMS; k++) {
        if (!r->count[k]) continue;
        fprintf(to, "%s{\"kind\":\"%s\",\"count\":%" PRIu64 ",\"effect\":\"%s\",\"examples\":[", separator,
                corpus_problem_key((enum corpus_problem)k), r->count[k],
                corpus_problem_effect((enum corpus_problem)k));
        for (uint64_t i = 0; i < r->count[k] && i < CORPUS_EXAMPLES && r->example[k][i][0]; i++)
            fprintf(to, "%s%s", i ? "," : "", log_quote(text, sizeof text, r->example[k][i]));
        fputs("]}", to);
        separator = ",";
    }
    fprintf(to, "]}\n");
}

int data_check_run(const struct data_check *o, FILE *to)
{
    struct corpus_options options = CORPUS_OPTIONS_DEFAULT;
    const char *targets = o->targets ? o->targets : has_file(o->dir, "ali.scp") ? "ali.scp" : NULL;
    struct corpus *c;
    options.allow_pipes = o->allow_pipes;
    options.allow_empty = true;
    options.dim = o->dim;
    options.num_targets = o->num_targets;
    int rc = corpus_open(o->dir, targets, &options, &c);
    if (rc < 0) return rc;
    struct corpus_report *r = xcalloc(1, sizeof *r);
    corpus_scan(c, r);
    struct speaker_stats stats;
    if (has_file(o->dir, "cmvn.scp") && corpus_count(c)) {
        rc = feats_speaker_stats(c, false, r, &stats);
        if (rc == 0)
            speaker_stats_fini(&stats);
        else
            corpus_report_add(r, CORPUS_SPEAKER_STATS, "%s", err_text());
    }
    (o->json ? print_json : print_table)(c, targets, r, to);
    uint64_t total = corpus_report_total(r);
    rc = 0;
    if (total) rc = err_set(ERR_DATA, "%s has %" PRIu64 " problems", o->dir, total);
    if (total == 0 && r->listed == 0)
        rc = err_set(ERR_DATA, "%s has no utterances: feats.scp is empty", o->dir);
    if (fflush(to) != 0 || ferror(to)) rc = err_set(ERR_STORAGE, "the report could not be written");
    free(r);
    corpus_free(&c);
    return rc;
}
