/* SPDX-License-Identifier: Apache-2.0 */
/* half.inc.h -- float16, bfloat16 and int8, LANES at a time: widened exactly, narrowed to the nearest (ties to
 * even). */
#ifndef SELFATTN_VECTOR_HALF_INC_H
#define SELFATTN_VECTOR_HALF_INC_H

#include "vector/numbers.inc.h"

typedef uint16_t vhalf __attribute__((vector_size(SA_VECTOR_BYTES / 2), aligned(1), may_alias));
typedef signed char vbyte __attribute__((vector_size(SA_VECTOR_BYTES / 4), aligned(1), may_alias));

/* Intrinsics, because compilers split __builtin_convertvector into halves of vectors and single numbers. */
#if SA_VECTOR_BYTES == 64
INLINE vreal widen_bfloat16(vhalf h)
{
    return (vreal)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
}
INLINE vreal widen_bytes(const char *at)
{
    return (vreal)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
}
#elif SA_VECTOR_BYTES == 32
INLINE vreal widen_bfloat16(vhalf h)
{
    return (vreal)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
}
INLINE vreal widen_bytes(const char *at)
{
    return (vreal)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}
#else
INLINE vreal widen_bfloat16(vhalf h)
{
    return (vreal)(__builtin_convertvector(h, vbits) << 16);
}
INLINE vreal widen_bytes(const char *at)
{
    return __builtin_convertvector(*(const vbyte *)at, vreal);
}
#endif
INLINE vhalf narrow_bfloat16(vreal x)
{
#ifdef SA_BFLOAT16_KERNELS
    return (vhalf)_mm512_cvtneps_pbh((__m512)x); /* the rounding of the operands of products */
#else
    vbits b = (vbits)x, rounded = b + 0x7fff + (b >> 16 & 1);
    vint nan = x != x;
    return __builtin_convertvector(((vbits)nan & (b | 0x400000)) >> 16 | (~(vbits)nan & rounded) >> 16, vhalf);
#endif
}

#if SA_VECTOR_BYTES == 64
INLINE vreal widen_float16(vhalf h)
{
    return (vreal)_mm512_cvtph_ps((__m256i)h);
}
INLINE vhalf narrow_float16(vreal x)
{
    return (vhalf)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif SA_VECTOR_BYTES == 32
INLINE vreal widen_float16(vhalf h)
{
    return (vreal)_mm256_cvtph_ps((__m128i)h);
}
INLINE vhalf narrow_float16(vreal x)
{
    return (vhalf)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__aarch64__) && SA_FMA
INLINE vreal widen_float16(vhalf h)
{
    return (vreal)vcvt_f32_f16((float16x4_t)h);
}
INLINE vhalf narrow_float16(vreal x)
{
    return (vhalf)vcvt_f16_f32((float32x4_t)x);
}
#else
/* The exponents of float16 and float32 differ by 112; a multiplication moves them, for subnormal numbers too. */
INLINE vreal widen_float16(vhalf h)
{
    vbits b = __builtin_convertvector(h, vbits), magnitude = (b & 0x7fff) << 13;
    vint special = magnitude >= 0x0f800000; /* Inf or NaN */
    return (vreal)((vbits)((vreal)magnitude * 0x1p112f) | ((vbits)special & 0x7f800000) | (b & 0x8000) << 16);
}
INLINE vhalf narrow_float16(vreal x)
{
    vbits b = (vbits)x, magnitude = b & 0x7fffffff;
    vbits normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    vbits subnormal = (vbits)((vreal)magnitude + 0.5f) - 0x3f000000; /* the addition rounds at 2^-24 */
    vbits small = (vbits)(magnitude < 0x38800000), large = (vbits)(magnitude >= 0x47800000);
    vbits nan = (vbits)(magnitude > 0x7f800000), special = 0x7c00 | (nan & (0x200 | magnitude >> 13));
    vbits h = (small & subnormal) | (~small & ((large & special) | (~large & normal)));
    return __builtin_convertvector((h & 0x7fff) | (b >> 16 & 0x8000), vhalf);
}
#endif

/* vsplit: the 2 * LANES numbers of two vectors become the numbers of even index and of odd index. vinterleave: the
 * reverse. */
#if SA_VECTOR_BYTES == 64
#define SA_EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define SA_ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define SA_LOW_PAIRS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SA_HIGH_PAIRS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif SA_VECTOR_BYTES == 32
#define SA_EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define SA_ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#define SA_LOW_PAIRS 0, 8, 1, 9, 2, 10, 3, 11
#define SA_HIGH_PAIRS 4, 12, 5, 13, 6, 14, 7, 15
#else
#define SA_EVEN_LANES 0, 2, 4, 6
#define SA_ODD_LANES 1, 3, 5, 7
#define SA_LOW_PAIRS 0, 4, 1, 5
#define SA_HIGH_PAIRS 2, 6, 3, 7
#endif
INLINE void vsplit(vreal *a, vreal *b)
{
    vreal even = __builtin_shufflevector(*a, *b, SA_EVEN_LANES), odd = __builtin_shufflevector(*a, *b, SA_ODD_LANES);
    *a = even, *b = odd;
}
INLINE void vinterleave(vreal *a, vreal *b)
{
    vreal first = __builtin_shufflevector(*a, *b, SA_LOW_PAIRS),
          second = __builtin_shufflevector(*a, *b, SA_HIGH_PAIRS);
    *a = first, *b = second;
}
#undef SA_EVEN_LANES
#undef SA_ODD_LANES
#undef SA_LOW_PAIRS
#undef SA_HIGH_PAIRS

#endif
