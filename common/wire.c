#include "common/wire.h"

#include "common/clock.h"
#include "common/err.h"

#include <arpa/inet.h>
#include <errno.h>
#include <malloc.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zmq.h>
#if defined __x86_64__ && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h> /* the same hash by the widest registers of this CPU: three times as fast */
#endif

/* --- frames: a frame is a message part of libzmq, so that what was received goes out again without a copy */
struct frame {
    zmq_msg_t part;
};

/* What libzmq cannot allocate for us ends the process as xcalloc does. */
static struct frame *frame_container(void)
{
    struct frame *f = malloc(sizeof *f);
    ASSERT(f);
    return f;
}

struct frame *frame_new(size_t len)
{
    struct frame *f = frame_container();
    int rc = zmq_msg_init_size(&f->part, len);
    ASSERT(rc == 0);
    return f;
}

struct frame *frame_copy(const void *data, size_t len)
{
    struct frame *f = frame_new(len);
    if (len) memcpy(frame_data(f), data, len);
    return f;
}

struct frame *frame_lend(void *data, size_t len, void (*release)(void *data, void *ctx), void *ctx)
{
    struct frame *f = frame_container();
    int rc = zmq_msg_init_data(&f->part, data, len, release, ctx);
    ASSERT(rc == 0);
    return f;
}

void *frame_data(struct frame *f)
{
    return zmq_msg_data(&f->part);
}

size_t frame_len(struct frame *f)
{
    return zmq_msg_size(&f->part);
}

void frame_free(struct frame **f)
{
    if (!*f) return;
    zmq_msg_close(&(*f)->part);
    free(*f);
    *f = NULL;
}

uint64_t wire_hash(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}

/* Frames of 1 MiB come and go with every exchange; by default each would be mapped and faulted in anew. glibc
 * before 2.35 allows no more than 32 MiB as the threshold, which is as good for frames of 1 MiB. */
void wire_keep_pages(void)
{
    if (!mallopt(M_MMAP_THRESHOLD, 1 << 30)) mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
    mallopt(M_TOP_PAD, 64 << 20);
}

void wire_library(char *out, size_t size)
{
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    snprintf(out, size, "%d.%d.%d", major, minor, patch);
}

/* --- sockets */
#define MAX_PARTS       2  /* header and payload */
#define TRIES_PER_CALL  64 /* that brought nothing of use; then the caller gets its turn again */
#define LOOK_AFTER      16 /* messages, then the sockets that had nothing are looked at */
#define MAX_FRAME       (MSG_MAX_PAYLOAD + MSG_MAX_HEADER)
#define QUEUE_PEER      8            /* messages of a ROUTER's peer, each way: they bound our memory */
#define QUEUE_OWN       32           /* of a DEALER: half a queue is one more wake-up of both threads */
#define SEND_BUFFER     (256 << 10)  /* what is on its way in the kernel; more leaves the caches */
#define ROUTER_ID_BYTES 5            /* what libzmq gives to a peer without an id of its own: 0 and 32 bits */
#define PEER_MARK       (1ull << 32) /* so that no peer is 0 */

/* To ask an empty socket costs system calls, and so does zmq_poll, for each. So a socket that has said that
 * it has nothing is left alone until its descriptor is readable; using it in any way may eat that sign. */
struct socket {
    void *at; /* NULL: closed */
    int fd;
    bool is_empty; /* it has said so since it was last used */
};

struct wire {
    void *context;
    struct socket *sockets; /* (count): the ROUTER, then link 0, 1, ... */
    struct pollfd *poll;    /* (count + 1) */
    int count;
    int turn;  /* the socket that is asked first */
    int since; /* messages since all were looked at */
    int watched;
    uint64_t dropped, sent, received;
};

