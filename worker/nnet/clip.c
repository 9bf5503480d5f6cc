#include "worker/nnet/clip.h"

#include <math.h>

#define LANES                                                                                                \
    8 /* independent sums hide the latency of an addition; always eight, so the bits are the same everywhere \
       */

double clip_squares(const float *v, size_t n)
{
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += (double)v[i + j] * v[i + j];
    for (size_t j = 0; i + j < n; j++) lane[j] += (double)v[i + j] * v[i + j];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

double clip_norm(float *grad, size_t n, double squares, double max_norm)
{
    double norm = sqrt(squares);
    if (!isfinite(norm) || max_norm <= 0 || norm <= max_norm) return norm;
    float factor = (float)(max_norm / norm);
    for (size_t i = 0; i < n; i++) grad[i] *= factor;
    return norm;
}
