/* Random numbers: xoshiro256** seeded by splitmix64 (Blackman and Vigna). The same seed gives the same
 * numbers on every machine. One thread per generator. */
#ifndef COMMON_RNG_H
#define COMMON_RNG_H

#include <stddef.h>
#include <stdint.h>

struct rng {
    uint64_t s[4];
};

void rng_init(struct rng *r, uint64_t seed);
/* A seed for the use `what` of item `index` under `seed`: streams that do not overlap. */
uint64_t rng_derive(uint64_t seed, uint64_t what, uint64_t index);
uint64_t rng_next(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t n);         /* uniform in 0..n-1, n > 0 */
double rng_uniform(struct rng *r);                     /* [0, 1) */
float rng_range(struct rng *r, float low, float high); /* [low, high) */
double rng_normal(struct rng *r);                      /* mean 0, variance 1 */
/* The order of n items in an epoch: perm[0..n-1] becomes a permutation that depends on seed and epoch alone.
 */
void rng_epoch_order(uint64_t seed, uint64_t epoch, uint32_t *perm, size_t n);

#endif
