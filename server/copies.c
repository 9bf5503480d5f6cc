#include "server/copies.h"

#include "common/err.h"

void copies_fini(struct copies *c)
{
    for (uint32_t i = 0; i < c->num; i++) shard_state_free(&c->list[i].state);
    c->num = 0;
}

const struct shard_state *copies_find(const struct copies *c, uint32_t set)
{
    for (uint32_t i = 0; i < c->num; i++)
        if (c->list[i].set == set) return c->list[i].state;
    return NULL;
}

static bool is_wanted(const struct copies *c, uint32_t set, uint32_t keep_set)
{
    uint32_t newer = 0;
    for (uint32_t i = 0; i < c->num; i++) newer += c->list[i].is_kept && c->list[i].set > set;
    if (newer == 0 || set == keep_set) return true;
    return keep_set > 0 && set > keep_set && newer < COPIES_KEPT - 2;
}

static bool is_in_use(const struct copies *c, const struct copy *k)
{
    return k->is_kept || (c->in_use && c->in_use(c->ctx, k->state));
}

void copies_drop(struct copies *c, uint32_t keep_set)
{
    for (uint32_t i = 0; i < c->num; i++) {
        struct copy *k = &c->list[i];
        if (!k->is_kept || is_wanted(c, k->set, keep_set)) continue;
        shard_keep(c->shard, k->set, NULL);
        k->is_kept = false;
    }
    for (uint32_t i = 0; i < c->num;) {
        struct copy *k = &c->list[i];
        if (is_in_use(c, k)) {
            i++;
            continue;
        }
        shard_state_free(&k->state);
        *k = c->list[--c->num];
    }
}

struct shard_state *copies_add(struct copies *c, uint32_t set)
{
    ASSERT(c->num < COPIES_KEPT + 2);
    struct shard_state *state = shard_copy(c->shard);
    c->list[c->num++] = (struct copy){.set = set, .state = state, .is_kept = true};
    shard_keep(c->shard, set, state);
    return state;
}
