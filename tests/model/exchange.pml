/* One block of one shard, its members, and a network that loses, doubles and reorders: exactly once.
 * Source: DESIGN sections 4 and 6, promise 1. What the code has and this has too: the table of last sequence
 * numbers, HELLO, the generation of the shard, snapshots that are copied first and written later, the stable
 * watermark in every answer, resends of the same seq, falls of the server.
 *
 * A member that dies is one that takes no further step; one that joins later is one that starts late: every
 * interleaving of the processes below has both in it.
 *
 * Mutations (each must give an error): NO_TABLE_IN_SNAPSHOT, GENERATION_NOT_PERSISTED,
 * STABLE_BEFORE_WRITTEN, NO_DUPLICATE_CHECK, and NO_RESEND with LIVE. */
#ifndef FALLS
#define FALLS 2
#endif
#ifndef W
#define W 2 /* members */
#endif
#ifndef DOUBLES
#define DOUBLES 1
#endif
#ifndef N
#define N 2
#endif
/* pushes of each: seq 1..N; push number of (w, s) = w * N + s - 1 */
#ifndef LOSSES
#define LOSSES 1
#endif
#ifndef COPIES
#define COPIES 2
#endif
#define AT(w, s) ((w) * N + ((s) > N -> 0 : (s) - 1))

mtype = { OK, FENCED, STRANGER, WELCOME };

/* the server: in memory, the copy on its way to the disk, on the disk */
byte applied[W * N], pend[W * N], snap[W * N];
byte last[W], pend_last[W], snap_last[W]; /* the table; KNOWN(w): an entry exists */
bool known[W], pend_known[W], snap_known[W];
byte watermark[W]; /* what answers say is stable */
bool writing;
byte gen = 1, snap_gen = 1, journal_gen = 1; /* the coordinator's journal */
byte falls, copies, losses, doubles;

/* what the members know; ghosts of the proof */
byte acked[W * N];    /* generation of the answer, 0 = none */
bool believed[W * N]; /* acknowledged as stable */
byte mark[W];         /* largest watermark ever answered */
bool ended[W];

chan net = [2] of { byte, byte, byte };         /* member, seq (0 = HELLO), generation */
chan back[W] = [1] of { mtype, byte, byte, byte }; /* verdict, seq, generation, stable */

#define ONCE(w, s) ((s) > N || applied[AT(w, s)] <= 1)
#define HELD(w, s) ((s) > N || !believed[AT(w, s)] || applied[AT(w, s)] == 1)
#define CHECK(w)                                                                                        \
    assert(ONCE(w, 1) && ONCE(w, 2));      /* none is ever applied twice */                             \
    assert(HELD(w, 1) && HELD(w, 2));      /* what was acknowledged as stable is there, after falls too */ \
    assert(mark[w] <= last[w])             /* and no answer takes a watermark back */

inline answer(w, verdict, s)
{
    if
    :: nfull(back[w]) -> back[w]!verdict, s, gen, watermark[w]
    :: full(back[w]) /* lost: the queue of a slow member */
    :: losses < LOSSES -> losses++
    fi
}

inline apply(w, s)
{
    applied[AT(w, s)]++;
    last[w] = s
}

proctype server()
{
    byte w, s, g, i;
end:
    do
    :: atomic {
           net?w, s, g ->
           if
           :: s == 0 -> known[w] = true; answer(w, WELCOME, 0)
           :: s > 0 && !known[w] -> answer(w, STRANGER, s)
           :: s > 0 && known[w] && g != gen -> answer(w, FENCED, s)
           :: s > 0 && known[w] && g == gen && s > last[w] -> apply(w, s); CHECK(w); answer(w, OK, s)
           :: s > 0 && known[w] && g == gen && s == last[w] ->
#ifdef NO_DUPLICATE_CHECK
               apply(w, s); CHECK(w);
#endif
               answer(w, OK, s)
           :: s > 0 && known[w] && g == gen && s < last[w] -> skip /* dropped */
           fi;
           w = 0; s = 0; g = 0
       }
    :: atomic { /* a copy in memory */
           !writing && copies < COPIES -> copies++; writing = true;
           d_step {
               i = 0;
               do
               :: i < W * N -> pend[i] = applied[i]; i++
               :: else -> break
               od;
               i = 0;
               do
               :: i < W -> pend_last[i] = last[i]; pend_known[i] = known[i];
#ifdef STABLE_BEFORE_WRITTEN
                   watermark[i] = last[i];
#endif
                   i++
               :: else -> break
               od;
               i = 0
           }
       }
    :: atomic { /* written: fsync, rename */
           writing -> writing = false;
           d_step {
               do
               :: i < W * N -> snap[i] = pend[i]; pend[i] = 0; i++
               :: else -> break
               od;
               i = 0;
               do
               :: i < W -> snap_last[i] = pend_last[i]; snap_known[i] = pend_known[i];
                   watermark[i] = pend_last[i]; pend_last[i] = 0; pend_known[i] = false; i++
               :: else -> break
               od;
               i = 0;
               snap_gen = gen
           }
       }
    :: atomic { /* kill -9, and the restore; a copy not yet written is gone */
           falls < FALLS -> falls++; writing = false;
           d_step {
               do
               :: i < W * N -> applied[i] = snap[i]; pend[i] = 0; i++
               :: else -> break
               od;
               i = 0;
               do
               :: i < W ->
#ifdef NO_TABLE_IN_SNAPSHOT
                   last[i] = 0; known[i] = false;
#else
                   last[i] = snap_last[i]; known[i] = snap_known[i];
#endif
                   watermark[i] = last[i]; pend_last[i] = 0; pend_known[i] = false; i++
               :: else -> break
               od;
               i = 0;
#ifdef GENERATION_NOT_PERSISTED
               gen = snap_gen + 1; /* counted on from the file, so twice the same after two falls */
#else
               journal_gen++; /* on disk before the first answer */
               gen = journal_gen;
#endif
           }
           i = 0;
           do
           :: i < W -> CHECK(i); i++
           :: else -> break
           od;
           i = 0
       }
    od
}

