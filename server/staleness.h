/* How stale the updates of one shard are: version of the block when a push is applied minus the version its
 * gradient came from; also in frames and seconds, per worker, with the skew of base versions in one gradient.
 * A histogram of the whole life and one of the interval. Source: DESIGN sections 2 and 7. One thread. */
#ifndef SERVER_STALENESS_H
#define SERVER_STALENESS_H

#include <stddef.h>
#include <stdint.h>

struct staleness;

struct staleness_record {
    uint64_t member;
    uint64_t versions; /* the staleness */
    uint64_t frames;   /* frames the block applied in between */
    uint64_t age_us;   /* since the worker had the weights */
    uint64_t skew;
};

struct staleness_summary {
    uint64_t count;
    uint32_t p50, p95, max; /* versions */
    double mean, mean_frames, mean_seconds, mean_skew;
};

/* Of one block: the frames it had applied at each of its last versions. */
#define STALENESS_HISTORY 256
struct staleness_history {
    uint64_t first, version;            /* first: the oldest version known at the beginning */
    uint64_t frames[STALENESS_HISTORY]; /* applied at version v: frames[v % STALENESS_HISTORY] */
};
void staleness_history_begin(struct staleness_history *h, uint64_t version, uint64_t frames);
/* The next version, with the frames applied up to it. */
void staleness_history_add(struct staleness_history *h, uint64_t frames);
/* Frames applied since version `base`; in proportion for versions that it does not remember. */
uint64_t staleness_history_since(const struct staleness_history *h, uint64_t base);

struct staleness *staleness_new(void);
void staleness_free(struct staleness **s);
/* One applied push of one block. */
void staleness_add(struct staleness *s, const struct staleness_record *r);
/* Over the whole life (interval = 0) or since the last staleness_line (interval = 1). */
void staleness_summarise(const struct staleness *s, int interval, struct staleness_summary *out);
/* One JSON object of the interval for RUN/staleness/shard-NN.jsonl, owned by the caller (free), and a fresh
 * interval; NULL if nothing was applied:
 * {"ts":..,"ev":"staleness","shard":1,"ver":8123,"n":..,"p50":3,"p95":9,"max":14,"mean":..,"frames":..,
 *  "seconds":..,"per_worker":mean / (workers - 1),"skew":..,"by_worker":{"3":{"n":..,"mean":..,"max":..}}} */
char *staleness_line(struct staleness *s, uint32_t shard, uint64_t version, uint32_t workers);

#endif
