/* Every message of the protocol as plain data, and its header on the wire (proto/chorale.proto; msg.c alone
 * sees protobuf-c). A header is at most MSG_MAX_HEADER bytes; blocks, rosters and capsules travel in a frame
 * of their own after it. Bytes from a peer are checked here for form, by the receiver for sense. Stateless,
 * any thread. Source: DESIGN section 4. */
#ifndef COMMON_MSG_H
#define COMMON_MSG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MSG_MAJOR        1
#define MSG_MAX_HEADER   4096
#define MSG_MAX_PAYLOAD  (1u << 20)
#define MSG_MAP_PAGE     16 /* shards in one MSG_MAP */
#define MSG_TEXT         256
#define MSG_MAX_ENDPOINT 128

enum msg_type {
    MSG_HELLO = 10, /* the numbers are the fields of Envelope */
    MSG_WELCOME,
    MSG_REFUSED,
    MSG_PUSH,
    MSG_ANSWER,
    MSG_READ,
    MSG_BLOCK,
    MSG_JOIN = 20,
    MSG_JOINED,
    MSG_BEAT,
    MSG_ORDER,
    MSG_MAP_ASK,
    MSG_MAP,
    MSG_LEASE_ASK,
    MSG_LEASE,
    MSG_USED,
    MSG_USED_OK,
    MSG_CAPSULE,
    MSG_CAPSULE_ASK,
    MSG_LEAVE,
    MSG_GONE
};

enum msg_role { ROLE_WORKER = 1, ROLE_SERVER };

/* Why a HELLO or JOIN, or a message before them, was refused. */
enum msg_refusal {
    REFUSAL_HELLO_FIRST = 1, /* this shard does not know the member: say HELLO */
    REFUSAL_MISMATCH,        /* protocol, job or model differ: leave with exit 5 */
    REFUSAL_RETIRED,         /* the member number is no longer good: join anew */
    REFUSAL_NOT_READY,       /* try again a little later */
    REFUSAL_FULL             /* no room for another member or server of that number */
};

/* What became of a push of a block. Values are stored in checkpoints. */
enum msg_verdict {
    VERDICT_NONE = 0,
    VERDICT_APPLIED = 1,
    VERDICT_RECEIVED = 2,   /* bsp: held until the roster is complete; the weights follow */
    VERDICT_NONFINITE = 3,  /* refused; uses up its seq, as do NORM and STALE */
    VERDICT_NORM = 4,       /* refused */
    VERDICT_STALE = 5,      /* refused */
    VERDICT_GENERATION = 6, /* refused, not stored: say HELLO again, then READ */
    VERDICT_CORRUPT = 7     /* hash or size wrong, not stored: send the same seq again */
};

enum msg_command {
    COMMAND_RUN = 0,
    COMMAND_FINISH = 1,    /* the job is done: exit 0 */
    COMMAND_INTERRUPT = 2, /* the job stops, resumable: exit 75 */
    COMMAND_DIVERGED = 3   /* exit 6 */
};

enum msg_lease_kind {
    LEASE_WAIT = 0, /* nothing now: ask again later */
    LEASE_TRAIN = 1,
    LEASE_EVAL = 2,
    LEASE_HELD = 3 /* nothing while a set is being taken, or what was granted is gone: ask again */
};

