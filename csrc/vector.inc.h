/* vector.inc.h -- the only file that knows an instruction set. Everything above it is written with these.
 *
 * vfloat is LANES float32 values; every operation works lane by lane, and every instruction set gives the same bits
 * (the baseline, which has no fused multiply-add, excepted): vfma rounds once, vmax(a, b) is a > b ? a : b, so that it
 * returns b when either is NaN. */

typedef float vfloat __attribute__((vector_size(SA_VECTOR_BYTES), aligned(4), may_alias));
typedef float vfloat_any __attribute__((vector_size(SA_VECTOR_BYTES), aligned(1), may_alias)); /* in memory */
typedef int32_t vint __attribute__((vector_size(SA_VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t vuint __attribute__((vector_size(SA_VECTOR_BYTES), aligned(4), may_alias));
typedef double vdouble __attribute__((vector_size(SA_VECTOR_BYTES), aligned(8), may_alias));
typedef uint32_t uint32_any __attribute__((aligned(1), may_alias));
typedef float scalar_any __attribute__((aligned(1), may_alias)); /* a float32 at any address */

enum { LANES = SA_VECTOR_BYTES / (int)sizeof(float) };

#define INLINE static inline __attribute__((always_inline))

/* Loads and stores at any alignment. */
INLINE vfloat vload(const float *p)
{
    return *(const vfloat_any *)p;
}
INLINE void vstore(float *p, vfloat v)
{
    *(vfloat_any *)p = v;
}
INLINE vfloat vsplat(float x)
{
    return x - (vfloat){0}; /* x - 0 is x for every x, NaN and -0 included; x + 0 would lose the sign of -0 */
}
INLINE vint visplat(int32_t x)
{
    return x + (vint){0};
}
INLINE vfloat vselect(vint mask, vfloat yes, vfloat no)
{
    return (vfloat)((mask & (vint)yes) | (~mask & (vint)no));
}
/* The first n of LANES values; the rest reads as zero, and is neither loaded nor stored. */
INLINE vfloat vload_first(const float *p, ptrdiff_t n)
{
    union {
        float lane[LANES];
        vfloat v;
    } u = {{0}};
    memcpy(u.lane, p, (size_t)n * sizeof(float));
    return u.v;
}
INLINE void vstore_first(float *p, vfloat v, ptrdiff_t n)
{
    memcpy(p, &v, (size_t)n * sizeof(float));
}

#if SA_VECTOR_BYTES == 64
INLINE vfloat vfma(vfloat a, vfloat b, vfloat c)
{
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE vfloat vmax(vfloat a, vfloat b)
{
    return (vfloat)_mm512_max_ps((__m512)a, (__m512)b);
}
/* rows r[0..15] of 16 values become columns: 4-byte pairs, 8-byte pairs, then 128-bit quarters twice. */
INLINE void vtranspose(vfloat r[LANES])
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
        r[j] = (vfloat)_mm512_shuffle_f32x4(u[j], u[4 + j], 0x88);
        r[8 + j] = (vfloat)_mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
        r[4 + j] = (vfloat)_mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
        r[12 + j] = (vfloat)_mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    }
}

#elif SA_VECTOR_BYTES == 32
INLINE vfloat vfma(vfloat a, vfloat b, vfloat c)
{
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE vfloat vmax(vfloat a, vfloat b)
{
    return (vfloat)_mm256_max_ps((__m256)a, (__m256)b);
}
INLINE void vtranspose(vfloat r[LANES])
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
        r[j] = (vfloat)_mm256_permute2f128_ps(t[j], t[4 + j], 0x20);
        r[4 + j] = (vfloat)_mm256_permute2f128_ps(t[j], t[4 + j], 0x31);
    }
}

#else /* 128 bits */
#if defined(__aarch64__) && SA_FMA
INLINE vfloat vfma(vfloat a, vfloat b, vfloat c)
{
    return (vfloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
INLINE vfloat vfma(vfloat a, vfloat b, vfloat c)
{
    return a * b + c; /* rounds twice: the baseline is exempt from the promise of equal bits */
}
#endif
#if defined(__SSE2__)
INLINE vfloat vmax(vfloat a, vfloat b)
{
    return (vfloat)_mm_max_ps((__m128)a, (__m128)b);
}
#else
INLINE vfloat vmax(vfloat a, vfloat b)
{
    return vselect(a > b, a, b);
}
#endif
INLINE void vtranspose(vfloat r[LANES])
{
    vfloat a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    vfloat c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
#endif
