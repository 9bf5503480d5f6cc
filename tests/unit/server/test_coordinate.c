/* Members, sets, evaluation and the end of a job, driven by messages and virtual time alone. */
#include "tests/unit/server/coordinate_bench.h"

static int set_up(void **state)
{
    *state = bench_new();
    return 0;
}

/* ------------------------------------------------------------------ members */

static void a_repeated_join_gives_no_second_number(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    assert_int_equal(worker(b, 1), m);
    assert_int_equal(join_as(b, ROLE_WORKER, 2, 0, 0).rank, 1);
    struct msg leave = {.type = MSG_LEAVE, .leave.member = m};
    say(b, 101, &leave);
    struct msg_joined j = join_as(b, ROLE_WORKER, 3, 0, 0);
    assert_int_equal(j.rank, 0); /* the lowest free one */
    assert_int_equal(j.member, 3);
    struct msg_joined s = join_as(b, ROLE_SERVER, 8, 0, 0);
    assert_int_equal(join_as(b, ROLE_SERVER, 8, 0, 0).generation, s.generation);
}

static void another_model_or_job_is_refused_with_both_sides(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    struct msg m = {.type = MSG_JOIN,
                    .join = {.role = ROLE_WORKER, .host = "h", .pid = 1, .model_hash = 0xabc}};
    say(b, 101, &m);
    const struct msg *r = last_to(b, 101, MSG_REFUSED);
    assert_int_equal(r->refused.reason, REFUSAL_MISMATCH);
    assert_non_null(strstr(r->refused.text, "0000000000000abc"));
    assert_non_null(strstr(r->refused.text, "0000000000000009"));
    struct msg other = {.type = MSG_JOIN, .job = 8, .join = {.role = ROLE_WORKER, .model_hash = 9}};
    say(b, 102, &other);
    assert_int_equal(last_to(b, 102, MSG_REFUSED)->refused.reason, REFUSAL_MISMATCH);
}

static void a_silent_member_is_retired_and_told_so_when_it_speaks(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    wait_until(b, b->now + 29 * S);
    assert_false(coordinate_is_empty(b->c));
    wait_until(b, b->now + 1 * S);
    assert_true(coordinate_is_empty(b->c));
    beat(b, 1, &(struct msg_beat){.role = ROLE_WORKER, .member = m});
    assert_int_equal(last_to(b, 101, MSG_REFUSED)->refused.reason, REFUSAL_RETIRED);
    struct msg j = {.type = MSG_JOIN,
                    .join = {.role = ROLE_WORKER, .member = m, .host = "h", .pid = 1, .model_hash = 9}};
    b->num_sent = 0;
    say(b, 101, &j);
    assert_int_equal(last_to(b, 101, MSG_REFUSED)->refused.reason, REFUSAL_RETIRED);
    assert_true(worker(b, 1) > m);
}

static void the_map_has_version_0_until_all_shards_are_there(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    server(b, 8, 0);
    struct msg ask_map = {.type = MSG_MAP_ASK, .map_ask = {.member = m}};
    say(b, 101, &ask_map);
    assert_int_equal(last_to(b, 101, MSG_MAP)->map.version, 0);
    server(b, 9, 1);
    say(b, 101, &ask_map);
    const struct msg_map *map = &last_to(b, 101, MSG_MAP)->map;
    assert_int_equal(map->version, 1);
    assert_int_equal(map->count, 2);
    assert_string_equal(map->shards[1].endpoint, "tcp://h:9");
    assert_int_equal(order_of(b, 1).map_version, 1); /* told without being asked */
    struct msg_joined j = join_as(b, ROLE_SERVER, 10, 1, 0);
    assert_int_equal(j.member, 0);
    assert_int_equal(last_to(b, 110, MSG_REFUSED)->refused.reason, REFUSAL_NOT_READY);
}

