#include "server/coordinator/change.h"

#include "common/log.h"
#include "server/coordinator/epochs.h"

uint32_t change_from(const struct coordinator *c)
{
    return c->change.wanted ? c->change.from : UINT32_MAX;
}

/* More epochs than before help, but where newbob has ended the training. */
bool change_has_epoch(const struct coordinator *c)
{
    bool more = c->limit == c->o.epochs && c->change.to.epochs > c->change.from;
    return c->change.wanted && (c->change.from < c->limit || more);
}

bool change_is_settled(const struct coordinator *c)
{
    if (!change_has_epoch(c) || c->interrupt_at || epochs_turned(c) < c->change.from) return false;
    for (uint32_t i = 0; i < c->change.from; i++)
        if (!c->epochs[i].evaluated) return false;
    return c->num_evals == 0;
}

void change_check(struct coordinator *c)
{
    if (c->command != COMMAND_RUN || !c->sets.has_settled || c->sets.phase != SET_NONE) return;
    if (!change_is_settled(c)) return;
    c->restore = c->switched = true;
    rows_job(c); /* whoever takes up the journal goes on with leaving */
    coordinate_command_all(c, COMMAND_INTERRUPT);
}

void coordinate_change(struct coordinator *c, uint64_t now, const struct coordinate_next *next)
{
    c->now = now;
    if (next && !c->change.wanted) {
        c->change.from = epochs_first_unleased(c);
        c->sets.has_settled = c->sets.settled = false;
    }
    c->change.wanted = next != NULL;
    if (next) c->change.to = *next;
    log_event(LOG_INFO, next ? "change_waits" : "change_gone", "\"after_epoch\":%u", c->change.from);
}

bool coordinate_switched(const struct coordinator *c)
{
    return c->switched;
}
