/* The number that the maths computes in: float, or double where REAL_DOUBLE is defined (the reference of the
 * tests, portable kernels and libm alone). */
#ifndef WORKER_NNET_REAL_H
#define WORKER_NNET_REAL_H

#include <math.h>

#ifdef REAL_DOUBLE
typedef double real;
#define REAL_EXP(x)  exp(x)
#define REAL_TANH(x) tanh(x)
#else
typedef float real;
#define REAL_EXP(x)  expf(x)
#define REAL_TANH(x) tanhf(x)
#endif

#endif
