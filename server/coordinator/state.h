/* The coordinator's state, open to the files of this folder alone: seats and members (members.c), piles of
 * chunks and their leases (leases.c), epochs and evaluations (epochs.c), checkpoint sets (sets.c), a change
 * of the job between two epochs (change.c), all of it as rows (rows.c). One thread. */
#ifndef SERVER_COORDINATOR_STATE_H
#define SERVER_COORDINATOR_STATE_H

#include "server/coordinator/coordinate.h"

#include <jansson.h>

#define CAPSULE_MAX  (1ull << 30)         /* bytes of one worker's capsule */
#define RATE_SAMPLES 64                   /* seconds over which the rate of the job is measured */
#define RETRY_NS     (5 * 1000000000ull)  /* between attempts at a set that failed */
#define INTERRUPT_NS (20 * 1000000000ull) /* the last set may take so long after TERM */
#define MAX_NUMBER   (1ull << 62)         /* of anything that a row says */

struct sums {
    uint64_t frames, correct, speech_frames, speech_correct, failed;
    double loss;
};

#define CHUNK_MOVED (UINT32_MAX - 1) /* `after` of a used chunk that lives on in a later epoch */

enum chunk_state { CHUNK_OPEN, CHUNK_LEASED, CHUNK_USED };

struct chunk {
    uint32_t order;      /* TRAIN: epoch of its order */
    uint32_t begin, end; /* positions */
    uint32_t after;      /* used: newest set that was named by then */
    uint8_t state;       /* enum chunk_state */
    bool counted;        /* its sums are in the pile: another use of it adds nothing */
};

/* The chunks of an epoch or of an evaluation. */
struct pile {
    struct chunk *chunks; /* (n), owned; NULL: forgotten, all were used */
    uint32_t n, capacity, open, leased;
    uint32_t cursor; /* no chunk before it is open */
    struct sums sums;
};

struct epoch {
    struct pile pile;
    uint32_t base;    /* chunks of its own; those after it are doubled ones of older epochs */
    uint32_t span;    /* async: utterances of a chunk; 0: bsp */
    uint32_t modulus; /* bsp: K*S, one chunk per rank; async: 1 */
    bool turned;      /* all chunks used */
    bool evaluated;   /* told: the dev result, if any, is there */
    uint32_t set;     /* named at its turn; 0: not yet */
    struct sums dev;
};

/* The dev data with the weights of one set, for every epoch that names this set. */
struct evaluation {
    uint32_t set;
    uint32_t returned; /* leases given back */
    struct pile pile;
};

/* A grant. Superseded: its chunk went to another; kept so that its report can be told apart. */
struct lease {
    uint64_t id, member, request, deadline;
    uint32_t kind;  /* enum msg_lease_kind */
    uint32_t where; /* TRAIN: epoch; EVAL: set */
    uint32_t chunk, rank;
    bool superseded;
};

struct member {
    uint64_t number, pid, peer, seen; /* seen: ns */
    bool reached;                     /* peer is known */
    uint32_t role, rank;              /* rank of a worker, shard of a server */
    char host[64], endpoint[MSG_MAX_ENDPOINT];
    uint64_t request, answer; /* the last LEASE_ASK, and the lease it got (0: WAIT) */
    bool held;                /* the answer was HELD, not WAIT */
    bool deferred;            /* bsp: asked before there was a roster */
    bool works;               /* ssp: has a lease to train on */
    struct msg_beat beat;
    bool has_beat;
    uint64_t frames_before; /* in beat.frames, but computed before it joined (a capsule has them) */
    struct msg_order told;
    char *capsule;                       /* owned */
    uint64_t capsule_len, capsule_total; /* bytes here, in all */
    uint32_t capsule_attempt;
    uint32_t capsule_set;
    uint64_t capsule_after; /* a capsule made before this request was answered lacks its lease */
};

struct seat {
    uint32_t generation;
    uint64_t member; /* 0: nobody */
    bool served;     /* in this life of the job: an empty seat means a fall */
    uint32_t set;    /* its weights came from */
    char endpoint[MSG_MAX_ENDPOINT];
    struct msg_beat beat; /* the newest, kept when its server leaves */
    bool has_beat;
};

