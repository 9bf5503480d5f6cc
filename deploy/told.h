/* What RUN/status.json tells, as words: pieces that more than one command shows. Any JSON will do: what is
 * not there or makes no sense is left out. Plain functions, any thread. */
#ifndef DEPLOY_TOLD_H
#define DEPLOY_TOLD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* False, and *out as it was: no finite number. */
bool told_number(const json_t *object, const char *key, double *out);
/* Printable ASCII and UTF-8 alone: a file may hold anything. */
void told_plain(const char *text, char *out, size_t size);
/* "ssp, bound 4, rate x 0.5, one worker trains alone"; "" if the mode is not told. */
void told_mode(const json_t *status, char *out, size_t size);
/* The change that waits: "switching to bsp after epoch 3"; "" if there is none. */
void told_change(const json_t *status, char *out, size_t size);
/* Workers that are there. */
size_t told_live(const json_t *workers);
/* Can, or did, a bound or a roster make a worker wait? */
bool told_waits(const json_t *status, const json_t *shards);

#endif
