/* Inside of the training loop: its state. train.c is the loop, train_turn.c what happens between windows;
 * only these two include it. */
#ifndef WORKER_TRAIN_STATE_H
#define WORKER_TRAIN_STATE_H

#include "worker/capsule.h"
#include "worker/evaluate.h"
#include "worker/feed.h"
#include "worker/pin.h"
#include "worker/team.h"
#include "worker/train.h"
#include "worker/velocity.h"

#define TRAIN_OVER  1  /* beside 0 and negative codes: the job is done */
#define TRAIN_EVALS 16 /* evaluation leases on hand */

struct train {
    const struct job *job;
    struct links *links;
    const volatile sig_atomic_t *stop;
    bool waits;    /* together: the coordinator has no more data for us */
    bool together; /* bsp with several workers: every step needs a push of every one */
    bool backup;   /* together, but the slowest ones are not waited for */
    int overlap, push_every, pull_every;
    int num_streams; /* N*S: of all threads */

    struct prefetch *prefetch;
    struct streams *streams;
    struct feed *feed;
    struct minibatch window;
    struct team *team;
    struct pin *pin; /* NULL: not bound */
    uint64_t pumped; /* overlap: when the sockets last had their turn, */
    int pump_rc;     /* and what came of it */

    /* Weights: the team reads [base]; the last finished pull is in [latest]; the one under way lands in
     * [landing], -1 = none. overlap 0 uses [0] alone. */
    struct weights weights[2];
    int base, latest, landing;
    bool same_weights; /* [base] holds what the window before read */
    float *grad[2];    /* (P) each; [g] is being written */
    int g;
    float *one; /* (P) of one window, where push_every > 1 adds them up in grad[g]; else NULL */
    struct velocity velocity;
    int pending;    /* windows in grad[g] */
    double squares; /* of grad[g], where that is one window */
    uint64_t pending_frames;
    uint64_t pushes, windows, frames, nonfinite;
    uint64_t speed_at, speed_frames; /* when and at how many frames the speed was last taken */
    double frames_per_s;

    struct evaluate *evaluate;   /* made at the first lease of its kind */
    struct weights eval_weights; /* of eval_set, where eval_known */
    uint32_t eval_set;
    bool eval_known;
    struct msg_lease evals[TRAIN_EVALS];
    int num_evals;

    /* The capsule of the last boundary, for when the others stand still; its buffers are used again. No
     * state: there is none yet. */
    struct capsule saved;
    uint64_t saved_seq;
    uint32_t given_set;
    uint64_t given_seq; /* UINT64_MAX: none given */
};

/* Pumps and looks at the command. 0, TRAIN_OVER or negative. */
int train_pump(struct train *t, int timeout_ms);
/* The same while there is nothing to do: ERR_REACH if the coordinator has been away for long. */
int train_idle(struct train *t, int timeout_ms);
/* Until no exchange is under way. */
int train_drain(struct train *t);
/* The newest weights are now those that the team reads; nothing is under way. */
int train_settle(struct train *t);
/* Reads the live weights anew; nothing is under way. */
int train_read(struct train *t);

/* --- train_turn.c */
/* Joining, the capsule of a restored job, the first weights. */
int train_begin(struct train *t);
/* Between windows: leases in, reports out, evaluation, standing still. */
int train_turn(struct train *t);
/* May the coordinator have another lease for us? */
bool train_more(const struct train *t);
/* Bound to wait: a worker that others may leave waiting for a step hands over the capsule of its last
 * boundary if a set asks for it. */
void train_offer(struct train *t);
/* TERM: what is finished is reported. */
int train_farewell(struct train *t);

#endif
