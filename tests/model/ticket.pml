/* bsp with backup workers: block 0 decides who takes part in a step, another block on another shard follows the
 * tickets. Three members, a quorum of two, a network that loses and reorders, resends. Source: DESIGN section 2;
 * server/shard_bsp.c, worker/exchange.c. What the code has and this has too: RECEIVED as the ticket (its answer
 * may be lost: asked for again), the step number in ticket and READ, left out = STALE, then READ of the other
 * block once it has made that step. That a resend is not applied twice is what exchange.pml shows; here a shard
 * knows a push of the step that it made last.
 *
 * Safety: both blocks make each step of the same members, nobody twice. Liveness (LIVE): steps go on.
 * Mutations (each must give an error): NO_TICKETS (the other block takes who comes first), NO_STEP (a ticket
 * does not say of which step it is, the weights' version does), EARLY_READ (weights from before the step),
 * and with LIVE: NO_RESEND, LATE_FOR_EVER (who comes too late is not told). */
#define M 3
#define Q 2
#ifndef STEPS
#define STEPS 2
#endif
#ifndef LOSSES
#define LOSSES 1
#endif

/* the decider and the follower: steps made, who is in the open one, who was in each made one (bits) */
byte made[2], open_[2], count[2];
byte who[2 * (STEPS + 2)]; /* (block, step) */
byte losses;
bool over[M];

/* of each member's next message on the way to a block, and of the answer; lost ones are sent again */
#define NONE   0
#define PUSH   1
#define READ   2
#define TICKET 3 /* RECEIVED or APPLIED with a ticket; block 1: only that the push is held */
#define DONE   4 /* APPLIED */
#define STALE  5
#define FOUND  6
byte up[2 * M], up_step[2 * M], up_base[2 * M];
byte down[2 * M], down_step[2 * M];

#define AT(b, m)  ((b) * M + (m))
#define BIT(m)    (1 << (m))
#define IN(b, s, m) (who[(b) * (STEPS + 2) + (s)] & BIT(m))

inline answer(b, m, what, s)
{
    if
    :: true -> down[AT(b, m)] = what; down_step[AT(b, m)] = s
    :: losses < LOSSES -> losses++
    fi
}

/* The push of m completes the step, or waits in it. */
inline hold(b, m)
{
    assert(!(open_[b] & BIT(m)));
    open_[b] = open_[b] | BIT(m);
    count[b]++;
    if
    :: count[b] == Q ->
        made[b]++;
        who[b * (STEPS + 2) + made[b]] = open_[b];
        open_[b] = 0;
        count[b] = 0;
        /* the same members in the same step; the decider is first */
        assert(b == 0 || made[1] <= made[0]);
        assert(b == 0 || who[made[1]] == who[(STEPS + 2) + made[1]])
    :: else
    fi
}

proctype shard(byte b)
{
    byte m, s, base;
end:
    do
    :: atomic {
           if
           :: up[AT(b, 0)] != NONE -> m = 0
           :: up[AT(b, 1)] != NONE -> m = 1
           :: up[AT(b, 2)] != NONE -> m = 2
           fi;
           s = up_step[AT(b, m)];
           base = up_base[AT(b, m)];
           if
           :: up[AT(b, m)] == READ && made[b] >= s -> answer(b, m, FOUND, made[b])
           :: up[AT(b, m)] == READ && made[b] < s -> skip /* not found: again */
           /* a resend */
           :: up[AT(b, m)] == PUSH && (open_[b] & BIT(m)) -> answer(b, m, TICKET, made[b] + 1)
           :: up[AT(b, m)] == PUSH && !(open_[b] & BIT(m)) && base < STEPS + 1 && IN(b, base + 1, m) ->
               answer(b, m, DONE, base + 1)
           :: up[AT(b, m)] == PUSH && !(open_[b] & BIT(m)) && !(base < STEPS + 1 && IN(b, base + 1, m)) ->
               if
               :: b == 0 && base < made[0] ->
#ifndef LATE_FOR_EVER
                   answer(b, m, STALE, made[0])
#else
                   skip
#endif
               :: b == 0 && base == made[0] && made[0] < STEPS ->
                   hold(0, m);
                   if
                   :: open_[0] & BIT(m) -> answer(0, m, TICKET, made[0] + 1)
                   :: else -> answer(0, m, DONE, made[0])
                   fi
               :: b == 0 && made[0] == STEPS && base == STEPS -> skip /* enough */
#if defined(NO_TICKETS) || defined(NO_STEP)
               :: b == 1 && base < made[1] -> answer(b, m, STALE, made[1])
               :: b == 1 && base == made[1] ->
#else
               :: b == 1 && s > made[1] + 1 -> skip /* NOT_READY: again */
               :: b == 1 && s == made[1] + 1 ->
#endif
                   hold(1, m);
                   if
                   :: open_[1] & BIT(m) -> answer(1, m, TICKET, made[1] + 1)
                   :: else -> answer(1, m, DONE, made[1])
                   fi
               :: else -> assert(false)
               fi
           fi;
           up[AT(b, m)] = NONE;
           m = 0; s = 0; base = 0
       }
    od
}
