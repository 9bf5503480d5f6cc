/* What `chorale data check DIR` prints: every problem of a data directory, counted, named and with examples.
 * Reads all of the data; changes nothing. */
#ifndef WORKER_DATA_DATA_CHECK_H
#define WORKER_DATA_DATA_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct data_check {
    const char *dir;
    const char *targets; /* NULL = ali.scp of the directory if there is one */
    bool allow_pipes, json;
    uint32_t dim;         /* expected, 0 = any */
    uint32_t num_targets; /* of the model, 0 = any */
};

/* Writes the report (a table, or one JSON object) to `to`. 0 if the data are clean, ERR_DATA if they have
 * problems (a sentence with their number) or cannot be read at all. */
int data_check_run(const struct data_check *o, FILE *to);

#endif
