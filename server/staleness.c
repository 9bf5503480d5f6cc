#include "server/staleness.h"

#include "common/clock.h"
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bins: every value below LINEAR its own; above, OCTAVE bins per doubling, so a percentile is at most
 * 1/OCTAVE of itself too low. Values of 32 bits. */
#define LINEAR 1024
#define OCTAVE 512
#define BINS   (LINEAR + 22 * OCTAVE)

struct histogram {
    uint64_t bins[BINS];
    uint64_t count;
    uint32_t max;
    double versions, frames, age_us, skew; /* sums */
};

struct by_worker {
    uint64_t member, count;
    uint32_t max;
    double versions; /* sum */
};

struct staleness {
    struct histogram span[2];  /* whole life, interval */
    struct by_worker *workers; /* (num_workers) of the interval, members rising */
    size_t num_workers, capacity;
};

void staleness_history_begin(struct staleness_history *h, uint64_t version, uint64_t frames)
{
    h->first = h->version = version;
    h->frames[version % STALENESS_HISTORY] = frames;
}

void staleness_history_add(struct staleness_history *h, uint64_t frames)
{
    h->frames[++h->version % STALENESS_HISTORY] = frames;
}

uint64_t staleness_history_since(const struct staleness_history *h, uint64_t base)
{
    uint64_t oldest = h->first;
    if (h->version - oldest >= STALENESS_HISTORY) oldest = h->version - STALENESS_HISTORY + 1;
    if (base >= h->version || oldest == h->version) return 0;
    uint64_t from = base > oldest ? base : oldest;
    uint64_t frames = h->frames[h->version % STALENESS_HISTORY] - h->frames[from % STALENESS_HISTORY];
    if (base >= oldest) return frames;
    return (uint64_t)((double)frames * (double)(h->version - base) / (double)(h->version - oldest));
}

struct staleness *staleness_new(void)
{
    return xcalloc(1, sizeof(struct staleness));
}

void staleness_free(struct staleness **s)
{
    if (!*s) return;
    free((*s)->workers);
    free(*s);
    *s = NULL;
}

/* How often v must be halved to fall below LINEAR. */
static int shift_of(uint32_t v)
{
    int shift = 0;
    while (v >> shift >= LINEAR) shift++;
    return shift;
}

static size_t bin_of(uint32_t v)
{
    int shift = shift_of(v);
    if (shift == 0) return v;
    return LINEAR + (size_t)(shift - 1) * OCTAVE + ((v >> shift) - OCTAVE);
}

/* The smallest value of a bin. */
static uint32_t value_of(size_t bin)
{
    if (bin < LINEAR) return (uint32_t)bin;
    size_t shift = (bin - LINEAR) / OCTAVE + 1;
    return (uint32_t)(((bin - LINEAR) % OCTAVE + OCTAVE) << shift);
}

/* The worker's entry of this interval, made if it is new. */
static struct by_worker *worker_entry(struct staleness *s, uint64_t member)
{
    size_t at = s->num_workers;
    while (at > 0 && s->workers[at - 1].member >= member) at--;
    if (at < s->num_workers && s->workers[at].member == member) return &s->workers[at];
    if (s->num_workers == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 8;
        s->workers = realloc(s->workers, s->capacity * sizeof *s->workers);
        ASSERT(s->workers);
    }
    memmove(s->workers + at + 1, s->workers + at, (s->num_workers - at) * sizeof *s->workers);
    s->num_workers++;
    s->workers[at] = (struct by_worker){.member = member};
    return &s->workers[at];
}

void staleness_add(struct staleness *s, const struct staleness_record *r)
{
    uint32_t versions = r->versions < UINT32_MAX ? (uint32_t)r->versions : UINT32_MAX;
    for (int i = 0; i < 2; i++) {
        struct histogram *h = &s->span[i];
        h->bins[bin_of(versions)]++;
        h->count++;
        if (versions > h->max) h->max = versions;
        h->versions += versions;
        h->frames += (double)r->frames;
        h->age_us += (double)r->age_us;
        h->skew += (double)r->skew;
    }
    struct by_worker *w = worker_entry(s, r->member);
    w->count++;
    w->versions += versions;
    if (versions > w->max) w->max = versions;
}

/* Nearest rank: the smallest value that at least `percent` of the records do not exceed. */
static uint32_t percentile(const struct histogram *h, uint64_t percent)
{
    uint64_t below = 0;
    for (size_t i = 0; i < BINS; i++) {
        below += h->bins[i];
        if (below > 0 && below * 100 >= h->count * percent) return value_of(i);
    }
    return 0;
}

void staleness_summarise(const struct staleness *s, int interval, struct staleness_summary *out)
{
    const struct histogram *h = &s->span[interval ? 1 : 0];
    *out = (struct staleness_summary){.count = h->count};
    if (h->count == 0) return;
    double n = (double)h->count;
    out->p50 = percentile(h, 50);
    out->p95 = percentile(h, 95);
    out->max = h->max;
    out->mean = h->versions / n;
    out->mean_frames = h->frames / n;
    out->mean_seconds = h->age_us / n / 1e6;
    out->mean_skew = h->skew / n;
}

char *staleness_line(struct staleness *s, uint32_t shard, uint64_t version, uint32_t workers)
{
    struct staleness_summary m;
    staleness_summarise(s, 1, &m);
    if (m.count == 0) return NULL;
    char ts[40], *line = NULL;
    size_t len = 0;
    clock_wall_text(ts, sizeof ts);
    FILE *f = open_memstream(&line, &len);
    ASSERT(f);
    fprintf(f,
            "{\"ts\":\"%s\",\"ev\":\"staleness\",\"shard\":%u,\"ver\":%llu,\"n\":%llu,\"p50\":%u,\"p95\":%u,"
            "\"max\":%u,\"mean\":%.6g,\"frames\":%.6g,\"seconds\":%.6g,\"per_worker\":%.6g,\"skew\":%.6g,"
            "\"by_worker\":{",
            ts, shard, (unsigned long long)version, (unsigned long long)m.count, m.p50, m.p95, m.max, m.mean,
            m.mean_frames, m.mean_seconds, m.mean / (workers > 1 ? workers - 1 : 1), m.mean_skew);
    for (size_t i = 0; i < s->num_workers; i++) {
        const struct by_worker *w = &s->workers[i];
        fprintf(f, "%s\"%llu\":{\"n\":%llu,\"mean\":%.6g,\"max\":%u}", i ? "," : "",
                (unsigned long long)w->member, (unsigned long long)w->count, w->versions / (double)w->count,
                w->max);
    }
    fputs("}}", f);
    ASSERT(fclose(f) == 0);
    memset(&s->span[1], 0, sizeof s->span[1]);
    s->num_workers = 0;
    return line;
}
