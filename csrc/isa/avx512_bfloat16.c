/* SPDX-License-Identifier: Apache-2.0 */
/* avx512_bfloat16.c -- kernels whose products are of bfloat16: AMD since Zen 4, Intel since Cooper Lake. */
#define SA_BFLOAT16_KERNELS
#include "contracts/kernels.h"
#if defined(__x86_64__)
#include "isa/target.h"
#include <immintrin.h>

static int runs_here(void)
{
    return __builtin_cpu_supports("avx512bf16"); /* dispatch.c asks only where avx512 runs */
}

SA_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
#define SA_ISA avx512
#define SA_VECTOR_BYTES 64
#define SA_FMA 1
#include "isa/kernels.inc.h"
SA_TARGET_END
#endif
