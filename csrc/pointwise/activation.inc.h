/* SPDX-License-Identifier: Apache-2.0 */
/* activation.inc.h -- activations, and gates: the functions between the two linear layers of a feed-forward network. */
#ifndef SELFATTN_POINTWISE_ACTIVATION_INC_H
#define SELFATTN_POINTWISE_ACTIVATION_INC_H

#include "vector/convert.inc.h"
#include "vector/math.inc.h"

/* x * Phi(x), exactly (not the tanh form): max(x, 0) + t * Phi(t), t = -|x|, where Phi(t) = exp(-t^2 / 2) * R(t).
 * The tail keeps its digits: the exponential's argument carries the rounding error of t^2 along. */
#ifdef SA_FLOAT64_KERNELS
static const real GELU[] = {0.45775567058612776,    -0.0887672250343494,     0.03561027308443366,
                            0.0031622511861771007,  -0.022092328204141753,   0.024432991202179156,
                            -0.017920498570175983,  0.009768848373517372,    -0.003892083932712969,
                            0.0009673705047480832,  -1.8324476953808547e-05, -9.604902560335607e-05,
                            3.263650735386465e-05,  2.4736403517465035e-06,  -4.693392712013096e-06,
                            6.110679732496798e-07,  5.47586581307684e-07,    -1.5049097964966477e-07,
                            -6.684418249697556e-08, 1.8845729592532507e-08,  7.926126385712773e-09};
static const real GELU_IS_0 = -37.635, HALF_LOG2E = -0.7213475204444817, HALF_LOG2E_LOW = -1.0177636870465517e-17;

/* R = W(v) / (1 - t), W of degree 20 (relative error 1.3e-16), v in [-1, 0.75]: W stays near 1/2. */
INLINE vreal gelu_ratio(vreal t)
{
    vreal u = vsplat(1.0) / vfma(t, vsplat(-0.184), vsplat(1.0)), v = vfma(vsplat(-2.0), u, vsplat(1.0));
    return polynomial(GELU, SA_DEGREE(GELU), v) / (vsplat(1.0) - t);
}

/* exp(-t^2 / 2) */
INLINE vreal gelu_exponential(vreal t)
{
    vreal square = t * t, low = vfma(t, t, -square);
    vreal power = square * vsplat(HALF_LOG2E);
    vreal error = vfma(square, vsplat(HALF_LOG2E), -power);
    error = vfma(square, vsplat(HALF_LOG2E_LOW), vfma(low, vsplat(HALF_LOG2E), error));
    vreal e = vexp2(power);
    return vfma(e * error, vsplat((real)0.6931471805599453), e);
}

/* Phi(t) for GELU_IS_0 <= t <= 0 */
INLINE vreal gelu_tail(vreal t)
{
    return gelu_exponential(t) * gelu_ratio(t);
}

/* The slope of t Phi(t), Phi(t) + t phi(t), where phi(t) = exp(-t^2 / 2) / sqrt(2 pi) */
INLINE vreal gelu_tail_slope(vreal t)
{
    return gelu_exponential(t) * vfma(t, vsplat(0.3989422804014327), gelu_ratio(t));
}
#else
/* -exp(-t^2 / 2) * 2^down = E(f) and -R = P(t) / Q(t), but for constants: the polynomials are minimax for the relative
 * error (E 1.1e-7, P / Q 5e-9 down to t = -13; with operands of bfloat16 8e-5 and 2.3e-5) and begin with x^n, which
 * saves products; the constants are a power of two together, because f is centered where they are. */
#ifdef SA_BFLOAT16_KERNELS
static const real GELU_E[] = {-51.1261368f, 25.5809994f, -6.43922615f};
static const real GELU_P[] = {8.09030783f, -4.47490351f}, GELU_Q[] = {-6.46305596f, 8.73620782f, -4.51517899f};
static const real GELU_CENTER = -0.0810915f, GELU_DENSITY = 0.998751674f;
enum { GELU_DOWN = 7 };
#else
static const real GELU_E[] = {-3268.17456f, 1634.08839f, -408.533295f, 68.0651398f, -8.44797897f};
static const real GELU_P[] = {52.0327835f, 11.6643706f, 4.46680880f, -5.47038317f};
static const real GELU_Q[] = {-99.0088348f, 172.172409f, 22.2029114f, -0.312138647f, -5.47078753f};
static const real GELU_CENTER = 0.237621158f, GELU_DENSITY = 0.999987856f;
enum { GELU_DOWN = 13 };
#endif
static const real GELU_IS_0 = -13.2f, TWO_LN2 = 1.38629436f, HALF_LOG2E = 0.72134752f;

/* x^n + ... + c[1] x + c[0] */
INLINE vreal monic(const real *c, const int n, vreal x)
{
    vreal p = x + vsplat(c[n - 1]);
#pragma GCC unroll 8
    for (int i = n - 2; i >= 0; --i)
        p = vfma(p, x, vsplat(c[i]));
    return p;
}

/* t^4 + ... in two products (Knuth): z (z + t + c1) + c0, z = t^2 + c3 t + c2 */
INLINE vreal quartic(const real *c, vreal t, vreal square)
{
    vreal z = vfma(t, vsplat(c[3]), square + vsplat(c[2]));
    return vfma(z, z + (t + vsplat(c[1])), vsplat(c[0]));
}