static void make_room(struct wire *w, int count)
{
    w->sockets = realloc(w->sockets, (size_t)count * sizeof *w->sockets);
    w->poll = realloc(w->poll, ((size_t)count + 1) * sizeof *w->poll);
    ASSERT(w->sockets && w->poll);
    for (; w->count < count; w->count++) w->sockets[w->count] = (struct socket){NULL, -1, false};
}

struct wire *wire_new(void)
{
    struct wire *w = xcalloc(1, sizeof *w);
    w->context = zmq_ctx_new();
    ASSERT(w->context);
    zmq_ctx_set(w->context, ZMQ_IO_THREADS, 1);
    w->watched = -1;
    make_room(w, 1);
    return w;
}

static struct socket *socket_of(struct wire *w, int link)
{
    ASSERT(link >= WIRE_ROUTER && link + 1 < w->count && w->sockets[link + 1].at);
    return &w->sockets[link + 1];
}

static void take_socket(struct wire *w, int link, void *at)
{
    struct socket *s = &w->sockets[link + 1];
    size_t size = sizeof s->fd;
    s->at = at;
    s->is_empty = false;
    int rc = zmq_getsockopt(at, ZMQ_FD, &s->fd, &size);
    ASSERT(rc == 0);
}

static void set_option(void *socket, int option, int value)
{
    int rc = zmq_setsockopt(socket, option, &value, sizeof value);
    ASSERT(rc == 0);
}

/* six: IPv6, too; what listens then tells an IPv4 address as ::ffff:127.0.0.1. */
static void *new_socket(struct wire *w, int type, bool six)
{
    void *s = zmq_socket(w->context, type);
    if (!s) return NULL;
    int64_t largest = MAX_FRAME;
    int rc = zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &largest, sizeof largest);
    ASSERT(rc == 0);
    set_option(s, ZMQ_SNDHWM, type == ZMQ_ROUTER ? QUEUE_PEER : QUEUE_OWN);
    set_option(s, ZMQ_RCVHWM, type == ZMQ_ROUTER ? QUEUE_PEER : QUEUE_OWN);
    set_option(s, ZMQ_SNDBUF, SEND_BUFFER);
    set_option(s, ZMQ_LINGER, 1000);
    /* A host that has vanished is noticed within 10 s. Not by ZMQ_HEARTBEAT_*: libzmq 4.3.4 aborts the
     * process when that timer meets a peer that died while its messages filled our queue. */
    set_option(s, ZMQ_TCP_KEEPALIVE, 1);
    set_option(s, ZMQ_TCP_KEEPALIVE_IDLE, 2);
    set_option(s, ZMQ_TCP_KEEPALIVE_INTVL, 2);
    set_option(s, ZMQ_TCP_KEEPALIVE_CNT, 4);
    set_option(s, ZMQ_CONNECT_TIMEOUT, 2000);
    set_option(s, ZMQ_TCP_MAXRT, 15000);
    set_option(s, ZMQ_HANDSHAKE_IVL, 5000);
    set_option(s, ZMQ_RECONNECT_IVL, 50);
    set_option(s, ZMQ_RECONNECT_IVL_MAX, 2000);
    set_option(s, ZMQ_IPV6, six);
    return s;
}

