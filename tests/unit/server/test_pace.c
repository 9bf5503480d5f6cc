/* Rate and momentum follow from frames, workers and staleness alone; with one worker they are the job file's,
 * bit for bit, and no change of workers makes them jump. */
#include "common/err.h"
#include "server/pace.h"
#include "server/update.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* --- schedule and warm-up */

static void a_constant_rate_stays(void **state)
{
    (void)state;
    struct pace_rule r = {.rate = 0.05, .schedule = SCHEDULE_CONSTANT, .factor = 0.5, .epoch_frames = 10};
    assert_true(pace_rate(&r, 0) == 0.05 && pace_rate(&r, 1000000) == 0.05);
}

/* 100 frames an epoch: epoch 3 begins with frame 200. */
static void halving_begins_with_its_epoch(void **state)
{
    (void)state;
    struct pace_rule r = {.rate = 0.8, .schedule = SCHEDULE_HALVE, .factor = 0.5, .epoch_frames = 100};
    r.from_epoch = 3;
    assert_true(pace_rate(&r, 0) == 0.8);
    assert_true(pace_rate(&r, 199) == 0.8);
    assert_true(pace_rate(&r, 200) == 0.4);
    assert_true(pace_rate(&r, 299) == 0.4);
    assert_true(pace_rate(&r, 300) == 0.2);
    assert_true(pace_rate(&r, 1000) == 0.8 * pow(0.5, 9));
}

static void newbob_waits_until_it_is_told(void **state)
{
    (void)state;
    struct pace_rule r = {.rate = 0.8, .schedule = SCHEDULE_NEWBOB, .factor = 0.5, .epoch_frames = 100};
    assert_true(pace_rate(&r, 5000) == 0.8);
    r.from_epoch = 4;
    assert_true(pace_rate(&r, 299) == 0.8);
    assert_true(pace_rate(&r, 300) == 0.4);
}

static void an_exponential_rate_is_smooth_in_frames(void **state)
{
    (void)state;
    struct pace_rule r = {.rate = 1, .schedule = SCHEDULE_EXPONENTIAL, .factor = 0.25, .per_frames = 1000};
    assert_true(pace_rate(&r, 0) == 1);
    assert_true(fabs(pace_rate(&r, 500) - 0.5) < 1e-15);
    assert_true(fabs(pace_rate(&r, 1000) - 0.25) < 1e-15);
    assert_true(fabs(pace_rate(&r, 2000) - 0.0625) < 1e-15);
}

static void a_warm_up_is_a_line_from_a_first_step_that_is_not_zero(void **state)
{
    (void)state;
    struct pace_rule r = {.rate = 0.8, .warmup_frames = 1000};
    assert_true(pace_rate(&r, 0) == 0.8 * 0.001);
    assert_true(pace_rate(&r, 499) == 0.4);
    assert_true(pace_rate(&r, 998) < 0.8);
    assert_true(pace_rate(&r, 999) == 0.8);
    assert_true(pace_rate(&r, 100000) == 0.8);
    r.schedule = SCHEDULE_HALVE, r.factor = 0.5, r.epoch_frames = 250, r.from_epoch = 2;
    assert_true(pace_rate(&r, 499) == 0.4 / 2); /* the schedule goes on meanwhile */
}

/* --- the rule */

static void the_rule_comes_from_the_configuration(void **state)
{
    (void)state;
    struct config c;
    config_default(&c);
    c.optimizer.type = OPTIMIZER_MOMENTUM;
    c.optimizer.momentum_at = MOMENTUM_AT_SERVER;
    c.optimizer.rate = 0.25;
    c.optimizer.momentum = 0.75;
    c.optimizer.warmup_epochs = 0.5;
    c.optimizer.schedule.type = SCHEDULE_HALVE;
    c.optimizer.schedule.from_epoch = 7;
    c.optimizer.schedule.factor = 0.5;
    struct pace_rule r;
    pace_rule_from(&c, 1234, &r);
    assert_true(r.rate == 0.25 && r.momentum == 0.75 && r.warmup_frames == 617 && !r.divides && !r.at_worker);
    assert_true(r.from_epoch == 7 && r.factor == 0.5 && r.epoch_frames == 1234);
    c.optimizer.schedule.type = SCHEDULE_NEWBOB;
    c.optimizer.staleness = STALENESS_DIVIDE;
    pace_rule_from(&c, 1234, &r);
    assert_int_equal(r.from_epoch, 0);
    assert_true(r.divides);
    c.optimizer.momentum_at = MOMENTUM_AT_WORKER;
    pace_rule_from(&c, 1234, &r);
    assert_true(r.at_worker && r.momentum == 0.75);
    config_free(&c);
}

