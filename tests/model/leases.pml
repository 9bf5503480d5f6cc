/* Leases of chunks, checkpoint sets and the fall of a server: at the end every chunk's push is in the state
 * that survives. Source: DESIGN section 4 (lease, checkpoint set, generation). One shard, one push per chunk;
 * that a push of one generation is applied exactly once is what exchange.pml shows. The coordinator journals
 * before it speaks, so its own fall loses messages only, and those are lost here anyway.
 *
 * A used chunk is in every set named after its USED came. A server that comes back with set r therefore opens
 * again what was used while r or a later set was the newest named. A lease granted before that is no longer
 * believed: its pushes may be among the lost ones, and its USED still on the way.
 *
 * Mutations (each must give an error): LEASE_NOT_REOPENED, OLD_LEASE_BELIEVED, SET_NAMED_BEFORE_COUNTED,
 * FINISH_ON_ANY_SET. */
#define C 2 /* chunks */
#define W 2 /* workers */
#ifndef FALLS
#define FALLS 2
#endif
#ifndef SETS
#define SETS 3
#endif
#ifndef EXPIRIES
#define EXPIRIES 1
#endif

#define OPEN   0
#define LEASED 1
#define USED   2

/* the coordinator */
byte state[C], lease[C], marked[C]; /* lease: id; marked: newest set named when it was used */
byte next_lease = 1, believed_from = 1, named, written_told;
byte expiries, falls;
bool finished;
/* the shard */
bool in[C], pend[C], snap[C];
byte wanted, pend_set, snap_set, gen = 1; /* wanted: as the last ORDER said */
bool writing, down;

chan used = [2] of { byte, byte }; /* chunk, lease id; ever again until USED_OK */
chan granted[W] = [1] of { byte, byte };

#define ALL_USED (state[0] == USED && state[1] == USED)

proctype coordinator()
{
    byte c, id;
end:
    do
    :: finished -> break
    :: atomic { /* a grant, lost or not */
           !finished && (state[0] == OPEN || state[1] == OPEN) && next_lease < 7 ->
           if
           :: state[0] == OPEN -> c = 0
           :: else -> c = 1
           fi;
           state[c] = LEASED; lease[c] = next_lease; next_lease++;
           if
           :: empty(granted[0]) -> granted[0]!c, lease[c]
           :: empty(granted[1]) -> granted[1]!c, lease[c]
           :: skip
           fi;
           c = 0
       }
    :: atomic { /* not used in its time: to another */
           !finished && expiries < EXPIRIES ->
           if
           :: state[0] == LEASED -> state[0] = OPEN; expiries++
           :: state[1] == LEASED -> state[1] = OPEN; expiries++
           :: else
           fi
       }
    :: atomic {
           used?c, id ->
           if
           :: state[c] == USED -> skip /* doubled */
#ifndef OLD_LEASE_BELIEVED
           :: state[c] != USED && id < believed_from ->
               if
               :: state[c] == LEASED && lease[c] == id -> state[c] = OPEN
               :: else
               fi
           :: state[c] != USED && id >= believed_from ->
#else
           :: state[c] != USED ->
#endif
#ifdef SET_NAMED_BEFORE_COUNTED
               state[c] = USED; marked[c] = (named > 0 -> named - 1 : 0)
#else
               state[c] = USED; marked[c] = named
#endif
           fi;
           c = 0; id = 0
       }
    :: atomic { !finished && named < SETS && written_told == named -> named++ }
    :: atomic { !finished && !down && snap_set > written_told -> written_told = snap_set } /* BEAT */
    :: atomic { /* JOIN of the restored server; JOINED and the new generation go out after this */
           !finished && down ->
#ifndef LEASE_NOT_REOPENED
           c = 0;
           do
           :: c < C ->
               if
               :: state[c] == USED && marked[c] >= snap_set -> state[c] = OPEN; marked[c] = 0
               :: else
               fi;
               c++
           :: else -> break
           od;
           c = 0;
#endif
           believed_from = next_lease;
           gen++; down = false
       }
    :: atomic { /* the end: everything is used, and in a set that is on the disk */
#ifdef FINISH_ON_ANY_SET
           !finished && ALL_USED && written_told > 0 -> finished = true;
#else
           !finished && ALL_USED && written_told > marked[0] && written_told > marked[1] -> finished = true;
#endif
           assert(snap[0] && snap[1]);
#ifdef REACH
           assert(falls < FALLS)
#endif
       }
    od
}

proctype shard()
{
end:
    do
    :: finished -> break
    :: atomic { !finished && wanted != named -> wanted = named }                       /* ORDER */
    :: atomic { !down && !writing && wanted > snap_set -> writing = true; pend_set = wanted;
                pend[0] = in[0]; pend[1] = in[1] }
    :: atomic { writing -> writing = false; snap[0] = pend[0]; snap[1] = pend[1]; snap_set = pend_set;
                pend[0] = false; pend[1] = false; pend_set = 0 }
    :: atomic { !finished && falls < FALLS && !down -> falls++; down = true; writing = false; wanted = 0; in[0] = snap[0];
                in[1] = snap[1]; pend[0] = false; pend[1] = false; pend_set = 0 }
    od
}

proctype worker(byte me)
{
    byte c, id, g;
end:
    do
    :: finished -> break
    :: atomic { granted[me]?c, id -> g = gen }
       if
       :: atomic { !down && gen == g -> in[c] = true } /* answered */
       :: atomic { (down || gen != g) -> skip }        /* lost under way: counted, and on we go */
       :: finished -> break
       fi;
       do /* USED, until it is acknowledged; any of them may be late or twice */
       :: atomic { nfull(used) -> used!c, id }
       :: atomic { state[c] == USED || lease[c] != id || finished || state[c] == OPEN -> break }
       od;
       c = 0; id = 0; g = 0
    :: atomic { len(used) == 2 -> used?c, id; used!c, id; c = 0; id = 0 } /* reordered */
    od
}

init
{
    atomic {
        run coordinator();
        run shard();
        run worker(0);
        run worker(1)
    }
}