static void an_older_coordinator_leaves_without_a_word(void **state)
{
    struct bench *b = *state;
    bench_start(b);
    uint64_t m = worker(b, 1);
    assert_int_equal(order_of(b, 1).incarnation, 1);
    b->num_sent = 0;
    beat(b, 1, &(struct msg_beat){.role = ROLE_WORKER, .member = m, .incarnation = 2});
    assert_int_equal(b->num_sent, 0);
    assert_int_equal(coordinate_command(b->c), COMMAND_INTERRUPT);
    assert_true(coordinate_is_empty(b->c));
}

/* ------------------------------------------------------------------ sets, evaluation, the end */

static void an_epoch_turn_names_a_set_and_the_last_one_ends_the_job(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 2);
    assert_int_equal(order_of(b, 8).set, 0);
    use_leases(b, m, 3, 1);
    assert_int_equal(order_of(b, 8).set, 1);
    assert_int_equal(order_of(b, 1).hold, 0); /* async with two workers: nobody stands still */
    serve_set(b, 8, b->server[0], true);
    assert_int_equal(b->completed, 0);
    serve_set(b, 9, b->server[1], true);
    assert_int_equal(b->completed, 1);
    assert_false(b->exact || b->final);
    assert_int_equal(account(b).newest_set, 1);
    assert_int_equal(b->num_epochs, 1); /* no dev data: an epoch is done when it turns */
    assert_false(b->epochs[0].evaluated);
    assert_true(b->epochs[0].train_loss > 1.99 && b->epochs[0].train_loss < 2.01);
    use_leases(b, m, 4, 3);
    assert_int_equal(coordinate_command(b->c), COMMAND_RUN);
    serve_both(b, true);
    assert_true(b->final);
    assert_int_equal(coordinate_command(b->c), COMMAND_FINISH);
    assert_int_equal(order_of(b, 1).command, COMMAND_FINISH);
    struct msg leave = {.type = MSG_LEAVE};
    const uint64_t all[] = {m, b->server[0], b->server[1]};
    for (size_t i = 0; i < 3; i++) {
        assert_false(coordinate_is_empty(b->c));
        leave.leave.member = all[i];
        say(b, 1, &leave);
    }
    assert_true(coordinate_is_empty(b->c));
    assert_false(coordinate_needs_restore(b->c));
}

/* The end is looked for between sets: a short interval must not fill all the time with sets. */
static void after_the_final_set_no_other_is_named(void **state)
{
    struct bench *b = *state;
    b->o.interval_ns = 1 * S;
    b->o.epochs = 1;
    b->o.dev = (struct data_facts){.utterances = 4, .frames = 400};
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 3);
    wait_until(b, b->now + 5 * S);
    serve_both(b, true);
    wait_until(b, b->now + 5 * S);
    assert_int_equal(order_of(b, 8).set, 0);
    struct msg_lease l = ask(b, 1, m, 9);
    assert_int_equal(l.kind, LEASE_EVAL);
    used(b, 1, m, &l, 10);
    assert_int_equal(coordinate_command(b->c), COMMAND_FINISH);
}

static void a_set_that_cannot_be_written_is_tried_again_later(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 3);
    serve_set(b, 8, b->server[0], false);
    beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = b->server[0], .copied = 1, .failed_set = 1});
    assert_int_equal(order_of(b, 8).set, 0);
    wait_until(b, b->now + 6 * S);
    beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = b->server[0], .copied = 1, .failed_set = 1});
    assert_int_equal(order_of(b, 8).set, 2); /* a failure of set 1 says nothing about set 2 */
    b->hold_done = true;
    serve_both(b, true);
    coordinate_set_done(b->c, b->now, 2, ERR_STORAGE);
    assert_int_equal(account(b).newest_set, 0);
    assert_int_equal(coordinate_command(b->c), COMMAND_RUN);
}

