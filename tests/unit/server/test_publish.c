/* RUN/status.json remembers what processes told that have left. */
#include "common/clock.h"
#include "common/err.h"
#include "common/files.h"
#include "server/coordinator/publish.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>

#define TOLD                                                                                                 \
    "{\"generation\":1,\"shards\":[{\"shard\":0,\"version\":7,\"p50\":1,\"p95\":2,\"max\":9,"                \
    "\"applied\":70,\"refused\":0},{\"shard\":1,\"version\":8,\"p50\":0,\"p95\":3,\"max\":4,"                \
    "\"applied\":80,\"refused\":1,\"refused_by\":{\"norm\":1},\"waits\":6,\"wait_s\":1.5}],\"workers\":[{"   \
    "\"member\":3,\"frames\":100,\"frames_per_s\":5.5,"                                                      \
    "\"state\":\"live\",\"last_seen_s\":1.0}]}"
#define GONE(generation)                                                                                     \
    "{\"generation\":" #generation                                                                           \
    ",\"shards\":[{\"shard\":0,\"refused\":0},{\"shard\":1,\"p50\":5}],\"workers\":[]}"

static char run[] = "/tmp/chorale-publish-XXXXXX";

static int set_up(void **state)
{
    (void)state;
    strcpy(run + sizeof run - 7, "XXXXXX");
    return mkdtemp(run) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char *path = files_join(run, "status.json");
    unlink(path);
    free(path);
    return rmdir(run);
}

/* What the file says, owned by the caller. */
static json_t *published(void)
{
    char *path = files_join(run, "status.json"), *text;
    assert_int_equal(files_read(path, 1 << 20, &text, NULL), 0);
    json_t *s = json_loads(text, 0, NULL);
    assert_true(json_is_object(s));
    free(text);
    free(path);
    return s;
}

static json_int_t value(const json_t *s, const char *list, size_t i, const char *key)
{
    const json_t *v = json_object_get(json_array_get(json_object_get(s, list), i), key);
    return v ? json_integer_value(v) : -1;
}

static void tell(struct publisher *p, uint64_t second, const char *text)
{
    publish_status(p, second * NS_PER_S, text);
}

static void check_kept(const json_t *s)
{
    assert_int_equal(value(s, "shards", 0, "version"), 7);
    assert_int_equal(value(s, "shards", 0, "max"), 9);
    assert_int_equal(value(s, "shards", 0, "applied"), 70);
    assert_int_equal(value(s, "shards", 1, "version"), 8);
    assert_int_equal(value(s, "shards", 1, "p50"), 5); /* told anew */
    assert_int_equal(value(s, "shards", 1, "waits"), 6);
    const json_t *shard = json_array_get(json_object_get(s, "shards"), 1);
    assert_true(json_number_value(json_object_get(shard, "wait_s")) == 1.5);
    assert_int_equal(json_object_size(json_object_get(shard, "refused_by")), 1);
    const json_t *w = json_array_get(json_object_get(s, "workers"), 0);
    assert_string_equal(json_string_value(json_object_get(w, "state")), "left");
    assert_int_equal(value(s, "workers", 0, "frames"), 100);
}

static void what_left_is_told_as_it_was_known_last(void **state)
{
    (void)state;
    struct publisher *p = publish_new(run);
    publish_status(p, 10 * NS_PER_S, TOLD);
    tell(p, 12, GONE(1));
    tell(p, 15, GONE(1));
    json_t *s = published();
    check_kept(s);
    const json_t *w = json_array_get(json_object_get(s, "workers"), 0);
    assert_true(json_real_value(json_object_get(w, "last_seen_s")) == 6);
    json_decref(s);
    publish_free(&p);
}

static void a_new_life_takes_up_what_the_last_one_told_until_somebody_computes(void **state)
{
    (void)state;
    struct publisher *p = publish_new(run);
    publish_status(p, 10 * NS_PER_S, TOLD);
    publish_free(&p);
    p = publish_new(run);
    tell(p, 1, GONE(2));
    json_t *s = published();
    check_kept(s);
    json_decref(s);
    tell(p, 2, "{\"generation\":2,\"shards\":[],\"workers\":[{\"member\":4,\"frames\":1}]}");
    s = published();
    assert_int_equal(json_array_size(json_object_get(s, "workers")), 1);
    assert_int_equal(value(s, "workers", 0, "member"), 4);
    json_decref(s);
    publish_free(&p);
}

static void other_shards_take_nothing_over(void **state)
{
    (void)state;
    struct publisher *p = publish_new(run);
    publish_status(p, 10 * NS_PER_S, TOLD);
    tell(p, 11, "{\"generation\":2,\"shards\":[{\"shard\":0}],\"workers\":[]}");
    json_t *s = published();
    assert_int_equal(value(s, "shards", 0, "version"), -1);
    json_decref(s);
    publish_free(&p);
}

static void those_that_left_are_few(void **state)
{
    (void)state;
    struct publisher *p = publish_new(run);
    for (int i = 1; i <= 2 * PUBLISH_LEFT + 1; i++) {
        char *text =
            xprintf("{\"generation\":1,\"shards\":[],\"workers\":[{\"member\":%d,\"frames\":9}]}", i);
        tell(p, (uint64_t)i, text);
        free(text);
    }
    json_t *s = published();
    assert_int_equal(json_array_size(json_object_get(s, "workers")), 1 + PUBLISH_LEFT);
    assert_int_equal(value(s, "workers", 0, "member"), 2 * PUBLISH_LEFT + 1);
    assert_int_equal(value(s, "workers", 1, "member"), 2 * PUBLISH_LEFT);
    json_decref(s);
    publish_free(&p);
}

static void an_old_file_of_any_kind_does_no_harm(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "[]", "{\"shards\":7,\"workers\":{\"a\":1}}",
                                        "{\"shards\":[1,null],\"workers\":[1,null,{\"member\":\"x\"}]}"};
    char *path = files_join(run, "status.json");
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        assert_int_equal(files_write_atomic(path, texts[i], strlen(texts[i])), 0);
        struct publisher *p = publish_new(run);
        tell(p, 1, GONE(1));
        publish_free(&p);
        json_t *s = published();
        assert_int_equal(value(s, "shards", 1, "p50"), 5);
        assert_int_equal(json_array_size(json_object_get(s, "workers")), 0);
        json_decref(s);
    }
    free(path);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_left_is_told_as_it_was_known_last),
        TEST(a_new_life_takes_up_what_the_last_one_told_until_somebody_computes),
        TEST(other_shards_take_nothing_over),
        TEST(those_that_left_are_few),
        TEST(an_old_file_of_any_kind_does_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
