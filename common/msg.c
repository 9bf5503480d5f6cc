#include "common/msg.h"

#include "common/config.h"
#include "common/err.h"
#include "proto/chorale.pb-c.h"

#include <string.h>

/* Every message: its constant, its type in the generated code, its name there and here. */
#define MESSAGES(M)                                                                                          \
    M(HELLO, Hello, hello)                                                                                   \
    M(WELCOME, Welcome, welcome)                                                                             \
    M(REFUSED, Refused, refused)                                                                             \
    M(PUSH, Push, push)                                                                                      \
    M(ANSWER, Answer, answer)                                                                                \
    M(READ, Read, read)                                                                                      \
    M(BLOCK, Block, block)                                                                                   \
    M(JOIN, Join, join)                                                                                      \
    M(JOINED, Joined, joined)                                                                                \
    M(BEAT, Beat, beat)                                                                                      \
    M(ORDER, Order, order)                                                                                   \
    M(MAP_ASK, MapAsk, map_ask)                                                                              \
    M(MAP, Map, map)                                                                                         \
    M(LEASE_ASK, LeaseAsk, lease_ask)                                                                        \
    M(LEASE, Lease, lease)                                                                                   \
    M(USED, Used, used)                                                                                      \
    M(USED_OK, UsedOk, used_ok)                                                                              \
    M(CAPSULE, Capsule, capsule)                                                                             \
    M(CAPSULE_ASK, CapsuleAsk, capsule_ask)                                                                  \
    M(LEAVE, Leave, leave)                                                                                   \
    M(GONE, Gone, gone)

/* The numbers of each message, for both directions; strings and lists are handled by name below. */
#define NUMBERS_hello(N)                                                                                     \
    N(member), N(model_hash), N(shard), N(job_generation), N(consistency), N(optimizer), N(gradients),       \
        N(weights)
#define NUMBERS_welcome(N) N(shard), N(generation), N(job_generation), N(first_block), N(blocks), N(credit)
#define NUMBERS_refused(N) N(reason)
#define NUMBERS_push(N)                                                                                      \
    N(member), N(seq), N(job_generation), N(generation), N(block), N(base_version), N(frames),               \
        N(base_age_us), N(skew), N(pull), N(hash), N(type), N(quorum), N(step)
#define NUMBERS_answer(N)                                                                                    \
    N(block), N(seq), N(verdict), N(version), N(staleness), N(stable), N(generation), N(job_generation),     \
        N(hash), N(type), N(credit), N(quorum), N(step)
#define NUMBERS_read(N)  N(member), N(request), N(block), N(set), N(step)
#define NUMBERS_block(N) N(request), N(block), N(set), N(version), N(generation), N(found), N(hash), N(type)
#define NUMBERS_join(N)  N(role), N(member), N(pid), N(shard), N(generation), N(model_hash), N(restored_set)
#define NUMBERS_joined(N)                                                                                    \
    N(member), N(incarnation), N(job_generation), N(generation), N(rank), N(set), N(capsule_bytes), N(shards)
#define NUMBERS_beat(N)                                                                                      \
    N(role), N(member), N(incarnation), N(seq), N(frames), N(frames_per_s), N(staleness_mean), N(holding),   \
        N(copied), N(written), N(file_bytes), N(file_hash), N(roster), N(halve_from), N(version),            \
        N(applied), N(refused), N(p50), N(p95), N(max), N(failed_set), N(waits), N(wait_us), N(nonfinite),   \
        N(norm), N(stale), N(other_generation), N(corrupt), N(malformed), N(overrun), N(stranger)
#define NUMBERS_order(N)                                                                                     \
    N(incarnation), N(command), N(map_version), N(hold), N(capsule_have), N(capsule_attempt), N(set),        \
        N(keep_set), N(roster), N(roster_from), N(halve_from), N(workers), N(momentum), N(oldest_member)
#define NUMBERS_map_ask(N)   N(member), N(first)
#define NUMBERS_map(N)       N(version), N(first), N(total)
#define NUMBERS_lease_ask(N) N(member), N(request)
#define NUMBERS_lease(N)                                                                                     \
    N(request), N(kind), N(id), N(epoch), N(begin), N(end), N(modulus), N(residue), N(residues), N(set)
#define NUMBERS_used(N)                                                                                      \
    N(member), N(id), N(kind), N(last_seq), N(frames), N(loss), N(correct), N(speech_frames),                \
        N(speech_correct), N(failed), N(given_back)
#define NUMBERS_used_ok(N)     N(id)
#define NUMBERS_capsule(N)     N(member), N(set), N(offset), N(total), N(hash), N(attempt), N(request)
#define NUMBERS_capsule_ask(N) N(member), N(offset)
#define NUMBERS_leave(N)       N(member)
#define NUMBERS_gone(N)        N(pid)