/* What the worker believes of the job: anything else than the server's is a MISMATCH. */
struct msg_hello {
    uint64_t member, model_hash;
    uint32_t shard, job_generation;
    uint32_t consistency, optimizer; /* enum consistency_mode, enum optimizer_type */
    uint32_t gradients, weights;     /* enum element_type */
};
struct msg_welcome {
    uint32_t shard, generation, job_generation, first_block, blocks;
    uint32_t credit; /* blocks that may be in flight, >= 1 */
};
struct msg_refused {
    uint32_t reason; /* enum msg_refusal */
    char text[MSG_TEXT];
};
/* + payload: the gradient of the block. */
struct msg_push {
    uint64_t member, seq; /* seq: the member's exchange number, 1, 2, ...; the same for every block of it */
    uint32_t job_generation, generation;
    uint32_t block;        /* number in the whole vector */
    uint64_t base_version; /* of the weights this gradient was computed from */
    uint64_t frames;       /* that carried error */
    uint64_t base_age_us;  /* since those weights arrived */
    uint64_t skew;         /* largest minus smallest base version over the blocks of this gradient */
    bool pull;             /* wants weights back */
    uint64_t hash;         /* XXH3 of the payload */
    uint32_t type;         /* enum element_type of the payload */
    uint32_t quorum; /* bsp with backup workers: the ticket (msg_answer); 0 in the push that asks for it */
    uint64_t step;
};
/* + payload: the block's weights, if the push asked for them and there is a verdict that brings them. */
struct msg_answer {
    uint32_t block;
    uint64_t seq;
    uint32_t verdict; /* enum msg_verdict */
    uint64_t version, staleness;
    uint64_t stable; /* last seq of this member that a snapshot holds for this block */
    uint32_t generation, job_generation;
    uint64_t hash;
    uint32_t type;   /* enum element_type of the payload */
    uint32_t credit; /* blocks that may be in flight from now on, >= 1 */
    /* bsp with backup workers, of the first block: the ticket. So many (quorum) take part in that step of the
     * roster, the first is 1. STALE: quorum 0, and the last step that was made. */
    uint32_t quorum;
    uint64_t step;
};
/* set 0: the live weights; otherwise the copy kept for that checkpoint set. */
struct msg_read {
    uint64_t member, request;
    uint32_t block, set;
    uint64_t step; /* live weights: not before the block has made this step (then found is false) */
};
/* + payload: the weights, if found: the live ones as the job's weights travel, those of a set as fp32. */
struct msg_block {
    uint64_t request;
    uint32_t block, set;
    uint64_t version;
    uint32_t generation;
    bool found;
    uint64_t hash;
    uint32_t type; /* enum element_type of the payload */
};

struct msg_join {
    uint32_t role;   /* enum msg_role */
    uint64_t member; /* 0: new; else the number it had, after the coordinator was away */
    char host[64];
    uint64_t pid;
    char endpoint[MSG_MAX_ENDPOINT]; /* of a server */
    uint32_t shard, generation;      /* of a server; generation 0: has no weights yet */
    uint64_t model_hash;
    uint32_t restored_set; /* a server back after a fall: the set its weights are from */
};
struct msg_joined {
    uint64_t member;
    uint32_t incarnation, job_generation;
    uint32_t generation;    /* server: of its shard, in the journal before this was sent */
    uint32_t rank;          /* worker: 0..; which capsule and, in bsp, which streams are its own */
    uint32_t set;           /* server: restore this checkpoint set */
    uint64_t capsule_bytes; /* worker: > 0: fetch it with MSG_CAPSULE_ASK before the first window */
    uint32_t shards;
};
/* Sent about once a second and whenever something below changed; answered by an ORDER. Says what IS. */
struct msg_beat {
    uint32_t role;
    uint64_t member;
    uint32_t incarnation; /* of the coordinator it obeys */
    uint64_t seq, frames; /* worker: exchanges ended, frames computed; from the training loop */
    double frames_per_s, staleness_mean;
    uint32_t holding;               /* worker: stands still for this set, its capsule is on its way */
    uint32_t copied, written;       /* server: newest set copied in memory, written to disk */
    uint64_t file_bytes, file_hash; /* of the written file */
    uint32_t failed_set;            /* server: a set that could not be written; 0 none */
    uint32_t roster, halve_from;    /* server: in force */
    uint64_t version;               /* server: smallest over its blocks */
    uint64_t applied, refused;      /* server: block updates since it started */
    uint32_t p50, p95, max;         /* server: staleness in versions */
    uint64_t waits, wait_us; /* server: answers that a bound or a roster kept back, and for how long in all */
    /* server, of `refused`: why */
    uint64_t nonfinite, norm, stale, other_generation, corrupt, malformed, overrun, stranger;
};
/* What SHALL be: the whole wanted state, so a lost or doubled order does no harm. + payload for a server with
 * roster > 0: the members, u64 each; bsp: in rank order; ssp: the workers that have work, whom the others do
 * not leave behind. */