static void a_job_with_one_worker_holds_it_until_all_servers_have_copied(void **state)
{
    struct bench *b = *state;
    b->o.workers = 1;
    uint64_t m = bench_begin(b);
    struct msg_lease kept = ask(b, 1, m, 1);
    use_leases(b, m, 2, 2);
    struct msg_lease ahead = ask(b, 1, m, 4);
    used(b, 1, m, &kept, 100); /* the epoch turns, one lease of the next is on hand */
    assert_int_equal(order_of(b, 1).hold, 1);
    assert_int_equal(ask(b, 1, m, 5).kind, LEASE_HELD); /* nothing new while it is held */
    serve_set(b, 8, b->server[0], true);
    assert_int_equal(order_of(b, 8).set, 0); /* servers copy only once the capsule is here */
    give_capsule(b, 1, m, 1, "the capsule", 1, 1);
    assert_int_equal(order_of(b, 1).capsule_have, 11);
    give_capsule(b, 1, m, 1, "the new capsule", 2, 1); /* replaces it */
    give_capsule(b, 1, m, 1, "the capsule", 1, 1);     /* a page of the old one that comes late does not */
    assert_int_equal(order_of(b, 1).capsule_have, 15);
    beat(b, 1, &(struct msg_beat){.role = ROLE_WORKER, .member = m, .holding = 1});
    assert_int_equal(order_of(b, 8).set, 1);
    serve_set(b, 8, b->server[0], false);
    assert_int_equal(order_of(b, 1).hold, 1);
    serve_set(b, 9, b->server[1], false);
    assert_int_equal(order_of(b, 1).hold, 0);
    serve_both(b, true);
    assert_int_equal(b->completed, 1);
    assert_true(b->exact);
    assert_int_equal(b->num_capsules, 1);

    /* Everything is started again: the lease of the capsule waits for the worker that gets its rank. */
    char *journal = xstrdup(b->journal);
    renew(b);
    assert_int_equal(coordinate_apply_state(b->c, b->state), 0);
    apply_lines(b->c, journal, coordinate_apply_counters);
    coordinate_start(b->c, b->now, true, 1);
    coordinate_give_capsule(b->c, 0, "the new capsule", 15);
    assert_int_equal(coordinate_generation(b->c), 2);
    struct msg_joined j = join_as(b, ROLE_SERVER, 18, 0, 0);
    assert_int_equal(j.set, 1);
    assert_int_equal(j.generation, 2);
    assert_int_equal(j.job_generation, 2);
    j = join_as(b, ROLE_WORKER, 11, 0, 0);
    assert_int_equal(j.capsule_bytes, 15);
    assert_true(j.member > m);
    struct msg want = {.type = MSG_CAPSULE_ASK, .capsule_ask = {j.member, 4}};
    say(b, 111, &want);
    assert_int_equal(last_to(b, 111, MSG_CAPSULE)->capsule.total, 15);
    assert_int_equal(account(b).leased, 1);
    struct msg_lease next = ask(b, 11, j.member, 1);
    assert_int_equal(next.begin, 4);
    assert_true(next.id > ahead.id);
    used(b, 11, j.member, &ahead, 100);
    assert_int_equal(account(b).used, 4);
    free(journal);
}

/* Up to where it stands after the restore of a set with a lease of its one worker. */
static char *restore_one(struct bench *b)
{
    b->o.workers = 1;
    uint64_t m = bench_begin(b);
    ask(b, 1, m, 1);
    coordinate_interrupt(b->c, b->now);
    give_capsule(b, 1, m, 1, "the capsule", 1, 1);
    beat(b, 1, &(struct msg_beat){.role = ROLE_WORKER, .member = m, .holding = 1});
    serve_both(b, true);
    restore_set_1(b);
    coordinate_give_capsule(b->c, 0, "the capsule", 11);
    return coordinate_rows(b->c);
}

