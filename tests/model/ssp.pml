/* ssp: an answer is kept back while its member is more than the bound ahead of the slowest of the roster.
 * Members push to every shard and wait for all of them; each shard counts steps by itself, from when it hears of
 * the roster. Members run out of work or die; a shard falls and begins to count anew. Source: DESIGN section 2,
 * server/shard_ssp.c, server/clocks.c; Ho 2013. Losses and resends are in exchange.pml.
 *
 * Safety: nobody is given weights ahead of the bound, and no state is without a way on. Liveness (LIVE): whoever
 * does not die ends.
 * Mutations (each must give an error): NO_BOUND; with one shard and NO_LIMIT (an answer is kept back for as long as
 * it takes; not needed there) NO_ADVANCE (an advance of the slowest frees nobody), NO_ROSTER (a roster frees
 * nobody), NO_RETIRE (the dead stay in the roster); with two shards NO_LIMIT: they may disagree on who is the
 * slowest, and two members wait for each other for ever. */
#ifndef M
#define M 2 /* members */
#endif
#ifndef SHARDS
#define SHARDS 1
#endif
#ifndef N
#define N 3 /* pushes of each */
#endif
#ifndef BOUND
#define BOUND 0
#endif
#ifndef FALLS
#define FALLS 0
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#define AT(s, m) ((s) * M + (m))

bool works[M], dead[M], over[M];             /* the truth */
bool counts[SHARDS * M];                     /* the roster of a shard */
byte clock[SHARDS * M];                      /* of those that count, */
byte largest[SHARDS];                        /* and ever */
bool kept[SHARDS * M], done[SHARDS * M];     /* the answer of the push under way */
byte deaths, falls;

#define BEHIND(s, m, j) (counts[AT(s, j)] && clock[AT(s, m)] > clock[AT(s, j)] + BOUND)
#if M == 2
#define IS_AHEAD(s, m) (counts[AT(s, m)] && (BEHIND(s, m, 0) || BEHIND(s, m, 1)))
#else
#define IS_AHEAD(s, m) (counts[AT(s, m)] && (BEHIND(s, m, 0) || BEHIND(s, m, 1) || BEHIND(s, m, 2)))
#endif

inline give(m)
{
    assert(!IS_AHEAD(s, m));
    kept[AT(s, m)] = false;
    done[AT(s, m)] = true
}

inline release()
{
    k = 0;
    do
    :: k < M && kept[AT(s, k)] && !IS_AHEAD(s, k) -> give(k); k++
    :: k < M && !(kept[AT(s, k)] && !IS_AHEAD(s, k)) -> k++
    :: k == M -> break
    od;
    k = 0
}

/* least: of those that count; nobody: the largest ever */
inline find_least()
{
    least = 255;
    k = 0;
    do
    :: k < M && counts[AT(s, k)] && clock[AT(s, k)] < least -> least = clock[AT(s, k)]; k++
    :: k < M && !(counts[AT(s, k)] && clock[AT(s, k)] < least) -> k++
    :: k == M -> break
    od;
    k = 0;
    least = (least == 255 -> largest[s] : least)
}

inline push()
{
    if
    :: counts[AT(s, me)] ->
        clock[AT(s, me)]++;
        largest[s] = (clock[AT(s, me)] > largest[s] -> clock[AT(s, me)] : largest[s])
    :: else
    fi;
    kept[AT(s, me)] = true;
    if
#ifdef NO_BOUND
    :: true -> give(me)
#else
    :: !IS_AHEAD(s, me) -> give(me)
    :: else
#endif
    fi;
#ifndef NO_ADVANCE
    release()
#endif
}

proctype member(byte me)
{
    byte n, s, k, least;
    do
    :: n == N || dead[me] -> break
    :: atomic { n < N && !dead[me] && s < SHARDS -> push(); s++ } /* one shard after the other */
    :: atomic { n < N && !dead[me] && deaths < DEATHS -> deaths++; dead[me] = true }
    :: atomic { n < N && !dead[me] && s == SHARDS && done[AT(0, me)] && done[AT(SHARDS - 1, me)] ->
                done[AT(0, me)] = false; done[AT(SHARDS - 1, me)] = false; n++; s = 0 }
#ifndef NO_LIMIT
    :: atomic { timeout && n < N && !dead[me] && s == SHARDS && (kept[AT(0, me)] || kept[AT(SHARDS - 1, me)]) ->
                s = (kept[AT(0, me)] -> 0 : SHARDS - 1);
                find_least();
                clock[AT(s, me)] = least + BOUND;
                give(me);
                s = SHARDS; least = 0 }
#endif
    od;
#ifdef NO_RETIRE
    works[me] = dead[me];
#else
    works[me] = false;
#endif
    over[me] = true
}

/* The roster as it should be comes to a shard some time. */
#if M == 2
#define STALE (counts[AT(s, 0)] != works[0] || counts[AT(s, 1)] != works[1])
#else
#define STALE (counts[AT(s, 0)] != works[0] || counts[AT(s, 1)] != works[1] || counts[AT(s, 2)] != works[2])
#endif

proctype shard(byte s)
{
    byte k, j, least;
end:
    do
    :: atomic {
           STALE -> j = 0;
           do
           :: j < M -> counts[AT(s, j)] = counts[AT(s, j)] && works[j]; j++
           :: else -> break
           od;
           find_least();
           j = 0;
           do
           :: j < M && works[j] && !counts[AT(s, j)] ->
               counts[AT(s, j)] = true; clock[AT(s, j)] = least; j++
           :: j < M && !(works[j] && !counts[AT(s, j)]) -> j++
           :: j == M -> break
           od;
#ifndef NO_ROSTER
           release();
#endif
           j = 0; least = 0
       }
    :: atomic { /* kill -9: nobody counts before a roster comes, what was under way is lost and read anew */
           falls < FALLS -> falls++; largest[s] = 0; j = 0;
           do
           :: j < M ->
               counts[AT(s, j)] = false; clock[AT(s, j)] = 0;
               done[AT(s, j)] = done[AT(s, j)] || kept[AT(s, j)]; kept[AT(s, j)] = false; j++
           :: else -> break
           od;
           j = 0
       }
    od
}

init
{
    atomic {
        works[0] = true; works[1] = true;
        run shard(0);
#if SHARDS == 2
        run shard(1);
#endif
        run member(0);
        run member(1);
#if M == 3
        works[2] = true;
        run member(2)
#endif
    }
}

#ifdef LIVE
#if M == 2
ltl ends { <> (over[0] && over[1]) }
#else
ltl ends { <> (over[0] && over[1] && over[2]) }
#endif
#endif
