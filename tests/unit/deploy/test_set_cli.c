/* chorale set: which options may change, where the change goes, and how a launcher takes it up; and what the
 * line of progress tells of it. The job that "runs" is this test, which holds the lock of the run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/clock.h"
#include "common/config.h"
#include "deploy/progress.h"
#include "deploy/run.h"
#include "tests/unit/deploy/program.h"

static const char job[] = "data: {train: train}\ncluster: {workers: 2}\ntrain: {epochs: 9}\n";

static int set_up(void **state)
{
    (void)state;
    char home[64] = "/tmp/chorale-set-XXXXXX";
    if (!mkdtemp(home) || program_set_up(home, "chorale-set") < 0) return -1;
    program_write("run/job.yaml", job);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    program_tear_down();
    return files_remove_tree(program_home);
}

#define SET(...) RUN_PROGRAM("chorale", "set", "run", __VA_ARGS__)

static int hold_lock(void)
{
    char *run = files_join(program_home, "run");
    int fd = -1;
    assert_int_equal(run_lock(run, &fd), 0);
    free(run);
    return fd;
}

static void read_job(const char *name, struct config *out)
{
    char *path = files_join(program_home, name);
    if (config_load(path, out) < 0) fail_msg("%s", err_text());
    free(path);
}

static void what_cannot_change_is_refused_and_nothing_is_written(void **state)
{
    (void)state;
    static const struct {
        const char *words[3], *says;
    } rows[] = {
        {{"train.streams=8"}, "train.streams cannot be changed by `chorale set`; it changes consistency.*"},
        {{"model.peepholes=false"}, "model.peepholes cannot be changed"},
        {{"data.train=x"}, "data.train cannot be changed"},
        {{"cluster.workers=3"}, "cluster.workers cannot be changed"},
        {{"train.epochsx=3"}, "did you mean train.epochs?"},
        {{"optimizer=3"}, "is a section"},
        {{"consistency.mode"}, "write option=value"},
        {{"=3"}, "write option=value"},
        {{"consistency.mode=fast"}, "one of async, bsp, ssp"},
        {{"optimizer.rate=x"}, "optimizer.rate must be a number"},
        {{"consistency.mode=bsp", "consistency.backup=2"}, "only 2 workers"},
        {{"optimizer.rate=0.01", "train.window=9"}, "train.window cannot be changed"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *const words[PROGRAM_WORDS + 1] = {"chorale", "set", "run", rows[i].words[0],
                                                      rows[i].words[1]};
        program_refuses(i, words, 2, rows[i].says);
        char *now = program_slurp("run/job.yaml");
        assert_string_equal(now, job);
        free(now);
        assert_false(program_is_there("run/" CONFIG_NEXT));
    }
}

static void where_nothing_runs_the_job_file_changes(void **state)
{
    (void)state;
    struct config c;
    setenv("CHORALE_TRAIN_WINDOW", "44", 1); /* has no part in it */
    int rc = SET("consistency.mode=ssp", "consistency.bound=8", "optimizer.schedule.factor=0.25",
                 "exchange.gradients=int8", "checkpoint.keep=5", "train.epochs=12", "train.norm_clip=2");
    unsetenv("CHORALE_TRAIN_WINDOW");
    assert_int_equal(rc, 0);
    assert_non_null(strstr(program_out, "run/job.yaml is changed"));
    assert_false(program_is_there("run/" CONFIG_NEXT));
    read_job("run/job.yaml", &c);
    assert_int_equal(c.consistency.mode, CONSISTENCY_SSP);
    assert_int_equal(c.consistency.bound, 8);
    assert_int_equal(c.exchange.gradients, ELEMENT_INT8);
    assert_int_equal(c.train.epochs, 12);
    assert_int_equal(c.train.window, 20);
    assert_int_equal(c.cluster.workers, 2);
    config_free(&c);
    char *text = program_slurp("run/job.yaml");
    assert_non_null(strstr(text, "# async: nobody waits")); /* commented, as init writes it */
    free(text);
}

