#include "server/link.h"

#include "common/clock.h"
#include "common/err.h"
#include "common/log.h"
#include "common/rendezvous.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PERIOD_NS NS_PER_S
#define RETRY_NS  (100 * NS_PER_MS) /* after a message that could not leave */
#define REJOIN_NS (3 * NS_PER_S)    /* of silence: perhaps it does not know us any more */
#define NO_LINK   (-2)

struct link {
    struct link_options o;
    struct wire *wire;
    int wire_link;
    struct rendezvous at;     /* that we are connected to */
    bool is_joined;           /* with that coordinator */
    struct msg_joined joined; /* member 0: never yet */
    uint32_t incarnation;
    uint64_t heard, due;
    struct msg_beat said;
};

struct link *link_new(const struct link_options *o, struct wire *w, uint64_t now)
{
    struct link *l = xcalloc(1, sizeof *l);
    *l = (struct link){.o = *o, .wire = w, .wire_link = NO_LINK, .heard = now, .due = now};
    return l;
}

void link_free(struct link **l)
{
    if (*l && (*l)->wire_link != NO_LINK) wire_close((*l)->wire, (*l)->wire_link);
    free(*l);
    *l = NULL;
}

/* ------------------------------------------------------------------ finding it */

static bool find_coordinator(const struct link *l, struct rendezvous *out)
{
    if (!l->o.coordinator) return rendezvous_find(l->o.run, out);
    *out = (struct rendezvous){.incarnation = 0};
    snprintf(out->endpoint, sizeof out->endpoint, "%s", l->o.coordinator);
    return true;
}

/* Connects to the coordinator that the file names, if it is another one than before. */
static void connect_newest(struct link *l)
{
    struct rendezvous at;
    if (!find_coordinator(l, &at)) return;
    if (l->wire_link != NO_LINK && rendezvous_same(&at, &l->at)) return;
    int to = wire_connect(l->wire, at.endpoint);
    if (to < 0) return;
    if (l->wire_link != NO_LINK) wire_close(l->wire, l->wire_link);
    l->wire_link = to;
    l->is_joined = false;
    l->at = at;
    log_event(LOG_DEBUG, "coordinator_found", "\"incarnation\":%u", at.incarnation);
}

/* ------------------------------------------------------------------ what we say */

static bool send_join(struct link *l)
{
    struct msg m = {.type = MSG_JOIN, .job = l->o.job};
    m.join = (struct msg_join){.role = ROLE_SERVER,
                               .member = l->joined.member,
                               .pid = (uint64_t)getpid(),
                               .shard = l->o.shard,
                               .generation = l->joined.generation,
                               .model_hash = l->o.model_hash,
                               .restored_set = l->o.restored_set};
    gethostname(m.join.host, sizeof m.join.host - 1);
    snprintf(m.join.endpoint, sizeof m.join.endpoint, "%s", l->o.endpoint);
    return wire_send(l->wire, l->wire_link, 0, &m, NULL) == 0;
}

static bool send_beat(struct link *l, const struct msg_beat *is)
{
    struct msg m = {.type = MSG_BEAT, .job = l->o.job};
    m.beat = *is;
    m.beat.role = ROLE_SERVER;
    m.beat.member = l->joined.member;
    m.beat.incarnation = l->incarnation;
    if (wire_send(l->wire, l->wire_link, 0, &m, NULL) < 0) return false;
    l->said = *is;
    return true;
}

static bool has_changed(const struct msg_beat *a, const struct msg_beat *b)
{
    return a->copied != b->copied || a->written != b->written || a->failed_set != b->failed_set ||
           a->roster != b->roster || a->halve_from != b->halve_from;
}

bool link_is_due(const struct link *l, uint64_t now, const struct msg_beat *is)
{
    /* a change that could not be said waits for its retry */
    return now >= l->due || (l->is_joined && l->due - now > RETRY_NS && has_changed(is, &l->said));
}

void link_tick(struct link *l, uint64_t now, const struct msg_beat *is)
{
    connect_newest(l);
    if (l->is_joined && now - l->heard > REJOIN_NS) l->is_joined = false;
    bool sent = l->wire_link != NO_LINK && (l->is_joined ? send_beat(l, is) : send_join(l));
    l->due = now + (sent ? PERIOD_NS : RETRY_NS);
}

void link_leave(struct link *l)
{
    struct msg m = {.type = MSG_LEAVE, .job = l->o.job};
    m.leave.member = l->joined.member;
    if (l->wire_link != NO_LINK && l->joined.member) wire_send(l->wire, l->wire_link, 0, &m, NULL);
}

/* ------------------------------------------------------------------ what it says */

bool link_owns(const struct link *l, int wire_link)
{
    return wire_link == l->wire_link;
}

static int receive_joined(struct link *l, const struct msg_joined *j)
{
    if (j->incarnation < l->incarnation) return LINK_NOTHING;
    bool is_first = l->joined.member == 0;
    if (!is_first && (j->generation != l->joined.generation || j->job_generation != l->joined.job_generation))
        return err_set(
            ERR_FAIL,
            "the coordinator has another life of shard %u (generation %u of job generation %u, here "
            "%u of %u): this process is of no use any more",
            l->o.shard, j->generation, j->job_generation, l->joined.generation, l->joined.job_generation);
    l->incarnation = j->incarnation;
    l->joined = *j;
    l->is_joined = true;
    l->due = 0; /* beat at once */
    return is_first ? LINK_JOINED : LINK_NOTHING;
}

static int receive_refused(struct link *l, const struct msg_refused *r)
{
    switch (r->reason) {
    case REFUSAL_MISMATCH:
        return err_set(ERR_MODEL, "the coordinator refuses this server: %s", r->text);
    case REFUSAL_RETIRED:
    case REFUSAL_FULL:
        return err_set(ERR_FAIL, "the coordinator refuses this server: %s", r->text);
    default: /* not ready, or it does not know us: JOIN, again and again */
        l->is_joined = false;
        return LINK_NOTHING;
    }
}

int link_receive(struct link *l, uint64_t now, const struct msg *m)
{
    if (m->job != l->o.job && m->type != MSG_REFUSED) return LINK_NOTHING;
    l->heard = now;
    switch (m->type) {
    case MSG_JOINED:
        return receive_joined(l, &m->joined);
    case MSG_REFUSED:
        return receive_refused(l, &m->refused);
    case MSG_ORDER:
        return l->is_joined && m->order.incarnation >= l->incarnation ? LINK_ORDER : LINK_NOTHING;
    default:
        return LINK_NOTHING;
    }
}

const struct msg_joined *link_joined(const struct link *l)
{
    return &l->joined;
}

uint64_t link_silence(const struct link *l, uint64_t now)
{
    return now > l->heard ? now - l->heard : 0;
}
