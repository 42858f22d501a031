/* SPDX-License-Identifier: Apache-2.0 */
/* baseline.c -- vectors of 128 bits: SSE2 without FMA on x86-64, the vectors of the compiler elsewhere. */
#include "contracts/kernels.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

static int runs_here(void)
{
    return 1;
}

#define SA_ISA baseline
#define SA_VECTOR_BYTES 16
#define SA_FMA 0
#include "isa/kernels.inc.h"
