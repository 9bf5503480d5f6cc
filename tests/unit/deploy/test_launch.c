/* The launcher's policy, with small shell scripts in the place of the real coordinator, servers and workers,
 * which wait for each other on fifos. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/clock.h"
#include "common/wire.h"
#include "deploy/child.h"
#include "deploy/launch.h"
#include "deploy/progress.h"
#include "tests/unit/deploy/program.h"
#include "tests/unit/worker/data_dir.h"

#include <signal.h>
#include <sys/stat.h>

static struct data_dir home;

static int set_up(void **state)
{
    (void)state;
    data_dir_make(&home);
    return program_set_up(home.path, "chorale-train");
}

static int tear_down(void **state)
{
    (void)state;
    program_tear_down();
    data_dir_remove(&home);
    return 0;
}

/* Every script first appends its name and arguments to RUN/calls. */
static void put_script(const char *name, const char *body)
{
    char *path = files_join(home.path, name);
    char *text = xprintf("#!/bin/sh\nrun=$1; shift\necho \"%s $*\" >>$run/calls\n%s\n", name + 8, body);
    assert_int_equal(files_write_atomic(path, text, strlen(text)), 0);
    assert_int_equal(chmod(path, 0755), 0);
    free(text);
    free(path);
}

static void put_fifo(const char *name)
{
    char *path = files_join(home.path, name);
    assert_int_equal(mkfifo(path, 0600), 0);
    free(path);
}

#define PUBLISH                                                                                              \
    "printf '{\"endpoint\":\"%s\",\"pid\":%d}' \"$ENDPOINT\" $$ >$run/members/c && mv $run/members/c "       \
    "$run/members/coordinator\n"
/* true in the first life of this script alone */
#define FIRST(name) "[ ! -e $run/" name " ] && : >$run/" name

struct outcome {
    int rc;
    char *calls;   /* owned: one line per start, in order */
    char *told;    /* owned: what progress_say wrote */
    int gone;      /* MSG_GONE that the coordinator's address received */
    char why[512]; /* err_text */
};

static void count_gone(struct wire *w, struct outcome *out)
{
    struct msg m;
    struct frame *payload = NULL;
    uint64_t peer;
    int link;
    while (wire_receive(w, out->gone ? 0 : 200, &link, &peer, &m, &payload) == 0) {
        if (m.type == MSG_GONE && m.job == 77 && m.gone.pid > 0) out->gone++;
        frame_free(&payload);
    }
}

static void launch_scripts(const char *coordinator, const char *server, const char *worker, bool bsp,
                           struct outcome *out)
{
    char endpoint[MSG_MAX_ENDPOINT], *run = files_join(home.path, "run"), *said = NULL;
    size_t said_len = 0;
    struct wire *w = wire_new();
    assert_int_equal(wire_bind(w, "127.0.0.1", endpoint), 0);
    setenv("ENDPOINT", endpoint, 1);
    program_write("run/members/x", "");
    program_write("run/logs/x", "");
    put_script("chorale-coordinator", coordinator);
    put_script("chorale-server", server);
    put_script("chorale-worker", worker);
    static int signals = -1;
    if (signals < 0) signals = child_catch_signals();
    FILE *to = open_memstream(&said, &said_len);
    struct progress_options how = {.run = run, .to = to, .plain_ns = NS_PER_S};
    struct launch_options o = {.run = run,
                               .programs = home.path,
                               .servers = 1,
                               .workers = 1,
                               .bsp = bsp,
                               .job = 77,
                               .signal_fd = signals,
                               .progress = progress_new(&how)};
    *out = (struct outcome){.rc = launch_run(&o)};
    snprintf(out->why, sizeof out->why, "%s", err_text());
    progress_free(&o.progress);
    fclose(to);
    out->told = said;
    out->calls = program_slurp("run/calls");
    count_gone(w, out);
    wire_free(&w);
    free(run);
}

static void outcome_fini(struct outcome *o)
{
    free(o->calls);
    free(o->told);
}

