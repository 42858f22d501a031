/* SPDX-License-Identifier: Apache-2.0 */
/* editor.h -- for editors that open a kernel file by itself: it is read as AVX2 and float32 compile it, elsewhere as
 * the baseline does. Editors only check the syntax, so the file needs no target region. */
#ifndef SELFATTN_ISA_EDITOR_H
#define SELFATTN_ISA_EDITOR_H

#if defined(__x86_64__)
#include <immintrin.h>
#define SA_ISA avx2
#define SA_VECTOR_BYTES 32
#define SA_FMA 1
#else
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#define SA_ISA baseline
#define SA_VECTOR_BYTES 16
#define SA_FMA 0
#endif

static inline int runs_here(void)
{
    return 1;
}

#endif
