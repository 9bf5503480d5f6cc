/* The member against a fake coordinator, through a network that drops, doubles and reorders, in virtual time.
 */
#include "common/clock.h"
#include "common/err.h"
#include "common/rng.h"
#include "worker/member.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define JOB    7u
#define SHARDS 20u /* two pages of the map */
#define MAIL   512
#define LEASES 25u
#define MAX    3u

struct mail {
    bool used, up;
    uint64_t at;
    struct msg m;
    struct frame *payload;
};

struct world {
    struct member *m;
    struct rng rng;
    uint64_t now, max_delay;
    double drop, twice;
    struct mail mail[MAIL];
    /* the coordinator */
    uint32_t incarnation, map_version, map_salt, hold, named, command;
    uint64_t request, granted, reported[LEASES + 1];
    struct msg_lease last;
    bool wait, full;
    uint32_t refusal;
    uint8_t *in; /* the worker's capsule */
    uint64_t in_have, in_total;
    uint32_t in_attempt;
    const uint8_t *out; /* a capsule for the worker */
    uint64_t out_len;
    uint32_t holding;
    uint64_t seq;
    unsigned count[MSG_GONE + 1];
};

static void post(struct world *w, bool up, const struct msg *m, struct frame *payload)
{
    int copies = rng_uniform(&w->rng) < w->drop ? 0 : rng_uniform(&w->rng) < w->twice ? 2 : 1;
    for (int i = 0; i < MAIL && copies > 0; i++) {
        if (w->mail[i].used) continue;
        w->mail[i] = (struct mail){.used = true, .up = up, .m = *m};
        w->mail[i].m.job = JOB;
        w->mail[i].at = w->now + 1000 + (w->max_delay ? rng_below(&w->rng, w->max_delay) : 0);
        if (payload != NULL) w->mail[i].payload = frame_copy(frame_data(payload), frame_len(payload));
        copies--;
    }
}

static bool fake_send(void *ctx, const struct msg *m, struct frame **payload)
{
    struct world *w = ctx;
    if (w->full) return false;
    w->count[m->type]++;
    post(w, true, m, *payload);
    if (*payload != NULL) frame_free(payload);
    return true;
}

static void send_order(struct world *w)
{
    struct msg m = {.type = MSG_ORDER};
    m.order.incarnation = w->incarnation;
    m.order.command = w->command;
    m.order.map_version = w->map_version;
    m.order.hold = w->hold;
    m.order.set = w->named;
    m.order.capsule_have = w->hold ? w->in_have : 0;
    m.order.capsule_attempt = w->in_attempt;
    post(w, false, &m, NULL);
}

static void take_page(struct world *w, const struct msg_capsule *c, struct frame *payload)
{
    uint64_t len = frame_len(payload);
    if (c->set != w->hold || c->hash != wire_hash(frame_data(payload), len)) return;
    if (c->offset == 0 && c->attempt > w->in_attempt) {
        w->in_attempt = c->attempt;
        w->in = realloc(w->in, c->total);
        w->in_total = c->total;
        w->in_have = 0;
    }
    if (c->offset == w->in_have && c->attempt == w->in_attempt) {
        memcpy(w->in + c->offset, frame_data(payload), len);
        w->in_have += len;
    }
    send_order(w);
}

static void send_page(struct world *w, uint64_t offset)
{
    struct msg m = {.type = MSG_CAPSULE};
    uint64_t len = w->out_len - offset < 1000 ? w->out_len - offset : 1000;
    m.capsule = (struct msg_capsule){
        .member = 42, .offset = offset, .total = w->out_len, .hash = wire_hash(w->out + offset, len)};
    struct frame *f = frame_copy(w->out + offset, len);
    post(w, false, &m, f);
    frame_free(&f);
}

