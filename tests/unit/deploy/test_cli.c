/* The built programs, as a person meets them: exit status, one sentence, nothing half-written. */
#include "common/config.h"
#include "common/err.h"
#include "common/files.h"
#include "common/rendezvous.h"
#include "deploy/run.h"

#include <jansson.h>
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
#include <xxhash.h>
#include <cmocka.h>

#include "tests/unit/deploy/program.h"

#define CHORALE(...) RUN_PROGRAM("chorale", __VA_ARGS__)
#define MAX_WORDS    (PROGRAM_WORDS - 1)

static int chorale(const char *const *words)
{
    const char *all[PROGRAM_WORDS + 1] = {"chorale"};
    for (size_t i = 0; i < MAX_WORDS && words[i]; i++) all[i + 1] = words[i];
    return program_run(all);
}

static int set_up(void **state)
{
    (void)state;
    char home[64] = "/tmp/chorale-cli-XXXXXX";
    if (!mkdtemp(home) || program_set_up(home, "chorale-init") < 0) return -1;
    program_write("train/feats.scp", "a feats.ark:2\n");
    program_write("train/ali.scp", "a ali.ark:2\n");
    program_write("dev/feats.scp", "a feats.ark:2\n");
    program_write("dev/ali.scp", "a ali.ark:2\n");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    program_tear_down();
    return files_remove_tree(program_home);
}

static void assert_one_sentence(const char *what)
{
    const char *end = strchr(program_err, '\n');
    if (strncmp(program_err, "chorale", 7) != 0 || !end || end[1] || strlen(program_err) < 20)
        fail_msg("%s: said: %s", what, program_err);
}

/* ------------------------------------------------------------------ refusals */

static void a_bad_command_line_gives_one_sentence_its_exit_code_and_no_run(void **state)
{
    (void)state;
    static const struct {
        int exit;
        const char *says, *words[MAX_WORDS + 1];
    } rows[] = {
        {2, "name a command", {NULL}},
        {2, "unknown command 'frobnicate'", {"frobnicate"}},
        {2, "did you mean `chorale status`", {"statsu", "run"}},
        {2, "unknown command '../sh'", {"../sh"}},
        {2, "unknown option '--frob'", {"--frob"}},
        {2, "name the run", {"init"}},
        {2, "--data DIR", {"init", "run"}},
        {2, "unknown option '--frob'", {"init", "run", "--frob"}},
        {2, "wants a value", {"init", "run", "--data"}},
        {2, "'run2' is too much", {"init", "run", "run2", "--data", "train"}},
        {2, "empty", {"init", "", "--data", "train"}},
        {3, "is not a directory", {"init", "run", "--data", "nowhere"}},
        {3, "feats.scp cannot be read", {"init", "run", "--data", "."}},
        {3, "ali2.scp cannot be read", {"init", "run", "--data", "train", "--set", "data.targets=ali2.scp"}},
        {3, "data.dev", {"init", "run", "--data", "train", "--dev", "nowhere"}},
        {2, "did you mean train.window?", {"init", "run", "--data", "train", "--set", "train.windw=3"}},
        {2, "an integer of 1 to 10000 frames", {"init", "run", "--data", "train", "--set", "train.window=0"}},
        {2, "wants option=value", {"init", "run", "--data", "train", "--set", "train.window"}},
        {2,
         "job.yaml:2:3: unknown option train.epoch",
         {"init", "run", "--data", "train", "--config", "job.yaml"}},
        {2, "none.yaml", {"init", "run", "--data", "train", "--config", "none.yaml"}},
        {2, "has no projection", {"init", "run", "--data", "train", "--set", "model.layers=[{cells: 3}]"}},
        {2, "set data.dev", {"init", "run", "--data", "train", "--set", "optimizer.schedule.type=newbob"}},
        {2, "bsp alone", {"init", "run", "--data", "train", "--set", "consistency.backup=1"}},
        {2, "is a file", {"init", "job.yaml", "--data", "train"}},
        {7, "cannot make the directory", {"init", "job.yaml/run", "--data", "train"}},
        {2, "is not a run", {"status", "run"}},
        {2, "name one run", {"status"}},
        {2, "name one run", {"status", "a", "b"}},
        {2, "unknown option", {"status", "--frob", "run"}},
        {2, "is not a run", {"stop", "run"}},
        {2, "name one run", {"stop"}},
        {2, "--timeout", {"stop", "run", "--timeout", "x"}},
        {2, "name the run", {"set"}},
        {2, "unknown option", {"set", "--frob", "run"}},
        {2, "say what to change", {"set", "run"}},
        {2, "is not a run", {"set", "run", "consistency.mode=ssp"}},
        {2, "say what to do", {"checkpoint"}},
        {2, "there are ls and verify", {"checkpoint", "frob", "run"}},
        {2, "name one run", {"checkpoint", "ls"}},
        {2, "is not a run", {"checkpoint", "verify", "run"}},
    };
    program_write("job.yaml", "train:\n  epoch: 3\n");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int rc = chorale(rows[i].words);
        char *what = xprintf("row %zu, exit %d", i, rc);
        if (rc != rows[i].exit || !strstr(program_err, rows[i].says))
            fail_msg("%s, expected %d %s: %s", what, rows[i].exit, rows[i].says, program_err);
        assert_one_sentence(what);
        assert_int_equal(strlen(program_out), 0);
        assert_false(program_is_there("run"));
        free(what);
    }
}

