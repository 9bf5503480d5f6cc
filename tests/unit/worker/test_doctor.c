/* chorale doctor, the built program: what it says of this machine and of a run, and when it exits with 1. */
#define _GNU_SOURCE /* CPU_COUNT */
#include "common/log.h"
#include "common/snapshot.h"
#include "tests/unit/worker/data_dir.h"
#include "worker/host.h"
#include "worker/nnet/plan.h"

#include <jansson.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <cmocka.h>

#include "tests/unit/deploy/program.h"

#define DIM 3

static struct data_dir home;

static int set_up(void **state)
{
    (void)state;
    struct data_dir data;
    data_dir_make(&home);
    snprintf(data.path, sizeof data.path, "%.48s/train", home.path);
    ASSERT(files_make_dirs(data.path) == 0);
    data_dir_corpus(&data, 2, (const size_t[]){12, 9}, DIM);
    return program_set_up(home.path, "chorale-doctor");
}

static int tear_down(void **state)
{
    (void)state;
    program_tear_down();
    data_dir_remove(&home);
    return 0;
}

/* A run with these lines of YAML beside its data and model. */
static void make_run(const char *more, bool prepare)
{
    char *text =
        xprintf("data: {train: %s/train, delay: 2}\nmodel: {layers: [{cells: 30, projection: 10}]}\n%s",
                home.path, more);
    char *run = files_join(program_home, "run");
    assert_int_equal(files_remove_tree(run), 0);
    program_write("run/job.yaml", text);
    free(run);
    free(text);
    if (prepare && RUN_PROGRAM("chorale-prepare", "run") != 0) fail_msg("prepare: %s", program_err);
}

/* Of the last run of the program, which must have exited with 1 if it found something, else with 0. */
static json_t *answer(int status)
{
    json_error_t why;
    json_t *all = json_loads(program_out, JSON_REJECT_DUPLICATES, &why);
    if (!all) fail_msg("no JSON (%s): %s%s", why.text, program_out, program_err);
    assert_int_equal(status, json_array_size(json_object_get(all, "findings")) > 0);
    assert_string_equal(program_err, "");
    return all;
}

static const char *finding(const json_t *all, const char *what)
{
    const json_t *one;
    size_t i;
    json_array_foreach(json_object_get(all, "findings"), i,
                       one) if (strcmp(json_string_value(json_object_get(one, "what")), what) ==
                                0) return json_string_value(json_object_get(one, "text"));
    return NULL;
}

static json_int_t number(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v)) fail_msg("%s is not a number: %s", key, program_out);
    return json_integer_value(v);
}

/* Rule: it tells what this process could find out for itself. */
static void it_tells_what_this_machine_is(void **state)
{
    (void)state;
    cpu_set_t set;
    struct rlimit files;
    struct plan plan = plan_make(PLAN_BEST);
    json_t *all = answer(RUN_PROGRAM("chorale-doctor", "--json")), *host = json_object_get(all, "host");
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    assert_int_equal(number(host, "cores"), CPU_COUNT(&set));
    assert_int_equal(number(host, "open_files"), (json_int_t)files.rlim_cur);
    assert_true(number(host, "memory") > number(host, "memory_free"));
    assert_string_equal(json_string_value(json_object_get(host, "kernels")), plan_level_name(plan.level));
    assert_string_equal(json_string_value(json_object_get(host, "products")), plan.panels->name);
    assert_string_equal(json_string_value(json_object_get(host, "gates")), plan.gates->name);
    assert_true(strlen(json_string_value(json_object_get(host, "libzmq"))) >= 5);
    assert_true(strlen(json_string_value(json_object_get(host, "openblas"))) >= 5);
    assert_null(json_object_get(all, "run"));
    json_decref(all);
}

/* Rule: a worker's log tells the same, once, as one event. */
static void the_log_tells_the_same(void **state)
{
    (void)state;
    struct host h;
    struct plan plan = plan_make(PLAN_BEST);
    char *path = files_join(program_home, "log.jsonl");
    host_read(&h);
    log_set_stderr(LOG_NONE);
    log_open("worker", 3, "run", path);
    host_log_plan();
    log_close();
    char *text = program_slurp("log.jsonl");
    json_t *line = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (!line) fail_msg("not one JSON object without doubles: %s", text);
    assert_string_equal(json_string_value(json_object_get(line, "ev")), "plan");
    assert_string_equal(json_string_value(json_object_get(line, "kernels")), plan_level_name(plan.level));
    assert_string_equal(json_string_value(json_object_get(line, "gates")), plan.gates->name);
    assert_string_equal(json_string_value(json_object_get(line, "products")), plan.panels->name);
    assert_string_equal(json_string_value(json_object_get(line, "cpu")), h.cpu);
    json_decref(line);
    free(text);
    free(path);
}

