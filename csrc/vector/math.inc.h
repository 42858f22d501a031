/* SPDX-License-Identifier: Apache-2.0 */
/* math.inc.h -- 2^x and tanh lane by lane, and the logarithm of one number. Every instruction set does the same
 * operations in the same order. Polynomials are minimax for the relative error; their coefficients begin with the
 * constant. */
#ifndef SELFATTN_VECTOR_MATH_INC_H
#define SELFATTN_VECTOR_MATH_INC_H

#include "vector/vector.inc.h"

#ifdef SA_FLOAT64_KERNELS
enum { MANTISSA_BITS = 52, BIAS_1 = 1022 }; /* the exponent's bias, less 1 */
static const real EXP2[] = {2.0,
                            1.3862943611198906,
                            0.48045301391820217,
                            0.11100821732964344,
                            0.019236258215203625,
                            0.002666711629309685,
                            0.0003080706089717289,
                            3.0505467258887896e-05,
                            2.643087826584197e-06,
                            2.035632606983665e-07,
                            1.4146343541035193e-08,
                            8.876492332243082e-10};
static const real TANH[] = {-0.33333333333332854,  0.13333333333261932,   -0.05396825393119369,
                            0.021869487574403653,  -0.00886322098054219,  0.003591988996108089,
                            -0.001454957967412753, 0.0005863135614985497, -0.00022855818923474134,
                            7.713751414619676e-05, -1.606921344623105e-05};
static const real TANH_IS_1 = 20.0; /* from here on, in float64 */
#else
enum { MANTISSA_BITS = 23, BIAS_1 = 126 };
static const real EXP2[] = {2.0f, 1.38629401f, 0.480444849f, 0.111014672f, 0.019343026f, 0.00265294546f};
static const real TANH[] = {-0.333332807f, 0.133314058f, -0.0537365153f, 0.0206281673f, -0.00569229713f};
static const real TANH_IS_1 = 9.2f;
#endif

static const real LOG2E = (real)1.4426950408889634;

#define SA_DEGREE(coefficients) ((int)(sizeof(coefficients) / sizeof *(coefficients)) - 1)

/* Horner's rule */
INLINE vreal polynomial(const real *coefficients, const int degree, vreal x)
{
    vreal p = vsplat(coefficients[degree]);
#pragma GCC unroll 24
    for (int i = degree - 1; i >= 0; --i)
        p = vfma(p, x, vsplat(coefficients[i]));
    return p;
}

/* 2^x for x <= 126 (float64: 1022), exactly 0 for x <= -126 (-1022), NaN for NaN.
 *
 * x = n + f with |f| <= 1/2. Adding ROUND leaves n + 126 in the low bits, which a shift turns into the float 2^(n-1);
 * the polynomial is 2 * 2^f, in [1.41, 2.83), so that the product is never subnormal (one subnormal costs ~150 cycles)
 * and the step from 2^-125.5 to 0 needs no compare. Its constant is exactly 2, so 2^0 is exactly 1.
 * Relative error below 1.1e-7 (degree 5) before rounding; in float64 below 1e-17 (degree 11). */
INLINE vreal vexp2(vreal x)
{
    const real ROUND = (real)(1.5 * (double)((int64_t)1 << MANTISSA_BITS) + BIAS_1); /* the ulp is 1 here */
    x = vmax(vsplat(-(real)BIAS_1), x); /* NaN as the second operand stays NaN */
    vreal rounded = x + vsplat(ROUND);
    vreal f = x - (rounded - vsplat(ROUND));
    return polynomial(EXP2, SA_DEGREE(EXP2), f) * (vreal)((vbits)rounded << MANTISSA_BITS);
}

/* x + x^3 P(x^2) near 0, 1 - 2 / (e^2x + 1) with the sign of x elsewhere: about 2 ulp. */
INLINE vreal vtanh(vreal x)
{
    vreal t = vmax(x, -x), square = x * x;
    vreal small = vfma(x * square, polynomial(TANH, SA_DEGREE(TANH), square), x);
    vreal power = vmax(vsplat(-TANH_IS_1), -t) * vsplat((real)-2.8853900817779268); /* 2 t log2(e); NaN stays */
    vreal large = vsplat(1.0f) - vsplat(2.0f) / (vexp2(power) + vsplat(1.0f));
    large = vselect(x < vsplat(0.0f), -large, large);
    return vselect(t < vsplat(0.625f), small, large);
}

/* Natural logarithm of a positive number, in plain IEEE double arithmetic (libm may differ between machines):
 * x = 2^k * m, m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m-1)/(m+1)). NaN gives NaN, 0 gives -inf, inf gives inf. */
static double natural_log(double x)
{
    union {
        double value;
        int64_t bits;
    } u = {x};
    if (!(x > 0.0) || u.bits >= 0x7ff0000000000000) return x == 0.0 ? -(double)INFINITY : x;
    int64_t k = (u.bits - 0x3fe6a09e667f3bcd) >> 52; /* sqrt(1/2) */
    u.bits -= k * ((int64_t)1 << 52);
    double z = (u.value - 1.0) / (u.value + 1.0), z2 = z * z, series = 0.0;
    for (int i = 19; i >= 1; i -= 2)
        series = series * z2 + 1.0 / (double)i;
    return (double)k * 0.693147180559945309417 + 2.0 * z * series;
}

#endif
