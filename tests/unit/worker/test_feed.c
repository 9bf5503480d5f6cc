#define _GNU_SOURCE /* memmem */
#include "common/rng.h"
#include "common/wire.h"
#include "tests/unit/worker/data_dir.h"
#include "worker/feed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define N      23
#define DIM    3
#define WINDOW 5
#define DELAY  2
#define SEED   7

/* A corpus of N utterances of 3 to 17 frames, read through a front end with a delay. */
struct bed {
    struct data_dir dir;
    struct corpus *corpus;
    struct frontend frontend;
};

/* One worker's data side. */
struct side {
    struct feed_options options;
    struct prefetch *prefetch;
    struct streams *streams;
    struct feed *feed;
    struct minibatch window;
    uint64_t seq;
};

static void poison(struct data_dir *d, const char *id)
{
    char *bytes;
    size_t len;
    assert_int_equal(files_read(data_dir_file(d, "feats.ark"), 1 << 20, &bytes, &len), 0);
    char *at = memmem(bytes, len, id, strlen(id));
    assert_non_null(at);
    memset(at + strlen(id) + 1 + 15, 0xff, 4); /* the first float, after "\0BFM " and two sizes: NaN */
    assert_int_equal(files_write_atomic(d->file, bytes, len), 0);
    free(bytes);
}

static int setup(void **state)
{
    struct bed *b = xcalloc(1, sizeof *b);
    size_t frames[N];
    for (size_t i = 0; i < N; i++) frames[i] = 3 + i * 7 % 15;
    data_dir_make(&b->dir);
    data_dir_corpus(&b->dir, N, frames, DIM);
    struct corpus_options o = CORPUS_OPTIONS_DEFAULT;
    assert_int_equal(corpus_open(b->dir.path, "ali.scp", &o, &b->corpus), 0);
    b->frontend = (struct frontend){.dim = DIM, .stack = 1, .skip = 1, .delay = DELAY};
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct bed *b = *state;
    corpus_free(&b->corpus);
    data_dir_remove(&b->dir);
    free(b);
    return 0;
}

static void side_init(struct side *s, const struct bed *b, int streams, bool bsp)
{
    *s = (struct side){.options = {.seed = SEED, .streams = streams, .bsp = bsp, .utterances = N}};
    s->prefetch = prefetch_new(b->corpus, &b->frontend, feed_capacity(&s->options));
    s->streams = streams_new(WINDOW, streams, DIM);
    s->feed = feed_new(&s->options, s->prefetch, s->streams);
    minibatch_init(&s->window, WINDOW, streams, DIM);
}

static void side_fini(struct side *s)
{
    minibatch_fini(&s->window);
    feed_free(&s->feed);
    streams_free(&s->streams);
    prefetch_free(&s->prefetch);
}

static struct msg_lease async_lease(uint64_t id, uint32_t epoch, uint32_t begin, uint32_t end)
{
    return (struct msg_lease){.kind = LEASE_TRAIN,
                              .id = id,
                              .epoch = epoch,
                              .begin = begin,
                              .end = end,
                              .modulus = 1,
                              .residues = 1};
}

static struct msg_lease bsp_lease(uint64_t id, uint32_t epoch, int rank, int workers, int streams)
{
    struct msg_lease l = async_lease(id, epoch, 0, N);
    l.modulus = (uint32_t)(workers * streams);
    l.residue = (uint32_t)(rank * streams);
    l.residues = (uint32_t)streams;
    return l;
}

static uint64_t window_hash(const struct minibatch *w)
{
    size_t rows = (size_t)w->T * (size_t)w->S;
    uint64_t h[3] = {wire_hash(w->x, rows * w->dim * sizeof *w->x),
                     wire_hash(w->target, rows * sizeof *w->target), wire_hash(w->reset, rows)};
    return wire_hash(h, sizeof h);
}