struct msg_order {
    uint32_t incarnation;
    uint32_t command; /* enum msg_command */
    uint32_t map_version;
    uint32_t hold;            /* worker: stand still for this set; 0: go on */
    uint64_t capsule_have;    /* worker: bytes of its capsule for `hold` that have arrived, */
    uint32_t capsule_attempt; /* of this attempt */
    uint32_t set;             /* server: newest set to copy and write */
    uint32_t keep_set;        /* server: oldest set whose copy is still read; 0: none */
    uint32_t roster;          /* server, bsp: id; 0: none yet */
    uint64_t roster_from;
    uint32_t halve_from;    /* server, newbob: first epoch (from 1) with a lower rate; 0: none */
    uint32_t workers;       /* server: that train now, for the rate; 0: not told */
    double momentum;        /* worker: that it keeps (optimizer.momentum_at), 0: as the job file says */
    uint64_t oldest_member; /* server: entries of lower members may go */
};
struct msg_map_ask {
    uint64_t member;
    uint32_t first;
};
struct msg_map {
    uint32_t version; /* 0: not all shards are there yet */
    uint32_t first, total, count;
    struct msg_shard_at {
        char endpoint[MSG_MAX_ENDPOINT];
        uint32_t generation;
    } shards[MSG_MAP_PAGE];
};
struct msg_lease_ask {
    uint64_t member, request; /* request: the member's counter; the answer repeats it */
};
/* TRAIN: positions p in [begin, end) of the order of `epoch` (from 0), of those the ones with p % modulus in
 * [residue, residue + residues). EVAL: utterances [begin, end) of the dev data with the weights of `set`. */
struct msg_lease {
    uint64_t request;
    uint32_t kind; /* enum msg_lease_kind */
    uint64_t id;   /* > 0, never used again */
    uint32_t epoch, begin, end, modulus, residue, residues, set;
};
/* Sent again until USED_OK. */
struct msg_used {
    uint64_t member, id;
    uint32_t kind;
    uint64_t last_seq; /* TRAIN: the exchange that carried its last frame */
    uint64_t frames;   /* with error */
    double loss;       /* summed, natural logarithm */
    uint64_t correct;
    uint64_t speech_frames, speech_correct; /* EVAL: targets that are not silence */
    uint32_t failed;                        /* utterances that could not be read */
    bool given_back;                        /* not done: give it to another */
};
struct msg_used_ok {
    uint64_t id;
};
/* Either way. + payload: bytes [offset, offset + payload) of total. */
struct msg_capsule {
    uint64_t member;
    uint32_t set;
    uint64_t offset, total, hash; /* hash: XXH3 of this payload */
    uint32_t attempt;             /* 1, 2, ...: a later capsule for the same set replaces the earlier */
    uint64_t request;             /* the last LEASE_ASK whose lease is in it */
};
struct msg_capsule_ask {
    uint64_t member, offset;
};
struct msg_leave {
    uint64_t member;
};
/* From a launcher: its child is dead. */
struct msg_gone {
    char host[64];
    uint64_t pid;
};

struct msg {
    enum msg_type type;
    uint64_t job;
    union {
        struct msg_hello hello;
        struct msg_welcome welcome;
        struct msg_refused refused;
        struct msg_push push;
        struct msg_answer answer;
        struct msg_read read;
        struct msg_block block;
        struct msg_join join;
        struct msg_joined joined;
        struct msg_beat beat;
        struct msg_order order;
        struct msg_map_ask map_ask;
        struct msg_map map;
        struct msg_lease_ask lease_ask;
        struct msg_lease lease;
        struct msg_used used;
        struct msg_used_ok used_ok;
        struct msg_capsule capsule;
        struct msg_capsule_ask capsule_ask;
        struct msg_leave leave;
        struct msg_gone gone;
    };
};

/* Length of the header written to out. Strings of ours that are too long are a bug. */
size_t msg_encode(const struct msg *m, uint8_t out[MSG_MAX_HEADER]);
/* ERR_FAIL with a sentence for bytes that are not a message of this protocol, ERR_MODEL for another major
 * version (*out is then zero but for out->job). Never allocates, whatever the bytes (64 KiB of stack). Names
 * (verdict, reason, role, command, kind, type, mode) are known ones or 0, strings are printable, numbers are
 * as they came. */
int msg_decode(const void *bytes, size_t len, struct msg *out);
/* "push" */
const char *msg_name(enum msg_type type);
const char *msg_verdict_name(uint32_t verdict);

#endif
