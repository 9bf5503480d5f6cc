#include "worker/data/corpus.h"

#include "common/err.h"
#include "common/files.h"
#include "worker/data/scp.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct corpus {
    char *dir;
    struct corpus_options options;
    struct scp feats, utt2spk;
    struct corpus_utterance *list;
    size_t n;
    struct ints pool;      /* all alignments, one after another */
    const char **speakers; /* views into utt2spk or feats */
    uint32_t num_speakers, dim, num_targets;
    uint64_t frames, hash;
    struct corpus_report report;
};

/* While the join runs: what is known about each line of feats.scp. */
struct alignment {
    size_t offset, count; /* in the pool */
    bool seen, failed;    /* failed: seen, but already reported as unusable */
};

struct join {
    struct corpus *c;
    struct alignment *alignments; /* by entry of feats, NULL without targets */
    struct scp lengths;           /* utt2num_frames */
    bool has_lengths;
    struct input *in;
};

/* --- plain access */

size_t corpus_count(const struct corpus *c)
{
    return c->n;
}

const struct corpus_utterance *corpus_utterance(const struct corpus *c, size_t i)
{
    ASSERT(i < c->n);
    return &c->list[i];
}

uint32_t corpus_dim(const struct corpus *c)
{
    return c->n ? c->dim : 0;
}

uint32_t corpus_num_targets(const struct corpus *c)
{
    return c->num_targets;
}

uint64_t corpus_frames(const struct corpus *c)
{
    return c->frames;
}

uint64_t corpus_hash(const struct corpus *c)
{
    return c->hash;
}

uint32_t corpus_num_speakers(const struct corpus *c)
{
    return c->num_speakers;
}

const char *corpus_speaker(const struct corpus *c, uint32_t speaker)
{
    ASSERT(speaker < c->num_speakers);
    return c->speakers[speaker];
}

const char *corpus_dir(const struct corpus *c)
{
    return c->dir;
}

const struct corpus_options *corpus_options(const struct corpus *c)
{
    return &c->options;
}

const struct corpus_report *corpus_report(const struct corpus *c)
{
    return &c->report;
}

/* --- lists */

static void report_list(struct corpus_report *r, const struct scp *s)
{
    if (s->bad) {
        corpus_report_add(r, CORPUS_BAD_LINE, "%s line %zu has no value after the id", s->path,
                          s->first_bad_line);
        r->count[CORPUS_BAD_LINE] += s->bad - 1;
    }
    for (size_t i = 0; i < s->n; i++) {
        if (scp_is_duplicate(s, i))
            corpus_report_add(r, CORPUS_DUPLICATE, "%s line %zu: id %s is in line %zu already", s->path,
                              s->lines[i], s->keys[i], s->lines[scp_find(s, s->keys[i])]);
        else if (scp_is_unsorted(s, i))
            corpus_report_add(r, CORPUS_UNSORTED,
                              "%s line %zu: id %s comes after %s; sort the file with LC_ALL=C", s->path,
                              s->lines[i], s->keys[i], s->keys[i - 1]);
    }
}

/* A list that may be absent. */
static int read_optional(const char *dir, const char *name, struct scp *out, bool *present)
{
    char *path = files_join(dir, name);
    int rc = 0;
    *present = files_exists(path);
    if (*present) rc = scp_read(path, NULL, false, out);
    free(path);
    return rc;
}

static int read_lists(struct join *j)
{
    struct corpus *c = j->c;
    bool has_speakers;
    char *path = files_join(c->dir, "feats.scp");
    int rc = scp_read(path, NULL, false, &c->feats);
    free(path);
    if (rc < 0) return err_prefix(rc, "%.300s is not a data directory", c->dir);
    report_list(&c->report, &c->feats);
    if ((rc = read_optional(c->dir, "utt2num_frames", &j->lengths, &j->has_lengths)) < 0) return rc;
    if ((rc = read_optional(c->dir, "utt2spk", &c->utt2spk, &has_speakers)) < 0) return rc;
    if (j->has_lengths) report_list(&c->report, &j->lengths);
    if (has_speakers) report_list(&c->report, &c->utt2spk);
    return 0;
}

/* --- alignments */

