#include "common/clock.h"
#include "worker/member_state.h"

#include <string.h>

#define FULL_NS (10 * NS_PER_MS) /* the queue is full or nobody is there */

/* --- sending; every function returns when to send again */

static uint64_t post(struct member *m, uint64_t now, uint64_t again, struct msg *msg, struct frame *payload)
{
    msg->job = m->o.job;
    bool sent = m->io.send(m->io.ctx, msg, &payload);
    if (!sent) frame_free(&payload);
    return now + (sent ? again : FULL_NS);
}

static uint64_t send_join(struct member *m, uint64_t now)
{
    struct msg msg = {.type = MSG_JOIN};
    msg.join.role = ROLE_WORKER;
    msg.join.member = m->number;
    memcpy(msg.join.host, m->o.host, sizeof msg.join.host);
    msg.join.pid = m->o.pid;
    msg.join.model_hash = m->o.model_hash;
    return post(m, now, m->o.retry_ns, &msg, NULL);
}

static uint64_t send_beat(struct member *m, uint64_t now)
{
    struct msg msg = {.type = MSG_BEAT};
    msg.beat.role = ROLE_WORKER;
    msg.beat.member = m->number;
    msg.beat.incarnation = m->incarnation;
    msg.beat.seq =
        m->give.data != NULL ? m->give.seq : m->progress.seq; /* of the capsule, so that sets agree */
    msg.beat.frames = m->progress.frames;
    msg.beat.frames_per_s = m->progress.frames_per_s;
    msg.beat.staleness_mean = m->progress.staleness_mean;
    msg.beat.holding = m->give.data != NULL && !member_giving(m) ? m->give.set : 0;
    return post(m, now, m->o.beat_ns, &msg, NULL);
}

static uint64_t send_map_ask(struct member *m, uint64_t now)
{
    struct msg msg = {.type = MSG_MAP_ASK, .map_ask = {m->number, m->stage.count}};
    return post(m, now, m->o.retry_ns, &msg, NULL);
}

static bool may_ask(const struct member *m)
{
    return m->asking || (m->want && m->queue_len < m->o.max_leases && m->num_reports < MEMBER_MAX_USED / 2);
}

/* The same request until it is answered: the coordinator may have granted it already. */
static uint64_t send_lease_ask(struct member *m, uint64_t now)
{
    if (!m->asking) {
        m->request++;
        m->asking = true;
        m->fresh = true;
    }
    struct msg msg = {.type = MSG_LEASE_ASK, .lease_ask = {m->number, m->request}};
    return post(m, now, m->o.retry_ns, &msg, NULL);
}

static uint64_t send_used(struct member *m, uint64_t now, const struct msg_used *u)
{
    struct msg msg = {.type = MSG_USED, .used = *u};
    msg.used.member = m->number;
    return post(m, now, m->o.retry_ns, &msg, NULL);
}

static uint64_t send_page(struct member *m, uint64_t now)
{
    const struct give *g = &m->give;
    uint64_t len = g->len - g->have < MEMBER_PAGE ? g->len - g->have : MEMBER_PAGE;
    struct msg msg = {.type = MSG_CAPSULE};
    msg.capsule = (struct msg_capsule){.member = m->number,
                                       .set = g->set,
                                       .attempt = g->attempt,
                                       .request = g->request,
                                       .offset = g->have,
                                       .total = g->len,
                                       .hash = wire_hash(g->data + g->have, (size_t)len)};
    return post(m, now, m->o.retry_ns, &msg, frame_copy(g->data + g->have, (size_t)len));
}

static uint64_t send_capsule_ask(struct member *m, uint64_t now)
{
    struct msg msg = {.type = MSG_CAPSULE_ASK, .capsule_ask = {m->number, m->capsule_have}};
    return post(m, now, m->o.retry_ns, &msg, NULL);
}

void member_tick(struct member *m, uint64_t now)
{
    if (m->trouble != 0 || m->left) return;
    if (!m->joined) {
        if (now >= m->join_at) m->join_at = send_join(m, now);
        return;
    }
    if (now >= m->beat_at) m->beat_at = send_beat(m, now);
    if (m->map_due && now >= m->map_at) m->map_at = send_map_ask(m, now);
    if (may_ask(m) && now >= m->ask_at) m->ask_at = send_lease_ask(m, now);
    for (int i = 0; i < m->num_reports; i++)
        if (now >= m->reports[i].at) m->reports[i].at = send_used(m, now, &m->reports[i].used);
    if (member_giving(m) && now >= m->give.at) m->give.at = send_page(m, now);
    if (member_fetching(m) && now >= m->capsule_at) m->capsule_at = send_capsule_ask(m, now);
}

static void earlier(uint64_t *next, bool counts, uint64_t at)
{
    if (counts && at < *next) *next = at;
}

uint64_t member_next(const struct member *m)
{
    if (m->trouble != 0 || m->left) return UINT64_MAX;
    if (!m->joined) return m->join_at;
    uint64_t next = m->beat_at;
    earlier(&next, m->map_due, m->map_at);
    earlier(&next, may_ask(m), m->ask_at);
    for (int i = 0; i < m->num_reports; i++) earlier(&next, true, m->reports[i].at);
    earlier(&next, member_giving(m), m->give.at);
    earlier(&next, member_fetching(m), m->capsule_at);
    return next;
}

void member_leave(struct member *m)
{
    struct msg msg = {.type = MSG_LEAVE, .leave = {m->number}};
    if (m->number != 0 && !m->left) (void)post(m, 0, 0, &msg, NULL);
    m->left = true;
}
