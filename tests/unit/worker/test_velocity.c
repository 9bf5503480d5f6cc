/* Momentum that a worker keeps: with one worker the bits of momentum on the servers; nothing where it is not
 * wanted. */
#include "common/err.h"
#include "common/rng.h"
#include "server/update.h"
#include "worker/velocity.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define N    1000
#define SEED 97

static struct config job(enum optimizer_type type, enum momentum_place at)
{
    struct config c;
    config_default(&c);
    c.optimizer.type = type;
    c.optimizer.momentum = 0.85;
    c.optimizer.momentum_at = at;
    return c;
}

/* Weights after 100 steps of random gradients, and what the servers hold beside them. */
static void train(const struct config *c, float *weights)
{
    struct rng r;
    struct velocity v;
    struct update_rule rule;
    float g[N], *slot = xaligned(N * sizeof *slot);
    rng_init(&r, SEED);
    velocity_init(&v, c, N);
    update_rule_from(c, &rule);
    for (int i = 0; i < N; i++) weights[i] = rng_range(&r, -1, 1);
    for (uint64_t step = 1; step <= 100; step++) {
        for (int i = 0; i < N; i++) g[i] = (float)rng_normal(&r);
        velocity_apply(&v, g);
        struct update_step s = {0.01f, (float)c->optimizer.momentum, step};
        struct update_block b = {.g = g, .weights = weights, .n = N};
        if (update_slots(&rule)) b.momentum = slot;
        update_apply(&rule, &s, &b);
    }
    velocity_fini(&v);
    free(slot);
}

static void one_worker_has_the_bits_of_momentum_on_the_servers(void **state)
{
    (void)state;
    print_message("seed %d\n", SEED);
    const enum optimizer_type types[] = {OPTIMIZER_MOMENTUM, OPTIMIZER_NESTEROV};
    float here[N], there[N], other[N];
    for (int i = 0; i < 2; i++) {
        struct config a = job(types[i], MOMENTUM_AT_WORKER), b = job(types[i], MOMENTUM_AT_SERVER);
        train(&a, here);
        train(&b, there);
        assert_memory_equal(here, there, sizeof here);
        if (i == 0) memcpy(other, here, sizeof here);
        config_free(&a);
        config_free(&b);
    }
    assert_memory_not_equal(here, other, sizeof here); /* the two kinds differ */
}

static void where_the_servers_have_it_or_nobody_the_gradient_stays(void **state)
{
    (void)state;
    for (int type = OPTIMIZER_SGD; type <= OPTIMIZER_ADAMW; type++) {
        struct config c = job((enum optimizer_type)type, MOMENTUM_AT_WORKER);
        bool has = type == OPTIMIZER_MOMENTUM || type == OPTIMIZER_NESTEROV;
        struct velocity v;
        float g[2] = {1, -2};
        for (int at = MOMENTUM_AT_WORKER; at <= MOMENTUM_AT_SERVER; at++) {
            c.consistency.mode = CONSISTENCY_BSP;
            assert_false(config_momentum_is_on_worker(&c));
            c.consistency.mode = at ? CONSISTENCY_SSP : CONSISTENCY_ASYNC;
            c.optimizer.momentum_at = (enum momentum_place)at;
            bool here = has && at == MOMENTUM_AT_WORKER;
            assert_true(config_momentum_is_on_worker(&c) == here);
            assert_int_equal(config_server_optimizer(&c), here ? OPTIMIZER_SGD : type);
            velocity_init(&v, &c, 2);
            assert_true((v.values != NULL) == here);
            if (!here) velocity_apply(&v, g);
            velocity_fini(&v);
        }
        assert_true(g[0] == 1 && g[1] == -2);
        config_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_worker_has_the_bits_of_momentum_on_the_servers),
        cmocka_unit_test(where_the_servers_have_it_or_nobody_the_gradient_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