/* Momentum is the business of two optimizers; bsp is synchronous, and the adaptive ones scale themselves. */
static void only_asynchronous_sgd_follows_the_workers(void **state)
{
    (void)state;
    struct config c;
    config_default(&c);
    c.optimizer.momentum = 0.75;
    c.optimizer.momentum_at = MOMENTUM_AT_SERVER;
    for (int type = OPTIMIZER_SGD; type <= OPTIMIZER_ADAMW; type++) {
        for (int mode = CONSISTENCY_ASYNC; mode <= CONSISTENCY_SSP; mode++) {
            for (int asked = 0; asked < 2; asked++) {
                struct pace_rule r;
                c.optimizer.type = (enum optimizer_type)type;
                c.consistency.mode = (enum consistency_mode)mode;
                c.optimizer.follow_workers = asked;
                pace_rule_from(&c, 1, &r);
                assert_true(r.follows == (asked && mode != CONSISTENCY_BSP && type <= OPTIMIZER_NESTEROV));
                bool has = type == OPTIMIZER_MOMENTUM || type == OPTIMIZER_NESTEROV;
                assert_true(r.momentum == (has ? 0.75 : 0));
            }
        }
    }
    config_free(&c);
}

/* --- workers */
#define LATE 1000000 /* frames: after every warm-up */

static struct pace_rule following(void)
{
    return (struct pace_rule){
        .rate = 0.05, .momentum = 0.9, .follows = true, .factor = 1, .epoch_frames = 20000}; /* ramp 1000 */
}

static bool is_near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fmax(fabs(a), fabs(b));
}

static void assert_step(const struct pace *p, uint64_t frames, double rate, double momentum)
{
    float got_rate, got_momentum;
    pace_step(p, frames, 0, &got_rate, &got_momentum);
    assert_true(fabs(got_rate - rate) <= FLT_EPSILON * rate);
    assert_true(fabs(got_momentum - momentum) <= FLT_EPSILON);
}

static void one_worker_has_the_numbers_of_the_job_file_bit_for_bit(void **state)
{
    (void)state;
    struct pace_rule r = following();
    r.schedule = SCHEDULE_EXPONENTIAL, r.factor = 0.37, r.per_frames = 12345;
    for (int told = 0; told < 2; told++) {
        struct pace p;
        pace_init(&p, &r);
        if (told) assert_false(pace_workers(&p, 1, 100));
        for (uint64_t frames = 0; frames < 100000; frames += 997) {
            float rate, momentum, expected = (float)pace_rate(&r, frames);
            pace_step(&p, frames, 1, &rate, &momentum);
            assert_memory_equal(&rate, &expected, sizeof rate);
            assert_true(momentum == 0.9f);
        }
    }
}

static void the_setting_for_many_workers_is_the_recommended_one(void **state)
{
    (void)state;
    const struct {
        uint32_t workers;
        double momentum, effective; /* rate / (1 - momentum), over that of one worker */
        double here, at_worker; /* where the workers keep the momentum: that, and the factor of the rate */
        double warm;            /* epochs */
    } table[] = {{0, 0.9, 1, 0.9, 1, 0},          {1, 0.9, 1, 0.9, 1, 0},
                 {2, 0.4, 1, 0.9, 1, 0.25},       {3, 0.9 - 2.0 / 3, 1, 0.9, 1, 0.375},
                 {4, 0.15, 1, 0.9, 1, 0.5},       {8, 0.025, 1, 0.9, 1, 1},
                 {16, 0, 0.75, 0.9375, 0.625, 2}, {32, 0, 0.375, 0.96875, 0.3125, 2},
                 {64, 0, 0.1875, 0.98, 0.1, 2}};
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        struct pace_rule r = following();
        struct pace_setting s = pace_follow(&r, table[k].workers);
        assert_true(fabs(s.momentum - table[k].momentum) < 1e-12);
        assert_true(is_near(s.rate_factor * (1 - r.momentum) / (1 - s.momentum), table[k].effective));
        assert_true(s.warmup_frames == table[k].warm * 20000);
        r.at_worker = true;
        s = pace_follow(&r, table[k].workers);
        assert_true(fabs(s.momentum - table[k].here) < 1e-12);
        assert_true(fabs(s.rate_factor - table[k].at_worker) < 1e-12);
        r.warmup_frames = 30000; /* of the job file: no less than that */
        assert_true(pace_follow(&r, table[k].workers).warmup_frames == fmax(30000, table[k].warm * 20000));
        r.follows = false;
        s = pace_follow(&r, table[k].workers);
        assert_true(s.rate_factor == 1 && s.momentum == 0.9 && s.warmup_frames == 30000);
    }
}

