/* chorale train: its command line, the launcher's policy (with small shell scripts in the place of the real
 * coordinator, servers and workers), and the lines of progress. Scripts wait for each other on fifos. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/rendezvous.h"
#include "common/clock.h"
#include "common/wire.h"
#include "deploy/child.h"
#include "deploy/launch.h"
#include "deploy/progress.h"
#include "deploy/run.h"
#include "tests/unit/deploy/program.h"
#include "tests/unit/worker/data_dir.h"

#include <signal.h>
#include <sys/stat.h>

static struct data_dir home;

static int set_up(void **state)
{
    (void)state;
    struct data_dir d;
    data_dir_make(&home);
    snprintf(d.path, sizeof d.path, "%.40s/train", home.path);
    assert_int_equal(files_make_dirs(d.path), 0);
    data_dir_corpus(&d, 3, (const size_t[]){12, 9, 20}, 3);
    return program_set_up(home.path, "chorale-train");
}

static int tear_down(void **state)
{
    (void)state;
    program_tear_down();
    data_dir_remove(&home);
    return 0;
}

/* ------------------------------------------------------------------ the command line */

static const char small_job[] =
    "data: {train: train, delay: 2}\nmodel: {layers: [{cells: 6, projection: 4}]}\n";

static void a_bad_command_line_gives_one_sentence_and_changes_nothing(void **state)
{
    (void)state;
    static const struct {
        int exit;
        const char *says, *words[9];
    } rows[] = {
        {2, "name the run", {"chorale", "train"}},
        {2, "'b' is too much", {"chorale", "train", "run", "b"}},
        {2, "unknown option '--frob'", {"chorale", "train", "run", "--frob"}},
        {2, "wants a value", {"chorale", "train", "run", "--workers"}},
        {2, "is not a run", {"chorale", "train", "nowhere"}},
        {2, "cluster.servers must be", {"chorale", "train", "run", "--servers", "0"}},
        {2, "cluster.workers must be", {"chorale", "train", "run", "--workers", "many"}},
        {2, "did you mean train.window?", {"chorale", "train", "run", "--set", "train.windw=3"}},
        {2, "wants option=value", {"chorale", "train", "run", "--set", "train.window"}},
        {2, "does not exist yet", {"chorale", "train", "run", "--set", "consistency.mode=ssp"}},
        {2, "data.train is not set", {"chorale", "train", "run", "--set", "data.train="}},
        {3, "not a data directory", {"chorale", "train", "run", "--set", "data.train=nowhere"}},
        {2, "targets are 0 to 6", {"chorale", "train", "run", "--set", "data.silence=[9]"}},
        {3, "ali2.scp", {"chorale", "train", "run", "--set", "data.targets=ali2.scp"}},
    };
    program_write("run/job.yaml", small_job);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        program_refuses(i, rows[i].words, rows[i].exit, rows[i].says);
        char *job = program_slurp("run/job.yaml");
        assert_string_equal(job, small_job);
        free(job);
        assert_false(program_is_there("run/job.yaml.new"));
        assert_false(program_is_there("run/model.safetensors"));
        assert_false(program_is_there("run/checkpoints/set-000000"));
        assert_false(program_is_there("run/members/launcher"));
        assert_false(program_is_there("nowhere"));
    }
    assert_int_equal(RUN_PROGRAM("chorale", "train", "--help"), 0);
    assert_non_null(strstr(program_out, "--workers"));
}

static void a_change_of_the_model_is_refused_and_the_job_file_stays(void **state)
{
    (void)state;
    program_write("run/job.yaml", small_job);
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run", "--quiet"), 0);
    program_refuses(0,
                    (const char *const[]){"chorale", "train", "run", "--set", "model.peepholes=false", NULL},
                    5, "put it back");
    char *job = program_slurp("run/job.yaml");
    assert_string_equal(job, small_job);
    free(job);
    assert_false(program_is_there("run/job.yaml.new"));
}

