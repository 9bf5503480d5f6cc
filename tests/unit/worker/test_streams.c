/* Streams of utterances cut into windows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/err.h"
#include "common/rng.h"
#include "worker/data/streams.h"

#include <stdlib.h>

#define DIM   3
#define DELAY 2

/* Utterance `index` of n inputs: x = index, t, 1; target t, but -1 in the first DELAY inputs. */
static struct utterance *make_utterance(uint32_t index, uint32_t n)
{
    struct utterance *u = utterance_new();
    u->index = index;
    u->lease = 1000 + index;
    u->frames = n;
    u->dim = DIM;
    u->x = xcalloc((size_t)n * DIM, sizeof *u->x);
    u->target = xcalloc(n, sizeof *u->target);
    for (uint32_t t = 0; t < n; t++) {
        u->x[t * DIM] = (float)index;
        u->x[t * DIM + 1] = (float)t;
        u->x[t * DIM + 2] = 1.0f;
        u->target[t] = t < DELAY ? -1 : (int32_t)t;
    }
    return u;
}

static void take_finished(struct streams *s)
{
    struct utterance *u;
    while (streams_take_finished(s, &u)) utterance_free(&u);
}

static void test_a_short_last_window_is_padded_and_the_next_utterance_starts_in_the_next(void **state)
{
    (void)state;
    struct streams *s = streams_new(4, 2, DIM);
    struct minibatch m;
    struct utterance *u;
    minibatch_init(&m, 4, 2, DIM);
    assert_false(streams_cut(s, &m));
    assert_int_equal(streams_need(s), 0);
    u = make_utterance(7, 6);
    streams_give(s, 0, &u);
    assert_null(u);
    assert_int_equal(streams_need(s), 1);
    assert_true(streams_cut(s, &m)); /* stream 1 has nothing: padding */
    assert_int_equal(m.padded, 4);
    assert_int_equal(m.frames, 2); /* the first DELAY inputs carry no error */
    assert_int_equal(m.reset[0], 1);
    assert_int_equal(m.reset[2], 0);
    assert_false(streams_take_finished(s, &u));
    u = make_utterance(8, 4);
    streams_give(s, 1, &u);
    assert_true(streams_cut(s, &m));
    assert_int_equal(m.padded, 2);
    assert_int_equal(m.frames, 2 + 2);
    assert_int_equal(m.reset[0], 0); /* carried on */
    assert_int_equal(m.reset[1], 1);
    for (int t = 2; t < 4; t++) {
        assert_int_equal(m.target[t * 2], -1);
        for (int k = 0; k < DIM; k++) assert_true(m.x[(t * 2) * DIM + k] == 0.0f);
    }
    assert_true(streams_take_finished(s, &u));
    assert_int_equal(u->index, 7);
    assert_int_equal(u->lease, 1007);
    utterance_free(&u);
    assert_true(streams_take_finished(s, &u));
    assert_int_equal(u->index, 8);
    utterance_free(&u);
    assert_false(streams_take_finished(s, &u));
    assert_false(streams_cut(s, &m));
    minibatch_fini(&m);
    streams_free(&s);
}

struct watch {
    uint32_t lengths[64]; /* by index */
    uint32_t next[64];    /* input expected next */
    int stream[64];       /* where it runs, -1 before */
    uint64_t inputs, labelled;
};

/* Rules: an input appears once, in order, in one stream; reset exactly at input 0, which is at the top of a
 * window; padding is zeros with target -1, and only after an utterance's end. */