/* Numbers alone: a name may lead anywhere. */
static bool is_loopback(const char *address)
{
    struct in_addr four;
    struct in6_addr six;
    if (inet_pton(AF_INET, address, &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, address, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

int wire_bind(struct wire *w, const char *address, char endpoint_out[MSG_MAX_ENDPOINT])
{
    ASSERT(!w->sockets[0].at);
    if (!is_loopback(address))
        return err_set(ERR_REACH, "cannot listen on %s: without keys only loopback is allowed; use 127.0.0.1",
                       address);
    char endpoint[MSG_MAX_ENDPOINT];
    snprintf(endpoint, sizeof endpoint, strchr(address, ':') ? "tcp://[%s]:*" : "tcp://%s:*", address);
    void *s = new_socket(w, ZMQ_ROUTER, strchr(address, ':') != NULL);
    if (!s) return err_set(ERR_REACH, "cannot open a socket: %s", zmq_strerror(errno));
    set_option(s, ZMQ_ROUTER_MANDATORY, 1);
    set_option(s, ZMQ_BACKLOG, 1024);
    size_t size = sizeof endpoint;
    if (zmq_bind(s, endpoint) || zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, endpoint, &size)) {
        int err = err_set(ERR_REACH, "cannot listen on %s: %s", address, zmq_strerror(errno));
        zmq_close(s);
        return err;
    }
    take_socket(w, WIRE_ROUTER, s);
    memcpy(endpoint_out, endpoint, sizeof endpoint);
    return 0;
}

static int free_link(struct wire *w)
{
    int i = 1;
    while (i < w->count && w->sockets[i].at) i++;
    if (i == w->count) make_room(w, i + 1);
    return i - 1;
}

/* libzmq looks at the port only when it connects. */
static bool is_endpoint(const char *text)
{
    const char *colon = strrchr(text, ':');
    if (strncmp(text, "tcp://", 6) != 0 || strlen(text) >= MSG_MAX_ENDPOINT || colon < text + 6) return false;
    size_t digits = strspn(colon + 1, "0123456789");
    long port = strtol(colon + 1, NULL, 10);
    return digits > 0 && colon[1 + digits] == 0 && port > 0 && port < 65536;
}

int wire_connect(struct wire *w, const char *endpoint)
{
    if (!is_endpoint(endpoint))
        return err_set(ERR_REACH, "'%.64s' is not an endpoint such as tcp://127.0.0.1:40123", endpoint);
    void *s = new_socket(w, ZMQ_DEALER, true);
    if (!s) return err_set(ERR_REACH, "cannot open a socket: %s", zmq_strerror(errno));
    set_option(s, ZMQ_IMMEDIATE, 1);
    if (zmq_connect(s, endpoint)) {
        int err = err_set(ERR_REACH, "cannot connect to '%s': %s", endpoint, zmq_strerror(errno));
        zmq_close(s);
        return err;
    }
    int link = free_link(w);
    take_socket(w, link, s);
    return link;
}

void wire_close(struct wire *w, int link)
{
    ASSERT(link >= 0);
    zmq_close(socket_of(w, link)->at);
    w->sockets[link + 1].at = NULL;
}

void wire_free(struct wire **w)
{
    struct wire *x = *w;
    if (!x) return;
    for (int i = 0; i < x->count; i++)
        if (x->sockets[i].at) zmq_close(x->sockets[i].at);
    while (zmq_ctx_term(x->context) && errno == EINTR) continue;
    free(x->sockets);
    free(x->poll);
    free(x);
    *w = NULL;
}

/* --- sending */
static int not_sent(void)
{
    if (errno == EHOSTUNREACH) return err_set(ERR_REACH, "the peer has gone");
    return ERR_AGAIN;
}

/* libzmq looks only once a millisecond whether its queue has become shorter: when it says full, it is asked
 * to look now. */
static int send_bytes(void *socket, const void *bytes, size_t len, int flags)
{
    int rc, events;
    size_t size = sizeof events;
    do rc = zmq_send(socket, bytes, len, flags | ZMQ_DONTWAIT);
    while (rc < 0 && errno == EINTR);
    if (rc < 0 && errno == EAGAIN && zmq_getsockopt(socket, ZMQ_EVENTS, &events, &size) == 0)
        rc = zmq_send(socket, bytes, len, flags | ZMQ_DONTWAIT);
    return rc < 0 ? not_sent() : 0;
}

/* The address of the ROUTER's peer is a part of its own; libzmq takes or refuses the whole message there. */
static int send_address(void *socket, uint64_t peer)
{
    uint8_t id[ROUTER_ID_BYTES] = {0};
    for (int i = 0; i < 4; i++) id[1 + i] = (uint8_t)(peer >> (8 * i));
    return send_bytes(socket, id, sizeof id, ZMQ_SNDMORE);
}

/* A failure here means that the connection died after the header: libzmq has rolled that back. */
static int send_payload(struct wire *w, void *socket, struct frame **payload)
{
    size_t len = frame_len(*payload);
    int rc;
    do rc = zmq_msg_send(&(*payload)->part, socket, ZMQ_DONTWAIT);
    while (rc < 0 && errno == EINTR);
    if (rc < 0) return not_sent();
    w->sent += len;
    free(*payload);
    *payload = NULL;
    return 0;
}

int wire_send(struct wire *w, int link, uint64_t peer, const struct msg *m, struct frame **payload)
{
    struct socket *s = socket_of(w, link);
    bool more = payload && *payload;
    ASSERT(!more || frame_len(*payload) <= MSG_MAX_PAYLOAD);
    uint8_t header[MSG_MAX_HEADER];
    size_t len = msg_encode(m, header);
    s->is_empty = false;
    int err = link == WIRE_ROUTER ? send_address(s->at, peer) : 0;
    if (!err) err = send_bytes(s->at, header, len, more ? ZMQ_SNDMORE : 0);
    if (!err && more) err = send_payload(w, s->at, payload);
    return err;
}

/* --- receiving */
struct parts {
    uint64_t peer;
    zmq_msg_t header, payload;
    int count; /* after the address */
    bool bad;
};

static int receive_part(void *socket, zmq_msg_t *part)
{
    int rc;
    do rc = zmq_msg_recv(part, socket, ZMQ_DONTWAIT);
    while (rc < 0 && errno == EINTR);
    return rc;
}

/* A peer that chose an id of its own is no worker of ours: 0. */
static uint64_t peer_of(zmq_msg_t *part)
{
    const uint8_t *id = zmq_msg_data(part);
    if (zmq_msg_size(part) != ROUTER_ID_BYTES || id[0] != 0) return 0;
    uint64_t peer = PEER_MARK;
    for (int i = 0; i < 4; i++) peer |= (uint64_t)id[1 + i] << (8 * i);
    return peer;
}

/* All parts of the next message, so that the socket stands at the start of another one afterwards. False:
 * there is none. What is more than two parts is thrown away while it is read. */
static bool receive_parts(void *socket, bool addressed, struct parts *p)
{
    zmq_msg_t extra;
    zmq_msg_init(&extra);
    zmq_msg_init(&p->header);
    zmq_msg_init(&p->payload);
    p->peer = 0;
    p->bad = false;
    bool any = false, address = addressed;
    int more = 1;
    for (p->count = 0; more; any = true) {
        zmq_msg_t *to = address || p->count >= MAX_PARTS ? &extra : p->count ? &p->payload : &p->header;
        if (receive_part(socket, to) < 0) break;
        more = zmq_msg_more(to);
        if (address) {
            p->peer = peer_of(to);
            p->bad = p->peer == 0;
        } else if (p->count < MAX_PARTS) {
            p->count++;
        } else {
            p->bad = true;
        }
        address = false;
    }
    zmq_msg_close(&extra);
    p->bad = p->bad || p->count == 0 || more;
    return any;
}

static void parts_close(struct parts *p)
{
    zmq_msg_close(&p->header);
    zmq_msg_close(&p->payload);
}

/* The payload as a frame of the caller's. Short ones may lie anywhere in libzmq's receive buffer: those are
 * copied, so that numbers in them are aligned. */
static struct frame *frame_of(struct wire *w, struct parts *p)
{
    if (p->count < 2) return NULL;
    void *data = zmq_msg_data(&p->payload);
    size_t len = zmq_msg_size(&p->payload);
    w->received += len;
    if ((uintptr_t)data % 8) return frame_copy(data, len);
    struct frame *f = frame_new(0);
    zmq_msg_move(&f->part, &p->payload);
    return f;
}

static void refuse_version(struct wire *w, uint64_t peer, uint64_t job)
{
    struct msg m;
    memset(&m, 0, sizeof m);
    m.type = MSG_REFUSED;
    m.job = job;
    m.refused.reason = REFUSAL_MISMATCH;
    snprintf(m.refused.text, sizeof m.refused.text, "%s", err_text());
    wire_send(w, WIRE_ROUTER, peer, &m, NULL);
}

/* 0: a message; ERR_AGAIN: nothing there; ERR_FAIL: there was something, it was dropped. */
static int receive_from(struct wire *w, int link, uint64_t *peer, struct msg *m, struct frame **payload)
{
    struct parts p;
    bool addressed = link == WIRE_ROUTER;
    struct socket *s = socket_of(w, link);
    s->is_empty = !receive_parts(s->at, addressed, &p);
    int err = ERR_AGAIN;
    if (!s->is_empty) err = p.bad || zmq_msg_size(&p.payload) > MSG_MAX_PAYLOAD ? ERR_FAIL : 0;
    if (!err) err = msg_decode(zmq_msg_data(&p.header), zmq_msg_size(&p.header), m);
    if (err == ERR_MODEL && addressed) refuse_version(w, p.peer, m->job);
    if (!err) {
        *peer = p.peer;
        *payload = frame_of(w, &p);
    }
    parts_close(&p);
    if (err == 0 || err == ERR_AGAIN) return err;
    w->dropped++;
    return ERR_FAIL;
}

/* Asks those that may have something, beginning after the one that had its turn last. As receive_from. */
static int receive_any(struct wire *w, int *link, uint64_t *peer, struct msg *m, struct frame **payload)
{
    for (int i = 0; i < w->count; i++) {
        int at = (w->turn + i) % w->count;
        if (!w->sockets[at].at || w->sockets[at].is_empty) continue;
        int err = receive_from(w, at - 1, peer, m, payload); /* WIRE_ROUTER is -1 */
        if (err == ERR_AGAIN) continue;
        w->turn = (at + 1) % w->count;
        *link = at - 1;
        return err;
    }
    return ERR_AGAIN;
}

/* True: a socket that was empty may have something. */
static bool wait_any(struct wire *w, int timeout_ms)
{
    bool any = false;
    for (int i = 0; i < w->count; i++) {
        bool is_empty = w->sockets[i].at && w->sockets[i].is_empty;
        w->poll[i] = (struct pollfd){.fd = is_empty ? w->sockets[i].fd : -1, .events = POLLIN};
    }
    w->poll[w->count] = (struct pollfd){.fd = w->watched, .events = POLLIN};
    w->since = 0;
    if (poll(w->poll, (nfds_t)w->count + 1, timeout_ms) <= 0) return false;
    for (int i = 0; i < w->count; i++) {
        if (w->poll[i].revents) w->sockets[i].is_empty = false;
        any = any || w->poll[i].revents;
    }
    return any;
}

int wire_receive(struct wire *w, int timeout_ms, int *link, uint64_t *peer, struct msg *m,
                 struct frame **payload)
{
    uint64_t end = clock_now_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * NS_PER_MS;
    if (++w->since >= LOOK_AFTER) wait_any(w, 0);
    for (int tries = 0; tries < TRIES_PER_CALL; tries++) {
        int err = receive_any(w, link, peer, m, payload);
        if (err == 0) return 0;
        uint64_t now = clock_now_ns(), left = now < end ? end - now : 0;
        if (err == ERR_AGAIN && !wait_any(w, (int)((left + NS_PER_MS - 1) / NS_PER_MS))) break;
    }
    return ERR_AGAIN;
}

void wire_watch(struct wire *w, int fd)
{
    w->watched = fd;
}

uint64_t wire_dropped(const struct wire *w)
{
    return w->dropped;
}

void wire_traffic(const struct wire *w, uint64_t *sent, uint64_t *received)
{
    *sent = w->sent;
    *received = w->received;
}