enum set_phase { SET_NONE, SET_HOLD, SET_COPY, SET_WRITE, SET_FILES };

struct sets {
    enum set_phase phase;
    uint32_t set;               /* in progress */
    bool exact, final, settled; /* settled: holds all that a change of the job waits for */
    char *rows;                 /* at its moment; owned */
    struct manifest manifest;
    struct coordinate_capsule *capsules; /* owned, data is the members' */
    uint32_t num_capsules;
    uint32_t newest;       /* complete */
    uint32_t newest_final; /* complete, holds the whole job; 0: none */
    bool has_settled;      /* complete since the change was asked for */
    uint64_t newest_at;    /* ns */
    uint64_t last_named;   /* ns */
    uint64_t retry_at;     /* ns */
};

struct capsule {
    char *data; /* owned */
    size_t len;
};

struct coordinator {
    struct coordinate_options o;
    struct coordinate_io io;
    bool started, settled;
    uint32_t incarnation, generation; /* of the job */
    uint64_t next_member, next_lease;
    uint64_t believed_from; /* leases below were granted before a server fell: their pushes may be lost */
    uint32_t next_set, map_version, next_roster, roster;
    enum msg_command command;
    bool bsp; /* o.mode */
    bool restore, switched, superseded;
    uint64_t interrupt_at; /* deadline of the last set; 0: no interrupt */
    bool last_set_tried;   /* after the interrupt */
    uint32_t restored_set;

    struct seat *seats;      /* (o.shards) */
    struct member **members; /* rising numbers */
    uint32_t num_members, cap_members;
    struct lease *leases; /* rising ids */
    uint32_t num_leases, cap_leases;
    struct epoch *epochs; /* opened ones, index = number from 0 */
    uint32_t num_epochs;
    uint32_t limit;           /* epochs that will be trained */
    struct evaluation *evals; /* rising sets */
    uint32_t num_evals;
    struct sets sets;
    struct capsule *capsules; /* (o.workers), of the restored set */
    uint64_t shape;           /* that the rows tell */
    bool foreign;             /* the restored set was taken in another shape */

    uint64_t *working; /* ssp: members of the roster in force, rising; owned */
    uint32_t num_working;
    bool warm; /* one worker trains alone */
    struct {
        bool wanted;
        struct coordinate_next to;
        uint32_t from; /* first epoch (from 0) that is held back */
    } change;

    uint32_t halve_from; /* newbob, from 1 */
    double dev_before;   /* loss of the last evaluated epoch; 0: none */

    uint64_t now, house_at; /* next housekeeping */
    bool stale_orders;      /* some order changed */
    uint64_t doubled, reopened;
    uint64_t frames_gone;  /* computed by workers that left */
    uint64_t frames_start; /* used when this life began */
    struct {
        uint64_t at, frames;
    } samples[RATE_SAMPLES];
    uint32_t num_samples;
};

/* --- rows.c */
/* Journals a row and frees it. */
void rows_write(struct coordinator *c, json_t *row);
void rows_job(struct coordinator *c);
json_t *rows_of_job(const struct coordinator *c);
json_t *rows_sums(const struct sums *s);
int rows_read_sums(const json_t *a, struct sums *out);
/* A whole number of 0..max under a key; absent = `absent`. ERR_DATA with a sentence. */
int rows_number(const json_t *row, const char *key, uint64_t max, uint64_t absent, uint64_t *out);
int rows_u32(const json_t *row, const char *key, uint32_t max, uint32_t absent, uint32_t *out);

/* --- coordinate.c */
void coordinate_reply(struct coordinator *c, uint64_t peer, const struct msg *m);
void coordinate_refuse(struct coordinator *c, uint64_t peer, uint32_t reason, const char *text);
/* Everyone is told to leave. */
void coordinate_command_all(struct coordinator *c, enum msg_command command);
bool coordinate_is_exact(const struct coordinator *c);

#endif
