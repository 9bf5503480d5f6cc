/* chorale train: its command line and the lines of progress. */
#define _GNU_SOURCE /* sched_getaffinity */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/rendezvous.h"
#include "common/clock.h"
#include "common/config.h"
#include "deploy/launch.h"
#include "deploy/progress.h"
#include "tests/unit/deploy/program.h"
#include "tests/unit/worker/data_dir.h"

#include <sched.h>

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
        const char *says, *words[11];
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
        {2, "bsp alone", {"chorale", "train", "run", "--set", "consistency.backup=1"}},
        {2,
         "only 2 workers",
         {"chorale", "train", "run", "--workers", "2", "--set", "consistency.backup=2", "--set",
          "consistency.mode=bsp"}},
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

static void put_finished_run(void)
{
    program_write("run/job.yaml", small_job);
    assert_int_equal(RUN_PROGRAM("chorale-prepare", "run", "--quiet"), 0);
    program_write("run/final.safetensors", "x");
    program_write("run/status.json",
                  "{\"state\":\"finished\",\"epochs\":10,\"dev_accuracy\":0.5,\"checkpoint\":{\"set\":0},"
                  "\"shards\":[{\"shard\":0,\"p50\":1,\"p95\":2,\"max\":3}]}");
}

static void a_job_that_is_done_starts_nothing_and_says_so(void **state)
{
    (void)state;
    put_finished_run();
    assert_int_equal(RUN_PROGRAM("chorale", "train", "run"), 0);
    assert_non_null(strstr(program_err, "all 10 epochs are done already"));
    assert_non_null(strstr(program_out, "dev accuracy 50.00 %"));
    assert_non_null(strstr(program_out, "staleness p50"));
    assert_false(program_is_there("run/members/launcher"));
    assert_false(program_is_there("run/logs/coordinator.err"));
}

/* What `workers: 0` means here is written to the job file, which the coordinator reads. */
static void the_number_of_workers_is_settled_by_the_cores_that_may_be_used(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        cpu_set_t set;
        struct config c;
        char *path = files_join(home.path, "run/job.yaml"), *option = xprintf("train.threads=%d", threads);
        assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
        put_finished_run();
        assert_int_equal(RUN_PROGRAM("chorale", "train", "run", "--workers", "0", "--set", option), 0);
        assert_int_equal(config_load(path, &c), 0);
        assert_int_equal(c.cluster.workers, launch_workers(CPU_COUNT(&set), c.cluster.servers, threads));
        config_free(&c);
        free(option);
        free(path);
    }
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
        TEST(the_number_of_workers_is_settled_by_the_cores_that_may_be_used),
        TEST(a_second_launcher_is_refused),
        TEST(progress_tells_a_line_now_and_then_and_every_epoch_once),
        TEST(the_live_line_fits_and_says_all_that_matters),
        TEST(progress_of_any_json_never_crashes),
        TEST(the_summary_has_the_staleness_of_every_shard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
