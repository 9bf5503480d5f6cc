/* bsp with a backup worker: block 0 decides who takes part in a step, a block of another shard follows the
 * tickets. Three members, of which two make a step; a network that loses, resends, answers that come late.
 * Source: DESIGN section 2, server/shard_bsp.c, worker/exchange.c. What the code has and this has too: RECEIVED
 * with the ticket and its step number, STALE with the last step made, READ of a block once it has made that step,
 * NOT_READY for a push of a later step, resends of the same seq answered from the stored verdict with the weights
 * of now. A message takes effect where it arrives, so one on its way, or lost, is one not sent yet; answers have
 * a way, and may be lost. A member that dies is one that takes no further step before its ticket: with one it is
 * waited for, and then everything is restored.
 *
 * Safety: each step is of the same pushes on both blocks, block 0 makes it first, no push is in two steps.
 * Liveness (LIVE): steps go on.
 * Mutations (each must give an error): NO_TICKETS (the other block takes who comes first), NO_STEP (it is the
 * version of the weights that tells of which step a push is; needs three steps), NO_DUPLICATE_CHECK, and with LIVE:
 * NO_RESEND, NOT_TOLD (who comes too late is not answered). */
#define M 3
#define Q 2
#ifndef STEPS
#define STEPS 2
#endif
#ifndef LOSSES
#define LOSSES 1 /* of answers */
#endif
#ifndef HASTY
#define HASTY 1 /* resends while the answer is on its way */
#endif
#define BLOCK0 0
#define BLOCK1 1

mtype = { RECEIVED, APPLIED, STALE, FOUND };

#define AT(b, m)      ((b) * M + (m))
#define PART(b, s, m) part[((b) * (STEPS + 1) + (s) - 1) * M + (m)]
#define SAME(s, m)    (PART(BLOCK1, s, m) == PART(BLOCK0, s, m))

/* the shards */
byte made[2], count[2]; /* steps made; pushes in the open one */
byte held[2 * M];       /* seq in the open step, 0: none */
byte last[2 * M];       /* seq that is decided */
bool was_stale[2 * M];  /* and its verdict */
byte ticket[M];         /* step of the last one */
/* ghosts and budgets */
byte part[2 * (STEPS + 1) * M]; /* seq of each member in each step */
byte losses, hasty;
bool over[M];

chan down[2 * M] = [1] of { mtype, byte, byte, byte }; /* verdict, seq, step, version of the weights */

/* With a ticket of block 0; STALE: with the last step made. */
inline answer(b, to, verdict, number)
{
    t = (verdict == STALE -> made[b] : (b == BLOCK0 -> ticket[to] : 0));
    if
    :: nfull(down[AT(b, to)]) -> down[AT(b, to)]!verdict, number, t, made[b]
    :: full(down[AT(b, to)])
    :: losses < LOSSES -> losses++
    fi;
    t = 0
}

/* A new seq that takes part: it waits for the others, or makes the step. */
inline take(b)
{
    held[AT(b, me)] = seq;
    count[b]++;
    if
    :: b == BLOCK0 -> ticket[me] = made[b] + 1
    :: else
    fi;
    if
    :: count[b] < Q -> answer(b, me, RECEIVED, seq)
    :: else ->
        made[b]++;
        count[b] = 0;
        i = 0;
        do
        :: i < M && held[AT(b, i)] > 0 ->
            q = held[AT(b, i)];
            held[AT(b, i)] = 0;
            PART(b, made[b], i) = q;
            last[AT(b, i)] = q;
            was_stale[AT(b, i)] = false;
            answer(b, i, APPLIED, q);
            i++
        :: i < M && held[AT(b, i)] == 0 -> i++
        :: i == M -> break
        od;
        i = 0;
        q = 0;
        assert(made[BLOCK1] <= made[BLOCK0]);
        assert(b == BLOCK0 || (SAME(made[b], 0) && SAME(made[b], 1) && SAME(made[b], 2)))
    fi
}

inline leave_out(b)
{
    last[AT(b, me)] = seq;
    was_stale[AT(b, me)] = true;
    answer(b, me, STALE, seq)
}

