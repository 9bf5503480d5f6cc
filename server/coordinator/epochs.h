/* Epochs and evaluations: opened, turned, evaluated, and what the dev results decide ("newbob"). One thread.
 * Source: DESIGN sections 2 and 4. */
#ifndef SERVER_COORDINATOR_EPOCHS_H
#define SERVER_COORDINATOR_EPOCHS_H

#include "server/coordinator/state.h"

/* An epoch as one more of the table: all chunks open, in the shape of the options. */
void epochs_add(struct coordinator *c);
/* Opens the next epoch; false if there is none left. */
bool epochs_open_next(struct coordinator *c);
/* A chunk became used: turns epochs, ends evaluations. */
void epochs_check(struct coordinator *c);
/* An epoch has turned without a set of its own yet. */
bool epochs_want_set(const struct coordinator *c);
bool epochs_all_turned(const struct coordinator *c);
/* Nothing is left to evaluate. */
bool epochs_all_evaluated(const struct coordinator *c);
/* All servers copied this set: issue its evaluation. */
void epochs_evaluate(struct coordinator *c, uint32_t set);
/* The epochs that turned get this set; or lose it, because it failed before it was copied. */
void epochs_name_set(struct coordinator *c, uint32_t set);
void epochs_lose_set(struct coordinator *c, uint32_t set);
/* The copies of this set (0: of all) are gone: its evaluation starts over on the next one. */
void epochs_void(struct coordinator *c, uint32_t set);
/* Oldest set whose copy is still read; 0: none. */
uint32_t epochs_keep_set(const struct coordinator *c);
uint32_t epochs_turned(const struct coordinator *c); /* from the first on, without a gap */
uint64_t epochs_frames(const struct coordinator *c); /* used */
void epochs_result(const struct coordinator *c, uint32_t epoch, struct coordinate_epoch *out);
/* The first epoch, from 0, without any lease and without chunks that older epochs have lost. */
uint32_t epochs_first_unleased(const struct coordinator *c);
/* After a start in another layout. async and ssp have the same: nothing is laid out anew. Between those and
 * bsp, and in bsp with other numbers of workers or streams, an epoch under way starts over, with all of its
 * utterances: what was used of it is used twice, and counted once. Epochs that have turned stay; those beyond
 * the limit go. */
void epochs_reshape(struct coordinator *c);

json_t *epochs_row(const struct coordinator *c, uint32_t epoch);
json_t *epochs_eval_row(const struct evaluation *e, bool gone);
json_t *epochs_newbob_row(const struct coordinator *c);
int epochs_apply(struct coordinator *c, const json_t *row);
int epochs_apply_eval(struct coordinator *c, const json_t *row);
int epochs_apply_newbob(struct coordinator *c, const json_t *row);

#endif
