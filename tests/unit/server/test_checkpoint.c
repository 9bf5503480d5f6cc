/* The writer beside the serving loop: what it is given reaches the disk, the newest wish wins, a failure is
 * told and changes nothing. */
#include "common/err.h"
#include "common/files.h"
#include "common/log.h"
#include "common/snapshot.h"
#include "server/checkpoint.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char run[64];
static struct facts facts;
static struct shard_state *copies[2];
static struct checkpoint *writer;

static int set_up(void **state)
{
    (void)state;
    struct model_spec spec;
    struct blocks b;
    memset(&spec, 0, sizeof spec);
    spec.type = MODEL_LSTM;
    spec.input = spec.feature_dim = 10;
    spec.stack = spec.skip = 1;
    spec.targets = 60;
    spec.num_layers = 1;
    spec.layers[0].cells = 64;
    snprintf(run, sizeof run, "/tmp/chorale-checkpoint-XXXXXX");
    if (!mkdtemp(run) || model_build(&spec, &facts.model) < 0) return -1;
    blocks_cut(facts.model.params, &b);
    for (int i = 0; i < 2; i++) {
        copies[i] = shard_state_new(&b, 0, b.count, 1, 0);
        copies[i]->weights[0] = (float)i;
    }
    return checkpoint_new(run, &facts, 0, 1, &writer);
}

static int tear_down(void **state)
{
    (void)state;
    checkpoint_free(&writer);
    shard_state_free(&copies[0]);
    shard_state_free(&copies[1]);
    facts_fini(&facts);
    return files_remove_tree(run);
}

/* The next result; waits for the descriptor as the serving loop does. */
static struct checkpoint_result take(void)
{
    struct checkpoint_result r;
    struct pollfd p = {.fd = checkpoint_fd(writer), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 30000), 1);
    assert_true(checkpoint_poll(writer, &r));
    return r;
}

static void a_copy_is_written_and_told_once(void **state)
{
    (void)state;
    uint32_t set;
    struct shard_state *s;
    checkpoint_write(writer, 3, copies[1]);
    struct checkpoint_result r = take();
    assert_int_equal(r.rc, 0);
    assert_int_equal(r.set, 3);
    assert_ptr_equal(r.state, copies[1]);
    assert_false(checkpoint_uses(writer, copies[1]));
    assert_false(checkpoint_poll(writer, &r));
    assert_int_equal(snapshot_read_own(run, &facts, 0, 1, &set, &s), 0);
    assert_int_equal(set, 3);
    assert_true(s->weights[0] == 1);
    shard_state_free(&s);
}

/* until a result was taken the next write does not begin, so two more wishes leave the newer one */
static void the_newest_wish_wins(void **state)
{
    (void)state;
    checkpoint_write(writer, 1, copies[0]);
    struct pollfd p = {.fd = checkpoint_fd(writer), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 30000), 1);
    checkpoint_write(writer, 2, copies[1]);
    assert_true(checkpoint_uses(writer, copies[1]));
    checkpoint_write(writer, 3, copies[0]);
    assert_false(checkpoint_uses(writer, copies[1]));
    assert_int_equal(take().set, 1);
    assert_int_equal(take().set, 3);
    char *path = xprintf("%s/checkpoints/set-000002", run);
    assert_false(files_exists(path));
    free(path);
}

static void a_failed_write_is_told_and_the_next_one_is_tried(void **state)
{
    (void)state;
    char *path = files_join(run, "checkpoints");
    assert_int_equal(files_write_atomic(path, "a file", 6), 0);
    checkpoint_write(writer, 1, copies[0]);
    assert_int_equal(take().rc, ERR_STORAGE);
    unlink(path);
    checkpoint_write(writer, 2, copies[0]);
    assert_int_equal(take().rc, 0);
    free(path);
}

static void a_complete_set_is_never_written_again(void **state)
{
    (void)state;
    checkpoint_write(writer, 1, copies[0]);
    struct checkpoint_result r = take();
    struct manifest m = {.set = 1, .num_files = 1, .files = &r.file};
    assert_int_equal(snapshot_write_manifest(run, &m), 0);
    checkpoint_write(writer, 1, copies[1]);
    assert_int_equal(take().rc, ERR_STORAGE);
    assert_int_equal(snapshot_newest(run), 1);
}

static bool is_there(uint32_t set)
{
    char *path = xprintf("%s/checkpoints/set-%06u", run, set);
    bool there = files_exists(path);
    free(path);
    return there;
}

/* a disk that is nearly full must not fill with what came of failed sets */
static void sets_that_were_never_completed_do_not_pile_up(void **state)
{
    (void)state;
    checkpoint_write(writer, 1, copies[0]);
    struct checkpoint_result r = take();
    struct manifest m = {.set = 1, .num_files = 1, .files = &r.file};
    assert_int_equal(snapshot_write_manifest(run, &m), 0);
    for (uint32_t set = 2; set <= 4; set++) {
        checkpoint_write(writer, set, copies[set % 2]);
        assert_int_equal(take().rc, 0);
        assert_true(is_there(1) && is_there(set));
        assert_false(set > 2 && is_there(set - 1));
    }
}

static void leaving_forgets_the_wish_that_waits(void **state)
{
    (void)state;
    checkpoint_write(writer, 1, copies[0]);
    checkpoint_write(writer, 2, copies[1]);
    checkpoint_free(&writer); /* no deadlock; the thread is gone */
    assert_null(writer);
}

int main(void)
{
#define RULE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        RULE(a_copy_is_written_and_told_once),
        RULE(the_newest_wish_wins),
        RULE(a_failed_write_is_told_and_the_next_one_is_tried),
        RULE(a_complete_set_is_never_written_again),
        RULE(sets_that_were_never_completed_do_not_pile_up),
        RULE(leaving_forgets_the_wish_that_waits),
    };
    log_set_stderr(LOG_NONE);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