static void send_map(struct world *w, uint32_t first)
{
    struct msg m = {.type = MSG_MAP};
    m.map.version = w->map_version;
    m.map.first = first;
    m.map.total = SHARDS;
    m.map.count = SHARDS - first < MSG_MAP_PAGE ? SHARDS - first : MSG_MAP_PAGE;
    for (uint32_t i = 0; i < m.map.count; i++) {
        snprintf(m.map.shards[i].endpoint, MSG_MAX_ENDPOINT, "tcp://127.0.0.1:%u",
                 1000 + first + i + w->map_salt);
        m.map.shards[i].generation = w->map_salt + 1;
    }
    post(w, false, &m, NULL);
}

static void send_lease(struct world *w, uint64_t request)
{
    struct msg m = {.type = MSG_LEASE};
    if (request != w->request) {
        w->request = request;
        w->last = (struct msg_lease){.request = request, .kind = LEASE_WAIT};
        if (!w->wait && w->granted < LEASES) {
            w->granted++;
            w->last = (struct msg_lease){request, LEASE_TRAIN, w->granted, 0, 0, 10, 1, 0, 1, 0};
        }
    }
    m.lease = w->last;
    post(w, false, &m, NULL);
}

static void serve(struct world *w, const struct msg *in, struct frame *payload)
{
    struct msg m = {.type = MSG_REFUSED, .refused = {.reason = w->refusal, .text = "another model"}};
    if (w->refusal != 0) {
        post(w, false, &m, NULL);
    } else if (in->type == MSG_JOIN) {
        m.type = MSG_JOINED;
        m.joined = (struct msg_joined){42, w->incarnation, 3, 0, 1, 0, w->out_len, SHARDS};
        post(w, false, &m, NULL);
    } else if (in->type == MSG_BEAT) {
        w->holding = in->beat.holding;
        w->seq = in->beat.seq;
        send_order(w);
    } else if (in->type == MSG_MAP_ASK) {
        send_map(w, in->map_ask.first);
    } else if (in->type == MSG_LEASE_ASK) {
        if (in->lease_ask.request >= w->request) send_lease(w, in->lease_ask.request);
    } else if (in->type == MSG_USED) {
        assert_int_equal(in->used.member, 42);
        w->reported[in->used.id]++;
        m.type = MSG_USED_OK;
        m.used_ok.id = in->used.id;
        post(w, false, &m, NULL);
    } else if (in->type == MSG_CAPSULE) {
        take_page(w, &in->capsule, payload);
    } else if (in->type == MSG_CAPSULE_ASK) {
        send_page(w, in->capsule_ask.offset);
    }
}

static void step(struct world *w)
{
    struct mail *next = NULL;
    for (int i = 0; i < MAIL; i++)
        if (w->mail[i].used && (next == NULL || w->mail[i].at < next->at)) next = &w->mail[i];
    uint64_t tick = member_next(w->m);
    if (next == NULL || tick < next->at) {
        if (tick == UINT64_MAX) return;
        if (tick > w->now) w->now = tick;
        member_tick(w->m, w->now);
        return;
    }
    struct mail p = *next;
    next->used = false;
    if (p.at > w->now) w->now = p.at;
    if (p.up)
        serve(w, &p.m, p.payload);
    else
        member_receive(w->m, w->now, &p.m, &p.payload);
    frame_free(&p.payload);
}

#define UNTIL(w, condition)                                                                                  \
    do {                                                                                                     \
        bool done_ = false;                                                                                  \
        for (int steps_ = 0; steps_ < 100000 && !(done_ = (condition)); steps_++) step(w);                   \
        assert_true(done_);                                                                                  \
    } while (0)

static struct world *world_new(uint64_t seed)
{
    struct world *w = xcalloc(1, sizeof *w);
    rng_init(&w->rng, seed);
    w->now = 1;
    w->incarnation = w->map_version = 1;
    struct member_options o = {JOB, 9, "host", 123, MAX, NS_PER_S, NS_PER_S};
    struct member_io io = {w, fake_send};
    w->m = member_new(&o, &io);
    return w;
}

