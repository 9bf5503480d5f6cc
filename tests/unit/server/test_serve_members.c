/* The program chorale-server over loopback with a member that does not behave: one that stops reading, one
 * that sends without waiting for credit. It costs little, and who behaves does not notice. */
#include "tests/unit/server/serve_bench.h"

/* 16 blocks of a quarter of a MiB each. */
static int set_up(void **state)
{
    (void)state;
    return make_run(512);
}

#define MIB 1048576ull
/* What one peer that stops reading may cost: eight messages in the socket's queue each way, `exchange.credit`
 * answers in the outbox, and what malloc makes of that. */
#define STOPPED_MIB 16
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZER_MIB 512 /* keeps what was freed */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZER_MIB 512
#endif
#endif
#ifndef SANITIZER_MIB
#define SANITIZER_MIB 0
#endif

struct worker {
    struct wire *wire;
    int link;
    uint64_t member, sent; /* pushes */
};

static struct worker new_worker(const char *endpoint, uint64_t member)
{
    struct worker k = {.wire = wire_new(), .member = member};
    k.link = wire_connect(k.wire, endpoint);
    assert_int_equal(join_shard(k.wire, k.link, member), 1);
    return k;
}

/* The next push of this worker, block after block; false: its own queue is full. */
static bool push_next(struct worker *k)
{
    uint32_t block = (uint32_t)(k->sent % cut.count);
    bool is_sent = send_push(k->wire, k->link, k->member, 1 + k->sent / cut.count, 1, block, 0.0625f);
    k->sent += is_sent;
    return is_sent;
}

/* One exchange as it should be. */
static void exchange_well(struct worker *k)
{
    uint64_t peer;
    for (uint32_t b = 0; b < cut.count; b++) {
        struct frame *f = NULL;
        assert_true(push_next(k));
        assert_int_equal(expect(k->wire, MSG_ANSWER, &peer, &f).answer.verdict, VERDICT_APPLIED);
        assert_int_equal(frame_len(f), blocks_floats(&cut, b) * sizeof(float));
        frame_free(&f);
    }
}

static void read_all(struct worker *k)
{
    struct msg m;
    struct frame *f = NULL;
    uint64_t peer;
    int link;
    while (wire_receive(k->wire, 20, &link, &peer, &m, &f) == 0) frame_free(&f);
}

static uint64_t resident_mib(void)
{
    char *path = xprintf("/proc/%d/status", (int)child), line[256];
    FILE *file = fopen(path, "r");
    unsigned long long kib = 0;
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) sscanf(line, "VmRSS: %llu", &kib);
    fclose(file);
    free(path);
    assert_true(kib > 0);
    return kib / 1024;
}

struct scene {
    struct wire *coordinator;
    uint64_t server; /* peer */
    struct worker good, bad;
    struct msg_beat beat; /* the last one */
};

/* What the coordinator does: hears the server, and orders it to go on; after 3 s of silence it joins anew. */
static void keep_company(struct scene *c, int timeout_ms)
{
    struct msg m;
    struct frame *f = NULL;
    int link;
    while (wire_receive(c->coordinator, timeout_ms, &link, &c->server, &m, &f) == 0) {
        frame_free(&f);
        if (m.type == MSG_BEAT) c->beat = m.beat;
        if (m.type == MSG_JOIN) say_joined(c->coordinator, c->server, 1, 1, 0);
        timeout_ms = 0;
    }
    m = (struct msg){.type = MSG_ORDER, .job = JOB, .order = {.incarnation = 1}};
    wire_send(c->coordinator, WIRE_ROUTER, c->server, &m, NULL); /* it may have some of them to read yet */
}

/* Every push that came was applied once or counted as dropped: waits until the two make up what was sent. */
static struct msg_beat expect_all_counted(struct scene *c)
{
    uint64_t begin = clock_now_ns(), sent = c->good.sent + c->bad.sent;
    do {
        assert_true(clock_now_ns() - begin < PATIENCE);
        keep_company(c, 200);
        assert_true(c->beat.applied + c->beat.overrun <= sent);
    } while (c->beat.applied + c->beat.overrun < sent);
    assert_int_equal(c->beat.refused, c->beat.overrun); /* nothing else was wrong */
    return c->beat;
}

