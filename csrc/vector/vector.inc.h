/* vector.inc.h -- the only file that knows an instruction set. Everything above it is written with these.
 *
 * A `real` is a float32, or a float64 where SA_FLOAT64_KERNELS is defined; vreal is LANES of them. Where
 * SA_BFLOAT16_KERNELS is defined, the operands of a product are pairs of bfloat16, one pair in the place of a float32,
 * and a sum takes TERMS = 2 products at a time. Every operation works lane by lane, and every instruction set gives the same bits (the baseline, which has no fused multiply-add, excepted): vfma
 * rounds once, vmax(a, b) is a > b ? a : b, so that it returns b when either is NaN. */

#ifdef SA_FLOAT64_KERNELS
typedef double real;
typedef int64_t integer;
typedef uint64_t bits;
static const enum sa_dtype SA_REAL = SA_FLOAT64;
#else
typedef float real;
typedef int32_t integer;
typedef uint32_t bits;
static const enum sa_dtype SA_REAL = SA_FLOAT32;
#endif
enum { LANES = SA_VECTOR_BYTES / (int)sizeof(real) };

#define SA_VECTOR(align) __attribute__((vector_size(SA_VECTOR_BYTES), aligned(align), may_alias))
typedef real vreal SA_VECTOR(4);
typedef real vreal_any SA_VECTOR(1); /* in memory */
typedef integer vint SA_VECTOR(4);
typedef bits vbits SA_VECTOR(4);
typedef double vdouble SA_VECTOR(8);
typedef real vtwo __attribute__((vector_size(2 * sizeof(real)), aligned(sizeof(real)), may_alias)); /* neighbours */
typedef real scalar_any __attribute__((aligned(1), may_alias)); /* a number at any address */
typedef bits bits_any __attribute__((aligned(1), may_alias));
typedef float float_any __attribute__((aligned(1), may_alias));
typedef uint16_t half_any __attribute__((aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* Loads and stores at any alignment. */
INLINE vreal vload(const real *p)
{
    return *(const vreal_any *)p;
}
INLINE void vstore(real *p, vreal v)
{
    *(vreal_any *)p = v;
}
INLINE vreal vsplat(real x)
{
    return x - (vreal){0}; /* x - 0 is x for every x, NaN and -0 included; x + 0 would lose the sign of -0 */
}
INLINE vint visplat(integer x)
{
    return x + (vint){0};
}
INLINE vreal vselect(vint mask, vreal yes, vreal no)
{
    return (vreal)((mask & (vint)yes) | (~mask & (vint)no));
}
/* 0 where the mask is, x elsewhere. (With a vselect, gcc 12 may divide twice for x, once under the mask.) */
INLINE vreal vzero_where(vint mask, vreal x)
{
    return (vreal)(~mask & (vint)x);
}
/* The first n of LANES values; the rest reads as zero, and is neither loaded nor stored. */
INLINE vreal vload_first(const real *p, ptrdiff_t n)
{
    union {
        real lane[LANES];
        vreal v;
    } u = {{0}};
    memcpy(u.lane, p, (size_t)n * sizeof(real));
    return u.v;
}
INLINE void vstore_first(real *p, vreal v, ptrdiff_t n)
{
    memcpy(p, &v, (size_t)n * sizeof(real));
}

#ifdef SA_FLOAT64_KERNELS
#include "vector/float64.inc.h"
#elif SA_VECTOR_BYTES == 64
INLINE vreal vfma(vreal a, vreal b, vreal c)
{
    return (vreal)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE vreal vmax(vreal a, vreal b)
{
    return (vreal)_mm512_max_ps((__m512)a, (__m512)b);
}
/* rows r[0..15] of 16 values become columns: 4-byte pairs, 8-byte pairs, then 128-bit quarters twice. */
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

#ifndef SA_FLOAT64_KERNELS
#include "vector/half.inc.h"
#endif

/* c + a * b for one step of a sum, and what a step's operands are made of. */
#ifdef SA_BFLOAT16_KERNELS
enum { TERMS = 2 };
INLINE vreal vterm(vreal a, vreal b, vreal c)
{
    return (vreal)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
/* The pairs of neighbours among 2 LANES numbers, and the pairs of two vectors' lanes. */
INLINE vreal vneighbours(vreal first, vreal second)
{
    return (vreal)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}
INLINE vreal vpair(vreal first, vreal second)
{
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vreal)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i)vneighbours(first, second));
}
#else
enum { TERMS = 1 };
INLINE vreal vterm(vreal a, vreal b, vreal c)
{
    return vfma(a, b, c);
}
INLINE vreal vpair(vreal first, vreal second)
{
    (void)second;
    return first;
}
#endif
