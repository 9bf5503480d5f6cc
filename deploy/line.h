/* The live line of `chorale train`: the status of a job in the columns that there are. What is less important
 * is shortened and then left out where they are few. Plain functions, any thread. */
#ifndef DEPLOY_LINE_H
#define DEPLOY_LINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define LINE_BYTES 400

/* *steps: how far it had to be narrowed so far, 0 at first; it stays so, for an even look. */
void line_make(const json_t *status, size_t width, size_t *steps, char out[LINE_BYTES]);
/* Dev accuracy of the evaluated epoch before row `i` of epochs_done. */
bool line_dev_before(const json_t *rows, size_t i, double *out);
/* Of the whole number nearest to v. */
int line_digits(double v);

#endif
