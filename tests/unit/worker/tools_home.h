/* Data directories made up, a job of them, and the run that chorale-prepare makes: for tests of the tools as
 * programs. */
#ifndef TESTS_UNIT_WORKER_TOOLS_HOME_H
#define TESTS_UNIT_WORKER_TOOLS_HOME_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/config.h"
#include "common/snapshot.h"
#include "tests/unit/deploy/program.h"
#include "tests/unit/worker/data_dir.h"
#include "worker/data/feats.h"

#define DIM     3
#define TARGETS 7 /* data_dir_corpus: (u + t) % 7 */

static struct data_dir home; /* with the directories train and dev, and the run that a test makes */

static inline void make_data(const char *name, size_t n, const size_t *frames, size_t dim)
{
    struct data_dir d;
    snprintf(d.path, sizeof d.path, "%.40s/%.15s", home.path, name);
    assert_int_equal(files_make_dirs(d.path), 0);
    data_dir_corpus(&d, n, frames, dim);
}

static inline int set_up(void **state)
{
    (void)state;
    data_dir_make(&home);
    make_data("train", 5, (const size_t[]){30, 21, 9, 40, 12}, DIM);
    make_data("dev", 3, (const size_t[]){17, 8, 25}, DIM);
    make_data("wide", 2, (const size_t[]){10, 10}, DIM + 1);
    return program_set_up(home.path, "chorale-prepare");
}

static inline int tear_down(void **state)
{
    (void)state;
    program_tear_down();
    data_dir_remove(&home);
    return 0;
}

/* A job file by itself; `more` are lines of YAML at the end of the section data. */
static inline void make_job(const char *path, const char *more)
{
    char *text = xprintf("data:\n  train: %s/train\n  dev: %s/dev\n  delay: 2\n%s"
                         "model:\n  layers: [{cells: 6, projection: 4}]\n  init: {range: 0.5}\n",
                         home.path, home.path, more);
    program_write(path, text);
    free(text);
}

static inline void make_ready(const char *more)
{
    make_job("run/job.yaml", more);
    if (RUN_PROGRAM("chorale-prepare", "run") != 0) fail_msg("prepare: %s", program_err);
}

static inline char *run_path(void)
{
    return files_join(home.path, "run");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
