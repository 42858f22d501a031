/* SPDX-License-Identifier: Apache-2.0 */
/* float32.inc.h -- multiply-add, maximum and transpose for vectors of float32, by instruction set. */
#ifndef SELFATTN_VECTOR_FLOAT32_INC_H
#define SELFATTN_VECTOR_FLOAT32_INC_H

#include "vector/numbers.inc.h"

#if SA_VECTOR_BYTES == 64
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return (vreal)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE vreal vmax(vreal a, vreal b)
{
    return (vreal)_mm512_max_ps((__m512)a, (__m512)b);
}
/* 16 rows of 16 numbers become columns: pairs of 4 bytes, pairs of 8 bytes, then quarters of 128 bits twice. */
INLINE void vtranspose(vreal r[LANES])
{
    __m512 t[16], u[16];
    for (int i = 0; i < 16; i += 4) {
        __m512 a = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        __m512 b = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
        __m512 c = _mm512_unpacklo_ps((__m512)r[i + 2], (__m512)r[i + 3]);
        __m512 d = _mm512_unpackhi_ps((__m512)r[i + 2], (__m512)r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; ++j) { /* t[4*i + j]: column j of each quarter, rows 4i..4i+3 */
        u[j] = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88);
        u[4 + j] = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
        u[8 + j] = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
        u[12 + j] = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        r[j] = (vreal)_mm512_shuffle_f32x4(u[j], u[4 + j], 0x88);
        r[8 + j] = (vreal)_mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
        r[4 + j] = (vreal)_mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
        r[12 + j] = (vreal)_mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    }
}

#elif SA_VECTOR_BYTES == 32
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return (vreal)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE vreal vmax(vreal a, vreal b)
{
    return (vreal)_mm256_max_ps((__m256)a, (__m256)b);
}
INLINE void vtranspose(vreal r[LANES])
{
    __m256 t[8];
    for (int i = 0; i < 8; i += 4) {
        __m256 a = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
        __m256 b = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
        __m256 c = _mm256_unpacklo_ps((__m256)r[i + 2], (__m256)r[i + 3]);
        __m256 d = _mm256_unpackhi_ps((__m256)r[i + 2], (__m256)r[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; ++j) {
        r[j] = (vreal)_mm256_permute2f128_ps(t[j], t[4 + j], 0x20);
        r[4 + j] = (vreal)_mm256_permute2f128_ps(t[j], t[4 + j], 0x31);
    }
}

#else /* 128 bits */
#if defined(__aarch64__) && SA_FMA
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return (vreal)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return a * b + c; /* rounds twice: the baseline is exempt from the promise of equal bits */
}
#endif
#if defined(__SSE2__)
INLINE vreal vmax(vreal a, vreal b)
{
    return (vreal)_mm_max_ps((__m128)a, (__m128)b);
}
#else
INLINE vreal vmax(vreal a, vreal b)
{
    return vselect(a > b, a, b);
}
#endif
INLINE void vtranspose(vreal r[LANES])
{
    vreal a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    vreal c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
#endif

#endif