/* The next window, leases from `next` as they are needed; false when all is done. */
struct source {
    struct msg_lease leases[16];
    int count, given;
};
static bool step(struct side *s, struct source *from)
{
    for (;;) {
        enum feed_state state = feed_fill(s->feed, from->given < from->count, true);
        if (state == FEED_EMPTY) return false;
        if (state == FEED_READY) break;
        assert_int_equal(state, FEED_NEEDS_LEASE);
        assert_int_equal(feed_add(s->feed, &from->leases[from->given++]), 0);
    }
    feed_cut(s->feed, &s->window);
    feed_account(s->feed, 0.5, s->window.frames, 1);
    feed_pushed(s->feed, ++s->seq);
    return true;
}

static struct source async_source(uint32_t epochs, uint32_t chunk)
{
    struct source from = {0};
    for (uint32_t e = 0; e < epochs; e++)
        for (uint32_t i = 0; i < N; i += chunk) {
            uint32_t end = i + chunk < N ? i + chunk : N;
            from.leases[from.count] = async_lease((uint64_t)from.count + 1, e, i, end);
            from.count++;
        }
    return from;
}

static uint32_t index_in(const struct side *s, int stream)
{
    uint32_t index, next;
    uint64_t lease;
    return streams_cursor(s->streams, stream, &index, &lease, &next) ? index : UINT32_MAX;
}

static void test_async_utterances_go_to_the_lowest_idle_stream_in_the_order_of_the_epoch(void **state)
{
    struct side s;
    uint32_t perm[N];
    rng_epoch_order(SEED, 3, perm, N);
    side_init(&s, *state, 4, false);
    struct msg_lease l = async_lease(1, 3, 5, 15);
    assert_int_equal(feed_add(s.feed, &l), 0);
    assert_int_equal(feed_fill(s.feed, true, true), FEED_READY);
    for (int i = 0; i < 4; i++) assert_int_equal(index_in(&s, i), perm[5 + i]);
    uint32_t next = 9;
    while (next < 15) {
        feed_cut(s.feed, &s.window);
        bool idle[4];
        for (int i = 0; i < 4; i++) idle[i] = streams_is_idle(s.streams, i);
        feed_fill(s.feed, false, true);
        for (int i = 0; i < 4; i++)
            if (idle[i] && next < 15) assert_int_equal(index_in(&s, i), perm[next++]);
    }
    side_fini(&s);
}

static void test_a_free_stream_waits_for_a_lease_while_there_may_be_one(void **state)
{
    struct side s;
    side_init(&s, *state, 4, false);
    assert_int_equal(feed_fill(s.feed, true, true), FEED_NEEDS_LEASE);
    assert_int_equal(feed_fill(s.feed, false, true), FEED_EMPTY);
    struct msg_lease l = async_lease(1, 0, 0, 3);
    assert_int_equal(feed_add(s.feed, &l), 0);
    assert_int_equal(feed_fill(s.feed, true, true), FEED_NEEDS_LEASE);
    assert_int_equal(feed_fill(s.feed, false, true), FEED_READY);
    l = async_lease(2, 0, 3, 4);
    assert_int_equal(feed_add(s.feed, &l), 0);
    assert_int_equal(feed_fill(s.feed, true, true), FEED_READY);
    assert_int_equal(feed_waiting(s.feed), 0);
    side_fini(&s);
}

static void test_bsp_gives_each_stream_the_positions_of_its_residue(void **state)
{
    struct side s;
    uint32_t perm[N];
    rng_epoch_order(SEED, 0, perm, N);
    side_init(&s, *state, 3, true);
    struct msg_lease l = bsp_lease(1, 0, 1, 2, 3);
    assert_int_equal(feed_add(s.feed, &l), 0);
    uint32_t next[3] = {3, 4, 5}, begun = 0;
    while (feed_fill(s.feed, false, true) == FEED_READY) {
        for (int i = 0; i < 3; i++) {
            uint32_t index, at;
            uint64_t lease;
            if (!streams_cursor(s.streams, i, &index, &lease, &at) || at) continue;
            assert_int_equal(index, perm[next[i]]);
            next[i] += 6;
            begun++;
        }
        feed_cut(s.feed, &s.window);
    }
    assert_int_equal(begun, 4 + 4 + 3); /* positions 3 9 15 21, 4 10 16 22, 5 11 17 */
    side_fini(&s);
}