/* "ali.scp" of the directory, a path, or an rspecifier as it is. Owned by the caller. */
static char *find_targets(const char *dir, const char *targets)
{
    if (strncmp(targets, "ark", 3) == 0 && strchr(targets, ':')) return xstrdup(targets);
    if (strncmp(targets, "scp", 3) == 0 && strchr(targets, ':')) return xstrdup(targets);
    char *inside = files_join(dir, targets);
    const char *path = files_exists(inside) || !files_exists(targets) ? inside : targets;
    size_t n = strlen(path);
    bool archive = n > 4 && strcmp(path + n - 4, ".ark") == 0;
    char *found = xprintf("%s:%s", archive ? "ark" : "scp", path);
    free(inside);
    return found;
}

static enum corpus_problem kind_of_failure(const char *location)
{
    return input_is_pipe(location) ? CORPUS_PIPE : CORPUS_UNREADABLE;
}

static bool targets_are_good(struct corpus *c, const char *name, size_t line, const char *key,
                             const struct ints *v)
{
    uint32_t limit = c->options.num_targets ? c->options.num_targets : INT32_MAX;
    for (size_t t = 0; t < v->count; t++) {
        if (v->data[t] >= 0 && (uint32_t)v->data[t] < limit) continue;
        corpus_report_add(&c->report, CORPUS_TARGET,
                          "%s line %zu: %s has target %" PRId32 " at frame %zu, beyond 0..%" PRIu32, name,
                          line, key, v->data[t], t, limit - 1);
        return false;
    }
    return true;
}

static void keep_alignment(struct join *j, struct alignment *a, const struct ints *v)
{
    struct ints *pool = &j->c->pool;
    if (pool->count + v->count > pool->capacity) ints_reserve(pool, 2 * (pool->count + v->count));
    a->offset = pool->count;
    a->count = v->count;
    if (v->count) memcpy(pool->data + pool->count, v->data, v->count * sizeof *v->data);
    pool->count += v->count;
}

static int take_alignment(struct join *j, const char *name, struct ark_reader *r, const char *key,
                          struct ints *v)
{
    struct corpus *c = j->c;
    size_t line = ark_line(r), at = scp_find(&c->feats, key);
    struct alignment *a = at == SCP_NONE ? NULL : &j->alignments[at];
    int rc = ark_next_ints(r, v);
    if (a && a->seen) {
        corpus_report_add(&c->report, CORPUS_DUPLICATE, "%s line %zu: a second alignment of %s", name, line,
                          key);
        return rc;
    }
    if (!a) {
        c->report.unwanted++;
        return rc;
    }
    a->seen = true;
    if (rc < 0) {
        corpus_report_add(&c->report, kind_of_failure(ark_location(r)), "%s line %zu: %s: %s", name, line,
                          key, err_text());
        a->failed = true;
        return rc;
    }
    a->failed = !targets_are_good(c, name, line, key, v);
    if (!a->failed) keep_alignment(j, a, v);
    return 0;
}

static int read_alignments(struct join *j, const char *targets)
{
    struct corpus *c = j->c;
    struct ints v = {0};
    const char *key;
    int rc;
    j->alignments = xcalloc(c->feats.n, sizeof *j->alignments);
    char *name = find_targets(c->dir, targets), last[256] = "";
    struct ark_options o = {.allow_pipes = c->options.allow_pipes, .allow_command = c->options.allow_pipes};
    struct ark_reader *r = ark_open(name, &o);
    bool archive = strncmp(name, "ark", 3) == 0;
    const char *file = strchr(name, ':') + 1;
    if (!r) {
        free(name);
        return err_prefix(ERR_DATA, "the targets cannot be read");
    }
    while ((rc = ark_next(r, &key)) > 0) {
        if (last[0] && strcmp(last, key) > 0)
            corpus_report_add(&c->report, CORPUS_UNSORTED,
                              "%s line %zu: id %.200s comes after %.200s; sort the file with LC_ALL=C", file,
                              ark_line(r), key, last);
        snprintf(last, sizeof last, "%s", key);
        rc = take_alignment(j, file, r, key, &v);
        if (rc < 0 && archive) break; /* where the next one starts is not known */
    }
    if (rc < 0 && archive)
        corpus_report_add(&c->report, CORPUS_UNREADABLE, "the rest of the targets is lost: %s", err_text());
    rc = ark_close(&r);
    if (rc < 0) corpus_report_add(&c->report, CORPUS_UNREADABLE, "%s", err_text());
    ints_fini(&v);
    free(name);
    return 0;
}

