/* The program chorale-server against a coordinator and a worker that this test plays over loopback: it joins,
 * restores, applies, checkpoints, finds a new coordinator, comes back after kill -9, leaves when told. */
#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/snapshot.h"
#include "common/wire.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define JOB      77
#define PATIENCE (30 * NS_PER_S)

static char run[64], program[4096];
static struct facts facts;
static struct blocks cut;
static pid_t child;

static void publish(const char *endpoint, uint32_t incarnation)
{
    char *path = files_join(run, "members/coordinator");
    char *text = xprintf("{\"endpoint\":\"%s\",\"incarnation\":%u}", endpoint, incarnation);
    assert_int_equal(files_write_atomic(path, text, strlen(text)), 0);
    free(text);
    free(path);
}

static void write_set_0(void)
{
    struct manifest m = {.job = JOB, .model_hash = facts.model_hash, .num_files = 1};
    struct shard_state *s = shard_state_new(&cut, 0, cut.count, 0);
    m.files = xcalloc(1, sizeof *m.files);
    for (size_t i = 0; i < cut.params; i++) s->weights[i] = 1;
    assert_int_equal(snapshot_write_shard(run, 0, 0, 1, &facts, s, m.files), 0);
    assert_int_equal(snapshot_write_manifest(run, &m), 0);
    manifest_fini(&m);
    shard_state_free(&s);
}

static int set_up(void **state)
{
    (void)state;
    struct model_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.input = spec.feature_dim = 10;
    spec.stack = spec.skip = 1;
    spec.targets = 60;
    spec.num_layers = 1;
    spec.layers[0].cells = 64;
    snprintf(run, sizeof run, "/tmp/chorale-serve-XXXXXX");
    if (!mkdtemp(run)) return -1;
    assert_int_equal(model_build(&spec, &facts.model), 0);
    facts.job = JOB;
    facts.model_hash = model_hash(&facts.model, NULL, NULL);
    facts.train = (struct data_facts){.utterances = 10, .frames = 1000};
    blocks_cut(facts.model.params, &cut);
    assert_int_equal(facts_write(run, &facts), 0);
    write_set_0();
    static const char yaml[] = "data: {train: data}\n"
                               "optimizer: {type: sgd, rate: 0.5, schedule: {type: constant}}\n"
                               "cluster: {servers: 1, workers: 1, security: none}\n";
    char *path = files_join(run, "job.yaml"), *members = files_join(run, "members");
    assert_int_equal(files_write_atomic(path, yaml, sizeof yaml - 1), 0);
    assert_int_equal(files_make_dirs(members), 0);
    free(path);
    free(members);
    child = 0;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (child) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    facts_fini(&facts);
    return files_remove_tree(run);
}

static void start_server(const char *more)
{
    child = fork();
    assert_true(child >= 0);
    if (child > 0) return;
    execl(program, program, run, "--shard", "0", more, (char *)NULL);
    _exit(127);
}

static int end_of_server(void)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    child = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The next message of this type; others are dropped. */
static struct msg expect(struct wire *w, enum msg_type type, uint64_t *peer, struct frame **payload)
{
    struct msg m = {.job = 0};
    uint64_t begin = clock_now_ns();
    int link;
    while (clock_now_ns() - begin < PATIENCE) {
        struct frame *f = NULL;
        if (wire_receive(w, 1000, &link, peer, &m, &f) < 0) continue;
        if (m.type == type) {
            if (payload)
                *payload = f;
            else
                frame_free(&f);
            return m;
        }
        frame_free(&f);
    }
    fail_msg("no %s came", msg_name(type));
    return m;
}

static void answer_join(struct wire *w, uint32_t incarnation, uint32_t generation, uint32_t set,
                        struct msg *join, uint64_t *peer)
{
    do *join = expect(w, MSG_JOIN, peer, NULL); /* a killed one may have said it twice */
    while (join->join.pid != (uint64_t)child);
    struct msg m = {.type = MSG_JOINED, .job = JOB};
    m.joined = (struct msg_joined){.member = 5,
                                   .incarnation = incarnation,
                                   .job_generation = 1,
                                   .generation = generation,
                                   .set = set,
                                   .shards = 1};
    assert_int_equal(wire_send(w, WIRE_ROUTER, *peer, &m, NULL), 0);
}