inline decide(b)
{
    if
    :: version[b] == STEPS && made[b] == STEPS /* the end of the model */
    :: b == BLOCK0 && version[b] < made[b] ->
#ifndef NOT_TOLD
        leave_out(b)
#else
        skip
#endif
    :: b == BLOCK0 && version[b] == made[b] && made[b] < STEPS -> take(b)
#if defined(NO_TICKETS) || defined(NO_STEP)
    :: b == BLOCK1 && version[b] < made[b] -> leave_out(b)
    :: b == BLOCK1 && version[b] >= made[b] && made[b] < STEPS -> take(b)
#else
    :: b == BLOCK1 && step > made[b] + 1 /* NOT_READY: again later */
    :: b == BLOCK1 && step <= made[b] -> assert(false) /* a step without one of its tickets */
    :: b == BLOCK1 && step == made[b] + 1 -> take(b)
#endif
    fi
}

inline push(b)
{
    if
    :: sent[b] && nempty(down[AT(b, me)]) -> hasty++
    :: else
    fi;
    sent[b] = true;
    if
#ifndef NO_DUPLICATE_CHECK
    :: seq == last[AT(b, me)] && was_stale[AT(b, me)] -> answer(b, me, STALE, seq)
    :: seq == last[AT(b, me)] && !was_stale[AT(b, me)] -> answer(b, me, APPLIED, seq)
#endif
    :: seq == held[AT(b, me)] -> answer(b, me, RECEIVED, seq)
    :: else -> decide(b)
    fi
}

/* The deadline: passes once nothing is on the way, a few times before that, too. */
#ifdef NO_RESEND
#define DUE(b) (!sent[b])
#else
#define DUE(b) (!sent[b] || len(down[AT(b, me)]) == 0 || hasty < HASTY)
#endif

proctype member(byte me)
{
    byte seq = 1, step, q, s, v, i, t; /* step: of the ticket, or READ after that one */
    byte version[2];
    bool sent[2], done[2], out;
    mtype verdict;
    do
    :: version[BLOCK0] == STEPS && step == 0 -> break
    :: atomic { version[BLOCK0] < STEPS && !done[BLOCK0] && DUE(BLOCK0) -> push(BLOCK0) }
#ifndef NO_TICKETS
    :: atomic { step > 0 && !out && !done[BLOCK1] && DUE(BLOCK1) -> push(BLOCK1) }
#else
    :: atomic { version[BLOCK0] < STEPS && !out && !done[BLOCK1] && DUE(BLOCK1) -> push(BLOCK1) }
#endif
    :: atomic { out && !done[BLOCK1] && made[BLOCK1] >= step -> /* before that it is not found */
                done[BLOCK1] = true; version[BLOCK1] = made[BLOCK1] }
    :: atomic {
           down[AT(BLOCK0, me)]?verdict, q, s, v ->
           if
           :: q == seq && !done[BLOCK0] ->
               if
               :: step == 0 -> step = s
               :: else
               fi;
               done[BLOCK0] = (verdict != RECEIVED);
               out = out || (verdict == STALE);
               version[BLOCK0] = (verdict != RECEIVED -> v : version[BLOCK0])
           :: else
           fi;
           q = 0; s = 0; v = 0; verdict = 0
       }
    :: atomic {
           down[AT(BLOCK1, me)]?verdict, q, s, v ->
           if
           :: q == seq && !done[BLOCK1] && !out && verdict != RECEIVED ->
               done[BLOCK1] = true; version[BLOCK1] = v
           :: else
           fi;
           q = 0; s = 0; v = 0; verdict = 0
       }
    :: atomic { done[BLOCK0] && done[BLOCK1] -> /* the next window */
           seq++; step = 0; out = false;
           done[0] = false; done[1] = false; sent[0] = false; sent[1] = false }
    od;
#ifdef REACH
    assert(!(me == 2 && seq == 2 && was_stale[AT(BLOCK0, 2)])) /* this can happen: no step was made with it */
#endif
    over[me] = true
}

init
{
    atomic {
        run member(0);
        run member(1);
        run member(2)
    }
}

#ifdef LIVE
ltl ends { <> (over[0] && over[1] && over[2]) }
#endif