/* --- the join */

static struct ark_source source_of(const struct join *j, size_t at)
{
    const struct corpus *c = j->c;
    return (struct ark_source){c->feats.values[at], c->feats.folder, c->options.allow_pipes, j->in};
}

/* Frames as utt2num_frames says; false if it does not say. */
static bool listed_frames(const struct join *j, size_t at, size_t *rows)
{
    if (!j->has_lengths) return false;
    size_t found = scp_find(&j->lengths, j->c->feats.keys[at]);
    if (found == SCP_NONE) return false;
    char *end;
    unsigned long n = strtoul(j->lengths.values[found], &end, 10);
    if (*end || n > INT32_MAX || j->lengths.values[found][0] == '-') {
        corpus_report_add(&j->c->report, CORPUS_FRAME_COUNT, "%s line %zu: '%s' is not a number of frames",
                          j->lengths.path, j->lengths.lines[found], j->lengths.values[found]);
        return false;
    }
    *rows = (size_t)n;
    return true;
}

/* Rows from the list or the header; the first header that can be read also gives the dimension. */
static bool find_rows(struct join *j, size_t at, size_t *rows)
{
    struct corpus *c = j->c;
    const struct scp *f = &c->feats;
    size_t header_rows, cols;
    bool listed = listed_frames(j, at, rows);
    if (!c->options.allow_pipes && input_is_pipe(f->values[at])) {
        corpus_report_add(&c->report, CORPUS_PIPE, "%s line %zu: %s is a command, which needs --allow-pipes",
                          f->path, f->lines[at], f->keys[at]);
        return false;
    }
    if (listed && c->dim) return true;
    struct ark_source s = source_of(j, at);
    if (ark_read_shape(&s, &header_rows, &cols) < 0) {
        corpus_report_add(&c->report, kind_of_failure(s.location), "%s line %zu: %s: %s", f->path,
                          f->lines[at], f->keys[at], err_text());
        return false;
    }
    if (c->dim == 0) c->dim = (uint32_t)cols;
    if (!listed) *rows = header_rows;
    if (cols == c->dim || header_rows == 0) return true;
    corpus_report_add(&c->report, CORPUS_DIMENSION, "%s line %zu: %s has dimension %zu, not %" PRIu32,
                      f->path, f->lines[at], f->keys[at], cols, c->dim);
    return false;
}

static bool fit_alignment(struct join *j, size_t at, size_t rows, size_t *frames)
{
    struct corpus *c = j->c;
    const struct scp *f = &c->feats;
    const struct alignment *a = &j->alignments[at];
    *frames = rows;
    if (a->failed) return false;
    if (!a->seen) {
        corpus_report_add(&c->report, CORPUS_MISSING_ALIGNMENT, "%s line %zu: %s has no alignment", f->path,
                          f->lines[at], f->keys[at]);
        return false;
    }
    size_t apart = a->count > rows ? a->count - rows : rows - a->count;
    if (a->count == 0 || apart > c->options.length_tolerance) {
        corpus_report_add(&c->report, a->count ? CORPUS_LENGTH : CORPUS_EMPTY,
                          "%s line %zu: %s has %zu frames but %zu targets (tolerance %" PRIu32 ")", f->path,
                          f->lines[at], f->keys[at], rows, a->count, c->options.length_tolerance);
        return false;
    }
    if (apart) c->report.cut++;
    if (a->count < rows) *frames = a->count;
    return true;
}

/* Utterances stay in file order, so speakers are numbered in the order in which they first appear; ids sorted
 * by speaker, as Kaldi wants them, make the search below short. */
