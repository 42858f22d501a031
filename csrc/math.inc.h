/* math.inc.h -- 2^x lane by lane, and the logarithm of one number: the same operations in the same order everywhere. */

/* 2^x for x <= 126, exactly 0 for x <= -126, NaN for NaN.
 *
 * x = n + f with |f| <= 1/2. Adding ROUND leaves n + 126 in the low bits, which a shift turns into the float 2^(n-1);
 * the polynomial is 2 * 2^f, in [1.41, 2.83), so that the product is never subnormal (one subnormal costs ~150 cycles)
 * and the step from 2^-125.5 to 0 needs no compare. Its constant is exactly 2, so 2^0 is exactly 1.
 * Relative error below 1.1e-7 (minimax of degree 5) before rounding. */
#define EXP2_ROUND (12582912.0f + 126.0f) /* 1.5 * 2^23: the ulp is 1 here */
INLINE vfloat exp2_poly(vfloat f)
{
    vfloat p = vfma(f, vsplat(0.00265294546f), vsplat(0.019343026f));
    p = vfma(p, f, vsplat(0.111014672f));
    p = vfma(p, f, vsplat(0.480444849f));
    p = vfma(p, f, vsplat(1.38629401f));
    return vfma(p, f, vsplat(2.0f));
}
INLINE vfloat vexp2(vfloat x)
{
    x = vmax(vsplat(-126.0f), x); /* in this order NaN stays */
    vfloat rounded = x + vsplat(EXP2_ROUND);
    vfloat f = x - (rounded - vsplat(EXP2_ROUND));
    return exp2_poly(f) * (vfloat)((vuint)rounded << 23);
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