static void a_bad_variable_stops_init(void **state)
{
    (void)state;
    setenv("CHORALE_TRAIN_WINDOW", "0", 1);
    int rc = CHORALE("init", "run", "--data", "train");
    unsetenv("CHORALE_TRAIN_WINDOW");
    assert_int_equal(rc, 2);
    assert_one_sentence("variable");
    assert_non_null(strstr(program_err, "CHORALE_TRAIN_WINDOW"));
    assert_false(program_is_there("run"));
}

static void help_goes_to_stdout_and_is_no_error(void **state)
{
    (void)state;
    static const char *const rows[][3] = {{"--help"},
                                          {"-h"},
                                          {"help"},
                                          {"--version"},
                                          {"help", "init"},
                                          {"init", "--help"},
                                          {"status", "--help"},
                                          {"stop", "--help"},
                                          {"set", "--help"},
                                          {"help", "set"},
                                          {"checkpoint", "--help"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(CHORALE(rows[i][0], rows[i][1]), 0);
        assert_true(strlen(program_out) > 5);
        assert_int_equal(strlen(program_err), 0);
    }
    assert_int_equal(CHORALE("init", "--help"), 0);
    assert_non_null(strstr(program_out, "optimizer.schedule.from_epoch"));
}

/* ------------------------------------------------------------------ init */

static void init_writes_a_job_file_with_absolute_data_and_never_twice(void **state)
{
    (void)state;
    struct config c;
    assert_int_equal(CHORALE("init", "a/run", "--data", "train", "--dev", "dev", "--set", "train.epochs=3"),
                     0);
    char *path = files_join(program_home, "a/run/job.yaml"), *train = files_join(program_home, "train");
    assert_int_equal(config_load(path, &c), 0);
    assert_string_equal(c.data.train, train);
    assert_int_equal(c.train.epochs, 3);
    config_free(&c);
    char *before = program_slurp("a/run/job.yaml");
    assert_int_equal(CHORALE("init", "a/run", "--data", "train"), 2);
    assert_one_sentence("twice");
    char *after = program_slurp("a/run/job.yaml");
    assert_string_equal(before, after);
    free(before);
    free(after);
    free(path);
    free(train);
}

static void init_finds_targets_that_are_here_and_not_in_the_data(void **state)
{
    (void)state;
    struct config c;
    program_write("other.scp", "a ali.ark:2\n");
    assert_int_equal(CHORALE("init", "run", "--data", "train", "--set", "data.targets=other.scp"), 0);
    char *path = files_join(program_home, "run/job.yaml"), *targets = files_join(program_home, "other.scp");
    assert_int_equal(config_load(path, &c), 0);
    assert_string_equal(c.data.targets, targets);
    config_free(&c);
    free(path);
    free(targets);
}

/* ------------------------------------------------------------------ status */

static void status_tells_of_a_run_that_was_never_trained(void **state)
{
    (void)state;
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    assert_int_equal(CHORALE("status", "run"), 0);
    assert_non_null(strstr(program_out, "never trained"));
    assert_int_equal(CHORALE("status", "run", "--json"), 0);
    json_t *s = json_loads(program_out, 0, NULL);
    assert_true(json_is_false(json_object_get(s, "alive")));
    json_decref(s);
}

static void status_prints_the_job_its_shards_and_its_workers(void **state)
{
    (void)state;
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    program_write(
        "run/status.json",
        "{\"run\":\"run\",\"state\":\"finished\",\"epoch\":2,\"epochs\":10,\"done\":0.25,\"frames_per_"
        "s\":12345.6,"
        "\"loss\":1.5,\"dev_loss\":null,\"dev_accuracy\":0.7561,\"eta_s\":600,\"checkpoint\":{\"set\":"
        "12,\"age_s\":4},"
        "\"shards\":[{\"shard\":0,\"endpoint\":\"tcp://"
        "127.0.0.1:1\\u001b[31m\",\"generation\":1,\"version\":8123,"
        "\"p50\":3,\"p95\":9,\"max\":14,\"applied\":100,\"refused\":0,\"blocks\":28}],"
        "\"workers\":[{\"member\":4,\"host\":\"h\",\"pid\":1,\"state\":\"live\",\"frames_per_s\":6000,"
        "\"frames\":1,"
        "\"staleness_mean\":2.5,\"last_seen_s\":1}],"
        "\"epochs_done\":[{\"epoch\":1,\"train_loss\":2.1234,\"rate\":0.05,\"dev_loss\":1.9,\"dev_"
        "accuracy\":0.5}]}");
    assert_int_equal(CHORALE("status", "run"), 0);
    static const char *const parts[] = {
        "finished",    "epoch 2/10",         "25.0 %", "12346 frames/s", "dev accuracy 75.61 %",
        "10 min left", "checkpoint 12 (4 s", "8123",   "2.123",          "50.00 %",
        "live",        "tcp://127.0.0.1:1?"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (!strstr(program_out, parts[i])) fail_msg("no %s in: %s", parts[i], program_out);
    assert_null(strchr(program_out, '\x1b'));
    assert_null(strstr(program_out, "dev loss 0"));
    assert_null(strstr(program_out, "waits")); /* nobody can wait here */
}

static void status_tells_of_waiting_where_there_is_any(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says; /* says NULL: no waits */
    } rows[] = {
        {"{\"state\":\"finished\",\"mode\":\"async\",\"shards\":[{\"shard\":0,\"waits\":0,\"wait_s\":0}]}",
         NULL},
        {"{\"state\":\"finished\",\"mode\":\"async\",\"shards\":[{\"shard\":0,\"waits\":4,\"wait_s\":0.25}]}",
         " 0.2 "},
        {"{\"state\":\"finished\",\"mode\":\"ssp, bound 4\",\"shards\":[{\"shard\":0,\"waits\":0}]}",
         "ssp, bound 4\n"},
        {"{\"state\":\"finished\",\"mode\":\"bsp\",\"rate_factor\":0.5,\"shards\":[{\"shard\":0,\"waits\":"
         "812,\"wait_s\":31}]}",
         "  812      31  "},
    };
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        program_write("run/status.json", rows[i].text);
        assert_int_equal(CHORALE("status", "run"), 0);
        bool told = strstr(program_out, "waits  wait s") != NULL;
        if (told != (rows[i].says != NULL) || (told && !strstr(program_out, rows[i].says)))
            fail_msg("row %zu: %s", i, program_out);
    }
}

