/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_avx512.h -- the AVX-512 kernels on a processor with AVX2: every intrinsic of 64-byte vectors that csrc uses,
 * made of the instructions for 16 and 32 bytes of AVX2, FMA and F16C.
 *
 * It comes before everything else and changes no source: cc -include tests/c/emulated_avx512.h -Wno-psabi ...
 * Regions for AVX-512 are compiled for AVX2, and the processor says that it has AVX-512. Results are those of the
 * instructions to the last bit. (Which of several NaN an addition passes on is the compiler's choice in any case.)
 * An intrinsic that is missing here does not compile: add it. */
#ifndef SELFATTN_EMULATED_AVX512_H
#define SELFATTN_EMULATED_AVX512_H
#if defined(__x86_64__)

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* a source cannot ask for it any more once a header is included */
#endif
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* The regions of target.h, wherever it lies. */
#if __has_include("target.h")
#include "target.h"
#elif __has_include("isa/target.h")
#include "isa/target.h"
#else
#error "no target.h: name its folder with -I"
#endif
#undef SA_TARGET_BEGIN
#if defined(__clang__)
#define SA_TARGET_BEGIN(isa)                                                                                           \
    SA_PRAGMA(clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function))
#else
#define SA_TARGET_BEGIN(isa) SA_PRAGMA(GCC push_options) SA_PRAGMA(GCC target("avx2,fma,f16c"))
#endif

/* (A macro does not expand itself: the second is the compiler's.) */
#define __builtin_cpu_supports(name) (__builtin_strncmp(name, "avx512", 6) == 0 || __builtin_cpu_supports(name))

SA_TARGET_BEGIN("")
/* Functions, not inlined: the unrolled tiles would take the compiler minutes. */
#define EMULATED static __attribute__((noinline, unused))

/* The types are immintrin.h's: 64 bytes, whatever the target. Here are their halves, quarters and lanes. */
typedef union {
    __m512 ps;
    __m512i si;
    __m256 half[2];
    __m256i half_si[2];
    __m128 quarter[4];
    float f32[16];
    uint16_t u16[32];
} emulated;

typedef uint32_t emulated_bits __attribute__((vector_size(64), may_alias));

/* ---- arithmetic ---- */

/* What an instruction does to each quarter: the compiler copies vectors of 64 bytes by 16 bytes, and a load of 32 waits
 * for such a copy. */
#define EMULATED_FMADD(name, type, quarter, instruction)                                                               \
    EMULATED type name(type a, type b, type c)                                                                         \
    {                                                                                                                  \
        const quarter *x = (const quarter *)&a, *y = (const quarter *)&b;                                              \
        quarter *z = (quarter *)&c;                                                                                    \
        z[0] = instruction(x[0], y[0], z[0]), z[1] = instruction(x[1], y[1], z[1]);                                    \
        z[2] = instruction(x[2], y[2], z[2]), z[3] = instruction(x[3], y[3], z[3]);                                    \
        return c;                                                                                                      \
    }
#define EMULATED_QUARTERS(name, type, quarter, instruction)                                                            \
    EMULATED type name(type a, type b)                                                                                 \
    {                                                                                                                  \
        const quarter *x = (const quarter *)&a;                                                                        \
        quarter *y = (quarter *)&b;                                                                                    \
        y[0] = instruction(x[0], y[0]), y[1] = instruction(x[1], y[1]);                                                \
        y[2] = instruction(x[2], y[2]), y[3] = instruction(x[3], y[3]);                                                \
        return b;                                                                                                      \
    }

#define _mm512_fmadd_ps emulated_fmadd_ps
#define _mm512_fmadd_pd emulated_fmadd_pd
EMULATED_FMADD(emulated_fmadd_ps, __m512, __m128, _mm_fmadd_ps)
EMULATED_FMADD(emulated_fmadd_pd, __m512d, __m128d, _mm_fmadd_pd)

/* The second where either is NaN, and of two zeros, as by the instruction of 16 bytes. */
#define _mm512_max_ps emulated_max_ps
#define _mm512_max_pd emulated_max_pd
EMULATED_QUARTERS(emulated_max_ps, __m512, __m128, _mm_max_ps)
EMULATED_QUARTERS(emulated_max_pd, __m512d, __m128d, _mm_max_pd)

/* ---- lanes change places ---- */

/* Within each quarter of 16 bytes. */
#define _mm512_unpacklo_ps emulated_unpacklo_ps
#define _mm512_unpackhi_ps emulated_unpackhi_ps
#define _mm512_unpacklo_pd emulated_unpacklo_pd
#define _mm512_unpackhi_pd emulated_unpackhi_pd
EMULATED_QUARTERS(emulated_unpacklo_ps, __m512, __m128, _mm_unpacklo_ps)
EMULATED_QUARTERS(emulated_unpackhi_ps, __m512, __m128, _mm_unpackhi_ps)
EMULATED_QUARTERS(emulated_unpacklo_pd, __m512d, __m128d, _mm_unpacklo_pd)
EMULATED_QUARTERS(emulated_unpackhi_pd, __m512d, __m128d, _mm_unpackhi_pd)

#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps emulated_shuffle_ps
EMULATED __m512 emulated_shuffle_ps(__m512 a, __m512 b, const int order)
{
    emulated x = {.ps = a}, y = {.ps = b}, z;
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
            z.f32[i + j] = (j < 2 ? x : y).f32[i + (order >> 2 * j & 3)];
    return z.ps;
}

/* Two quarters of a, then two of b. */
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated_shuffle_f32x4
EMULATED __m512 emulated_shuffle_f32x4(__m512 a, __m512 b, const int order)
{
    emulated x = {.ps = a}, y = {.ps = b}, z;
    z.quarter[0] = x.quarter[order & 3];
    z.quarter[1] = x.quarter[order >> 2 & 3];
    z.quarter[2] = y.quarter[order >> 4 & 3];
    z.quarter[3] = y.quarter[order >> 6 & 3];
    return z.ps;
}

