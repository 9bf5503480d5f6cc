/* The whole cluster in one process and in virtual time: the real shard, coordinator, exchange and member
 * cores, a network that loses, doubles, delays and reorders, disks, kills, and the invariants of DESIGN
 * section 6 checked after every step. Everything follows from one seed. Source: DESIGN section 5. One thread.
 */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "common/clock.h"
#include "common/config.h"
#include "common/element.h"
#include "common/rng.h"
#include "common/snapshot.h"
#include "common/wire.h"
#include "server/coordinator/coordinate.h"
#include "server/copies.h"
#include "server/shard.h"
#include "worker/exchange.h"
#include "worker/member.h"

#include <stdbool.h>
#include <stdint.h>

#define SIM_JOB        0x5eed
#define SIM_MODEL      0x30de1
#define SIM_SHARDS     4
#define SIM_MAX_EVENTS 20000 /* more on the way at once is a queue without a bound */
#define SIM_BLOCKS     16
#define SIM_EPOCHS     8
#define SIM_STEP       4  /* workers in step, at most */
#define SIM_STREAMS    2  /* of a worker */
#define SIM_HEARD      32 /* answers of a server of which the credit is remembered */
#define SIM_LIMIT      (30 * NS_PER_S)
#define SIM_CROWD      (1ull << 40) /* members from here on said HELLO and nothing else */

/* What --plant breaks, from outside of the cores. */
enum plant {
    PLANT_NONE,
    PLANT_DROP_TABLE,     /* a snapshot without the table of members */
    PLANT_OLD_GENERATION, /* a server that comes back keeps its generation */
    PLANT_LOSE_USED,      /* a worker says used and has not pushed */
    PLANT_STABLE_EARLY,   /* stable is told when the copy is made, not when it is written */
    PLANT_FORGET_SEQ,     /* the table of a shard forgets a seq now and then */
    PLANT_NO_REOPEN,      /* the coordinator is told that a fallen server has lost nothing */
    PLANT_KEEP_BACK,      /* ssp: an answer that was kept back is not sent once it may go */
    PLANT_NO_BOUND,       /* ssp: the members of one shard may run ahead as they like */
    PLANT_OWN_SET,        /* backup workers: the last shard does without one more push than its ticket says */
    PLANT_NO_CREDIT,      /* a worker does not hear that its credit has shrunk */
    PLANTS
};
extern const char *const plant_names[PLANTS];

struct sim;

enum sim_mode { MODE_ASYNC, MODE_ONE, MODE_BSP, MODE_SSP, MODE_BACKUP, MODES };

/* The scenario, drawn from the seed. */
struct plan {
    enum sim_mode mode;
    uint32_t bound;         /* ssp */
    uint32_t max_staleness; /* async, ssp */
    enum element_type gradients, weights;
    uint64_t warm;   /* frames that one worker trains alone */
    struct {         /* of the mode, in mid-job */
        uint64_t at; /* ns, 0 = none, or it is done */
        enum sim_mode mode;
        uint32_t bound, epochs;
    } change;
    enum sim_mode first_mode, epoch_modes[SIM_EPOCHS];
    uint32_t shards, workers, epochs, utterances, dev, chunk;
    struct blocks blocks;
    double loss, twice, late; /* probabilities of a message */
    uint64_t delay;           /* ns, mean */
    uint64_t fault_end;       /* ns: after it nothing falls and nothing is lost */
    uint64_t kill_worker, kill_server, kill_coordinator, kill_all; /* mean ns between; 0 = never */
    uint64_t stop_worker;                    /* the same: it stands still for a while, and does not know it */
    double slow;                             /* part of the workers that are slow, */
    uint32_t slower;                         /* so many times */
    uint64_t window, write, interval, lease; /* ns */
    uint32_t credit;
    uint32_t crowd; /* members of every shard beside the workers: the more, the less credit for each */
    uint64_t crowd_at;
};
/* --- plan.c */
void plan_draw(struct sim *s);
void plan_describe(struct sim *s);
void plan_take_change(struct plan *p, uint32_t from); /* from: its first epoch */
bool plan_in_step(enum sim_mode m);                   /* bsp, with backup workers or without */
uint32_t plan_backup(enum sim_mode m);
enum consistency_mode plan_consistency(enum sim_mode m);
bool plan_is_calm(const struct plan *p);
/* Windows of a chunk, one frame each, whoever does it; where: its first utterance, or (in step) its rank. */
uint32_t plan_windows(enum sim_mode m, uint32_t epoch, uint32_t where);
uint32_t plan_windows_of(const struct msg_lease *l);

