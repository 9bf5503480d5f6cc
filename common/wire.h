/* Sockets. A message is a header (struct msg) and perhaps one frame of bytes. wire.c alone sees libzmq:
 * ROUTER where a process binds, DEALER for each connection; options as DESIGN section 4 says. Frames work
 * without any socket, so the cores and the simulator use them too. One thread per wire; a lent frame's
 * release runs on another thread. */
#ifndef COMMON_WIRE_H
#define COMMON_WIRE_H

#include "common/msg.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- frames: bytes with one owner */
struct frame;

struct frame *frame_new(size_t len); /* not zeroed */
struct frame *frame_copy(const void *data, size_t len);
/* Borrows data until release(data, ctx) is called, perhaps on another thread; release may be NULL. */
struct frame *frame_lend(void *data, size_t len, void (*release)(void *data, void *ctx), void *ctx);
void *frame_data(struct frame *f); /* aligned to 8; of a lent one: as it was lent */
size_t frame_len(struct frame *f);
void frame_free(struct frame **f); /* accepts NULL */
/* XXH3, 64 bits. */
uint64_t wire_hash(const void *data, size_t len);
/* Keeps freed pages (DESIGN section 4): call once at the start of main, before any thread. */
void wire_keep_pages(void);
/* The version of libzmq in use: "4.3.4". */
void wire_library(char *out, size_t size);

/* --- sockets */
struct wire;

#define WIRE_ROUTER (-1) /* the link of the bound socket */

struct wire *wire_new(void);
/* Waits at most 1 s for what was sent to leave. Accepts NULL. */
void wire_free(struct wire **w);
/* Binds the ROUTER, once, to a numeric loopback address (without keys nothing else is allowed), any port;
 * endpoint_out gets "tcp://127.0.0.1:40123". ERR_REACH with a sentence. */
int wire_bind(struct wire *w, const char *address, char endpoint_out[MSG_MAX_ENDPOINT]);
/* A new DEALER; returns its link (>= 0) or ERR_REACH for an endpoint that makes no sense. Connects in the
 * background. */
int wire_connect(struct wire *w, const char *endpoint);
void wire_close(struct wire *w, int link);
/* Sends without waiting. Takes *payload (NULL or pointing to NULL = none) if it returns 0. ERR_AGAIN: the
 * queue is full or nobody is connected, nothing was sent, *payload is still the caller's. ERR_REACH: that
 * peer of the ROUTER is gone; *payload is still the caller's. peer is for the ROUTER alone. */
int wire_send(struct wire *w, int link, uint64_t peer, const struct msg *m, struct frame **payload);
/* The next message of any link, waiting up to timeout_ms (0 = not at all). 0, or ERR_AGAIN if none came (also
 * after a signal or an event of wire_watch). *payload is the caller's, NULL if there is none. What is not a
 * message is counted and dropped; a message of another protocol version is answered with REFUSED if it came
 * to the ROUTER. *peer is 0 for a DEALER. */
int wire_receive(struct wire *w, int timeout_ms, int *link, uint64_t *peer, struct msg *m,
                 struct frame **payload);
/* A file descriptor (an eventfd or pipe) that also ends the wait of wire_receive; -1 = none. */
void wire_watch(struct wire *w, int fd);
uint64_t wire_dropped(const struct wire *w);
/* Bytes of payload sent and received. */
void wire_traffic(const struct wire *w, uint64_t *sent, uint64_t *received);

#endif