static void status_tells_mode_rate_and_the_change_that_waits(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"\"mode\":\"async\"", "\n  async\n"},
        {"\"mode\":\"async\",\"rate_factor\":1,\"next\":\"async\",\"next_after\":2",
         "  async; changed options hold after epoch 2\n"},
        {"\"mode\":\"async\",\"rate_factor\":0.25,\"next\":\"ssp, bound 8\",\"next_after\":3",
         "  async, rate x 0.25; switching to ssp, bound 8 after epoch 3\n"},
        {"\"mode\":\"bsp\",\"warm_start\":true,\"next\":\"async\",\"next_after\":0",
         "  bsp, one worker trains alone; switching to async at once\n"},
        {"\"mode\":\"bsp\",\"next\":\"async\",\"next_after\":null",
         "; switching to async when the run is trained further\n"},
    };
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = xprintf("{\"state\":\"running\",\"done\":0.5,%s}", rows[i][0]);
        program_write("run/status.json", text);
        free(text);
        assert_int_equal(CHORALE("status", "run"), 0);
        if (!strstr(program_out, rows[i][1])) fail_msg("no %s in: %s", rows[i][1], program_out);
    }
}

static void status_of_any_json_never_crashes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int exit;
    } rows[] = {
        {"", 1},
        {"[]", 1},
        {"{", 1},
        {"{}", 0},
        {"{\"mode\":7,\"next\":{},\"next_after\":\"x\",\"rate_factor\":[],\"shards\":[{\"waits\":\"many\"}]}",
         0},
        {"{\"mode\":\"ssp\",\"next\":\"\\u001b[31m\",\"next_after\":1e308,\"rate_factor\":-1e308}", 0},
        {"{\"state\":5,\"shards\":7,\"workers\":[1,null,{}],\"checkpoint\":[],\"epoch\":\"x\"}", 0},
        {"{\"shards\":[{\"shard\":1e300,\"p50\":-1e300,\"age_s\":1e300,\"endpoint\":\"\\u00e9\"}],\"epochs_"
         "done\":{}}",
         0},
    };
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        program_write("run/status.json", rows[i].text);
        assert_int_equal(CHORALE("status", "run"), rows[i].exit);
        assert_int_equal(CHORALE("status", "run", "--json"), rows[i].exit);
        if (rows[i].exit) assert_one_sentence(rows[i].text);
    }
}

