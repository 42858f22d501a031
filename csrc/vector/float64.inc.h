/* SPDX-License-Identifier: Apache-2.0 */
/* float64.inc.h -- multiply-add, maximum and transpose for vectors of float64, by instruction set. */
#ifndef SELFATTN_VECTOR_FLOAT64_INC_H
#define SELFATTN_VECTOR_FLOAT64_INC_H

#ifndef SA_ISA /* opened by an editor */
#define SA_FLOAT64_KERNELS
#endif
#include "vector/numbers.inc.h"

#if SA_VECTOR_BYTES == 64
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return (vreal)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
INLINE vreal vmax(vreal a, vreal b)
{
    return (vreal)_mm512_max_pd((__m512d)a, (__m512d)b);
}
/* 8 rows of 8 numbers become columns: pairs, then quarters of 128 bits twice. */
INLINE void vtranspose(vreal r[LANES])
{
    __m512d t[8];
    for (int i = 0; i < 8; i += 2) { /* t[i + j]: column j of each pair, rows i and i + 1 */
        t[i] = _mm512_unpacklo_pd((__m512d)r[i], (__m512d)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_pd((__m512d)r[i], (__m512d)r[i + 1]);
    }
    for (int j = 0; j < 2; ++j) {
        __m512d a = _mm512_shuffle_f64x2(t[j], t[2 + j], 0x88), b = _mm512_shuffle_f64x2(t[4 + j], t[6 + j], 0x88);
        __m512d c = _mm512_shuffle_f64x2(t[j], t[2 + j], 0xdd), d = _mm512_shuffle_f64x2(t[4 + j], t[6 + j], 0xdd);
        r[j] = (vreal)_mm512_shuffle_f64x2(a, b, 0x88);
        r[4 + j] = (vreal)_mm512_shuffle_f64x2(a, b, 0xdd);
        r[2 + j] = (vreal)_mm512_shuffle_f64x2(c, d, 0x88);
        r[6 + j] = (vreal)_mm512_shuffle_f64x2(c, d, 0xdd);
    }
}

#elif SA_VECTOR_BYTES == 32
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return (vreal)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
INLINE vreal vmax(vreal a, vreal b)
{
    return (vreal)_mm256_max_pd((__m256d)a, (__m256d)b);
}
INLINE void vtranspose(vreal r[LANES])
{
    __m256d a = _mm256_unpacklo_pd((__m256d)r[0], (__m256d)r[1]), b = _mm256_unpackhi_pd((__m256d)r[0], (__m256d)r[1]);
    __m256d c = _mm256_unpacklo_pd((__m256d)r[2], (__m256d)r[3]), d = _mm256_unpackhi_pd((__m256d)r[2], (__m256d)r[3]);
    r[0] = (vreal)_mm256_permute2f128_pd(a, c, 0x20);
    r[1] = (vreal)_mm256_permute2f128_pd(b, d, 0x20);
    r[2] = (vreal)_mm256_permute2f128_pd(a, c, 0x31);
    r[3] = (vreal)_mm256_permute2f128_pd(b, d, 0x31);
}

#else /* 128 bits */
#if defined(__aarch64__) && SA_FMA
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return (vreal)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return a * b + c;
}
#endif
#if defined(__SSE2__)
INLINE vreal vmax(vreal a, vreal b)
{
    return (vreal)_mm_max_pd((__m128d)a, (__m128d)b);
}
#else
INLINE vreal vmax(vreal a, vreal b)
{
    return vselect(a > b, a, b);
}
#endif
INLINE void vtranspose(vreal r[LANES])
{
    vreal a = r[0];
    r[0] = __builtin_shufflevector(a, r[1], 0, 2);
    r[1] = __builtin_shufflevector(a, r[1], 1, 3);
}
#endif

#endif
