#include "worker/nnet/plan.h"

#include "common/err.h"

bool plan_has(enum plan_level level)
{
    switch (level) {
#if defined(__x86_64__) && !defined(REAL_DOUBLE)
    case PLAN_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case PLAN_AVX512:
        return plan_has(PLAN_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl");
#else
    case PLAN_AVX2:
    case PLAN_AVX512:
        return false;
#endif
    default:
        return true;
    }
}

#if defined(__x86_64__) && !defined(REAL_DOUBLE)

static struct plan plan_of(enum plan_level level)
{
    if (level == PLAN_AVX512) return (struct plan){level, &gates_avx512, &panels_avx512};
    if (level == PLAN_AVX2) return (struct plan){level, &gates_avx2, &panels_avx2};
    return (struct plan){PLAN_PORTABLE, &gates_portable, &panels_portable};
}

static struct plan best(void)
{
    if (!plan_has(PLAN_AVX512)) return plan_of(plan_has(PLAN_AVX2) ? PLAN_AVX2 : PLAN_PORTABLE);
    struct plan plan = plan_of(PLAN_AVX512);
    /* Zen 3 and 4 compute 512 bits in two halves: nothing for products, where the AVX2 kernels cross fewer
     * cache lines; but the gates gain from masks, more registers and fewer instructions. */
    if (__builtin_cpu_is("amdfam19h")) plan.panels = &panels_avx2;
    return plan;
}

#else

static struct plan plan_of(enum plan_level level)
{
    return (struct plan){level, &gates_portable, &panels_portable};
}

static struct plan best(void)
{
    return plan_of(PLAN_PORTABLE);
}

#endif

struct plan plan_make(enum plan_level level)
{
    ASSERT(plan_has(level));
    return level == PLAN_BEST ? best() : plan_of(level);
}

const char *plan_level_name(enum plan_level level)
{
    static const char *const names[] = {"best", "portable", "avx2", "avx512"};
    return names[level];
}

size_t plan_stride(size_t n)
{
    size_t line = 64 / sizeof(real), lines = (n + line - 1) / line;
    return (lines % 32 == 0 ? lines + 1 : lines) * line;
}