/* ------------------------------------------------------------------ stop */

static void stop_without_a_job_exits_4(void **state)
{
    (void)state;
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    assert_int_equal(CHORALE("stop", "run"), 4);
    assert_one_sentence("nothing");
    static const char *const damaged[] = {"",
                                          "{}",
                                          "[1]",
                                          "{\"pid\":-1,\"start\":5}",
                                          "{\"pid\":0,\"start\":5}",
                                          "{\"pid\":99999999999,\"start\":5}",
                                          "{\"pid\":\"1\",\"start\":5}"};
    for (size_t i = 0; i < sizeof damaged / sizeof damaged[0]; i++) {
        program_write("run/members/launcher", damaged[i]);
        assert_int_equal(CHORALE("stop", "run"), 1);
        assert_one_sentence(damaged[i]);
    }
}

/* A child that waits for TERM (or, deaf, ignores it) and is named in RUN/members/launcher. */
static pid_t start_launcher(bool deaf, uint64_t start_offset)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (deaf) signal(SIGTERM, SIG_IGN);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    assert_true(rendezvous_process_start(pid) > 0);
    char *text = xprintf("{\"pid\":%ld,\"start\":%llu}", (long)pid,
                         (unsigned long long)(rendezvous_process_start(pid) + start_offset));
    program_write("run/members/launcher", text);
    free(text);
    return pid;
}

static void stop_ends_the_launcher_and_says_so(void **state)
{
    (void)state;
    int status;
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    pid_t pid = start_launcher(false, 0);
    assert_int_equal(CHORALE("stop", "run"), 0);
    assert_non_null(strstr(program_out, "has stopped"));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    assert_int_equal(CHORALE("stop", "run"), 4);
}

static void stop_leaves_a_stranger_with_the_same_pid_alone(void **state)
{
    (void)state;
    int status;
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    pid_t pid = start_launcher(false, 1);
    assert_int_equal(CHORALE("stop", "run"), 4);
    assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    assert_int_equal(WTERMSIG(status), SIGKILL);
}