/* The weights of every block are what that many updates of 0.5 * 0.0625 make of 1. */
static uint64_t sum_of_versions(struct worker *k)
{
    uint64_t sum = 0, peer;
    for (uint32_t b = 0; b < cut.count; b++) {
        struct msg m = {.type = MSG_READ, .job = JOB, .read = {.member = k->member, .block = b}};
        struct frame *f = NULL;
        assert_int_equal(wire_send(k->wire, k->link, 0, &m, NULL), 0);
        m = expect(k->wire, MSG_BLOCK, &peer, &f);
        assert_true(m.block.found);
        assert_true(((float *)frame_data(f))[0] == 1 - 0.03125f * (float)m.block.version);
        sum += m.block.version;
        frame_free(&f);
    }
    return sum;
}

static struct scene new_scene(void)
{
    struct scene c = {.coordinator = play_coordinator(1)};
    struct msg join;
    start_server(NULL);
    answer_join(c.coordinator, 1, 1, 0, &join, &c.server);
    c.good = new_worker(join.join.endpoint, 9);
    c.bad = new_worker(join.join.endpoint, 10);
    return c;
}

static void free_scene(struct scene *c)
{
    keep_company(c, 1500); /* its next beat: it has read what it was told */
    end_server(c->coordinator, c->server, 1, COMMAND_FINISH, 0);
    wire_free(&c->good.wire);
    wire_free(&c->bad.wire);
    wire_free(&c->coordinator);
}

static void a_member_that_stops_reading_costs_little_and_the_others_nothing(void **state)
{
    (void)state;
    struct scene c = new_scene();
    for (int i = 0; i < 4; i++) exchange_well(&c.good);
    uint64_t before = resident_mib(), most = before, pushed_mib = 0;
    for (int i = 0; i < 40; i++) { /* 40 exchanges of the one beside as many pushes of the other as go out */
        for (uint32_t b = 0; b < 2 * cut.count; b++) push_next(&c.bad);
        exchange_well(&c.good);
        keep_company(&c, 0);
        uint64_t now = resident_mib();
        if (now > most) most = now;
    }
    pushed_mib = c.bad.sent * cut.size * sizeof(float) / MIB;
    print_message("%lu MiB pushed and not read: %lu MiB before, %lu at most\n", (unsigned long)pushed_mib,
                  (unsigned long)before, (unsigned long)most);
    assert_true(pushed_mib > 4 * STOPPED_MIB);
    assert_true(most <= before + STOPPED_MIB + SANITIZER_MIB);
    struct msg_beat b = expect_all_counted(&c);
    assert_true(b.overrun > 0 && b.applied >= c.good.sent);
    assert_int_equal(sum_of_versions(&c.good), b.applied);
    free_scene(&c);
}

static void pushes_beyond_the_credit_are_dropped_and_counted_or_applied_once(void **state)
{
    (void)state;
    struct scene c = new_scene();
    for (int i = 0; i < 3; i++) { /* floods, then reads what there is */
        for (int n = 0; n < 150; n++) {
            uint64_t begin = clock_now_ns();
            while (!push_next(&c.bad)) assert_true(clock_now_ns() - begin < PATIENCE);
        }
        exchange_well(&c.good);
        keep_company(&c, 0);
        read_all(&c.bad);
    }
    struct msg_beat b = expect_all_counted(&c);
    assert_true(b.overrun > 0 && b.overrun < c.bad.sent);
    assert_int_equal(sum_of_versions(&c.good), b.applied);
    read_all(&c.bad);
    while (c.bad.sent % cut.count != 0) c.bad.sent++; /* from the first block on */
    exchange_well(&c.bad);                            /* with credit it is served as anyone */
    free_scene(&c);
}

int main(void)
{
#define RULE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        RULE(a_member_that_stops_reading_costs_little_and_the_others_nothing),
        RULE(pushes_beyond_the_credit_are_dropped_and_counted_or_applied_once),
    };
    if (!find_program()) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