/* --- what has been applied, kept beside the shards */
struct oracle_entry {
    uint64_t member, seq;
};
struct oracle {
    uint32_t first, blocks;
    struct oracle_list {
        struct oracle_entry *entries; /* owned */
        size_t n, capacity;
        uint64_t updates, frames; /* that the entries make */
    } * lists;                    /* (blocks), owned */
};
struct oracle *oracle_new(uint32_t first, uint32_t blocks);
struct oracle *oracle_copy(const struct oracle *o);
void oracle_free(struct oracle **o);
bool oracle_has(const struct oracle *o, uint32_t block, uint64_t member, uint64_t seq);
void oracle_add(struct oracle *o, uint32_t block, uint64_t member, uint64_t seq);

/* --- the disk of the run */
struct sim_file {
    uint32_t set, shard;
    struct shard_state *state; /* owned */
    struct oracle *oracle;     /* owned */
};
struct sim_set {
    uint32_t set;
    bool final;
    char *state; /* of the manifest, owned; NULL for set 0 */
    uint32_t num_capsules;
    struct coordinate_capsule *capsules; /* owned */
};
struct disk {
    struct sim_file *files;
    size_t num_files;
    struct sim_set *sets; /* complete ones, rising */
    size_t num_sets;
    char **journal;
    size_t num_rows;
};

/* --- what a server does, seen from outside */
struct watch;

/* --- processes */
enum proc_kind { PROC_COORDINATOR, PROC_SERVER, PROC_WORKER };
struct proc {
    uint64_t pid; /* index + 1; also the address and the peer number of its connections */
    enum proc_kind kind;
    bool dead;
    uint32_t slot;    /* shard of a server, place of a worker */
    uint64_t wake;    /* of the wake-up under way */
    uint64_t found;   /* pid of the coordinator that it knows */
    uint64_t stopped; /* until then it stands still */
    uint64_t born;
    bool was_away;   /* it stood still once */
    uint64_t away;   /* ns: dead, or standing still, since then; 0: neither */
    uint64_t member; /* of a worker, also after its end */
    struct coordinator *coordinator;
    void *node; /* of the coordinator */
    struct sim_server *server;
    struct sim_worker *worker;
};

enum event_kind {
    EVENT_MESSAGE,
    EVENT_WAKE,
    EVENT_FOUND,
    EVENT_WRITTEN,
    EVENT_COMPLETE,
    EVENT_START,
    EVENT_KILL
};
struct event {
    uint64_t at, order;
    enum event_kind kind;
    uint64_t pid;  /* receiver */
    uint64_t from; /* message: sender */
    uint32_t a, b; /* as the kind says */
    struct msg *msg;
    struct frame *payload;
    void *data;
};

/* One use of a chunk that a worker has reported. */
struct use {
    uint32_t epoch, begin, end, residue;
    uint64_t member, seq, lease;
    bool lost; /* the worker knows, and has counted, that its last push is not in the weights: a server's
                  fall took it, it was refused, or a step went on without it */
};

/* In step: who took part in one, on whatever block came first. */
struct step {
    uint32_t n;
    struct oracle_entry who[SIM_STEP];
};

struct sim {
    struct plan plan;
    uint64_t seed;
    enum plant plant;
    bool verbose;
    struct rng rng;
    uint64_t now, order, trace;
    struct event *heap;
    size_t num_events, cap_events;
    struct proc **procs;
    size_t num_procs;
    uint64_t coordinator; /* pid, 0 = none */
    uint64_t servers[SIM_SHARDS];
    uint64_t *workers; /* (plan.workers) pids, 0 = none */
    uint32_t life;     /* of the whole job */
    bool restoring;
    bool ended;
    char broken[512]; /* the sentence; "" = all invariants hold so far */
    struct disk disk;
    struct use *uses;
    size_t num_uses;
    struct generation_seen {
        uint32_t shard, generation;
        uint64_t pid;
    } * generations;
    size_t num_generations;
    struct stable_seen {
        uint64_t member;
        uint32_t block;
        uint64_t seq;
    } * stables;
    size_t num_stables;
    struct step *steps; /* of this life of the job */
    size_t num_steps;
    struct oracle_entry *pads; /* pushes without frames */
    size_t num_pads;
    struct oracle *refused;       /* pushes, of all blocks; owned */
    uint64_t dropped[SIM_BLOCKS]; /* of those with frames that no step decided on */
    uint64_t oldest;              /* member: entries of lower ones may go */
    uint64_t left_out;            /* pushes with frames that a step did without */
    uint64_t waits, switches;
    uint64_t messages, kills, restores;
};