static void the_warm_up_of_many_workers_is_theirs(void **state)
{
    (void)state;
    struct pace_rule r = following();
    struct pace_setting s = pace_follow(&r, 16);
    struct pace p;
    pace_init(&p, &r);
    pace_workers(&p, 16, 0);
    assert_step(&p, 0, 0.05 * s.rate_factor / 40000, s.momentum);
    assert_step(&p, 19999, 0.05 * s.rate_factor / 2, s.momentum);
    assert_step(&p, 39999, 0.05 * s.rate_factor, s.momentum);
}

static void the_first_number_of_workers_takes_effect_at_once(void **state)
{
    (void)state;
    struct pace_rule r = following();
    struct pace_setting s = pace_follow(&r, 4);
    struct pace p;
    pace_init(&p, &r);
    assert_true(pace_workers(&p, 4, LATE + 7000));
    assert_step(&p, LATE + 0, 0.05 * s.rate_factor, s.momentum); /* a block that is behind the shard, too */
    assert_step(&p, LATE + 7000, 0.05 * s.rate_factor, s.momentum);
    assert_step(&p, LATE + 99999, 0.05 * s.rate_factor, s.momentum);
}

static void a_change_of_workers_takes_effect_in_a_line(void **state)
{
    (void)state;
    struct pace_rule r = following();
    struct pace_setting s = pace_follow(&r, 16);
    struct pace p;
    pace_init(&p, &r);
    pace_workers(&p, 1, LATE + 0);
    assert_true(pace_workers(&p, 16, LATE + 5000));
    assert_step(&p, LATE + 4000, 0.05, 0.9);
    assert_step(&p, LATE + 5000, 0.05, 0.9);
    assert_step(&p, LATE + 5250, 0.05 * (0.75 + 0.25 * s.rate_factor), 0.75 * 0.9 + 0.25 * s.momentum);
    assert_step(&p, LATE + 5999, 0.05 * (0.001 + 0.999 * s.rate_factor), 0.001 * 0.9 + 0.999 * s.momentum);
    assert_step(&p, LATE + 6000, 0.05 * s.rate_factor, s.momentum);
    assert_step(&p, LATE + 60000, 0.05 * s.rate_factor, s.momentum);
}

static void a_change_in_mid_ramp_begins_where_the_ramp_is(void **state)
{
    (void)state;
    struct pace_rule r = following();
    struct pace_setting two = pace_follow(&r, 2), eight = pace_follow(&r, 8);
    double rate_factor = (1 + two.rate_factor) / 2, momentum = (0.9 + two.momentum) / 2;
    struct pace p;
    pace_init(&p, &r);
    pace_workers(&p, 1, LATE + 0);
    pace_workers(&p, 2, LATE + 1000);
    assert_step(&p, LATE + 1500, 0.05 * rate_factor, momentum);
    assert_true(pace_workers(&p, 8, LATE + 1500));
    assert_step(&p, LATE + 1500, 0.05 * rate_factor, momentum);
    assert_step(&p, LATE + 2000, 0.05 * (rate_factor + eight.rate_factor) / 2,
                (momentum + eight.momentum) / 2);
    assert_step(&p, LATE + 2500, 0.05 * eight.rate_factor, eight.momentum);
}

static void back_to_one_worker_is_a_ramp_that_ends_exactly(void **state)
{
    (void)state;
    struct pace_rule r = following();
    struct pace_setting s = pace_follow(&r, 8);
    struct pace p;
    float rate, momentum;
    pace_init(&p, &r);
    pace_workers(&p, 8, LATE + 0);
    assert_true(pace_workers(&p, 1, LATE + 3000));
    assert_step(&p, LATE + 3500, 0.05 * (1 + s.rate_factor) / 2, (0.9 + s.momentum) / 2);
    pace_step(&p, LATE + 4000, 0, &rate, &momentum);
    assert_true(rate == 0.05f && momentum == 0.9f);
}

