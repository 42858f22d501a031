/* SPDX-License-Identifier: Apache-2.0 */
/* peak.inc.h -- loops that reach the limits of this machine: the yardsticks of the benchmarks. */
#ifndef SELFATTN_POINTWISE_PEAK_INC_H
#define SELFATTN_POINTWISE_PEAK_INC_H

#include "vector/vector.inc.h"

/* Multiply-adds of registers, without memory. Returns the number of floating-point operations. */
static double peak_loop(ptrdiff_t iterations)
{
    enum { CHAINS = 12 };
    vreal sum[CHAINS], a = vsplat(0.999f), b = vsplat(1e-6f);
    for (int i = 0; i < CHAINS; ++i)
        sum[i] = vsplat((real)i);
    for (ptrdiff_t n = 0; n < iterations; ++n)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; ++i)
            sum[i] = vterm(a, b, sum[i]);
    for (int i = 1; i < CHAINS; ++i)
        sum[0] += sum[i];
    if (sum[0][0] == 12345.0f) /* never true; but the compiler cannot know, and keeps the loop */
        return 0.0;
    return 2.0 * TERMS * LANES * CHAINS * (double)iterations;
}

/* Reads n numbers, and returns their sum. */
static double read_loop(const void *numbers, ptrdiff_t n)
{
    const real *data = numbers;
    vreal sum[8];
    for (int i = 0; i < 8; ++i)
        sum[i] = vsplat(0.0f);
    for (; n >= 8 * LANES; n -= 8 * LANES, data += 8 * LANES)
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
            sum[i] += vload(data + i * LANES);
    double total = 0.0;
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < LANES; ++j)
            total += (double)sum[i][j];
    return total;
}

#endif
