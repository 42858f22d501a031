/* SPDX-License-Identifier: Apache-2.0 */
/* numbers.inc.h -- numbers, vectors of numbers, and the operations that are the same for every instruction set. */
#ifndef SELFATTN_VECTOR_NUMBERS_INC_H
#define SELFATTN_VECTOR_NUMBERS_INC_H

#ifndef SA_ISA
#include "isa/editor.h"
#endif

#include "contracts/kernels.h"

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
/* 0 where the mask is set, x elsewhere. (With vselect, gcc 12 may compute a division in x twice.) */
INLINE vreal vzero_where(vint mask, vreal x)
{
    return (vreal)(~mask & (vint)x);
}
/* The first n of LANES numbers. The other numbers are 0, and memory behind the n-th is neither read nor written. */
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

#endif
