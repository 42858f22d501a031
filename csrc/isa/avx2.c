/* SPDX-License-Identifier: Apache-2.0 */
/* avx2.c -- vectors of 256 bits: Intel since Haswell, AMD since Zen. */
#include "contracts/kernels.h"
#if defined(__x86_64__)
#include "isa/target.h"
#include <immintrin.h>

static int runs_here(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
}

SA_TARGET_BEGIN("avx2,fma,f16c")
#define SA_ISA avx2
#define SA_VECTOR_BYTES 32
#define SA_FMA 1
#include "isa/kernels.inc.h"
SA_TARGET_END
#endif
