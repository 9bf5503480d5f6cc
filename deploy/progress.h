/* What a person sees while a job runs: from RUN/status.json, about twice a second, one live line on a
 * terminal, or a plain line now and then where there is none; and a line that stays for every epoch that has
 * ended. All of it goes to stderr; the summary to a stream of the caller. Never fails: what cannot be read is
 * left out. One thread. */
#ifndef DEPLOY_PROGRESS_H
#define DEPLOY_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct progress_options {
    const char *run;     /* borrowed, as are the next two */
    const char *command; /* what to type for `chorale` */
    const char *data;    /* a data directory for examples */
    bool is_over;        /* nothing will run: the status that is there is the one to tell */
    bool quiet;          /* nothing but progress_say with `matters` */
    bool is_terminal;    /* a live line that is drawn again and again */
    bool has_dev;        /* the line of an epoch waits for its evaluation */
    uint64_t plain_ns;   /* between plain lines */
    FILE *to;            /* borrowed */
};

struct progress;

/* A status.json that is there already belongs to an earlier life and is passed over until it changes, unless
 * the job is over. */
struct progress *progress_new(const struct progress_options *o);
void progress_free(struct progress **p);
/* now in ns; at any rate, most calls do nothing. */
void progress_tick(struct progress *p, uint64_t now);
/* A line that stays. */
void progress_say(struct progress *p, bool matters, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Tells the epochs that were not told yet and takes the live line away. */
void progress_end(struct progress *p);
/* After progress_end: what came of the job, staleness of each shard, where to look next. seconds: that it
 * took; below 0: not told. */
void progress_summary(const struct progress *p, double seconds, FILE *to);

#endif
