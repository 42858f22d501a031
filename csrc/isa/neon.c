/* SPDX-License-Identifier: Apache-2.0 */
/* neon.c -- vectors of 128 bits with FMA: every aarch64. */
#include "contracts/kernels.h"
#if defined(__aarch64__)
#include <arm_neon.h>

static int runs_here(void)
{
    return 1;
}

#define SA_ISA neon
#define SA_VECTOR_BYTES 16
#define SA_FMA 1
#include "isa/kernels.inc.h"
#endif