static void a_job_that_is_done_starts_nothing_and_says_so(void **state)
{
    (void)state;
    program_write("run/job.yaml", small_job);
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run", "--quiet"), 0);
    program_write("run/final.safetensors", "x");
    program_write("run/status.json",
                  "{\"state\":\"finished\",\"epochs\":10,\"dev_accuracy\":0.5,\"checkpoint\":{\"set\":0},"
                  "\"shards\":[{\"shard\":0,\"p50\":1,\"p95\":2,\"max\":3}]}");
    assert_int_equal(RUN_PROGRAM("chorale", "train", "run"), 0);
    assert_non_null(strstr(program_err, "all 10 epochs are done already"));
    assert_non_null(strstr(program_out, "dev accuracy 50.00 %"));
    assert_non_null(strstr(program_out, "staleness p50"));
    assert_false(program_is_there("run/members/launcher"));
    assert_false(program_is_there("run/logs/coordinator.err"));
}

static void a_second_launcher_is_refused(void **state)
{
    (void)state;
    pid_t pid = getpid();
    char *text =
        xprintf("{\"pid\":%ld,\"start\":%llu}", (long)pid, (unsigned long long)rendezvous_process_start(pid));
    program_write("run/job.yaml", small_job);
    program_write("run/members/launcher", text);
    program_refuses(0, (const char *const[]){"chorale", "train", "run", NULL}, 1, "being trained already");
    free(text);
}

/* ------------------------------------------------------------------ the launcher's policy */

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

/* ------------------------------------------------------------------ progress */

static const char first_status[] =
    "{\"state\":\"running\",\"epoch\":1,\"epochs\":3,\"done\":0.1,\"frames_per_s\":1234.4,\"loss\":2.5,"
    "\"eta_s\":600,\"workers\":[{\"state\":\"live\"},{\"state\":\"retired\"},{\"state\":\"live\"}],"
    "\"shards\":[{\"p50\":1,\"p95\":2,\"max\":9},{\"p50\":0,\"p95\":4,\"max\":5}],\"epochs_done\":[]}";

static void progress_tells_a_line_now_and_then_and_every_epoch_once(void **state)
{
    (void)state;
    char *run = files_join(home.path, "run"), *said = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&said, &len);
    program_write("run/status.json", "{\"epoch\":99,\"epochs\":99}"); /* of an earlier life */
    struct progress *p = progress_new(
        &(struct progress_options){.run = run, .has_dev = true, .plain_ns = 10 * NS_PER_S, .to = to});
    progress_tick(p, 1 * NS_PER_S);
    fflush(to);
    assert_int_equal(len, 0);
    program_write("run/status.json", first_status);
    for (uint64_t s = 2; s < 12; s++) progress_tick(p, s * NS_PER_S);
    fflush(to);
    assert_string_equal(said, "epoch 1/3  10.0 %  1234 frames/s  loss 2.500  10 min left  2 workers  "
                              "staleness p50/p95/max 1/4/9\n");
    program_write("run/status.json", "{\"epoch\":2,\"epochs_done\":[{\"epoch\":1,\"train_loss\":2.1}]}");
    progress_tick(p, 12 * NS_PER_S); /* the evaluation of epoch 1 is under way */
    fflush(to);
    assert_null(strstr(said, "dev loss"));
    program_write("run/status.json",
                  "{\"epoch\":2,\"epochs_done\":[{\"epoch\":1,\"train_loss\":2.1,\"dev_loss\":1.5,"
                  "\"dev_accuracy\":0.5,\"rate\":0.05}]}");
    for (uint64_t s = 13; s < 16; s++) progress_tick(p, s * NS_PER_S);
    progress_end(p);
    progress_free(&p);
    fclose(to);
    const char *line = strstr(said, "epoch 1  loss 2.1000  dev loss 1.5000  dev 50.00 %          rate 0.05");
    assert_non_null(line);
    assert_null(strstr(strchr(line, '\n'), "dev loss"));
    assert_null(strchr(said, '\033'));
    free(said);
    free(run);
}