static void check_window(struct watch *w, const struct minibatch *m)
{
    uint64_t padded = 0, labelled = 0;
    for (int i = 0; i < m->S; i++) {
        bool ended = false;
        for (int t = 0; t < m->T; t++) {
            const float *x = m->x + (size_t)(t * m->S + i) * DIM;
            int32_t target = m->target[t * m->S + i];
            int reset = m->reset[t * m->S + i];
            if (x[2] == 0.0f) {
                assert_true(x[0] == 0.0f && x[1] == 0.0f && target == -1 && reset == 0);
                padded++;
                ended = true;
                continue;
            }
            assert_false(ended);
            uint32_t index = (uint32_t)x[0], at = (uint32_t)x[1];
            assert_int_equal(at, w->next[index]);
            assert_int_equal(reset, at == 0);
            assert_true(at != 0 || t == 0);
            assert_true(w->stream[index] == -1 || w->stream[index] == i);
            assert_int_equal(target, at < DELAY ? -1 : (int32_t)at);
            w->stream[index] = i;
            w->next[index]++;
            w->inputs++;
            labelled += target >= 0;
        }
    }
    w->labelled += labelled;
    assert_int_equal(m->padded, padded);
    assert_int_equal(m->frames, labelled);
}

static void test_every_input_appears_exactly_once_and_in_order(void **state)
{
    (void)state;
    struct rng rng;
    uint64_t seed = 4242;
    print_message("seed %llu\n", (unsigned long long)seed);
    rng_init(&rng, seed);
    for (int round = 0; round < 300; round++) {
        int T = 1 + (int)rng_below(&rng, 9), S = 1 + (int)rng_below(&rng, 6);
        uint32_t n = 1 + (uint32_t)rng_below(&rng, 40), given = 0;
        struct watch w = {.inputs = 0};
        uint64_t total = 0;
        struct streams *s = streams_new(T, S, DIM);
        struct minibatch m;
        minibatch_init(&m, T, S, DIM);
        for (uint32_t i = 0; i < n; i++) {
            w.lengths[i] = 1 + (uint32_t)rng_below(&rng, 30);
            w.stream[i] = -1;
            total += w.lengths[i];
        }
        for (;;) {
            for (int i; given < n && (i = streams_need(s)) >= 0; given++) {
                struct utterance *u = make_utterance(given, w.lengths[given]);
                streams_give(s, i, &u);
                if (rng_below(&rng, 5) == 0) { /* some streams may also wait */
                    given++;
                    break;
                }
            }
            if (!streams_cut(s, &m)) break;
            check_window(&w, &m);
            take_finished(s);
        }
        assert_int_equal(given, n);
        assert_int_equal(w.inputs, total);
        for (uint32_t i = 0; i < n; i++) assert_int_equal(w.next[i], w.lengths[i]);
        minibatch_fini(&m);
        streams_free(&s);
    }
}

static void test_a_cursor_set_again_continues_with_the_same_windows(void **state)
{
    (void)state;
    struct streams *a = streams_new(4, 2, DIM), *b = streams_new(4, 2, DIM);
    struct minibatch m, k;
    struct utterance *u;
    uint32_t index, next;
    uint64_t lease;
    minibatch_init(&m, 4, 2, DIM);
    minibatch_init(&k, 4, 2, DIM);
    u = make_utterance(1, 11);
    streams_give(a, 1, &u);
    assert_true(streams_cut(a, &m));
    assert_false(streams_cursor(a, 0, &index, &lease, &next));
    assert_true(streams_cursor(a, 1, &index, &lease, &next));
    assert_true(index == 1 && lease == 1001 && next == 4);
    u = make_utterance(index, 11);
    streams_give(b, 1, &u);
    streams_set_cursor(b, 1, next);
    for (int round = 0; round < 2; round++) {
        assert_true(streams_cut(a, &m) && streams_cut(b, &k));
        assert_memory_equal(m.x, k.x, 4 * 2 * DIM * sizeof(float));
        assert_memory_equal(m.target, k.target, 4 * 2 * sizeof(int32_t));
        assert_memory_equal(m.reset, k.reset, 4 * 2);
        assert_int_equal(m.reset[1], 0);
    }
    take_finished(a); /* b keeps its own: streams_free has to free it */
    minibatch_fini(&m);
    minibatch_fini(&k);
    streams_free(&a);
    streams_free(&b);
    assert_null(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_short_last_window_is_padded_and_the_next_utterance_starts_in_the_next),
        cmocka_unit_test(test_every_input_appears_exactly_once_and_in_order),
        cmocka_unit_test(test_a_cursor_set_again_continues_with_the_same_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