static void while_a_job_runs_changes_wait_and_add_up(void **state)
{
    (void)state;
    struct config c;
    int lock = hold_lock();
    program_write("run/status.json", "{\"state\":\"running\",\"epoch\":8,\"epochs\":9}");
    assert_int_equal(SET("consistency.mode=ssp"), 0);
    assert_non_null(strstr(program_out, "after the epoch that is being trained"));
    assert_int_equal(SET("optimizer.rate=0.5"), 0);
    char *now = program_slurp("run/job.yaml");
    assert_string_equal(now, job);
    free(now);
    read_job("run/" CONFIG_NEXT, &c);
    assert_int_equal(c.consistency.mode, CONSISTENCY_SSP);
    assert_true(c.optimizer.rate == 0.5);
    config_free(&c);
    program_write("run/status.json", "{\"state\":\"running\",\"epoch\":9,\"epochs\":9}");
    assert_int_equal(SET("optimizer.rate=0.25"), 0);
    assert_non_null(strstr(program_out, "the last epoch of run is being trained"));
    assert_int_equal(SET("train.epochs=10"), 0);
    assert_non_null(strstr(program_out, "after the epoch that is being trained"));
    close(lock);
}

static void the_old_values_again_take_a_change_back(void **state)
{
    (void)state;
    int lock = hold_lock();
    assert_int_equal(SET("consistency.mode=ssp"), 0);
    assert_true(program_is_there("run/" CONFIG_NEXT));
    assert_int_equal(SET("consistency.mode=async"), 0);
    assert_non_null(strstr(program_out, "nothing to change"));
    assert_false(program_is_there("run/" CONFIG_NEXT));
    close(lock);
    assert_int_equal(SET("consistency.mode=async"), 0); /* as it is by default */
    char *now = program_slurp("run/job.yaml");
    assert_string_equal(now, job);
    free(now);
}

/* The job ended before it came to it; what is set then builds upon it. */
static void a_change_that_was_left_over_is_kept_by_the_next_one(void **state)
{
    (void)state;
    struct config c;
    program_write("run/" CONFIG_NEXT, "data: {train: train}\nconsistency: {mode: ssp}\n");
    assert_int_equal(SET("consistency.bound=7"), 0);
    assert_false(program_is_there("run/" CONFIG_NEXT));
    read_job("run/job.yaml", &c);
    assert_int_equal(c.consistency.mode, CONSISTENCY_SSP);
    assert_int_equal(c.consistency.bound, 7);
    config_free(&c);
}

/* It fails for the data, which are not there, after it has taken the file up. */
static void train_takes_up_a_change_that_was_left_over(void **state)
{
    (void)state;
    struct config c;
    program_write("run/" CONFIG_NEXT, "data: {train: nowhere}\nconsistency: {mode: ssp}\n");
    assert_int_equal(RUN_PROGRAM("chorale", "train", "run"), 3);
    assert_false(program_is_there("run/" CONFIG_NEXT));
    read_job("run/job.yaml", &c);
    assert_int_equal(c.consistency.mode, CONSISTENCY_SSP);
    config_free(&c);
}

/* ------------------------------------------------------------------ progress */

static void progress_tells_a_change_once_and_the_summary_the_waits(void **state)
{
    (void)state;
    char *run = files_join(program_home, "run"), *said = NULL;
    size_t len = 0;
    FILE *to = open_memstream(&said, &len);
    struct progress *p =
        progress_new(&(struct progress_options){.run = run, .plain_ns = 1000 * NS_PER_S, .to = to});
    for (uint64_t s = 1; s < 6; s++) {
        char *text = xprintf("{\"state\":\"running\",\"epoch\":2,\"loss\":%g,\"mode\":\"ssp, bound 4\","
                             "\"next\":\"bsp\",\"next_after\":2,\"shards\":[{\"shard\":0,\"p50\":1,"
                             "\"waits\":17,\"wait_s\":2.5}]}",
                             1.0 / (double)s);
        program_write("run/status.json", text);
        free(text);
        progress_tick(p, s * NS_PER_S);
    }
    progress_end(p);
    progress_summary(p, 3, to);
    progress_free(&p);
    fclose(to);
    char *first = strstr(said, "switching to bsp after epoch 2\n");
    assert_non_null(first);
    assert_null(strstr(first + 1, "switching"));
    assert_non_null(strstr(said, "    waits   wait s\n"));
    assert_non_null(strstr(said, "       17      2.5\n"));
    free(said);
    free(run);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_cannot_change_is_refused_and_nothing_is_written),
        TEST(where_nothing_runs_the_job_file_changes),
        TEST(while_a_job_runs_changes_wait_and_add_up),
        TEST(the_old_values_again_take_a_change_back),
        TEST(a_change_that_was_left_over_is_kept_by_the_next_one),
        TEST(train_takes_up_a_change_that_was_left_over),
        TEST(progress_tells_a_change_once_and_the_summary_the_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
