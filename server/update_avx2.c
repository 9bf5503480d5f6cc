/* The loops of the update for CPUs with AVX2: half the time of SSE2 where the data is in cache. */
#include "server/update.h"

#if defined(__x86_64__)
#define UPDATE_KERNELS update_avx2
#include "server/update_loops.h"
#endif
