#include "worker/nnet/plan.h"

const struct gates *plan_gates(bool portable)
{
#if defined(__x86_64__) && !defined(REAL_DOUBLE)
    if (!portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &gates_avx2;
#else
    (void)portable;
#endif
    return &gates_portable;
}

size_t plan_stride(size_t n)
{
    size_t line = 64 / sizeof(real), lines = (n + line - 1) / line;
    return (lines % 32 == 0 ? lines + 1 : lines) * line;
}
