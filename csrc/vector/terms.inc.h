/* SPDX-License-Identifier: Apache-2.0 */
/* terms.inc.h -- one step of a sum, c + a * b, and the operands of a step: TERMS products each. */
#ifndef SELFATTN_VECTOR_TERMS_INC_H
#define SELFATTN_VECTOR_TERMS_INC_H

#include "vector/numbers.inc.h"
#ifdef SA_FLOAT64_KERNELS
#include "vector/float64.inc.h"
#else
#include "vector/float32.inc.h"
#include "vector/half.inc.h"
#endif

#ifdef SA_BFLOAT16_KERNELS
static const enum sa_format FORMAT = SA_FORMAT_BFLOAT16;
enum { TERMS = 2 };
INLINE vreal vterm(vreal a, vreal b, vreal c)
{
    return (vreal)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
/* vneighbours: pairs of neighbours among 2 * LANES numbers. vpair: pairs of the same lane of two vectors. */
INLINE vreal vneighbours(vreal first, vreal second)
{
    return (vreal)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}
INLINE vreal vpair(vreal first, vreal second)
{
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vreal)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i)vneighbours(first, second));
}
#else
static const enum sa_format FORMAT = SA_FORMAT_NUMBERS;
enum { TERMS = 1 };
INLINE vreal vterm(vreal a, vreal b, vreal c)
{
    return vfma(a, b, c);
}
INLINE vreal vpair(vreal first, vreal second)
{
    (void)second;
    return first;
}
#endif

#endif