proctype network()
{
    byte w, s, g;
end:
    do
    :: atomic { losses < LOSSES && nempty(net) -> losses++; net?w, s, g; w = 0; s = 0; g = 0 }
    :: atomic { doubles < DOUBLES && len(net) == 1 -> doubles++; net?w, s, g; net!w, s, g; net!w, s, g; w = 0; s = 0; g = 0 }
#ifndef LIVE
    :: atomic { len(net) == 2 -> net?w, s, g; net!w, s, g; w = 0; s = 0; g = 0 }
#endif
    od
}

proctype member(byte me)
{
    byte seq = 1, mine = 0, s, g, t, i; /* mine: generation from WELCOME, 0 = say HELLO */
    mtype v;
    bool sent;
    do
    :: seq > N -> break
    :: atomic { seq <= N && mine == 0 && nfull(net) && !sent -> net!me, 0, 0; sent = true }
    :: atomic { seq <= N && mine > 0 && nfull(net) && !sent -> net!me, seq, mine; sent = true }
#ifndef NO_RESEND
    /* the deadline: safety lets it pass at any time, liveness once nothing is on the way */
#ifdef LIVE
    :: atomic { seq <= N && sent && empty(net) && empty(back[me]) -> sent = false }
#else
    :: atomic { seq <= N && sent -> sent = false }
#endif
#endif
    :: atomic {
           back[me]?v, s, g, t ->
           if
           :: v == WELCOME && mine == 0 -> mine = g; sent = false
           :: (v == STRANGER || v == FENCED) && s == seq && g != mine && mine > 0 -> /* lost: not sent again */
               mine = 0; seq++; sent = false
           :: v == STRANGER && s == seq && g == mine -> mine = 0; sent = false
           :: v == OK && s == seq && g == mine -> acked[AT(me, s)] = g; seq++; sent = false
           :: else
           fi;
           if
           :: t > mark[me] -> mark[me] = t
           :: else
           fi;
           i = 1;
           do
           :: i <= N && i <= t ->
               if
               :: acked[AT(me, i)] == g && g > 0 -> believed[AT(me, i)] = true
               :: else
               fi;
               i++
           :: else -> break
           od;
           CHECK(me);
           s = 0; g = 0; t = 0; i = 0; v = OK
       }
    od;
    ended[me] = true;
#ifdef REACH
    assert(!(acked[AT(me, 1)] == 3 && believed[AT(me, 1)])) /* this can happen: two falls, and still stable */
#endif
end:
    do /* later answers may still move the watermark */
    :: atomic {
           back[me]?v, s, g, t ->
           if
           :: t > mark[me] -> mark[me] = t
           :: else
           fi;
           if
           :: t >= 1 && acked[AT(me, 1)] == g -> believed[AT(me, 1)] = true
           :: else
           fi;
           if
           :: N >= 2 && t >= 2 && acked[AT(me, 2)] == g -> believed[AT(me, 2)] = true
           :: else
           fi;
           CHECK(me);
           s = 0; g = 0; t = 0; v = OK
       }
    od
}

init
{
    atomic {
        run server();
        run network();
        run member(0);
#if W > 1
        run member(1)
#endif
    }
}

#ifdef LIVE
#if W > 1
ltl ends { <> (ended[0] && ended[1]) }
#else
ltl ends { <> ended[0] }
#endif
#endif