INLINE vreal gelu_ratio(vreal t)
{
    vreal square = t * t;
#ifdef SA_BFLOAT16_KERNELS
    return vfma(t, vsplat(GELU_P[1]), square + vsplat(GELU_P[0])) / monic(GELU_Q, 3, t);
#else
    return quartic(GELU_P, t, square) / vfma(t, quartic(GELU_Q + 1, t, square), vsplat(GELU_Q[0]));
#endif
}

/* E(f), t^2 = (n - down) 2 ln 2 + f, where 2^down is returned as an exponent's bits: |f| stays below 2 ln 2. */
INLINE vreal gelu_exponential(vreal t, vbits *down)
{
    const real ROUND = (real)(1.5 * (double)((int64_t)1 << MANTISSA_BITS) + GELU_DOWN); /* as in vexp2 */
    vreal square = t * t, low = vfma(t, t, -square);
    vreal rounded = vfma(square, vsplat(HALF_LOG2E), vsplat(GELU_CENTER)) + vsplat(ROUND);
    *down = (vbits)rounded << MANTISSA_BITS;
    vreal f = vfma(vsplat(ROUND) - rounded, vsplat(TWO_LN2), square) + low;
    return monic(GELU_E, SA_DEGREE(GELU_E) + 1, f);
}

/* x / 2^down for x >= 0; 0 where the result would be below the normal numbers: its bits would be negative. */
INLINE vreal scaled_down(vreal x, vbits down)
{
    return vmax((vreal)((vbits)x - down), vsplat(0.0f));
}

/* Phi(t) for GELU_IS_0 <= t <= 0 */
INLINE vreal gelu_tail(vreal t)
{
    vbits down;
    vreal e = gelu_exponential(t, &down);
    return scaled_down(e * gelu_ratio(t), down);
}

/* The slope of t Phi(t), Phi(t) + t phi(t), where phi(t) = exp(-t^2 / 2) / sqrt(2 pi) */
INLINE vreal gelu_tail_slope(vreal t)
{
    vbits down;
    vreal e = gelu_exponential(t, &down);
    return scaled_down(-e, down) * vfma(t, vsplat(GELU_DENSITY), -gelu_ratio(t));
}
#endif

/* -|x| */
INLINE vreal minus_size(vreal x)
{
    return (vreal)((vint)x | (vint)vsplat(-0.0f));
}

INLINE vreal gelu_vector(vreal x)
{
    vreal t = vmax(minus_size(x), vsplat(GELU_IS_0)); /* finite even where x is NaN; max(0, x) keeps the NaN */
    return vfma(t, gelu_tail(t), vmax(vsplat(0.0f), x));
}

/* 1 / (1 + e), e = exp(-x). Where the result is 0, e is 1. */
INLINE vreal sigmoid_and_exponential(vreal x, vreal *e)
{
    vreal power = x * vsplat(-LOG2E);
    vint saturated = power >= vsplat((real)BIAS_1);
    *e = vexp2(vzero_where(saturated, power));
    return vzero_where(saturated, vsplat(1.0f) / (vsplat(1.0f) + *e));
}

INLINE vreal sigmoid_vector(vreal x)
{
    vreal e;
    return sigmoid_and_exponential(x, &e);
}

static const real TANH_LINEAR = (real)1.5957691216057308, TANH_CUBIC = (real)(0.044715 * 1.5957691216057308);

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) */
INLINE vreal gelu_tanh_vector(vreal x)
{
    return x * sigmoid_vector(x * vfma(x * x, vsplat(TANH_CUBIC), vsplat(TANH_LINEAR)));
}

INLINE vreal activate_vector(enum sa_activation kind, vreal x)
{
    switch (kind) {
    case SA_GELU:
        return gelu_vector(x);
    case SA_GELU_TANH:
        return gelu_tanh_vector(x);
    case SA_RELU:
        return vmax(vsplat(0.0f), x);
    case SA_SILU:
        return x * sigmoid_vector(x);
    default:
        return x;
    }
}

/* x: (n,), in place. */
static void activate(enum sa_activation kind, void *data, ptrdiff_t n)
{
    real *x = data;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        ptrdiff_t lanes = smaller(LANES, n - i);
        if (lanes == LANES)
            vstore(x + i, activate_vector(kind, vload(x + i)));
        else
            vstore_first(x + i, activate_vector(kind, vload_first(x + i, lanes)), lanes);
    }
}

/* y[row] = act(gate[row]) * up[row]. gate_up: rows x (gate | up), 2 * width numbers a row. y: rows x width. */
static void gate(enum sa_activation kind, const void *gates, ptrdiff_t rows, ptrdiff_t width, void *result)
{
    const real *gate_up = gates;
    real *y = result;
    for (ptrdiff_t row = 0; row < rows; ++row, gate_up += 2 * width, y += width)
        for (ptrdiff_t i = 0; i < width; i += LANES) {
            ptrdiff_t lanes = smaller(LANES, width - i);
            vreal g = vload_first(gate_up + i, lanes), up = vload_first(gate_up + width + i, lanes);
            vstore_first(y + i, activate_vector(kind, g) * up, lanes);
        }
}

#endif