static void what_changes_nothing_is_told_so(void **state)
{
    (void)state;
    struct pace_rule r = following();
    struct pace p;
    pace_init(&p, &r);
    assert_true(pace_workers(&p, 2, LATE + 0));
    assert_false(pace_workers(&p, 2, LATE + 10));
    assert_false(pace_workers(&p, 0, LATE + 10)); /* nobody is there: the next one goes on */
    assert_true(pace_workers(&p, 8, LATE + 1000));
    assert_false(pace_workers(&p, 8, LATE + 1500)); /* does not begin the ramp anew */
    assert_step(&p, LATE + 2000, 0.05 * pace_follow(&r, 8).rate_factor, pace_follow(&r, 8).momentum);
    r.follows = false;
    pace_init(&p, &r);
    assert_false(pace_workers(&p, 16, LATE + 0));
    assert_step(&p, LATE + 0, 0.05, 0.9);
}

static void a_ramp_is_at_least_one_frame(void **state)
{
    (void)state;
    struct pace_rule r = following();
    r.epoch_frames = 0;
    struct pace p;
    pace_init(&p, &r);
    pace_workers(&p, 1, 0);
    pace_workers(&p, 16, 10);
    assert_step(&p, 10, 0.05, 0.9);
    assert_step(&p, 11, 0.05 * pace_follow(&r, 16).rate_factor, pace_follow(&r, 16).momentum);
}

/* --- staleness */

static void the_rate_is_divided_by_the_staleness_where_that_is_asked_for(void **state)
{
    (void)state;
    struct pace_rule r = {.rate = 0.3, .momentum = 0.5};
    for (int divides = 0; divides < 2; divides++) {
        struct pace p;
        r.divides = divides;
        pace_init(&p, &r);
        for (uint64_t staleness = 0; staleness < 40; staleness++) {
            float rate, momentum;
            pace_step(&p, 0, staleness, &rate, &momentum);
            assert_true(rate == (float)(divides && staleness ? 0.3 / (double)staleness : 0.3));
            assert_true(momentum == 0.5f);
        }
    }
}

/* SGD whose steps are divided by their staleness, beside a loop in double precision. A weight is rounded once
 * per step, to either side alike: 1 + sqrt(100) ulps are allowed. */
static void divided_steps_are_the_formula_over_100_steps(void **state)
{
    (void)state;
    const struct pace_rule pace_rule = {.rate = 0.3, .divides = true};
    const struct update_rule rule = {.type = OPTIMIZER_SGD};
    struct pace p;
    float w[12], g[12];
    double exact[12];
    pace_init(&p, &pace_rule);
    for (int i = 0; i < 12; i++) exact[i] = w[i] = ((float)i - 5.5f) / 8;
    for (uint64_t t = 0; t < 100; t++) {
        uint64_t staleness = t * 5 % 7;
        struct update_step s = {.number = t + 1};
        for (int i = 0; i < 12; i++) {
            g[i] = (float)((t * 37 + (uint64_t)i * 11) % 64) / 32 - 1;
            exact[i] -= 0.3 / (staleness > 1 ? (double)staleness : 1) * g[i];
        }
        pace_step(&p, 0, staleness, &s.rate, &s.momentum);
        update_apply(&rule, &s, &(struct update_block){.g = g, .weights = w, .n = 12});
    }
    for (int i = 0; i < 12; i++)
        assert_true(fabs(w[i] - exact[i]) <= 11 * FLT_EPSILON * fmax(1, fabs(exact[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_constant_rate_stays),
        cmocka_unit_test(halving_begins_with_its_epoch),
        cmocka_unit_test(newbob_waits_until_it_is_told),
        cmocka_unit_test(an_exponential_rate_is_smooth_in_frames),
        cmocka_unit_test(a_warm_up_is_a_line_from_a_first_step_that_is_not_zero),
        cmocka_unit_test(the_rule_comes_from_the_configuration),
        cmocka_unit_test(only_asynchronous_sgd_follows_the_workers),
        cmocka_unit_test(one_worker_has_the_numbers_of_the_job_file_bit_for_bit),
        cmocka_unit_test(the_setting_for_many_workers_is_the_recommended_one),
        cmocka_unit_test(the_warm_up_of_many_workers_is_theirs),
        cmocka_unit_test(the_first_number_of_workers_takes_effect_at_once),
        cmocka_unit_test(a_change_of_workers_takes_effect_in_a_line),
        cmocka_unit_test(a_change_in_mid_ramp_begins_where_the_ramp_is),
        cmocka_unit_test(back_to_one_worker_is_a_ramp_that_ends_exactly),
        cmocka_unit_test(what_changes_nothing_is_told_so),
        cmocka_unit_test(a_ramp_is_at_least_one_frame),
        cmocka_unit_test(the_rate_is_divided_by_the_staleness_where_that_is_asked_for),
        cmocka_unit_test(divided_steps_are_the_formula_over_100_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
