#include "common/rng.h"

#include "common/err.h"

#include <math.h>

static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t rotate_left(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

void rng_init(struct rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) r->s[i] = splitmix(&seed);
}

uint64_t rng_derive(uint64_t seed, uint64_t what, uint64_t index)
{
    uint64_t state =
        seed ^ rotate_left(what * 0xd1342543de82ef95ull, 17) ^ rotate_left(index * 0xaf251af3b0f025b5ull, 41);
    splitmix(&state);
    return splitmix(&state);
}

uint64_t rng_next(struct rng *r)
{
    uint64_t *s = r->s;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t rng_below(struct rng *r, uint64_t n)
{
    ASSERT(n > 0);
    uint64_t limit = UINT64_MAX - UINT64_MAX % n; /* reject the uneven rest */
    uint64_t x;
    do x = rng_next(r);
    while (x >= limit);
    return x % n;
}

double rng_uniform(struct rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}

float rng_range(struct rng *r, float low, float high)
{
    return low + (high - low) * (float)(rng_next(r) >> 40) * 0x1p-24f;
}

double rng_normal(struct rng *r)
{
    double u = 1.0 - rng_uniform(r), v = rng_uniform(r); /* Box-Muller, u > 0 */
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

void rng_epoch_order(uint64_t seed, uint64_t epoch, uint32_t *perm, size_t n)
{
    struct rng r;
    rng_init(&r, rng_derive(seed, 0x65706f6368 /* "epoch" */, epoch));
    for (size_t i = 0; i < n; i++) perm[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) { /* Fisher and Yates */
        size_t j = (size_t)rng_below(&r, i);
        uint32_t t = perm[i - 1];
        perm[i - 1] = perm[j];
        perm[j] = t;
    }
}
