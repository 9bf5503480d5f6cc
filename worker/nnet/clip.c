#include "worker/nnet/clip.h"

#include <math.h>

#define LANES                                                                                                \
    8 /* independent sums hide the latency of an addition; always eight, so the bits are the same everywhere \
       */

static double sum_of_squares(const float *v, size_t n)
{
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += (double)v[i + j] * v[i + j];
    for (size_t j = 0; i + j < n; j++) lane[j] += (double)v[i + j] * v[i + j];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

double clip_norm(float *grad, size_t n, double scale, double max_norm)
{
    double norm = fabs(scale) * sqrt(sum_of_squares(grad, n));
    if (!isfinite(norm)) return norm;
    float factor = (float)(max_norm > 0 && norm > max_norm ? scale * (max_norm / norm) : scale);
    if (factor != 1.0f)
        for (size_t i = 0; i < n; i++) grad[i] *= factor;
    return norm;
}