static void stop_does_not_wait_for_ever(void **state)
{
    (void)state;
    int status;
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    pid_t pid = start_launcher(true, 0);
    assert_int_equal(CHORALE("stop", "run", "--timeout", "0"), 1);
    assert_one_sentence("deaf");
    assert_non_null(strstr(program_err, "still stopping"));
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

/* ------------------------------------------------------------------ checkpoint */

static void write_set(const char *set, const char *body, const char *name)
{
    char *file = xprintf("run/checkpoints/%s/w", set),
         *manifest = xprintf("run/checkpoints/%s/manifest.json", set);
    char *text =
        xprintf("{\"set\":1,\"epoch\":2,\"done\":0.5,\"wall\":\"2026-01-31T12:00:00.000Z\",\"exact\":true,"
                "\"files\":[{\"name\":\"%s\",\"bytes\":%zu,\"xxh3\":\"%016llx\"}]}",
                name, strlen(body), (unsigned long long)XXH3_64bits(body, strlen(body)));
    program_write(file, body);
    program_write(manifest, text);
    free(file);
    free(manifest);
    free(text);
}

static void checkpoint_lists_and_verifies_whole_and_unfinished_sets(void **state)
{
    (void)state;
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    assert_int_equal(CHORALE("checkpoint", "verify", "run"), 0);
    write_set("set-000001", "weights", "w");
    write_set("set-1000000", "later weights", "w");
    program_write("run/checkpoints/set-000002/w", "half");
    assert_int_equal(CHORALE("checkpoint", "ls", "run"), 0);
    assert_non_null(strstr(program_out, "2026-01-31T12:00:00.000Z"));
    assert_non_null(strstr(program_out, "set-000002    incomplete"));
    assert_true(strstr(program_out, "set-000001") < strstr(program_out, "set-000002"));
    assert_true(strstr(program_out, "set-000002") < strstr(program_out, "set-1000000"));
    assert_int_equal(CHORALE("checkpoint", "verify", "run"), 0);
    assert_non_null(strstr(program_out, "set-000001    ok, 1 files"));
    assert_int_equal(strlen(program_err), 0);
}

static void checkpoint_verify_names_what_is_damaged_and_exits_7(void **state)
{
    (void)state;
    static const struct {
        const char *path, *text, *says;
    } rows[] = {
        {"run/checkpoints/set-000001/w", "weightz", "differs"},
        {"run/checkpoints/set-000001/w", "weight", "has 6 bytes"},
        {"run/checkpoints/set-000001/manifest.json", "{", "manifest.json is damaged"},
        {"run/checkpoints/set-000001/manifest.json", "[]", "manifest.json is damaged"},
        {"run/checkpoints/set-000001/manifest.json", "{\"files\":[7]}", "an entry without"},
        {"run/checkpoints/set-000001/manifest.json",
         "{\"files\":[{\"name\":\"x\",\"bytes\":1,\"xxh3\":\"0000000000000000\"}]}", "cannot open"},
        {"run/checkpoints/set-000001/manifest.json",
         "{\"files\":[{\"name\":\"../../job.yaml\",\"bytes\":1,\"xxh3\":\"0000000000000000\"}]}",
         "an entry without"},
        {"run/checkpoints/set-000001/manifest.json",
         "{\"files\":[{\"name\":\"w\",\"bytes\":7,\"xxh3\":\"12\"}]}", "an entry without"},
    };
    assert_int_equal(CHORALE("init", "run", "--data", "train"), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        write_set("set-000001", "weights", "w");
        write_set("set-000002", "good", "w");
        program_write(rows[i].path, rows[i].text);
        assert_int_equal(CHORALE("checkpoint", "verify", "run"), 7);
        assert_one_sentence(rows[i].says);
        if (!strstr(program_out, rows[i].says)) fail_msg("no %s in: %s", rows[i].says, program_out);
        assert_non_null(strstr(program_out, "set-000002    ok"));
        assert_int_equal(CHORALE("checkpoint", "ls", "run"), 0);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_bad_command_line_gives_one_sentence_its_exit_code_and_no_run),
        TEST(a_bad_variable_stops_init),
        TEST(help_goes_to_stdout_and_is_no_error),
        TEST(init_writes_a_job_file_with_absolute_data_and_never_twice),
        TEST(init_finds_targets_that_are_here_and_not_in_the_data),
        TEST(status_tells_of_a_run_that_was_never_trained),
        TEST(status_prints_the_job_its_shards_and_its_workers),
        TEST(status_tells_of_waiting_where_there_is_any),
        TEST(status_tells_mode_rate_and_the_change_that_waits),
        TEST(status_of_any_json_never_crashes),
        TEST(stop_without_a_job_exits_4),
        TEST(stop_ends_the_launcher_and_says_so),
        TEST(stop_leaves_a_stranger_with_the_same_pid_alone),
        TEST(stop_does_not_wait_for_ever),
        TEST(checkpoint_lists_and_verifies_whole_and_unfinished_sets),
        TEST(checkpoint_verify_names_what_is_damaged_and_exits_7),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
