/* SPDX-License-Identifier: Apache-2.0 */
/* avx512.c -- vectors of 512 bits: Intel since Skylake-SP, AMD since Zen 4. */
#include "contracts/kernels.h"
#if defined(__x86_64__)
#include "isa/target.h"
#include <immintrin.h>

static int runs_here(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma");
}

SA_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define SA_ISA avx512
#define SA_VECTOR_BYTES 64
#define SA_FMA 1
#include "isa/kernels.inc.h"
SA_TARGET_END
#endif
