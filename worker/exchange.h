/* The worker's side of the exchange: push a gradient block by block, take the new weights from the answers,
 * resend the same bytes after a deadline, say HELLO again when a shard has a new generation. A core without
 * I/O: messages and time in, messages out; the simulator drives this same code. At most one push is under
 * way; with overlap 1 the caller gives it another weights vector than the one it computes with. Source:
 * DESIGN section 4; tickets: backup workers of Chen 2016; error feedback: Seide 2014. One thread. */
#ifndef WORKER_EXCHANGE_H
#define WORKER_EXCHANGE_H

#include "common/blocks.h"
#include "common/config.h"
#include "common/msg.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdint.h>

struct exchange_options {
    uint64_t job, model_hash;
    struct blocks blocks;
    uint32_t shards;
    uint32_t credit;      /* blocks in flight per shard at most; a server may grant fewer */
    uint64_t deadline_ns; /* then the same seq again */
    enum consistency_mode consistency;
    enum optimizer_type optimizer;
    enum element_type gradients, weights; /* on the wire */
    bool tickets; /* bsp with backup workers: block 0 first; its answer says whether we take part in the step
                   */
};

struct exchange_io {
    void *ctx;
    /* Takes *payload if it returns true; false: the queue is full, ask again at the next tick. */
    bool (*send)(void *ctx, uint32_t shard, const struct msg *m, struct frame **payload);
};

/* A weights vector and, per block, which version it is, when it came, and of which life of its shard. A
 * gradient from weights of an older life is never pushed: it is lost, and the shard is read anew. */
struct weights {
    float *values;        /* (P), aligned to 64 */
    uint64_t *version;    /* (blocks) */
    uint64_t *since;      /* (blocks), ns */
    uint32_t *generation; /* (blocks); 0: unknown, taken as the present one */
};
void weights_init(struct weights *w, const struct blocks *b);
void weights_fini(struct weights *w);

struct exchange_counts {
    uint64_t exchanges;              /* pushes ended */
    uint64_t applied, refused, lost; /* blocks; lost: their shard changed its generation under way */
    uint64_t torn;                   /* pushes of which some blocks were lost and some not */
    uint64_t resent;
    uint64_t staleness_sum, staleness_max; /* versions, over applied blocks */
    uint64_t corrupt, unexpected;
    uint64_t waits, wait_ns; /* exchanges that a bound or a roster kept waiting, and for how long */
    uint64_t left_out; /* tickets: steps that went on without our gradient; none of its blocks counts above */
    uint64_t bytes_out, bytes_in; /* payload, with resends */
};

struct exchange;

struct exchange *exchange_new(const struct exchange_options *o, const struct exchange_io *io);
void exchange_free(struct exchange **x);
/* Who we are: once, before anything else; again (seq starts at 1) after joining anew, when idle (it is, with
 * trouble). Says HELLO to all that are connected, at the next tick. */
void exchange_set_member(struct exchange *x, uint64_t member, uint32_t job_generation);
/* A new connection to a shard is there (also after the map changed): HELLO. What was under way is sent again
 * if the generation is the same, else it is lost and the shard's blocks are read anew before the exchange
 * ends. */
void exchange_connected(struct exchange *x, uint64_t now, uint32_t shard);

/* Reads all blocks into `into`: set 0 = the live weights. Idle before; exchange_idle tells when it is done.
 */
void exchange_read(struct exchange *x, uint64_t now, uint32_t set, struct weights *into);
/* After a read of a set: a shard no longer has that copy. */
bool exchange_read_failed(const struct exchange *x);
/* Pushes grad (P), computed from `base` with `frames` frames; if pull, the new weights land in `into` (may be
 * `base`); those of a shard that has to be read anew land there in any case. Both weights are borrowed until
 * idle, grad until idle and drained: a block is lent to its first frame (the receiver of that very frame must
 * not write to it; a wire never does), resends are copies. With gradients that are not fp32 the frames lend
 * from a vector of the exchange instead, into which this push encodes: then drained before. seq + 1. */
void exchange_push(struct exchange *x, uint64_t now, float *grad, uint64_t frames, const struct weights *base,
                   struct weights *into, bool pull);
bool exchange_idle(const struct exchange *x);
/* No frame that borrows grad, or what was encoded of it, is left in any queue. */
bool exchange_drained(const struct exchange *x);
uint64_t exchange_seq(const struct exchange *x); /* of the last push */
/* Error feedback: what the wire type took off the gradients so far, (P); NULL for fp32. Part of a capsule; to
 * be restored while idle. */
float *exchange_residual(struct exchange *x);
void exchange_receive(struct exchange *x, uint64_t now, uint32_t shard, const struct msg *m,
                      struct frame **payload);
void exchange_tick(struct exchange *x, uint64_t now);
/* When exchange_tick has something to do next, ns; UINT64_MAX = only after a message. */
uint64_t exchange_next(const struct exchange *x);
/* Something that cannot be repaired: 0, or a negative enum err (a mismatch; sentence in err_text()), or
 * ERR_AGAIN: the member is retired or the job was restored, join anew. What was under way has ended (its
 * unanswered blocks are lost) and nothing more is sent until exchange_set_member. */
int exchange_trouble(const struct exchange *x);
const struct exchange_counts *exchange_counts(const struct exchange *x);

#endif