#undef _mm512_shuffle_f64x2
#define _mm512_shuffle_f64x2 emulated_shuffle_f64x2
EMULATED __m512d emulated_shuffle_f64x2(__m512d a, __m512d b, const int order)
{
    return (__m512d)emulated_shuffle_f32x4((__m512)a, (__m512)b, order);
}

#define _mm512_permutexvar_epi16 emulated_permutexvar_epi16
EMULATED __m512i emulated_permutexvar_epi16(__m512i order, __m512i a)
{
    emulated index = {.si = order}, x = {.si = a}, z;
    for (int i = 0; i < 32; ++i)
        z.u16[i] = x.u16[index.u16[i] & 31];
    return z.si;
}

#define _mm512_loadu_si512 emulated_loadu_si512
EMULATED __m512i emulated_loadu_si512(const void *at)
{
    emulated z;
    memcpy(&z, at, sizeof z);
    return z.si;
}

/* ---- formats ---- */

#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
EMULATED __m512i emulated_cvtepu16_epi32(__m256i a)
{
    emulated z;
    z.half_si[0] = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(a));
    z.half_si[1] = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1));
    return z.si;
}

#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
EMULATED __m512i emulated_cvtepi8_epi32(__m128i a)
{
    emulated z;
    z.half_si[0] = _mm256_cvtepi8_epi32(a);
    z.half_si[1] = _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8));
    return z.si;
}

#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emulated_slli_epi32
EMULATED __m512i emulated_slli_epi32(__m512i a, const unsigned places)
{
    return places > 31 ? (__m512i){0} : (__m512i)((emulated_bits)a << places);
}

#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
EMULATED __m512 emulated_cvtepi32_ps(__m512i a)
{
    emulated x = {.si = a}, z;
    z.half[0] = _mm256_cvtepi32_ps(x.half_si[0]);
    z.half[1] = _mm256_cvtepi32_ps(x.half_si[1]);
    return z.ps;
}

#define _mm512_cvtph_ps emulated_cvtph_ps
EMULATED __m512 emulated_cvtph_ps(__m256i a)
{
    emulated z;
    z.half[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
    z.half[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
    return z.ps;
}

/* To the nearest, ties to even: the only rounding in use. */
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(a, rounding)                                                                                   \
    ((void)sizeof(char[((rounding) & 7) == _MM_FROUND_TO_NEAREST_INT ? 1 : -1]), emulated_cvtps_ph(a))
EMULATED __m256i emulated_cvtps_ph(__m512 a)
{
    emulated x = {.ps = a};
    __m128i low = _mm256_cvtps_ph(x.half[0], _MM_FROUND_TO_NEAREST_INT);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm256_cvtps_ph(x.half[1], _MM_FROUND_TO_NEAREST_INT),
                                   1);
}

/* ---- bfloat16: "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2 ---- */

/* Subnormal numbers are zeros of their sign, as operands and as results; MXCSR has no say. */
EMULATED emulated_bits emulated_flushed(emulated_bits x)
{
    emulated_bits tiny = (emulated_bits)((x & 0x7f800000) == 0);
    return (tiny & x & 0x80000000) | (~tiny & x);
}

/* VCVTNEPS2BF16: to the nearest, ties to even; a NaN stays one, made quiet. In the lower half of each lane. */
EMULATED emulated_bits emulated_rounded_bfloat16(__m512 a)
{
    emulated_bits x = emulated_flushed((emulated_bits)a);
    emulated_bits nan = (emulated_bits)((x & 0x7fffffff) > 0x7f800000);
    emulated_bits infinite = (emulated_bits)((x & 0x7fffffff) == 0x7f800000);
    emulated_bits rounded = x + 0x7fff + (x >> 16 & 1);
    return ((nan & (x | 0x400000)) | (infinite & x) | (~(nan | infinite) & rounded)) >> 16;
}

#define _mm512_cvtneps_pbh emulated_cvtneps_pbh
EMULATED __m256i emulated_cvtneps_pbh(__m512 a)
{
    emulated x = {.si = (__m512i)emulated_rounded_bfloat16(a)};
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.half_si[0], x.half_si[1]), 0xd8);
}

/* The numbers of b, then those of a. */
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
EMULATED __m512i emulated_cvtne2ps_pbh(__m512 a, __m512 b)
{
    emulated z;
    z.half_si[0] = emulated_cvtneps_pbh(b);
    z.half_si[1] = emulated_cvtneps_pbh(a);
    return z.si;
}

/* VDPBF16PS: of each pair the second product is added first, then the first; each addition is a fused one. */
#define _mm512_dpbf16_ps(sum, a, b) emulated_dpbf16_ps(sum, (__m512i)(a), (__m512i)(b))
EMULATED __m512 emulated_dpbf16_ps(__m512 sum, __m512i a, __m512i b)
{
    emulated_bits x = (emulated_bits)a, y = (emulated_bits)b, high = (emulated_bits){0} + 0xffff0000;
    emulated_bits total = emulated_flushed((emulated_bits)sum);
    __m512 first =
        emulated_fmadd_ps((__m512)emulated_flushed(x & high), (__m512)emulated_flushed(y & high), (__m512)total);
    total = emulated_flushed((emulated_bits)first);
    __m512 then =
        emulated_fmadd_ps((__m512)emulated_flushed(x << 16), (__m512)emulated_flushed(y << 16), (__m512)total);
    return (__m512)emulated_flushed((emulated_bits)then);
}

SA_TARGET_END
#endif
#endif
