/* How far apart the first and the last CPU are. On a virtual machine the host may move them under a running
 * bench: 60 to 90 ns where they share a cache, some 350 ns where they do not, and then whatever two threads
 * hand to each other takes two to three times as long. */
#include "common/clock.h"
#include "common/err.h"
#include "tests/bench/exchange/anchors.h"

#include <pthread.h>
#include <stdatomic.h>

static _Alignas(64) atomic_uint ball;

static void *other_side(void *rounds)
{
    process_pin(true);
    for (unsigned i = 0; i < *(unsigned *)rounds; i++) {
        while (atomic_load(&ball) != 2 * i + 1) continue;
        atomic_store(&ball, 2 * i + 2);
    }
    return NULL;
}

void anchor_cores(const struct ends *e, const void *arg)
{
    (void)arg;
    struct order o;
    while (process_next(e, true, &o) && o.type == ORDER_RUN) {
        pthread_t other;
        process_pin(false);
        atomic_store(&ball, 0);
        ASSERT(pthread_create(&other, NULL, other_side, &o.count) == 0);
        struct report r = {.count = o.count};
        for (unsigned i = 0; i < o.count; i++) {
            if (i == 1) r.begin_ns = clock_now_ns(); /* the other one is there */
            atomic_store(&ball, 2 * i + 1);
            while (atomic_load(&ball) != 2 * i + 2) continue;
        }
        r.end_ns = clock_now_ns();
        pthread_join(other, NULL);
        process_tell(e, &r);
    }
}

double anchor_cores_ns(const struct process *p)
{
    struct report r = process_do(p, ORDER_RUN, 0, 20000);
    return (double)(r.end_ns - r.begin_ns) / (double)(r.count - 1);
}
