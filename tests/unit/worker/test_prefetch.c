/* Loading ahead on a thread of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/rng.h"
#include "tests/unit/worker/data_dir.h"
#include "worker/data/prefetch.h"

static struct data_dir dir;
static struct corpus *corpus;
static const size_t frames[6] = {10, 12, 8, 9, 30, 1};
static const struct frontend frontend = {.dim = 3, .delay = 1};

static int set_up(void **state)
{
    (void)state;
    struct corpus_options o = CORPUS_OPTIONS_DEFAULT;
    data_dir_make(&dir);
    data_dir_corpus(&dir, 6, frames, 3);
    return corpus_open(dir.path, "ali.scp", &o, &corpus);
}

static int tear_down(void **state)
{
    (void)state;
    corpus_free(&corpus);
    data_dir_remove(&dir);
    return 0;
}

static void test_utterances_come_in_exactly_the_order_asked_for(void **state)
{
    (void)state;
    struct rng rng;
    uint64_t seed = 99, asked = 0, taken = 0;
    uint32_t order[400];
    print_message("seed %llu\n", (unsigned long long)seed);
    rng_init(&rng, seed);
    struct prefetch *p = prefetch_new(corpus, &frontend, 5);
    struct utterance *u;
    struct prefetch_failure failure;
    while (taken < 400) {
        while (asked < 400 && rng_below(&rng, 3)) {
            order[asked] = (uint32_t)rng_below(&rng, 6);
            if (!prefetch_ask(p, order[asked], 7000 + asked, (int)(asked % 4))) break;
            asked++;
        }
        assert_true(prefetch_pending(p) <= 5);
        enum prefetch_result r = prefetch_take(p, rng_below(&rng, 2) == 0, &u, &failure);
        if (r == PREFETCH_NONE) continue;
        assert_int_equal(r, PREFETCH_UTTERANCE);
        assert_int_equal(u->index, order[taken]);
        assert_int_equal(u->lease, 7000 + taken);
        assert_int_equal(u->stream, taken % 4);
        assert_int_equal(u->frames, frames[u->index] + 1);
        assert_true(u->x[1] == data_dir_value(u->index, 0, 1));
        prefetch_give_back(p, &u);
        assert_null(u);
        taken++;
    }
    assert_int_equal(prefetch_take(p, true, &u, &failure), PREFETCH_NONE); /* nothing to wait for */
    assert_true(prefetch_buffers(p) <= 6);                                 /* queue + the one in hand */
    prefetch_free(&p);
    assert_null(p);
}

static void test_a_full_queue_says_no(void **state)
{
    (void)state;
    struct prefetch *p = prefetch_new(corpus, &frontend, 2);
    struct prefetch_failure failure;
    struct utterance *u;
    assert_true(prefetch_ask(p, 0, 0, -1) && prefetch_ask(p, 1, 0, -1));
    assert_false(prefetch_ask(p, 2, 0, -1));
    assert_int_equal(prefetch_take(p, true, &u, &failure), PREFETCH_UTTERANCE);
    assert_true(prefetch_ask(p, 2, 0, -1));
    utterance_free(&u); /* keeping one is allowed */
    prefetch_free(&p);  /* with two not taken */
}

static void test_a_failure_takes_its_turn_with_a_sentence(void **state)
{
    (void)state;
    const uint32_t infinity = 0x7f800000;
    char *bytes;
    size_t n;
    assert_int_equal(files_read(data_dir_file(&dir, "feats.ark"), 1 << 20, &bytes, &n), 0);
    memcpy(bytes + 2 * (7 + 15) + 30 * 4, &infinity, 4); /* first value of utt-01 */
    data_dir_put(&dir, "feats.ark", bytes, n);
    free(bytes);
    struct prefetch *p = prefetch_new(corpus, &frontend, 8);
    struct utterance *u = NULL;
    struct prefetch_failure failure;
    for (uint32_t i = 0; i < 3; i++) assert_true(prefetch_ask(p, i, 50 + i, 2));
    assert_int_equal(prefetch_take(p, true, &u, &failure), PREFETCH_UTTERANCE);
    assert_int_equal(u->index, 0);
    prefetch_give_back(p, &u);
    assert_int_equal(prefetch_take(p, true, &u, &failure), PREFETCH_FAILED);
    assert_int_equal(failure.index, 1);
    assert_int_equal(failure.lease, 51);
    assert_int_equal(failure.stream, 2);
    assert_int_equal(failure.code, ERR_DATA);
    assert_non_null(strstr(failure.sentence, "feats.scp line 2: utt-01: value inf at frame 0"));
    assert_int_equal(prefetch_take(p, true, &u, &failure), PREFETCH_UTTERANCE);
    assert_int_equal(u->index, 2);
    prefetch_give_back(p, &u);
    assert_int_equal(prefetch_failures(p), 1);
    prefetch_free(&p);
}

#define EACH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(test_utterances_come_in_exactly_the_order_asked_for),
        EACH(test_a_full_queue_says_no),
        EACH(test_a_failure_takes_its_turn_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
