/* editor.h -- for editors that open a kernel by itself: it is shown as AVX2 in float32 compiles it. */
#ifndef SELFATTN_ISA_EDITOR_H
#define SELFATTN_ISA_EDITOR_H

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define SA_ISA avx2
#define SA_VECTOR_BYTES 32
#define SA_FMA 1

#endif