static void world_free(struct world *w)
{
    for (int i = 0; i < MAIL; i++)
        if (w->mail[i].used) frame_free(&w->mail[i].payload);
    member_free(&w->m);
    free(w->in);
    free(w);
}

static void make_rough(struct world *w)
{
    w->drop = 0.2;
    w->twice = 0.2;
    w->max_delay = 700 * NS_PER_MS;
}

static uint8_t *noise(struct world *w, size_t len)
{
    uint8_t *p = xcalloc(1, len);
    for (size_t i = 0; i < len; i++) p[i] = (uint8_t)rng_next(&w->rng);
    return p;
}

static void test_joins_once_and_beats_every_second(void **state)
{
    (void)state;
    struct world *w = world_new(1);
    assert_int_equal(member_number(w->m), 0);
    UNTIL(w, member_number(w->m) == 42);
    assert_int_equal(member_rank(w->m), 1);
    assert_int_equal(member_job_generation(w->m), 3);
    struct member_progress p = {17, 1000, 3.0, 0.5};
    member_progress(w->m, &p);
    UNTIL(w, w->now > 10 * NS_PER_S);
    assert_int_equal(w->count[MSG_JOIN], 1);
    assert_in_range(w->count[MSG_BEAT], 10, 12);
    assert_int_equal(w->seq, 17);
    world_free(w);
}

static void test_map_comes_in_pages_and_changes_with_its_contents(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        struct world *w = world_new(seed);
        make_rough(w);
        UNTIL(w, member_map_version(w->m) == 1);
        assert_string_equal(member_endpoint(w->m, SHARDS - 1), "tcp://127.0.0.1:1019");
        w->map_version = 2; /* the same contents */
        w->map_salt = 0;
        uint64_t start = w->now;
        UNTIL(w, w->now > start + 20 * NS_PER_S);
        assert_int_equal(member_map_version(w->m), 1);
        w->map_version = 3;
        w->map_salt = 100;
        UNTIL(w, member_map_version(w->m) == 2);
        assert_int_equal(member_shard_generation(w->m, 0), 101);
        w->incarnation = 2; /* a new coordinator with the same number for another map */
        w->map_salt = 200;
        UNTIL(w, member_map_version(w->m) == 3);
        assert_string_equal(member_endpoint(w->m, 0), "tcp://127.0.0.1:1200");
        world_free(w);
    }
}

/* Every lease is taken once and reported until acknowledged; none is lost, never more than max on hand. */
static void test_leases_survive_a_rough_network(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct world *w = world_new(seed);
        make_rough(w);
        member_want(w->m, true);
        uint64_t taken = 0;
        for (int i = 0; i < 100000 && (taken < LEASES || member_unacknowledged(w->m) > 0); i++) {
            step(w);
            struct msg_lease l;
            if (rng_below(&w->rng, 10) == 0 && member_take(w->m, &l)) {
                if (l.id != ++taken) fail_msg("seed %llu", (unsigned long long)seed);
                struct msg_used u = {.id = l.id, .kind = l.kind, .frames = 5};
                member_report(w->m, w->now, &u);
            }
            if (rng_below(&w->rng, 500) == 0) member_reconnected(w->m, w->now);
            assert_true(w->granted - taken <= MAX + 1);
        }
        for (uint32_t id = 1; id <= LEASES; id++) assert_true(w->reported[id] >= 1);
        UNTIL(w, member_waits(w->m));
        assert_int_equal(member_number(w->m), 42);
        world_free(w);
    }
    print_message("seeds 1..100\n");
}