/* A terminal of unknown size counts as one of 80 columns. */
static void the_live_line_fits_and_says_all_that_matters(void **state)
{
    (void)state;
    char *run = files_join(home.path, "run"), *said = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&said, &len);
    struct progress *p = progress_new(&(struct progress_options){.run = run, .is_terminal = true, .to = to});
    program_write(
        "run/status.json",
        "{\"state\":\"running\",\"epoch\":12,\"epochs\":16,\"done\":0.7263,\"frames_per_s\":21347.4,"
        "\"loss\":2.5,\"eta_s\":90.4,\"dev_accuracy\":0.7627,\"workers\":[{\"state\":\"live\"}],"
        "\"shards\":[{\"p50\":1,\"p95\":2,\"max\":27}],\"epochs_done\":["
        "{\"epoch\":1,\"dev_accuracy\":0.75},{\"epoch\":2,\"dev_accuracy\":0.7627},{\"epoch\":3}]}");
    progress_tick(p, 1 * NS_PER_S);
    progress_free(&p);
    fclose(to);
    char *line = strrchr(said, '\n'), *end = strstr(said, "\033[K\r");
    assert_non_null(line);
    assert_non_null(end);
    *end = '\0';
    assert_string_equal(line + 1,
                        "\rep 12/16  72.6%  21347 f/s  loss 2.500  dev 76.3%  90 s left  1 w  stale 1/2/27");
    assert_true(strlen(line + 2) <= 79);
    assert_non_null(strstr(said, "dev 76.27 %   +1.27"));
    free(said);
    free(run);
}

static void progress_of_any_json_never_crashes(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "", "[]", "{", "{\"epochs_done\":7,\"workers\":{},\"shards\":[1,null,{\"p50\":\"x\"}]}",
        "{\"epochs_done\":[1,null,{}],\"eta_s\":1e308,\"epoch\":-1e308,\"epochs\":1e308,\"loss\":1e308}"};
    char *run = files_join(home.path, "run"), *said = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&said, &len);
    struct progress *p = progress_new(&(struct progress_options){.run = run, .is_terminal = true, .to = to});
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        program_write("run/status.json", texts[i]);
        progress_tick(p, (i + 1) * NS_PER_S);
        progress_summary(p, 1, to);
    }
    progress_end(p);
    progress_free(&p);
    fclose(to);
    free(said);
    free(run);
}

static void the_summary_has_the_staleness_of_every_shard(void **state)
{
    (void)state;
    char *run = files_join(home.path, "run"), *said = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&said, &len);
    struct progress *p = progress_new(&(struct progress_options){.run = run, .quiet = true, .to = to});
    program_write("run/status.json", first_status);
    progress_tick(p, 1 * NS_PER_S);
    program_write("run/status.json", "{\"epochs\":3,\"dev_accuracy\":0.75,\"shards\":[{\"shard\":0}]}");
    progress_end(p); /* the servers have left, and their numbers with them */
    progress_summary(p, 12.4, to);
    progress_free(&p);
    fclose(to);
    assert_non_null(strstr(said, "dev accuracy 75.00 %"));
    assert_non_null(strstr(said, "              1     2     9"));
    assert_non_null(strstr(said, "3 epochs"));
    assert_non_null(strstr(said, "staleness p50"));
    assert_non_null(strstr(said, "chorale status"));
    free(said);
    free(run);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_bad_command_line_gives_one_sentence_and_changes_nothing),
        TEST(a_change_of_the_model_is_refused_and_the_job_file_stays),
        TEST(a_job_that_is_done_starts_nothing_and_says_so),
        TEST(a_second_launcher_is_refused),
        TEST(a_job_that_ends_well_starts_each_process_once),
        TEST(a_killed_worker_is_told_to_the_coordinator_and_replaced),
        TEST(a_killed_server_comes_back_with_recover),
        TEST(a_killed_coordinator_comes_back_with_recover_and_the_others_stay),
        TEST(in_bsp_any_death_starts_everything_again),
        TEST(a_coordinator_that_asks_for_a_restore_gets_ten_and_no_more),
        TEST(a_worker_that_refuses_its_data_ends_the_job_with_its_sentence),
        TEST(an_interrupt_goes_to_the_coordinator_and_the_result_is_resumable),
        TEST(a_worker_that_says_nothing_is_told_by_its_status),
        TEST(progress_tells_a_line_now_and_then_and_every_epoch_once),
        TEST(the_live_line_fits_and_says_all_that_matters),
        TEST(progress_of_any_json_never_crashes),
        TEST(the_summary_has_the_staleness_of_every_shard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