static void a_coordinator_killed_after_a_restore_still_has_the_capsule(void **state)
{
    struct bench *b = *state;
    char *rows = restore_one(b);
    come_back(b, rows);
    assert_int_equal(coordinate_capsules_of(b->c), 1);
    coordinate_give_capsule(b->c, 0, "the capsule", 11);
    struct msg_joined j = join_as(b, ROLE_WORKER, 11, 0, 0);
    assert_int_equal(j.capsule_bytes, 11);
    assert_int_equal(account(b).leased, 1);
    free(rows);
    rows = coordinate_rows(b->c); /* joined, but perhaps without it */
    come_back(b, rows);
    assert_int_equal(coordinate_capsules_of(b->c), 1);
    coordinate_give_capsule(b->c, 0, "the capsule", 11);
    dies(b, 11);
    assert_int_equal(account(b).leased, 0);
    uint64_t n = worker(b, 12); /* one that has nothing to do with that capsule */
    ask(b, 12, n, 1);
    free(rows);
    rows = coordinate_rows(b->c);
    come_back(b, rows);
    assert_int_equal(coordinate_capsules_of(b->c), 0);
    free(rows);
}

/* Several workers have none: nobody takes these leases up. */
static void a_coordinator_killed_after_a_restore_opens_leases_without_a_capsule(void **state)
{
    struct bench *b = *state;
    b->o.workers = 2;
    uint64_t m = bench_begin(b);
    ask(b, 1, m, 1);
    coordinate_interrupt(b->c, b->now);
    serve_both(b, true);
    restore_set_1(b);
    char *rows = coordinate_rows(b->c); /* before anybody spoke */
    assert_int_equal(account(b).leased, 1);
    come_back(b, rows);
    uint64_t n = worker(b, 11);
    assert_int_equal(account(b).leased, 0);
    assert_int_equal(ask(b, 11, n, 1).begin, 0);
    free(rows);
}

static void a_restored_start_without_capsules_opens_the_leases(void **state)
{
    struct bench *b = *state;
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 2);
    ask(b, 1, m, 3);
    struct msg_lease ahead = ask(b, 1, m, 4);
    coordinate_interrupt(b->c, b->now);
    assert_int_equal(order_of(b, 8).set, 1); /* the last set */
    serve_both(b, true);
    assert_int_equal(coordinate_command(b->c), COMMAND_INTERRUPT);
    assert_int_equal(order_of(b, 9).command, COMMAND_INTERRUPT);
    restore_set_1(b);
    uint64_t n = worker(b, 11);
    assert_int_equal(account(b).leased, 0);
    struct msg_lease l = ask(b, 11, n, 1);
    assert_int_equal(l.epoch, 0);
    assert_int_equal(l.begin, 8);
    assert_true(l.id > ahead.id);
    assert_int_equal(account(b).used, 2);
}

static struct msg_lease evaluate(struct bench *b, uint64_t m, uint64_t request)
{
    serve_both(b, false);
    struct msg_lease l = ask(b, 1, m, request);
    assert_int_equal(l.kind, LEASE_EVAL);
    return l;
}

static void dev_results_of_all_leases_are_added_up(void **state)
{
    struct bench *b = *state;
    b->o.dev = (struct data_facts){.utterances = 20, .frames = 400};
    uint64_t m = bench_begin(b), n = worker(b, 2);
    use_leases(b, m, 1, 3);
    assert_int_equal(b->num_epochs, 0);
    struct msg_lease l = evaluate(b, m, 10); /* before training, though there is training to do */
    assert_int_equal(l.begin, 0);
    assert_int_equal(l.end, 16);
    assert_int_equal(l.set, 1);
    beat(b, 8, &(struct msg_beat){.role = ROLE_SERVER, .member = b->server[0], .copied = 1});
    assert_int_equal(order_of(b, 8).keep_set, 1);
    struct msg_lease k = ask(b, 2, n, 1);
    assert_int_equal(k.begin, 16);
    assert_int_equal(k.end, 20);
    used(b, 1, m, &l, 300);
    assert_int_equal(b->num_epochs, 0);
    used(b, 2, n, &k, 100);
    assert_int_equal(b->num_epochs, 1);
    assert_true(b->epochs[0].evaluated);
    assert_true(b->epochs[0].dev_loss > 1.999 && b->epochs[0].dev_loss < 2.001);
    assert_true(b->epochs[0].dev_accuracy > 0.499 && b->epochs[0].dev_accuracy < 0.501);
    serve_set(b, 8, b->server[0], true);
    assert_int_equal(order_of(b, 8).keep_set, 0);
}