/* Column s of one window as bytes that do not depend on how many streams there are. */
static uint64_t column_hash(const struct minibatch *w, int s)
{
    uint64_t h = 1;
    for (int t = 0; t < w->T; t++) {
        size_t row = (size_t)t * (size_t)w->S + (size_t)s;
        uint64_t v[4] = {h, wire_hash(w->x + row * w->dim, w->dim * sizeof *w->x),
                         (uint64_t)(int64_t)w->target[row], w->reset[row]};
        h = wire_hash(v, sizeof v);
    }
    return h;
}

static void test_two_bsp_workers_see_what_one_with_twice_the_streams_sees(void **state)
{
    enum { S = 3, EPOCHS = 3 };
    struct side whole, half[2];
    struct source all = {.count = EPOCHS}, part[2] = {{.count = EPOCHS}, {.count = EPOCHS}};
    side_init(&whole, *state, 2 * S, true);
    for (uint32_t e = 0; e < EPOCHS; e++) all.leases[e] = bsp_lease(e + 1, e, 0, 1, 2 * S);
    for (int k = 0; k < 2; k++) {
        side_init(&half[k], *state, S, true);
        for (uint32_t e = 0; e < EPOCHS; e++) part[k].leases[e] = bsp_lease(e + 1, e, k, 2, S);
    }
    while (step(&whole, &all))
        for (int k = 0; k < 2; k++) {
            bool active = step(&half[k], &part[k]);
            for (int s = 0; active && s < S; s++)
                assert_true(column_hash(&whole.window, k * S + s) == column_hash(&half[k].window, s));
        }
    for (int k = 0; k < 2; k++) {
        assert_false(step(&half[k], &part[k]));
        side_fini(&half[k]);
    }
    side_fini(&whole);
}

static void test_a_lease_is_used_once_the_exchange_of_its_last_frame_is_over(void **state)
{
    struct side s;
    struct source from = async_source(1, 4);
    struct msg_used used;
    uint64_t seen = 0, windows = 0, frames = 0, booked = 0;
    double loss = 0;
    side_init(&s, *state, 3, false);
    while (step(&s, &from)) {
        windows++;
        frames += s.window.frames;
        while (feed_take_used(s.feed, s.seq - 1, &used)) {
            assert_true(used.last_seq < s.seq && used.kind == LEASE_TRAIN && used.failed == 0);
            for (int i = 0; i < 3; i++) {
                uint32_t index, next;
                uint64_t lease;
                if (streams_cursor(s.streams, i, &index, &lease, &next)) assert_true(lease != used.id);
            }
            seen |= 1u << used.id;
            loss += used.loss;
            booked += used.frames;
        }
    }
    while (feed_take_used(s.feed, s.seq, &used)) {
        seen |= 1u << used.id;
        loss += used.loss;
        booked += used.frames;
    }
    assert_int_equal(seen, 0x7e); /* 6 chunks of 4 */
    assert_int_equal(feed_leases(s.feed), 0);
    assert_true(loss == 0.5 * (double)windows);
    assert_true(booked == frames && frames == corpus_frames(((struct bed *)*state)->corpus));
    side_fini(&s);
}

static void test_what_was_not_pushed_is_not_used(void **state)
{
    struct side s;
    struct msg_used used;
    struct msg_lease l = async_lease(9, 0, 0, 1);
    side_init(&s, *state, 2, false);
    assert_int_equal(feed_add(s.feed, &l), 0);
    while (feed_fill(s.feed, false, true) == FEED_READY) feed_cut(s.feed, &s.window);
    assert_false(feed_take_used(s.feed, UINT64_MAX, &used));
    feed_pushed(s.feed, 4);
    assert_false(feed_take_used(s.feed, 3, &used));
    assert_true(feed_take_used(s.feed, 4, &used));
    assert_int_equal(used.id, 9);
    assert_int_equal(used.last_seq, 4);
    side_fini(&s);
}