/* Rule: of a run that has its model, the products of a window as they will be computed, and the memory. */
static void it_tells_the_products_of_a_run(void **state)
{
    (void)state;
    struct facts f;
    struct plan_product list[32];
    struct plan plan = plan_make(PLAN_BEST);
    make_run("train: {window: 15, streams: 3}\n", true);
    json_t *all = answer(RUN_PROGRAM("chorale-doctor", "run", "--json")), *run = json_object_get(all, "run");
    char *path = files_join(program_home, "run");
    assert_int_equal(facts_read(path, &f), 0);
    size_t n = plan_products(&f.model, &plan, 15, 3, list, 32);
    const json_t *products = json_object_get(run, "products");
    assert_int_equal(json_array_size(products), n);
    for (size_t i = 0; i < n; i++) {
        const json_t *p = json_array_get(products, i);
        assert_string_equal(json_string_value(json_object_get(p, "what")), list[i].what);
        assert_string_equal(json_string_value(json_object_get(p, "kernel")), list[i].kernel);
        assert_int_equal(number(p, "out"), list[i].out);
        assert_int_equal(number(p, "in"), list[i].in);
        assert_int_equal(number(p, "rows"), list[i].rows);
        assert_int_equal(number(p, "calls"), list[i].calls);
    }
    assert_int_equal(number(run, "weights"), 4 * f.model.params);
    assert_int_equal(number(run, "turned"), 4 * (120 * 10 + 10 * 30));
    assert_true(number(run, "worker_memory") > 4 * number(run, "weights"));
    assert_true(number(run, "disk_free") > 0);
    json_decref(all);
    facts_fini(&f);
    free(path);
}

/* Rule: people get the same: every product, and nothing but the findings or "nothing is wrong" at the end. */
static void people_get_a_page(void **state)
{
    (void)state;
    make_run("", true);
    int status = RUN_PROGRAM("chorale", "doctor", "run");
    assert_non_null(strstr(program_out, "layer0.w_r backward"));
    assert_non_null(strstr(program_out, "1 x LSTMP 30/10"));
    assert_int_equal(strstr(program_out, "\n\nnothing is wrong\n") == NULL, status);
    make_run("", false);
    status = RUN_PROGRAM("chorale", "doctor", "run");
    assert_true(status <= 1);
    assert_non_null(strstr(program_out, "not known; the first training"));
}

/* Rule: what is wrong is found, and said with what to do. */
static void what_is_wrong_is_found(void **state)
{
    (void)state;
    make_run("train: {threads: 256}\ncluster: {workers: 100000}\n", false);
    json_t *all = answer(RUN_PROGRAM("chorale-doctor", "--json", "run"));
    assert_non_null(strstr(finding(all, "cores"), "train.threads is 256"));
    assert_non_null(strstr(finding(all, "memory"), "100001 processes"));
    assert_non_null(strstr(finding(all, "open_files"), "ulimit -n 200066"));
    json_decref(all);
    make_run("train: {threads: 1}\ncluster: {workers: 100000}\n", true);
    all = answer(RUN_PROGRAM("chorale-doctor", "--json", "run"));
    assert_null(finding(all, "cores"));
    assert_non_null(strstr(finding(all, "memory"), "lower cluster.workers"));
    json_decref(all);
    program_write("run/model.safetensors", "no model");
    all = answer(RUN_PROGRAM("chorale-doctor", "--json", "run"));
    assert_non_null(strstr(finding(all, "model"), "model.safetensors"));
    json_decref(all);
    make_run("cluster: {workers: 1}\ncheckpoint: {keep: 1}\n", true);
    all = answer(RUN_PROGRAM("chorale-doctor", "--json", "run"));
    assert_null(finding(all, "cores"));
    assert_null(finding(all, "memory"));
    assert_null(finding(all, "disk"));
    json_decref(all);
}

/* Rule: the limit of open files is that of the process. */
static void few_open_files_are_found(void **state)
{
    (void)state;
    struct rlimit files, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    few = files;
    few.rlim_cur = 40;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    int status = RUN_PROGRAM("chorale-doctor", "--json");
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
    assert_int_equal(status, 1);
    json_t *all = answer(status);
    assert_non_null(strstr(finding(all, "open_files"), "may open 40 files"));
    json_decref(all);
}

static void careless_use_gives_one_sentence_and_2(void **state)
{
    (void)state;
    static const struct {
        const char *says, *words[6];
    } rows[] = {
        {"unknown option '--frob'", {"chorale", "doctor", "--frob"}},
        {"unknown option '--json=1'", {"chorale", "doctor", "--json=1"}},
        {"'b' is too much", {"chorale", "doctor", "a", "b"}},
        {"nowhere is not a run (it has no job.yaml)", {"chorale", "doctor", "nowhere"}},
        {"train is not a run", {"chorale", "doctor", "train", "--json"}},
        {"unknown option train.windw", {"chorale", "doctor", "bad"}},
    };
    program_write("bad/job.yaml", "train: {windw: 3}\n");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        program_refuses(i, rows[i].words, 2, rows[i].says);
    assert_int_equal(RUN_PROGRAM("chorale", "doctor", "--help"), 0);
    assert_memory_equal(program_out, "usage: chorale doctor", 21);
    assert_int_equal(RUN_PROGRAM("chorale", "--help"), 0);
    assert_non_null(strstr(program_out, "\n  doctor "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_tells_what_this_machine_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_log_tells_the_same, set_up, tear_down),
        cmocka_unit_test_setup_teardown(it_tells_the_products_of_a_run, set_up, tear_down),
        cmocka_unit_test_setup_teardown(people_get_a_page, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_wrong_is_found, set_up, tear_down),
        cmocka_unit_test_setup_teardown(few_open_files_are_found, set_up, tear_down),
        cmocka_unit_test_setup_teardown(careless_use_gives_one_sentence_and_2, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