static void an_evaluation_whose_copy_is_gone_starts_over_on_the_next_set(void **state)
{
    struct bench *b = *state;
    b->o.dev = (struct data_facts){.utterances = 4, .frames = 400};
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 3);
    struct msg_lease l = evaluate(b, m, 10);
    serve_both(b, true);
    struct msg back = {
        .type = MSG_USED,
        .used = {.member = m, .id = l.id, .kind = LEASE_EVAL, .failed = 4, .given_back = true}};
    say(b, 101, &back);
    assert_int_equal(order_of(b, 8).set, 2);
    l = evaluate(b, m, 11);
    assert_int_equal(l.set, 2);
    used(b, 1, m, &l, 100);
    assert_int_equal(b->num_epochs, 1);
}

/* Evaluates the epoch that has turned with this dev loss. */
static void dev_loss(struct bench *b, uint64_t m, uint64_t request, double loss)
{
    struct msg_lease l = evaluate(b, m, request);
    struct msg u = {.type = MSG_USED,
                    .used = {.member = m, .id = l.id, .kind = LEASE_EVAL, .frames = 100, .loss = 100 * loss}};
    serve_both(b, true);
    say(b, 101, &u);
}

static void newbob_halves_once_and_then_ends(void **state)
{
    struct bench *b = *state;
    b->o.dev = (struct data_facts){.utterances = 4, .frames = 400};
    b->o.newbob = true;
    b->o.epochs = 9;
    b->o.chunk_utterances = 10; /* one chunk per epoch */
    uint64_t m = bench_begin(b);
    static const double loss[] = {3.0, 2.5, 2.49, 2.2, 2.1999};
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(coordinate_command(b->c), COMMAND_RUN);
        use_leases(b, m, 10 * i + 1, 1);
        dev_loss(b, m, 10 * i + 2, loss[i]);
        /* 2.5 -> 2.49 is below 1 %: epoch 4 (from 1) is the first that nobody has leased */
        assert_int_equal(order_of(b, 8).halve_from, i < 2 ? 0 : 4);
    }
    /* 2.2 -> 2.1999 is below 0.1 %: no further epoch; the job ends with a last set */
    assert_int_equal(ask(b, 1, m, 60).kind, LEASE_WAIT);
    serve_both(b, true);
    assert_int_equal(b->num_epochs, 5);
    assert_int_equal(coordinate_command(b->c), COMMAND_FINISH);
}

/* ------------------------------------------------------------------ coming back */

static void a_coordinator_made_from_rows_answers_as_the_old_one_would(void **state)
{
    struct bench *b = *state;
    b->o.dev = (struct data_facts){.utterances = 4, .frames = 400};
    uint64_t m = bench_begin(b);
    use_leases(b, m, 1, 3);
    struct msg_lease l = evaluate(b, m, 10);
    struct msg_lease t = ask(b, 1, m, 11);
    char *rows = coordinate_rows(b->c);
    for (int from_journal = 0; from_journal < 2; from_journal++) {
        char *text = xstrdup(from_journal ? b->journal : rows);
        if (!from_journal) {
            free(b->journal);
            b->journal = xstrdup(rows);
        }
        come_back(b, text);
        free(text);
        assert_int_equal(ask(b, 1, m, 11).id, t.id); /* the same question, the same lease */
        beat(b, 1, &(struct msg_beat){.role = ROLE_WORKER, .member = m, .incarnation = 1});
        assert_int_equal(order_of(b, 1).incarnation, 2 + from_journal);
        assert_int_equal(order_of(b, 1).map_version, 2 + from_journal); /* asked for anew */
        assert_int_equal(coordinate_generation(b->c), 1);
        beat(b, 8,
             &(struct msg_beat){.role = ROLE_SERVER, .member = b->server[0], .incarnation = 1, .copied = 1});
        assert_int_equal(order_of(b, 8).keep_set, 1);
    }
    used(b, 1, m, &l, 100);
    assert_int_equal(b->num_epochs, 1);
    assert_int_equal(worker(b, 3), m + 1);
    assert_true(ask(b, 3, m + 1, 1).id > t.id);
    free(rows);
}

