/* The coordinator: members, shard map, leases, epochs, checkpoint sets, evaluation. A core without I/O:
 * messages and time in; messages, journal rows and finished sets out through coordinate_io; the simulator
 * drives this same code. Its state is a set of rows (JSON objects, one per line): the journal is row after
 * row, a manifest holds all rows, and starting is applying rows. Source: DESIGN section 4. One thread. */
#ifndef SERVER_COORDINATOR_COORDINATE_H
#define SERVER_COORDINATOR_COORDINATE_H

#include "common/blocks.h"
#include "common/msg.h"
#include "common/snapshot.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdint.h>

struct coordinate_options {
    uint64_t job, model_hash;
    uint32_t shards;
    struct blocks blocks; /* for the ranges in manifests; zeroed: they stay 0 */
    uint32_t epochs;
    enum consistency_mode mode;
    uint32_t bound;   /* ssp: told in the status, the servers see to it */
    uint32_t backup;  /* bsp: a step goes without so many workers, a set without so many that are silent */
    uint32_t workers; /* bsp: the roster is complete with so many; also the number of ranks with capsules */
    uint32_t streams; /* S of one worker, of all its threads */
    uint64_t shape;   /* what a capsule depends on, as a number below 2^62: none of another is handed out */
    uint64_t warm_start_frames; /* that the worker of the lowest rank trains alone */
    struct data_facts train, dev;
    uint32_t chunk_utterances;
    uint64_t lease_ns;        /* a lease not used in this time goes to another */
    uint64_t interval_ns;     /* between sets; 0 = only at epoch turns and the end */
    uint64_t limit_ns;        /* silence after which a member is retired: 30 s */
    uint32_t eval_utterances; /* of one evaluation lease: 16 */
    bool newbob;
    double start_improvement, end_improvement; /* relative, of the dev loss */
};

/* One epoch that has ended, and its evaluation if there is dev data. */
struct coordinate_epoch {
    uint32_t epoch;                    /* from 1 */
    uint32_t halve_from;               /* newbob: in force; 0: not yet */
    double train_loss, train_accuracy; /* per frame, fraction; NAN: nothing was reported */
    bool evaluated;
    double dev_loss, dev_accuracy, dev_accuracy_speech; /* NAN: unknown */
};

/* The job from the next epoch on. */
struct coordinate_next {
    enum consistency_mode mode;
    uint32_t bound, backup, epochs;
};

struct coordinate_capsule {
    uint32_t rank;
    char *data;
    size_t len;
};

struct coordinate_io {
    void *ctx;
    void (*send)(void *ctx, uint64_t peer, const struct msg *m, struct frame **payload);
    /* One row (a line without its newline) that must be on disk before this returns: nothing that depends on
     * it is sent before. */
    void (*journal)(void *ctx, const char *row);
    /* All of a set is written. manifest is complete but for the capsules' files: blobs in rank order.
     * Answered by coordinate_set_done, perhaps later; manifest (which the callee may complete) and capsules
     * are borrowed until then. manifest->state is the object {"rows":[...]}. */
    void (*complete)(void *ctx, struct manifest *manifest, const struct coordinate_capsule *capsules,
                     uint32_t num_capsules);
    /* May be NULL: an epoch has its dev result (or ended, where there is no dev data). */
    void (*epoch_done)(void *ctx, const struct coordinate_epoch *e);
    /* May be NULL: the learning rate at the end of an epoch (from 1), for the status. */
    double (*rate)(void *ctx, uint32_t epoch, uint32_t halve_from);
    /* May be NULL: what the number of workers does to the rate, for the status. */
    double (*rate_factor)(void *ctx, uint32_t workers);
    /* May be NULL: the momentum that so many workers keep, each for itself; 0: the servers have it. */
    double (*momentum)(void *ctx, uint32_t workers);
};

struct coordinator;

/* Fresh: epoch 0, nothing leased, set 0 is on disk. */
struct coordinator *coordinate_new(const struct coordinate_options *o, const struct coordinate_io *io);
void coordinate_free(struct coordinator **c);
/* One row of a journal or manifest. ERR_DATA with a sentence for nonsense; only before coordinate_start. */
int coordinate_apply_row(struct coordinator *c, const char *row);
/* The state of a manifest: {"rows":[...]}, each row applied. */
int coordinate_apply_state(struct coordinator *c, const char *state);
/* Of a row (of a journal whose state is not taken up) only the numbers that never go back: incarnation,
 * generations, next member, lease, set and roster. Nonsense is ERR_DATA. A resume applies the newest
 * manifest's state and then the journal's rows by this. */
int coordinate_apply_counters(struct coordinator *c, const char *row);
/* After the rows: incarnation + 1. restored: all processes are new and take up the set `set` (job generation
 * + 1; leases of members that are gone are open again, or wait with their capsule for the rank they belong
 * to). Otherwise only the coordinator was away. */
void coordinate_start(struct coordinator *c, uint64_t now, bool restored, uint32_t set);
/* A capsule of the restored set, for its rank (copied); ignored if it is of another shape. */
void coordinate_give_capsule(struct coordinator *c, uint32_t rank, const void *data, size_t len);
/* All rows, one JSON object per line, owned by the caller. */
char *coordinate_rows(const struct coordinator *c);

void coordinate_receive(struct coordinator *c, uint64_t now, uint64_t peer, const struct msg *m,
                        struct frame **payload);
void coordinate_tick(struct coordinator *c, uint64_t now);
uint64_t coordinate_next(const struct coordinator *c);
/* rc 0: the manifest is on disk; negative: it could not be written (the old sets stay, training goes on). */
void coordinate_set_done(struct coordinator *c, uint64_t now, uint32_t set, int rc);
/* TERM: name a last set, then tell everyone to leave with COMMAND_INTERRUPT. */
void coordinate_interrupt(struct coordinator *c, uint64_t now);

/* A changed job waits: epochs of which nothing is leased are held back, and once those before them have
 * turned and are evaluated, and a set holds all that, everyone is told to leave (coordinate_switched).
 * Without another epoch to come the job ends as it is. NULL: no change waits any more. */
void coordinate_change(struct coordinator *c, uint64_t now, const struct coordinate_next *next);
/* needs_restore, so that the job goes on as changed; also of a coordinator that was away since it said so. */
bool coordinate_switched(const struct coordinator *c);

/* COMMAND_RUN while it runs. Otherwise everyone was told; leave once coordinate_is_empty or after a while. */
enum msg_command coordinate_command(const struct coordinator *c);
bool coordinate_is_empty(const struct coordinator *c); /* no member and no server is left */
/* Everything must start again from the last set: bsp, a process fell; or the job is switched. */
bool coordinate_needs_restore(const struct coordinator *c);
/* Progress for RUN/status.json (see deploy/status.c), owned by the caller. */
char *coordinate_status(const struct coordinator *c, uint64_t now, const char *run);
uint64_t coordinate_generation(const struct coordinator *c); /* of the job */
/* The set whose capsules are to be given after a start that was no restore, too: workers of an exact job may
 * not have fetched theirs yet. 0: none. */
uint32_t coordinate_capsules_of(const struct coordinator *c);
uint32_t coordinate_incarnation(const struct coordinator *c);

/* --- for the simulator's checks */
struct coordinate_account {
    uint64_t chunks, open, leased, used, doubled, reopened;
    uint32_t epoch; /* epochs whose chunks are all used */
    uint32_t newest_set;
};
void coordinate_account(const struct coordinator *c, struct coordinate_account *out);

#endif