static void test_an_utterance_that_cannot_be_read_is_counted_and_passed_over(void **state)
{
    struct bed *b = *state;
    struct msg_used used;
    for (int bsp = 0; bsp < 2; bsp++) {
        struct side s;
        uint32_t failed = 0;
        struct source from = async_source(1, 4);
        if (bsp) from = (struct source){.leases = {bsp_lease(1, 0, 0, 1, 3)}, .count = 1};
        poison(&b->dir, "utt-03");
        poison(&b->dir, "utt-17");
        side_init(&s, b, 3, bsp);
        while (step(&s, &from)) continue;
        feed_pushed(s.feed, s.seq);
        while (feed_take_used(s.feed, s.seq, &used)) failed += used.failed;
        assert_int_equal(failed, 2);
        assert_int_equal(feed_leases(s.feed), 0);
        side_fini(&s);
    }
}

/* Rule: every input of the corpus is a row once, DELAY of each utterance without error, and all other rows
 * are padding; one stream alone pads the last window of each utterance and nothing else. */
static void test_rows_that_are_computed_for_nothing_are_counted(void **state)
{
    const struct corpus *c = ((struct bed *)*state)->corpus;
    uint64_t inputs = 0, windows_alone = 0;
    for (size_t i = 0; i < N; i++) {
        uint64_t n = corpus_utterance(c, i)->frames + DELAY;
        inputs += n;
        windows_alone += (n + WINDOW - 1) / WINDOW;
    }
    for (int streams = 1; streams <= 3; streams++) {
        struct side s;
        struct source from = async_source(1, 4);
        uint64_t windows = 0;
        side_init(&s, *state, streams, false);
        assert_int_equal(feed_rows(s.feed).all, 0);
        while (step(&s, &from)) windows++;
        struct feed_rows rows = feed_rows(s.feed);
        if (streams == 1) assert_int_equal(windows, windows_alone);
        assert_int_equal(rows.all, windows * WINDOW * (uint64_t)streams);
        assert_int_equal(rows.padded, rows.all - inputs);
        assert_int_equal(rows.unlabelled, DELAY * N);
        side_fini(&s);
    }
}

static void test_a_lease_for_other_data_or_other_streams_is_refused(void **state)
{
    struct side s, together;
    side_init(&s, *state, 4, false);
    side_init(&together, *state, 4, true);
    struct msg_lease bad[] = {async_lease(0, 0, 0, 4), async_lease(1, 0, 0, N + 1), async_lease(1, 0, 5, 4),
                              bsp_lease(1, 0, 0, 2, 4), async_lease(1, 0, 0, 4)};
    bad[4].kind = LEASE_EVAL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(feed_add(s.feed, &bad[i]), ERR_DATA);
    struct msg_lease l = bsp_lease(1, 0, 0, 2, 3);
    assert_int_equal(feed_add(together.feed, &l), ERR_DATA);
    l = bsp_lease(1, 0, 0, 2, 4);
    l.residue = 6;
    assert_int_equal(feed_add(together.feed, &l), ERR_DATA);
    l.residue = UINT32_MAX;
    assert_int_equal(feed_add(together.feed, &l), ERR_DATA);
    l.modulus = l.residue = 0;
    assert_int_equal(feed_add(together.feed, &l), ERR_DATA);
    l = bsp_lease(1, 0, 1, 2, 4);
    assert_int_equal(feed_add(together.feed, &l), 0);
    assert_int_equal(feed_add(together.feed, &l), ERR_DATA); /* the same id again */
    assert_int_equal(feed_leases(s.feed), 0);
    side_fini(&s);
    side_fini(&together);
}