static void damaged_rows_are_refused_with_a_sentence(void **state)
{
    struct bench *b = *state;
    static const char *const rows[] = {
        "",
        "[]",
        "{",
        "{}",
        "{\"row\":\"job\",\"next_lease\":-1}",
        "{\"row\":\"job\",\"next_lease\":\"x\"}",
        "{\"row\":\"epoch\",\"epoch\":5}",
        "{\"row\":\"epoch\",\"epoch\":0,\"span\":4,\"base\":1000000}",
        "{\"row\":\"epoch\",\"epoch\":0,\"span\":4,\"base\":3}",
        "{\"row\":\"member\"}",
        "{\"row\":\"shard\"}",
        "{\"row\":\"chunk\",\"epoch\":0,\"chunk\":99,\"state\":\"used\"}",
        "{\"row\":\"chunk\",\"epoch\":0,\"chunk\":0,\"count\":4294967294,\"state\":\"used\"}",
        "{\"row\":\"chunk\",\"epoch\":0,\"chunk\":0,\"state\":\"flying\"}",
        "{\"row\":\"chunk\",\"epoch\":0,\"chunk\":0,\"state\":\"leased\"}",
        "{\"row\":\"eval\",\"set\":1,\"span\":0}",
    };
    struct coordinator *c = bench_core(b);
    assert_int_equal(
        coordinate_apply_row(c, "{\"row\":\"epoch\",\"epoch\":0,\"span\":4,\"modulus\":1,\"base\":3,"
                                "\"train\":[0,0.0,0,0,0,0],\"dev\":[0,0.0,0,0,0,0]}"),
        0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (coordinate_apply_row(c, rows[i]) != ERR_DATA) fail_msg("accepted: %s", rows[i]);
        assert_non_null(strstr(err_text(), "coordinator"));
    }
    coordinate_free(&c);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, bench_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_repeated_join_gives_no_second_number),
        TEST(another_model_or_job_is_refused_with_both_sides),
        TEST(a_silent_member_is_retired_and_told_so_when_it_speaks),
        TEST(the_map_has_version_0_until_all_shards_are_there),
        TEST(an_older_coordinator_leaves_without_a_word),
        TEST(an_epoch_turn_names_a_set_and_the_last_one_ends_the_job),
        TEST(after_the_final_set_no_other_is_named),
        TEST(a_set_that_cannot_be_written_is_tried_again_later),
        TEST(a_job_with_one_worker_holds_it_until_all_servers_have_copied),
        TEST(a_coordinator_killed_after_a_restore_still_has_the_capsule),
        TEST(a_coordinator_killed_after_a_restore_opens_leases_without_a_capsule),
        TEST(a_restored_start_without_capsules_opens_the_leases),
        TEST(dev_results_of_all_leases_are_added_up),
        TEST(an_evaluation_whose_copy_is_gone_starts_over_on_the_next_set),
        TEST(newbob_halves_once_and_then_ends),
        TEST(a_coordinator_made_from_rows_answers_as_the_old_one_would),
        TEST(damaged_rows_are_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