/* Orders until a beat says `written`. */
static struct msg_beat order_set(struct wire *w, uint64_t peer, uint32_t incarnation, uint32_t set)
{
    for (;;) {
        struct msg m = {.type = MSG_ORDER, .job = JOB};
        m.order = (struct msg_order){.incarnation = incarnation, .set = set};
        assert_int_equal(wire_send(w, WIRE_ROUTER, peer, &m, NULL), 0);
        m = expect(w, MSG_BEAT, &peer, NULL);
        if (m.beat.written == set) return m.beat;
    }
}

static void order_command(struct wire *w, uint64_t peer, uint32_t incarnation, enum msg_command command)
{
    struct msg m = {.type = MSG_ORDER, .job = JOB};
    m.order = (struct msg_order){.incarnation = incarnation, .command = command};
    assert_int_equal(wire_send(w, WIRE_ROUTER, peer, &m, NULL), 0);
}

static void say_hello(struct wire *w, int link)
{
    uint64_t begin = clock_now_ns();
    struct msg m = {.type = MSG_HELLO, .job = JOB};
    m.hello = (struct msg_hello){.member = 9, .model_hash = facts.model_hash, .job_generation = 1};
    while (wire_send(w, link, 0, &m, NULL) == ERR_AGAIN) /* until it is connected */
        assert_true(clock_now_ns() - begin < PATIENCE);
}

/* HELLO until it is welcome: a server that has not read its JOINED yet asks for patience. */
static uint32_t join_shard(struct wire *w, int link)
{
    uint64_t begin = clock_now_ns();
    struct msg m = {.job = 0};
    struct frame *none = NULL;
    uint64_t peer;
    for (say_hello(w, link); m.type != MSG_WELCOME;) {
        assert_true(clock_now_ns() - begin < PATIENCE);
        if (wire_receive(w, 1000, &link, &peer, &m, &none) < 0) continue;
        frame_free(&none);
        if (m.type == MSG_REFUSED && m.refused.reason == REFUSAL_NOT_READY) say_hello(w, link);
    }
    return m.welcome.generation;
}

/* HELLO, then one push of ones to block 0; returns the first new weight. */
static float push_once(const char *endpoint, uint32_t generation, uint64_t seq, struct msg_answer *answer)
{
    struct wire *w = wire_new();
    struct frame *payload = NULL;
    uint64_t peer;
    int link = wire_connect(w, endpoint);
    struct msg m;
    assert_int_equal(join_shard(w, link), generation);
    size_t floats = blocks_floats(&cut, 0);
    payload = frame_new(floats * sizeof(float));
    for (size_t i = 0; i < floats; i++) ((float *)frame_data(payload))[i] = 0.01f;
    m = (struct msg){.type = MSG_PUSH, .job = JOB};
    m.push = (struct msg_push){.member = 9,
                               .seq = seq,
                               .job_generation = 1,
                               .generation = generation,
                               .frames = 10,
                               .pull = true,
                               .hash = wire_hash(frame_data(payload), frame_len(payload))};
    assert_int_equal(wire_send(w, link, 0, &m, &payload), 0);
    *answer = expect(w, MSG_ANSWER, &peer, &payload).answer;
    assert_non_null(payload);
    float first = ((float *)frame_data(payload))[0];
    frame_free(&payload);
    wire_free(&w);
    return first;
}

/* kill -9 after a set: what came later is lost, what is in the set is not applied twice */
static void a_server_comes_back_with_what_it_wrote(void **state)
{
    (void)state;
    char endpoint[MSG_MAX_ENDPOINT];
    struct msg_answer a;
    struct msg join;
    uint64_t peer;
    struct wire *w = wire_new();
    assert_int_equal(wire_bind(w, "127.0.0.1", endpoint), 0);
    publish(endpoint, 1);
    start_server(NULL);
    answer_join(w, 1, 1, 0, &join, &peer);
    assert_int_equal(join.join.role, ROLE_SERVER);
    assert_true(join.join.member == 0 && join.join.restored_set == 0 && join.join.generation == 0);
    float one = push_once(join.join.endpoint, 1, 1, &a);
    assert_true(a.verdict == VERDICT_APPLIED && a.version == 1 && one == 1 - 0.5f * 0.01f);
    struct msg_beat beat = order_set(w, peer, 1, 1);
    assert_int_equal(beat.copied, 1);
    push_once(join.join.endpoint, 1, 2, &a);
    assert_true(a.version == 2 && a.stable == 1);
    kill(child, SIGKILL);
    end_of_server();

    start_server("--recover");
    answer_join(w, 1, 2, 1, &join, &peer);
    assert_int_equal(join.join.restored_set, 1);
    float again = push_once(join.join.endpoint, 2, 1, &a); /* already in the set */
    assert_true(a.version == 1 && again == one);
    push_once(join.join.endpoint, 2, 2, &a);
    assert_true(a.verdict == VERDICT_APPLIED && a.version == 2);
    order_set(w, peer, 1, 1); /* nobody completed it: it is written once more */
    order_command(w, peer, 1, COMMAND_FINISH);
    assert_int_equal(end_of_server(), 0);
    wire_free(&w);
}

