/* Answers that the socket could not take at once: its queue to a peer is short (DESIGN section 4), and where
 * all workers step together one complete block releases an answer for each. They wait here, bounded in number
 * for each peer and in all, and in time; what does not fit is dropped, and the worker's resend brings it
 * back. So a peer that stops reading costs no more than `limit` blocks, and the others nothing. One thread.
 */
#ifndef SERVER_OUTBOX_H
#define SERVER_OUTBOX_H

#include "common/wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct outbox;

/* limit: so many answers with a payload wait for one peer, and so many without, at most. */
struct outbox *outbox_new(struct wire *w, uint32_t limit);
void outbox_free(struct outbox **b);
/* Sends, or keeps for outbox_flush. Takes *payload (may be NULL or point to NULL). */
void outbox_send(struct outbox *b, uint64_t peer, const struct msg *m, struct frame **payload);
/* Tries what waits, in order. True: some still waits. */
bool outbox_flush(struct outbox *b);
/* As many answers with a payload as may be wait for that peer. */
bool outbox_is_crowded(const struct outbox *b, uint64_t peer);
uint64_t outbox_dropped(const struct outbox *b);

#endif
