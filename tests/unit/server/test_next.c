/* RUN/job.next.yaml: seen within a second, told to the core, taken back; nonsense in it does no harm. */
#include "tests/unit/server/coordinate_bench.h"

#include "common/config.h"
#include "common/files.h"
#include "server/coordinator/next.h"

static char run[] = "/tmp/chorale-next-XXXXXX";
static struct next next;

static int set_up(void **state)
{
    struct bench *b = bench_new();
    strcpy(run + sizeof run - 7, "XXXXXX");
    next = (struct next){0};
    bench_start(b);
    *state = b;
    return mkdtemp(run) ? 0 : -1;
}

static int tear_down(void **state)
{
    bench_free(*state);
    return files_remove_tree(run);
}

static void put(const char *text)
{
    char *path = files_join(run, CONFIG_NEXT);
    assert_int_equal(text ? files_write_atomic(path, text, strlen(text)) : remove(path), 0);
    free(path);
}

/* One second later: does the status tell this? */
static bool tells(struct bench *b, const char *what)
{
    b->now += 1 * S;
    next_look(&next, run, b->now, b->c);
    char *s = coordinate_status(b->c, b->now, "r");
    bool told = strstr(s, what) != NULL;
    free(s);
    return told;
}

static void a_changed_file_is_told_within_a_second_and_so_is_the_next_one(void **state)
{
    struct bench *b = *state;
    assert_false(tells(b, "\"next\""));
    put("data: {train: t}\nconsistency: {mode: ssp, bound: 3}\n");
    next_look(&next, run, b->now + S / 2, b->c); /* too early to look again */
    char *s = coordinate_status(b->c, b->now, "r");
    assert_null(strstr(s, "\"next\""));
    free(s);
    assert_true(tells(b, "\"next\":\"ssp, bound 3\""));
    put("data: {train: t}\nconsistency: {mode: bsp, backup: 1}\n");
    assert_true(tells(b, "\"next\":\"bsp, 1 backup\""));
    put(NULL);
    assert_false(tells(b, "\"next\""));
}

static void a_file_that_makes_no_sense_is_passed_over(void **state)
{
    struct bench *b = *state;
    static const char *const texts[] = {"", "{", "data: {train: t}\nconsistency: {mode: fast}\n",
                                        "data: {train: t}\nconsistency: {mode: async, backup: 1}\n"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        put("data: {train: t}\nconsistency: {mode: ssp}\n");
        assert_true(tells(b, "\"next\""));
        put(texts[i]);
        if (tells(b, "\"next\"")) fail_msg("taken up: %s", texts[i]);
    }
    put("data: {train: t}\n");
    assert_true(tells(b, "\"next\":\"async\""));
}

static void it_takes_the_place_of_the_job_file_and_a_second_time_changes_nothing(void **state)
{
    (void)state;
    char *job = files_join(run, "job.yaml"), *text;
    put("new");
    assert_int_equal(files_write_atomic(job, "old", 3), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(config_take_next(run), 0);
        assert_int_equal(files_read(job, 100, &text, NULL), 0);
        assert_string_equal(text, "new");
        free(text);
    }
    free(job);
    assert_int_equal(config_take_next("/nowhere"), 0); /* there is none */
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_changed_file_is_told_within_a_second_and_so_is_the_next_one),
        TEST(a_file_that_makes_no_sense_is_passed_over),
        TEST(it_takes_the_place_of_the_job_file_and_a_second_time_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