/* a worker whose message is quicker than the coordinator's JOINED */
static void a_hello_before_joined_is_answered_not_lost(void **state)
{
    (void)state;
    char endpoint[MSG_MAX_ENDPOINT];
    struct msg join;
    uint64_t peer;
    struct wire *w = wire_new(), *worker = wire_new();
    assert_int_equal(wire_bind(w, "127.0.0.1", endpoint), 0);
    publish(endpoint, 1);
    start_server(NULL);
    join = expect(w, MSG_JOIN, &peer, NULL);
    int link = wire_connect(worker, join.join.endpoint);
    say_hello(worker, link);
    assert_int_equal(expect(worker, MSG_REFUSED, &peer, NULL).refused.reason, REFUSAL_NOT_READY);
    answer_join(w, 1, 1, 0, &join, &peer); /* it is said again */
    assert_int_equal(join_shard(worker, link), 1);
    order_command(w, peer, 1, COMMAND_FINISH);
    assert_int_equal(end_of_server(), 0);
    wire_free(&worker);
    wire_free(&w);
}

static void a_new_coordinator_is_found_and_an_old_one_ignored(void **state)
{
    (void)state;
    char endpoint[MSG_MAX_ENDPOINT];
    struct msg join;
    uint64_t peer;
    struct wire *old = wire_new(), *w = wire_new();
    assert_int_equal(wire_bind(old, "127.0.0.1", endpoint), 0);
    publish(endpoint, 3);
    start_server(NULL);
    answer_join(old, 3, 1, 0, &join, &peer);
    order_command(old, peer, 2, COMMAND_INTERRUPT); /* superseded */
    expect(old, MSG_BEAT, &peer, NULL);
    kill(child, SIGTERM); /* alone it changes nothing */
    kill(child, SIGTERM);
    expect(old, MSG_BEAT, &peer, NULL);
    wire_free(&old);
    assert_int_equal(wire_bind(w, "127.0.0.1", endpoint), 0);
    publish(endpoint, 4);
    answer_join(w, 4, 1, 0, &join, &peer);
    assert_true(join.join.member == 5 && join.join.generation == 1);
    assert_int_equal(expect(w, MSG_BEAT, &peer, NULL).beat.incarnation, 4);
    order_command(w, peer, 4, COMMAND_INTERRUPT);
    assert_int_equal(end_of_server(), 75);
    wire_free(&w);
}

static void a_refusal_ends_it_with_the_sentence(void **state)
{
    (void)state;
    char endpoint[MSG_MAX_ENDPOINT];
    uint64_t peer;
    struct wire *w = wire_new();
    assert_int_equal(wire_bind(w, "127.0.0.1", endpoint), 0);
    publish(endpoint, 1);
    start_server(NULL);
    expect(w, MSG_JOIN, &peer, NULL);
    struct msg m = {.type = MSG_REFUSED, .job = JOB};
    m.refused.reason = REFUSAL_MISMATCH;
    snprintf(m.refused.text, sizeof m.refused.text, "another model");
    assert_int_equal(wire_send(w, WIRE_ROUTER, peer, &m, NULL), 0);
    assert_int_equal(end_of_server(), 5);
    wire_free(&w);
}

/* build/VARIANT/bin/chorale-server beside build/VARIANT/tests/server/test_serve */
static bool find_program(void)
{
    char self[4000];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return false;
    self[n] = '\0';
    for (int i = 0; i < 3; i++) {
        char *slash = strrchr(self, '/');
        if (!slash) return false;
        *slash = '\0';
    }
    snprintf(program, sizeof program, "%s/bin/chorale-server", self);
    return access(program, X_OK) == 0;
}

int main(void)
{
#define RULE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        RULE(a_server_comes_back_with_what_it_wrote),
        RULE(a_hello_before_joined_is_answered_not_lost),
        RULE(a_new_coordinator_is_found_and_an_old_one_ignored),
        RULE(a_refusal_ends_it_with_the_sentence),
    };
    if (!find_program()) {
        fprintf(stderr, "%s is not built: run make programs\n", program);
        return 1;
    }
    log_set_stderr(LOG_NONE);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