#define COPY(name) to->name = from->name

/* --- encoding: the generated structs borrow our strings and live on the stack */
struct packing {
    Chorale__Envelope envelope;
    union {
#define MEMBER(UPPER, Camel, lower) Chorale__##Camel lower;
        MESSAGES(MEMBER)
    };
    Chorale__ShardAt at[MSG_MAP_PAGE], *at_list[MSG_MAP_PAGE];
};

static char *borrow(const char *text, size_t size)
{
    ASSERT(memchr(text, 0, size));
    return (char *)(uintptr_t)text;
}

static void pack_numbers(const struct msg *m, struct packing *p)
{
    switch (m->type) {
#define PACK(UPPER, Camel, lower)                                                                            \
    case MSG_##UPPER: {                                                                                      \
        const struct msg_##lower *from = &m->lower;                                                          \
        Chorale__##Camel *to = &p->lower;                                                                    \
        chorale__##lower##__init(to);                                                                        \
        NUMBERS_##lower(COPY);                                                                               \
        p->envelope.body_case = CHORALE__ENVELOPE__BODY_##UPPER;                                             \
        p->envelope.lower = to;                                                                              \
        return;                                                                                              \
    }
        MESSAGES(PACK)
    }
    ASSERT(!"a known type");
}

static void pack_map(const struct msg_map *m, struct packing *p)
{
    ASSERT(m->count <= MSG_MAP_PAGE);
    for (uint32_t i = 0; i < m->count; i++) {
        chorale__shard_at__init(&p->at[i]);
        p->at[i].endpoint = borrow(m->shards[i].endpoint, MSG_MAX_ENDPOINT);
        p->at[i].generation = m->shards[i].generation;
        p->at_list[i] = &p->at[i];
    }
    p->map.n_shards = m->count;
    p->map.shards = p->at_list;
}

static void pack_strings(const struct msg *m, struct packing *p)
{
    if (m->type == MSG_REFUSED) p->refused.text = borrow(m->refused.text, sizeof m->refused.text);
    if (m->type == MSG_GONE) p->gone.host = borrow(m->gone.host, sizeof m->gone.host);
    if (m->type == MSG_MAP) pack_map(&m->map, p);
    if (m->type != MSG_JOIN) return;
    p->join.host = borrow(m->join.host, sizeof m->join.host);
    p->join.endpoint = borrow(m->join.endpoint, sizeof m->join.endpoint);
}

size_t msg_encode(const struct msg *m, uint8_t out[MSG_MAX_HEADER])
{
    struct packing p;
    chorale__envelope__init(&p.envelope);
    p.envelope.major = MSG_MAJOR;
    p.envelope.job = m->job;
    pack_numbers(m, &p);
    pack_strings(m, &p);
    size_t len = chorale__envelope__get_packed_size(&p.envelope);
    ASSERT(len <= MSG_MAX_HEADER);
    return chorale__envelope__pack(&p.envelope, out);
}

/* --- decoding: whatever the bytes, protobuf-c gets this much memory and no more */
#define ARENA_BYTES 65536

struct arena {
    size_t used;
    _Alignas(16) uint8_t bytes[ARENA_BYTES];
};

static void *arena_alloc(void *data, size_t size)
{
    struct arena *a = data;
    size = (size + 15) / 16 * 16;
    if (size > ARENA_BYTES - a->used) return NULL;
    a->used += size;
    return a->bytes + a->used - size;
}

static void arena_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