static void test_wait_is_asked_again_after_200_ms_and_forgotten_with_the_wish(void **state)
{
    (void)state;
    struct world *w = world_new(3);
    w->wait = true;
    UNTIL(w, member_number(w->m) != 0);
    uint64_t start = w->now;
    UNTIL(w, w->now > start + 2 * NS_PER_S);
    assert_int_equal(w->count[MSG_LEASE_ASK], 0);
    start = w->now;
    member_want(w->m, true);
    UNTIL(w, member_waits(w->m));
    assert_true(w->now - start < NS_PER_MS);
    UNTIL(w, w->now > start + 10 * NS_PER_S);
    assert_in_range(w->count[MSG_LEASE_ASK], 10, 14); /* 0, 0.2, 0.6, 1.4, 2.4, ... */
    member_want(w->m, false);
    assert_false(member_waits(w->m));
    w->wait = false;
    member_want(w->m, true);
    struct msg_lease l;
    UNTIL(w, member_take(w->m, &l));
    assert_int_equal(l.id, 1);
    assert_false(member_waits(w->m));
    world_free(w);
}

static void test_capsule_arrives_whole_through_a_rough_network(void **state)
{
    (void)state;
    const size_t sizes[] = {1, 262143, 262144, 262145, 700000};
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct world *w = world_new(seed);
        size_t len = sizes[seed % 5];
        uint8_t *old = noise(w, len), *data = noise(w, len);
        make_rough(w);
        UNTIL(w, member_number(w->m) != 0);
        w->hold = w->named = 5;
        UNTIL(w, member_hold(w->m) == 5);
        member_give_capsule(w->m, w->now, 5, old, len);
        for (uint64_t n = rng_below(&w->rng, 30); n > 0; n--) step(w);
        if (len > 1 && rng_below(&w->rng, 2)) {
            UNTIL(w, member_hold(w->m) == 5);
            member_give_capsule(w->m, w->now, 5, data, len); /* replaces it */
        } else {
            memcpy(data, old, len);
            UNTIL(w, member_hold(w->m) == 5);
        }
        UNTIL(w, w->holding == 5);
        UNTIL(w, w->in_have == len && memcmp(w->in, data, len) == 0);
        uint64_t start = w->now; /* old messages may still disturb it, not for ever */
        UNTIL(w, w->now > start + 10 * NS_PER_S && w->in_have == len);
        if (memcmp(w->in, data, len) != 0) fail_msg("seed %llu", (unsigned long long)seed);
        w->hold = 0;
        UNTIL(w, member_hold(w->m) == 0 && w->holding == 0);
        start = w->now; /* an old ORDER does not stop it again */
        for (w->drop = 0; w->now < start + 5 * NS_PER_S; step(w)) assert_int_equal(member_hold(w->m), 0);
        free(old);
        free(data);
        world_free(w);
    }
}

/* ORDERs that do not say which set is the newest: one that is late does not let us go on. */
static void test_go_on_is_confirmed_when_sets_are_not_told(void **state)
{
    (void)state;
    struct world *w = world_new(9);
    UNTIL(w, member_number(w->m) != 0);
    w->hold = 2;
    UNTIL(w, member_hold(w->m) == 2);
    member_give_capsule(w->m, w->now, 2, "abc", 3);
    UNTIL(w, w->in_have == 3);
    struct msg late = {.type = MSG_ORDER, .job = JOB, .order = {.incarnation = 1, .map_version = 1}};
    member_receive(w->m, w->now, &late, NULL);
    assert_int_equal(member_hold(w->m), 2);
    uint64_t start = w->now;
    for (; w->now < start + 3 * NS_PER_S; step(w)) assert_int_equal(member_hold(w->m), 2);
    w->hold = 0;
    UNTIL(w, member_hold(w->m) == 0);
    assert_true(w->now < start + 6 * NS_PER_S);
    world_free(w);
}

static void test_capsule_at_the_start_is_fetched_whole(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct world *w = world_new(seed);
        uint8_t *data = noise(w, 5500);
        w->out = data;
        w->out_len = 5500;
        make_rough(w);
        UNTIL(w, member_number(w->m) != 0);
        assert_null(member_capsule(w->m));
        assert_int_equal(member_capsule_bytes(w->m), 5500);
        UNTIL(w, member_capsule(w->m) != NULL);
        assert_memory_equal(member_capsule(w->m), data, 5500);
        free(data);
        world_free(w);
    }
}