static uint32_t number_speaker(struct corpus *c, size_t at)
{
    const char *name = c->feats.keys[at];
    if (c->utt2spk.n) {
        size_t found = scp_find(&c->utt2spk, name);
        if (found == SCP_NONE)
            corpus_report_add(&c->report, CORPUS_NO_UTT2SPK, "%s line %zu: %s is not in utt2spk",
                              c->feats.path, c->feats.lines[at], name);
        else
            name = c->utt2spk.values[found];
        for (uint32_t i = c->num_speakers; i-- > 0;)
            if (strcmp(c->speakers[i], name) == 0) return i;
    }
    c->speakers[c->num_speakers] = name;
    return c->num_speakers++;
}

static void add_utterance(struct join *j, size_t at)
{
    struct corpus *c = j->c;
    const struct scp *f = &c->feats;
    size_t rows, frames;
    if (scp_is_duplicate(f, at) || !find_rows(j, at, &rows)) return;
    if (rows == 0) {
        corpus_report_add(&c->report, CORPUS_EMPTY, "%s line %zu: %s has no frames", f->path, f->lines[at],
                          f->keys[at]);
        return;
    }
    frames = rows;
    if (j->alignments && !fit_alignment(j, at, rows, &frames)) return;
    struct corpus_utterance *u = &c->list[c->n++];
    *u = (struct corpus_utterance){.id = f->keys[at],
                                   .frames = (uint32_t)frames,
                                   .speaker = number_speaker(c, at),
                                   .line = f->lines[at],
                                   .features = source_of(j, at)};
    u->features.input = NULL;
    if (j->alignments) u->targets = c->pool.data + j->alignments[at].offset;
    c->frames += frames;
}

static void sum_up(struct corpus *c)
{
    XXH3_state_t *h = XXH3_createState();
    ASSERT(h);
    XXH3_64bits_reset(h);
    for (size_t i = 0; i < c->n; i++) {
        const struct corpus_utterance *u = &c->list[i];
        XXH3_64bits_update(h, u->id, strlen(u->id) + 1);
        XXH3_64bits_update(h, &u->frames, sizeof u->frames);
        for (uint32_t t = 0; u->targets && t < u->frames; t++)
            if ((uint32_t)u->targets[t] >= c->num_targets) c->num_targets = (uint32_t)u->targets[t] + 1;
    }
    c->hash = XXH3_64bits_digest(h);
    XXH3_freeState(h);
    c->report.listed = c->feats.n;
    c->report.usable = c->n;
    c->report.frames = c->frames;
}

static int complain_empty(const struct corpus *c)
{
    for (int k = CORPUS_PIPE; k < CORPUS_PROBLEMS; k++) /* the kinds before it skip nothing */
        if (c->report.count[k])
            return err_set(ERR_DATA, "%.200s has no usable utterance of %zu; for instance: %.400s", c->dir,
                           c->feats.n, c->report.example[k][0]);
    return err_set(ERR_DATA, "%.300s has no utterances: feats.scp is empty", c->dir);
}

int corpus_open(const char *dir, const char *targets, const struct corpus_options *o, struct corpus **out)
{
    struct corpus *c = xcalloc(1, sizeof *c);
    struct join j = {.c = c, .in = input_new()};
    c->dir = xstrdup(dir);
    c->options = *o;
    c->dim = o->dim;
    int rc = read_lists(&j);
    if (rc == 0 && targets && targets[0]) rc = read_alignments(&j, targets);
    if (rc == 0) {
        c->list = xcalloc(c->feats.n, sizeof *c->list);
        c->speakers = xcalloc(c->feats.n, sizeof *c->speakers);
        for (size_t i = 0; i < c->feats.n; i++) add_utterance(&j, i);
        sum_up(c);
        if (c->n == 0 && !o->allow_empty) rc = complain_empty(c);
    }
    input_free(&j.in);
    free(j.alignments);
    scp_fini(&j.lengths);
    if (rc < 0)
        corpus_free(&c);
    else
        *out = c;
    return rc;
}

void corpus_free(struct corpus **c)
{
    if (!*c) return;
    scp_fini(&(*c)->feats);
    scp_fini(&(*c)->utt2spk);
    ints_fini(&(*c)->pool);
    free((*c)->list);
    free((*c)->speakers);
    free((*c)->dir);
    free(*c);
    *c = NULL;
}
