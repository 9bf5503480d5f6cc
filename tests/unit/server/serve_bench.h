/* The program chorale-server in a run of its own, against a coordinator and workers that a test plays over
 * loopback. */
#ifndef TESTS_UNIT_SERVER_SERVE_BENCH_H
#define TESTS_UNIT_SERVER_SERVE_BENCH_H

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

static inline void publish(const char *endpoint, uint32_t incarnation)
{
    char *path = files_join(run, "members/coordinator");
    char *text = xprintf("{\"endpoint\":\"%s\",\"incarnation\":%u}", endpoint, incarnation);
    assert_int_equal(files_write_atomic(path, text, strlen(text)), 0);
    free(text);
    free(path);
}

static inline void write_set_0(void)
{
    struct manifest m = {.job = JOB, .model_hash = facts.model_hash, .num_files = 1};
    struct shard_state *s = shard_state_new(&cut, 0, cut.count, 0, 0);
    m.files = xcalloc(1, sizeof *m.files);
    for (size_t i = 0; i < cut.params; i++) s->weights[i] = 1;
    assert_int_equal(snapshot_write_shard(run, 0, 0, 1, &facts, s, m.files), 0);
    assert_int_equal(snapshot_write_manifest(run, &m), 0);
    manifest_fini(&m);
    shard_state_free(&s);
}

static inline int make_run(uint32_t cells)
{
    struct model_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.input = spec.feature_dim = 10;
    spec.stack = spec.skip = 1;
    spec.targets = 60;
    spec.num_layers = 1;
    spec.layers[0].cells = cells;
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

static inline int tear_down(void **state)
{
    (void)state;
    if (child) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    facts_fini(&facts);
    return files_remove_tree(run);
}

static inline void start_server(const char *more)
{
    child = fork();
    assert_true(child >= 0);
    if (child > 0) return;
    execl(program, program, run, "--shard", "0", more, (char *)NULL);
    _exit(127);
}

static inline int end_of_server(void)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    child = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The next message of this type; others are dropped. */
static inline struct msg expect(struct wire *w, enum msg_type type, uint64_t *peer, struct frame **payload)
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

/* A coordinator that binds and can be found; the member that comes to it is told what the test says. */
static inline struct wire *play_coordinator(uint32_t incarnation)
{
    char endpoint[MSG_MAX_ENDPOINT];
    struct wire *w = wire_new();
    assert_int_equal(wire_bind(w, "127.0.0.1", endpoint), 0);
    publish(endpoint, incarnation);
    return w;
}

static inline void say_joined(struct wire *w, uint64_t peer, uint32_t incarnation, uint32_t generation,
                              uint32_t set)
{
    struct msg m = {.type = MSG_JOINED, .job = JOB};
    m.joined = (struct msg_joined){.member = 5,
                                   .incarnation = incarnation,
                                   .job_generation = 1,
                                   .generation = generation,
                                   .set = set,
                                   .shards = 1};
    assert_int_equal(wire_send(w, WIRE_ROUTER, peer, &m, NULL), 0);
}

static inline void answer_join(struct wire *w, uint32_t incarnation, uint32_t generation, uint32_t set,
                               struct msg *join, uint64_t *peer)
{
    do *join = expect(w, MSG_JOIN, peer, NULL); /* a killed one may have said it twice */
    while (join->join.pid != (uint64_t)child);
    say_joined(w, *peer, incarnation, generation, set);
}

static inline void order_command(struct wire *w, uint64_t peer, uint32_t incarnation,
                                 enum msg_command command)
{
    struct msg m = {.type = MSG_ORDER, .job = JOB};
    m.order = (struct msg_order){.incarnation = incarnation, .command = command};
    assert_int_equal(wire_send(w, WIRE_ROUTER, peer, &m, NULL), 0);
}

/* Orders this end; the server leaves with that exit status. */
static inline void end_server(struct wire *w, uint64_t peer, uint32_t incarnation, enum msg_command command,
                              int status)
{
    order_command(w, peer, incarnation, command);
    assert_int_equal(end_of_server(), status);
}

/* A push of a block whose gradient is `value` everywhere, from generation 1 of the job; false: the queue is
 * full. */
static inline bool send_push(struct wire *w, int link, uint64_t member, uint64_t seq, uint32_t generation,
                             uint32_t block, float value)
{
    size_t floats = blocks_floats(&cut, block);
    struct frame *f = frame_new(floats * sizeof(float));
    for (size_t i = 0; i < floats; i++) ((float *)frame_data(f))[i] = value;
    struct msg m = {.type = MSG_PUSH, .job = JOB};
    m.push = (struct msg_push){.member = member,
                               .seq = seq,
                               .job_generation = 1,
                               .generation = generation,
                               .block = block,
                               .frames = 10,
                               .pull = true,
                               .hash = wire_hash(frame_data(f), frame_len(f))};
    bool is_sent = wire_send(w, link, 0, &m, &f) == 0;
    frame_free(&f);
    return is_sent;
}

static inline void say_hello(struct wire *w, int link, uint64_t member)
{
    uint64_t begin = clock_now_ns();
    struct msg m = {.type = MSG_HELLO, .job = JOB};
    m.hello = (struct msg_hello){.member = member, .model_hash = facts.model_hash, .job_generation = 1};
    while (wire_send(w, link, 0, &m, NULL) == ERR_AGAIN) /* until it is connected */
        assert_true(clock_now_ns() - begin < PATIENCE);
}

/* HELLO until it is welcome: a server that has not read its JOINED yet asks for patience. */
static inline uint32_t join_shard(struct wire *w, int link, uint64_t member)
{
    uint64_t begin = clock_now_ns();
    struct msg m = {.job = 0};
    struct frame *none = NULL;
    uint64_t peer;
    for (say_hello(w, link, member); m.type != MSG_WELCOME;) {
        assert_true(clock_now_ns() - begin < PATIENCE);
        if (wire_receive(w, 1000, &link, &peer, &m, &none) < 0) continue;
        frame_free(&none);
        if (m.type == MSG_REFUSED && m.refused.reason == REFUSAL_NOT_READY) say_hello(w, link, member);
    }
    return m.welcome.generation;
}

/* build/VARIANT/bin/chorale-server beside build/VARIANT/tests/server/test_serve */
static inline bool find_program(void)
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
    log_set_stderr(LOG_NONE);
    if (access(program, X_OK) == 0) return true;
    fprintf(stderr, "%s is not built: run make programs\n", program);
    return false;
}

#endif