/* Runs to the end, saving and restoring into a fresh feed after every `every` windows (0: never). */
static size_t run(const struct bed *b, bool bsp, int every, uint64_t *hashes, double *loss)
{
    struct side s;
    struct source from = async_source(2, 6);
    struct msg_used used;
    size_t n = 0;
    *loss = 0;
    if (bsp)
        from = (struct source){.leases = {bsp_lease(1, 0, 0, 1, 3), bsp_lease(2, 1, 0, 1, 3)}, .count = 2};
    side_init(&s, b, 3, bsp);
    while (step(&s, &from)) {
        hashes[n++] = window_hash(&s.window);
        while (feed_take_used(s.feed, s.seq, &used)) *loss += used.loss;
        if (!every || n % (size_t)every) continue;
        struct feed_image image;
        uint64_t seq = s.seq;
        feed_save(s.feed, &image);
        side_fini(&s);
        side_init(&s, b, 3, bsp);
        s.seq = seq;
        assert_int_equal(feed_restore(s.feed, &image), 0);
        feed_image_fini(&image);
    }
    side_fini(&s);
    return n;
}

static void test_a_restored_feed_goes_on_with_the_same_windows(void **state)
{
    static uint64_t plain[2000], cut[2000];
    for (int bsp = 0; bsp < 2; bsp++) {
        double loss, again;
        size_t n = run(*state, bsp, 0, plain, &loss);
        assert_true(n > 30 && n < 2000);
        for (int every = 1; every < 12; every += 3) {
            assert_int_equal(run(*state, bsp, every, cut, &again), n);
            assert_memory_equal(plain, cut, n * sizeof *plain);
            assert_true(loss == again && loss == 0.5 * (double)n);
        }
    }
}

static void expect_misfit(const struct bed *b, bool bsp, const struct feed_image *image)
{
    struct side s;
    side_init(&s, b, 3, bsp);
    assert_int_equal(feed_restore(s.feed, image), ERR_DATA);
    side_fini(&s);
}

static void test_a_capsule_that_does_not_fit_is_refused(void **state)
{
    for (int bsp = 0; bsp < 2; bsp++) {
        struct side s;
        struct source from = async_source(1, 12);
        struct feed_image i;
        if (bsp) from = (struct source){.leases = {bsp_lease(1, 0, 0, 1, 3)}, .count = 1};
        side_init(&s, *state, 3, bsp);
        for (int n = 0; n < 3; n++) assert_true(step(&s, &from));
        feed_save(s.feed, &i);
        side_fini(&s);
        const struct bed *b = *state;
#define WITH(field, value)                                                                                   \
    do {                                                                                                     \
        uint32_t kept = (uint32_t)(field);                                                                   \
        (field) = (value);                                                                                   \
        expect_misfit(b, bsp, &i);                                                                           \
        (field) = kept;                                                                                      \
    } while (0)
        WITH(i.num_queues, i.num_queues + 1);
        WITH(i.num_cursors, 2);
        WITH(i.leases[0].left, i.leases[0].left + 1);
        WITH(i.leases[0].left, 0);
        WITH(i.leases[0].failed, N + 1);
        WITH(i.leases[0].lease.end, N + 1);
        WITH(i.leases[0].lease.id, 77);
        WITH(i.queues[0].lease, 99);
        WITH(i.queues[0].position, N);
        WITH(i.queues[0].position, i.queues[0].position + 1);
        WITH(i.cursors[1].lease, 99);
        WITH(i.cursors[1].index, N);
        WITH(i.cursors[1].next_frame, 1000);
#undef WITH
        side_init(&s, b, 3, bsp);
        assert_int_equal(feed_restore(s.feed, &i), 0);
        side_fini(&s);
        feed_image_fini(&i);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_async_utterances_go_to_the_lowest_idle_stream_in_the_order_of_the_epoch),
        TEST(test_a_free_stream_waits_for_a_lease_while_there_may_be_one),
        TEST(test_bsp_gives_each_stream_the_positions_of_its_residue),
        TEST(test_two_bsp_workers_see_what_one_with_twice_the_streams_sees),
        TEST(test_a_lease_is_used_once_the_exchange_of_its_last_frame_is_over),
        TEST(test_what_was_not_pushed_is_not_used),
        TEST(test_an_utterance_that_cannot_be_read_is_counted_and_passed_over),
        TEST(test_rows_that_are_computed_for_nothing_are_counted),
        TEST(test_a_lease_for_other_data_or_other_streams_is_refused),
        TEST(test_a_restored_feed_goes_on_with_the_same_windows),
        TEST(test_a_capsule_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