/* Starts of a line that begins with these words. */
static int calls_of(const struct outcome *o, const char *words)
{
    int n = 0;
    for (const char *at = o->calls; (at = strstr(at, words)); at += strlen(words))
        if (at == o->calls || at[-1] == '\n') n++;
    return n;
}

static void a_job_that_ends_well_starts_each_process_once(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("end");
    launch_scripts(PUBLISH "read x <$run/../end; exit 0", "exit 0", "echo done >$run/../end; exit 0", false,
                   &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(calls_of(&o, "coordinator \n"), 1);
    assert_int_equal(calls_of(&o, "server --shard 0\n"), 1);
    assert_int_equal(calls_of(&o, "worker \n"), 1);
    assert_int_equal(o.gone, 0);
    outcome_fini(&o);
}

static void a_killed_worker_is_told_to_the_coordinator_and_replaced(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("end");
    launch_scripts(PUBLISH "read x <$run/../end; exit 0", "exit 0",
                   FIRST("w") " && kill -9 $$\necho done >$run/../end; exit 0", false, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(calls_of(&o, "worker \n"), 2);
    assert_int_equal(calls_of(&o, "server"), 1);
    assert_int_equal(o.gone, 1);
    assert_non_null(strstr(o.told, "worker-0 was killed by signal 9"));
    outcome_fini(&o);
}

static void a_killed_server_comes_back_with_recover(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("end");
    launch_scripts(PUBLISH "read x <$run/../end; exit 0",
                   FIRST("s") " && kill -9 $$\necho done >$run/../end; exit 0", "exit 0", false, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(calls_of(&o, "server --shard 0\n"), 1);
    assert_int_equal(calls_of(&o, "server --shard 0 --recover\n"), 1);
    assert_int_equal(calls_of(&o, "coordinator"), 1);
    outcome_fini(&o);
}

static void a_killed_coordinator_comes_back_with_recover_and_the_others_stay(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("up");
    put_fifo("bye");
    launch_scripts(PUBLISH
                   "if " FIRST("c") "; then read x <$run/../up; kill -9 $$; fi\necho x >$run/../bye; exit 0",
                   "exit 0", "echo x >$run/../up; read x <$run/../bye; exit 0", false, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(calls_of(&o, "coordinator \n"), 1);
    assert_int_equal(calls_of(&o, "coordinator --recover\n"), 1);
    assert_int_equal(calls_of(&o, "worker"), 1);
    assert_int_equal(calls_of(&o, "server"), 1);
    outcome_fini(&o);
}

static void in_bsp_any_death_starts_everything_again(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("end");
    put_fifo("up");
    launch_scripts(PUBLISH "read x <$run/../end; exit 0", "echo x >$run/../up; exit 0",
                   "read x <$run/../up\n" FIRST("w") " && kill -9 $$\necho done >$run/../end; exit 0", true,
                   &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(calls_of(&o, "coordinator \n"), 2);
    assert_int_equal(calls_of(&o, "server --shard 0\n"), 2);
    assert_int_equal(calls_of(&o, "worker \n"), 2);
    outcome_fini(&o);
}

static void a_coordinator_that_asks_for_a_restore_gets_ten_and_no_more(void **state)
{
    (void)state;
    struct outcome o;
    launch_scripts(PUBLISH "exit 76", "exit 0", "exit 0", false, &o);
    assert_int_equal(o.rc, ERR_FAIL);
    assert_int_equal(calls_of(&o, "coordinator \n"), 1 + LAUNCH_RESTARTS);
    assert_non_null(strstr(o.why, "10 times"));
    outcome_fini(&o);
}

static void a_worker_that_refuses_its_data_ends_the_job_with_its_sentence(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("never");
    launch_scripts(PUBLISH "exec cat $run/../never", "exit 0", "echo 'the data is bad' >&2; exit 3", false,
                   &o);
    assert_int_equal(o.rc, ERR_DATA);
    assert_non_null(strstr(o.why, "worker-0: the data is bad"));
    assert_int_equal(calls_of(&o, "worker"), 1);
    outcome_fini(&o);
}

static void an_interrupt_goes_to_the_coordinator_and_the_result_is_resumable(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("never");
    put_fifo("bye");
    launch_scripts("trap 'kill $!; echo x >$run/../bye; exit 75' TERM\n" PUBLISH "cat $run/../never & wait",
                   "exit 0", "kill -TERM $PPID; read x <$run/../bye; exit 75", false, &o);
    assert_int_equal(o.rc, ERR_INTERRUPTED);
    assert_int_equal(calls_of(&o, "coordinator"), 1);
    assert_int_equal(calls_of(&o, "worker"), 1);
    outcome_fini(&o);
}

static void a_worker_that_says_nothing_is_told_by_its_status(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("never");
    launch_scripts(PUBLISH "exec cat $run/../never", "exit 0", "exit 5", false, &o);
    assert_int_equal(o.rc, ERR_MODEL);
    assert_non_null(strstr(o.why, "worker-0 ended with status 5"));
    outcome_fini(&o);
}

/* In the changed job a death means what it means in that mode: here bsp becomes async, then a worker falls.
 */
static void after_a_switch_everything_starts_again_in_the_mode_of_the_job_file(void **state)
{
    (void)state;
    struct outcome o;
    put_fifo("end");
    put_fifo("never");
    program_write("run/job.yaml", "consistency: {mode: async}\n");
    launch_scripts(PUBLISH "if " FIRST("c") "; then exit 77; fi\nread x <$run/../end; exit 0",
                   "exec cat $run/../never",
                   "[ $(grep -c ^coord $run/calls) = 2 ] || exec cat $run/../never\n" FIRST(
                       "w") " && kill -9 $$\necho done >$run/../end; exit 0",
                   true, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(calls_of(&o, "coordinator \n"), 2);
    assert_int_equal(calls_of(&o, "coordinator --recover\n"), 0);
    assert_int_equal(o.gone, 1);
    assert_non_null(strstr(o.told, "the job goes on as job.yaml says now"));
    assert_null(strstr(o.told, "everything starts again from the last checkpoint"));
    outcome_fini(&o);
}

static void switches_are_not_counted_as_falls(void **state)
{
    (void)state;
    struct outcome o;
    launch_scripts(PUBLISH "[ $(grep -c ^coord $run/calls) -le 12 ] && exit 77\nexit 0", "exit 0", "exit 0",
                   false, &o);
    assert_int_equal(o.rc, 0);
    assert_int_equal(calls_of(&o, "coordinator \n"), 13);
    outcome_fini(&o);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

/* ------------------------------------------------------------------ how many */

static void workers_without_a_number_share_the_cores_that_the_servers_leave(void **state)
{
    (void)state;
    static const struct {
        int cores, servers, threads, workers;
    } rows[] = {{8, 1, 1, 7},  {8, 2, 1, 6}, {8, 1, 2, 3}, {9, 1, 2, 4}, {64, 4, 15, 4}, {8, 1, 7, 1},
                {8, 1, 16, 1}, {2, 1, 1, 1}, {1, 1, 1, 1}, {4, 8, 1, 1}, {2, 64, 16, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int got = launch_workers(rows[i].cores, rows[i].servers, rows[i].threads);
        if (got != rows[i].workers) fail_msg("row %zu: %d, expected %d", i, got, rows[i].workers);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_without_a_number_share_the_cores_that_the_servers_leave),
        TEST(a_job_that_ends_well_starts_each_process_once),
        TEST(a_killed_worker_is_told_to_the_coordinator_and_replaced),
        TEST(a_killed_server_comes_back_with_recover),
        TEST(a_killed_coordinator_comes_back_with_recover_and_the_others_stay),
        TEST(in_bsp_any_death_starts_everything_again),
        TEST(a_coordinator_that_asks_for_a_restore_gets_ten_and_no_more),
        TEST(a_worker_that_refuses_its_data_ends_the_job_with_its_sentence),
        TEST(an_interrupt_goes_to_the_coordinator_and_the_result_is_resumable),
        TEST(a_worker_that_says_nothing_is_told_by_its_status),
        TEST(after_a_switch_everything_starts_again_in_the_mode_of_the_job_file),
        TEST(switches_are_not_counted_as_falls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