static void test_the_momentum_of_an_order_is_taken_if_it_is_one(void **state)
{
    (void)state;
    struct world *w = world_new(5);
    w->incarnation = 4;
    UNTIL(w, member_number(w->m) != 0);
    assert_true(member_momentum(w->m) == 0);
    const struct {
        uint32_t incarnation;
        double says, holds;
    } orders[] = {{4, 0.9, 0.9},  {3, 0.5, 0.9},         {4, 1, 0.9},
                  {4, -0.5, 0.9}, {4, (double)NAN, 0.9}, {5, 0, 0}};
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        struct msg m = {.type = MSG_ORDER, .job = JOB};
        m.order.incarnation = orders[i].incarnation;
        m.order.momentum = orders[i].says;
        member_receive(w->m, w->now, &m, NULL);
        assert_true(member_momentum(w->m) == orders[i].holds);
    }
    world_free(w);
}

static void test_commands_of_an_earlier_coordinator_are_ignored(void **state)
{
    (void)state;
    struct world *w = world_new(5);
    w->incarnation = 4;
    UNTIL(w, member_number(w->m) != 0);
    struct msg m = {.type = MSG_ORDER, .job = JOB, .order = {.incarnation = 3, .command = COMMAND_FINISH}};
    member_receive(w->m, w->now, &m, NULL);
    assert_int_equal(member_command(w->m), COMMAND_RUN);
    m.order.incarnation = 4;
    m.order.command = 77;
    member_receive(w->m, w->now, &m, NULL);
    assert_int_equal(member_command(w->m), COMMAND_RUN);
    m.order.command = COMMAND_FINISH;
    member_receive(w->m, w->now, &m, NULL);
    assert_int_equal(member_command(w->m), COMMAND_FINISH);
    member_leave(w->m);
    assert_int_equal(w->count[MSG_LEAVE], 1);
    assert_true(member_next(w->m) == UINT64_MAX);
    world_free(w);
}

static void test_refusals_become_trouble(void **state)
{
    (void)state;
    struct world *w = world_new(6);
    w->refusal = REFUSAL_MISMATCH;
    UNTIL(w, member_trouble(w->m) == ERR_MODEL);
    assert_non_null(strstr(err_text(), "another model"));
    assert_true(member_next(w->m) == UINT64_MAX);
    world_free(w);
    w = world_new(7);
    UNTIL(w, member_number(w->m) != 0);
    w->refusal = REFUSAL_HELLO_FIRST; /* a coordinator that came back without us */
    UNTIL(w, w->count[MSG_JOIN] >= 2);
    w->refusal = REFUSAL_RETIRED;
    UNTIL(w, member_trouble(w->m) == ERR_AGAIN);
    world_free(w);
}

static void test_a_full_queue_is_tried_again(void **state)
{
    (void)state;
    struct world *w = world_new(8);
    w->full = true;
    UNTIL(w, w->now > NS_PER_S);
    w->full = false;
    UNTIL(w, member_number(w->m) == 42);
    assert_true(w->now < NS_PER_S + 30 * NS_PER_MS);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_joins_once_and_beats_every_second),
        cmocka_unit_test(test_map_comes_in_pages_and_changes_with_its_contents),
        cmocka_unit_test(test_leases_survive_a_rough_network),
        cmocka_unit_test(test_wait_is_asked_again_after_200_ms_and_forgotten_with_the_wish),
        cmocka_unit_test(test_capsule_arrives_whole_through_a_rough_network),
        cmocka_unit_test(test_go_on_is_confirmed_when_sets_are_not_told),
        cmocka_unit_test(test_capsule_at_the_start_is_fetched_whole),
        cmocka_unit_test(test_the_momentum_of_an_order_is_taken_if_it_is_one),
        cmocka_unit_test(test_commands_of_an_earlier_coordinator_are_ignored),
        cmocka_unit_test(test_refusals_become_trouble),
        cmocka_unit_test(test_a_full_queue_is_tried_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