/* One invariant is broken: the first one is kept. */
void sim_broken(struct sim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_say(struct sim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool sim_chance(struct sim *s, double p);
uint64_t sim_around(struct sim *s, uint64_t mean); /* exponential, at least 1 */
bool sim_faults(const struct sim *s);              /* still before plan.fault_end? */

/* --- world.c: events, network, processes */
void world_push(struct sim *s, struct event e);
void world_wake(struct sim *s, struct proc *p, uint64_t at);
/* Takes the payload. false: the queue is full. */
void world_send(struct sim *s, uint64_t from, uint64_t to, const struct msg *m, struct frame **payload);
struct proc *world_proc(struct sim *s, uint64_t pid); /* NULL if dead or never there */
struct proc *world_start(struct sim *s, enum proc_kind kind, uint32_t slot, bool alone);
void world_kill(struct sim *s, uint64_t pid, const char *why);
void world_restore(struct sim *s); /* everything falls and starts again from the newest complete set */
bool world_step(struct sim *s);    /* false: nothing left to do */
void world_fini(struct sim *s);

/* --- run.c */
/* 0 if every invariant held. Prints one line. */
int run_seed(uint64_t seed, enum plant plant, bool verbose);

/* --- node_server.c */
void server_start(struct sim *s, struct proc *p, bool alone);
void server_stop(struct proc *p);
void server_receive(struct sim *s, struct proc *p, const struct msg *m, uint64_t from,
                    struct frame **payload);
void server_tick(struct sim *s, struct proc *p);
void server_found(struct sim *s, struct proc *p);
void server_written(struct sim *s, struct proc *p, struct event *e);
void server_describe(struct sim *s, const struct proc *p);
void worker_describe(struct sim *s, const struct proc *p);
const struct oracle *server_oracle(const struct proc *p);
const struct shard_state *server_state(const struct proc *p);

/* --- watch.c: one life of a shard. Every call into its core is followed by watch_check. */
struct watch *watch_new(struct sim *s, struct proc *p, uint32_t first, uint32_t blocks);
void watch_free(struct watch **w);
/* Before the core hears of it. */
void watch_roster(struct watch *w, const uint64_t *members, uint32_t n);
void watch_oldest(struct watch *w, uint64_t oldest);
/* A push used up its seq, with that verdict. */
void watch_used(struct watch *w, uint64_t member, uint64_t seq, uint32_t block, uint32_t verdict);
/* The core applies a push. */
void watch_applied(struct watch *w, uint64_t member, uint64_t seq, uint32_t block);
/* The core answers a push of the worker of that pid. */
void watch_answer(struct watch *w, uint64_t pid, const struct msg_answer *a, bool has_weights);
/* ssp: that answer was kept back before. */
bool watch_is_kept(const struct watch *w, uint64_t pid, const struct msg_answer *a);
void watch_check(struct watch *w, struct oracle *o);
/* ssp: who is waited for may be dead or stand still so long, and no longer. */
void watch_check_roster(const struct watch *w);

/* --- node_worker.c */
void worker_start(struct sim *s, struct proc *p);
void worker_stop(struct proc *p);
void worker_receive(struct sim *s, struct proc *p, const struct msg *m, uint64_t from,
                    struct frame **payload);
void worker_tick(struct sim *s, struct proc *p);
void worker_found(struct sim *s, struct proc *p);
uint64_t worker_member(const struct proc *p);

/* --- node_coordinator.c */
void coordinator_start(struct sim *s, struct proc *p, bool restored);
void coordinator_stop(struct proc *p);
void coordinator_drop_set(struct sim_set *set); /* owned, not on the disk */
void coordinator_receive(struct sim *s, struct proc *p, const struct msg *m, uint64_t from,
                         struct frame **payload);
void coordinator_tick(struct sim *s, struct proc *p);
void coordinator_complete(struct sim *s, struct proc *p, struct event *e);

/* --- check.c: the invariants */
void check_shard(struct sim *s, struct proc *p);
void check_answer(struct sim *s, struct proc *p, uint64_t member, const struct msg *m);
void check_restored(struct sim *s, struct proc *p);
void check_account(struct sim *s, struct proc *p);
void check_end(struct sim *s, struct proc *p);
void check_forget(struct sim *s); /* the job goes back to a set: what was stable on one shard need not be */
void check_landed(struct sim *s, struct proc *p, const float *weights);
bool check_is_pad(const struct sim *s, uint64_t member, uint64_t seq);
/* Newest file of a shard; NULL if there is none. Of exactly that set if set >= 0. */
const struct sim_file *disk_file(const struct disk *d, uint32_t shard, int64_t set);

#endif