/* Text of a peer may end on a terminal or in a log: no control characters. */
static int take_text(const char *text, char *out, size_t size, const char *what)
{
    size_t len = text ? strlen(text) : 0;
    if (len >= size)
        return err_set(ERR_FAIL, "a message has a %s of %zu bytes, the limit is %zu", what, len, size - 1);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        out[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    return 0;
}

static int take_map(const Chorale__Map *from, struct msg_map *out)
{
    if (from->n_shards > MSG_MAP_PAGE)
        return err_set(ERR_FAIL, "a map message has %zu shards, the limit is %d", from->n_shards,
                       MSG_MAP_PAGE);
    out->count = (uint32_t)from->n_shards;
    for (uint32_t i = 0; i < out->count; i++) {
        int err = take_text(from->shards[i]->endpoint, out->shards[i].endpoint, MSG_MAX_ENDPOINT, "endpoint");
        if (err) return err;
        out->shards[i].generation = from->shards[i]->generation;
    }
    return 0;
}

static int take_strings(const Chorale__Envelope *e, struct msg *out)
{
    if (out->type == MSG_REFUSED)
        return take_text(e->refused->text, out->refused.text, sizeof out->refused.text, "text");
    if (out->type == MSG_GONE)
        return take_text(e->gone->host, out->gone.host, sizeof out->gone.host, "host name");
    if (out->type == MSG_MAP) return take_map(e->map, &out->map);
    if (out->type != MSG_JOIN) return 0;
    int err = take_text(e->join->host, out->join.host, sizeof out->join.host, "host name");
    if (err) return err;
    return take_text(e->join->endpoint, out->join.endpoint, sizeof out->join.endpoint, "endpoint");
}

static int at_most(const char *what, uint32_t value, uint32_t limit)
{
    if (value <= limit) return 0;
    return err_set(ERR_FAIL, "a message has the unknown %s %u", what, (unsigned)value);
}

static int check_hello(const struct msg_hello *h)
{
    int err = at_most("consistency mode", h->consistency, CONSISTENCY_SSP);
    if (!err) err = at_most("optimizer", h->optimizer, OPTIMIZER_ADAMW);
    if (!err) err = at_most("element type", h->gradients, ELEMENT_TYPES - 1);
    if (!err) err = at_most("element type", h->weights, ELEMENT_TYPES - 1);
    return err;
}

/* Numbers that name something, so that receivers may use them as indices. */
static int check_names(const struct msg *m)
{
    switch (m->type) {
    case MSG_HELLO:
        return check_hello(&m->hello);
    case MSG_REFUSED:
        return at_most("reason", m->refused.reason, REFUSAL_FULL);
    case MSG_PUSH:
        return at_most("element type", m->push.type, ELEMENT_TYPES - 1);
    case MSG_ANSWER: {
        int err = at_most("element type", m->answer.type, ELEMENT_TYPES - 1);
        return err ? err : at_most("verdict", m->answer.verdict, VERDICT_CORRUPT);
    }
    case MSG_BLOCK:
        return at_most("element type", m->block.type, ELEMENT_TYPES - 1);
    case MSG_JOIN:
        return at_most("role", m->join.role, ROLE_SERVER);
    case MSG_BEAT:
        return at_most("role", m->beat.role, ROLE_SERVER);
    case MSG_ORDER:
        return at_most("command", m->order.command, COMMAND_DIVERGED);
    case MSG_LEASE:
        return at_most("kind of lease", m->lease.kind, LEASE_HELD);
    case MSG_USED:
        return at_most("kind of lease", m->used.kind, LEASE_EVAL);
    default:
        return 0;
    }
}

static int take_numbers(const Chorale__Envelope *e, struct msg *out)
{
    switch (e->body_case) {
#define TAKE(UPPER, Camel, lower)                                                                            \
    case CHORALE__ENVELOPE__BODY_##UPPER: {                                                                  \
        const Chorale__##Camel *from = e->lower;                                                             \
        struct msg_##lower *to = &out->lower;                                                                \
        NUMBERS_##lower(COPY);                                                                               \
        out->type = MSG_##UPPER;                                                                             \
        return 0;                                                                                            \
    }
        MESSAGES(TAKE)
    default:
        return err_set(ERR_FAIL, "a message has no body of a known type");
    }
}

static int take(const Chorale__Envelope *e, struct msg *out)
{
    int err = take_numbers(e, out);
    if (!err) err = take_strings(e, out);
    if (!err) err = check_names(out);
    return err;
}

int msg_decode(const void *bytes, size_t len, struct msg *out)
{
    if (len > MSG_MAX_HEADER)
        return err_set(ERR_FAIL, "a header has %zu bytes, the limit is %d", len, MSG_MAX_HEADER);
    struct arena arena;
    arena.used = 0;
    ProtobufCAllocator allocator = {arena_alloc, arena_free, &arena};
    const Chorale__Envelope *e = chorale__envelope__unpack(&allocator, len, bytes);
    if (!e) return err_set(ERR_FAIL, "%zu bytes are not a message of this protocol", len);
    if (e->major == 0) return err_set(ERR_FAIL, "%zu bytes name no version of this protocol", len);
    if (e->major != MSG_MAJOR) {
        *out = (struct msg){.job = e->job};
        return err_set(ERR_MODEL,
                       "the peer speaks protocol version %u, this process version %d: run the same release "
                       "of chorale on every machine",
                       (unsigned)e->major, MSG_MAJOR);
    }
    struct msg m;
    memset(&m, 0, sizeof m);
    m.job = e->job;
    int err = take(e, &m);
    if (!err) *out = m;
    return err;
}

/* --- names */
const char *msg_name(enum msg_type type)
{
    switch (type) {
#define NAME(UPPER, Camel, lower)                                                                            \
    case MSG_##UPPER:                                                                                        \
        return #lower;
        MESSAGES(NAME)
    }
    return "unknown";
}

const char *msg_verdict_name(uint32_t verdict)
{
    static const char *const names[] = {"none", "applied", "received",   "nonfinite",
                                        "norm", "stale",   "generation", "corrupt"};
    return verdict < sizeof names / sizeof *names ? names[verdict] : "unknown";
}
