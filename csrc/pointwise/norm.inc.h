/* SPDX-License-Identifier: Apache-2.0 */
/* norm.inc.h -- LayerNorm and RMSNorm, in double: memory is the limit anyway, and a mean of 10^4 with a deviation of
 * 1, or values of 10^20, lose no digits. Canonical order: number i is added to sum i % 16, and the 16 sums are added
 * as a tree. */
#ifndef SELFATTN_POINTWISE_NORM_INC_H
#define SELFATTN_POINTWISE_NORM_INC_H

#include "vector/vector.inc.h"

enum { DOUBLES = SA_VECTOR_BYTES / (int)sizeof(double), SUM_VECTORS = SA_NORM_SUMS / DOUBLES };

_Static_assert(SA_NORM_SUMS % DOUBLES == 0, "the sums of a row are whole vectors");

/* DOUBLES numbers in memory. */
typedef real vdoubles __attribute__((vector_size((size_t)DOUBLES * sizeof(real)), aligned(4), may_alias));

INLINE vdouble widen(const real *x)
{
    return __builtin_convertvector(*(const vdoubles *)x, vdouble);
}

/* The sum of 16 sums. */
INLINE double tree(const vdouble sums[SUM_VECTORS])
{
    double s[SA_NORM_SUMS];
    memcpy(s, sums, sizeof s);
    for (int half = SA_NORM_SUMS / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i)
            s[i] += s[i + half];
    return s[0];
}

/* Sum over n numbers of (x - shift)^power; power is 1 or 2. */
INLINE double row_sum(const real *x, ptrdiff_t n, double shift, const int power)
{
    vdouble sums[SUM_VECTORS];
    for (int j = 0; j < SUM_VECTORS; ++j)
        sums[j] = (vdouble){0};
    ptrdiff_t i = 0;
    for (; i + SA_NORM_SUMS <= n; i += SA_NORM_SUMS)
        for (int j = 0; j < SUM_VECTORS; ++j) {
            vdouble d = widen(x + i + j * DOUBLES) - shift;
            if (power == 2) d *= d;
            sums[j] += d;
        }
    double tail[SA_NORM_SUMS] = {0};
    for (int j = 0; i + j < n; ++j) {
        double d = (double)x[i + j] - shift;
        tail[j] = power == 2 ? d * d : d;
    }
    for (int j = 0; j < SUM_VECTORS; ++j) {
        vdouble t;
        memcpy(&t, tail + j * DOUBLES, sizeof t);
        sums[j] += t;
    }
    return tree(sums);
}

/* 1 / sqrt(mean of (x - mean)^2 + eps); the mean is 0 for an RMSNorm. */
INLINE double row_scale(const real *x, ptrdiff_t width, double eps, int rms, double *mean)
{
    *mean = rms ? 0.0 : row_sum(x, width, 0.0, 1) / (double)width;
    return 1.0 / __builtin_sqrt(row_sum(x, width, *mean, 2) / (double)width + eps);
}

/* y = norm(x) + residual. All are (width,); residual may be NULL. */
INLINE void norm_part(const struct sa_norm *l, const real *x, const real *residual, real *y)
{
    const real *weight = l->weight, *bias = l->bias;
    double mean, scale = row_scale(x, l->width, l->eps, l->rms, &mean);
    ptrdiff_t i = 0;
    for (; i + DOUBLES <= l->width; i += DOUBLES) {
        vdouble v = (widen(x + i) - mean) * scale * widen(weight + i);
        if (bias) v += widen(bias + i);
        vdoubles rounded = __builtin_convertvector(v, vdoubles);
        if (residual) rounded += *(const vdoubles *)(residual + i);
        *(vdoubles *)(y + i) = rounded;
    }
    for (; i < l->width; ++i) {
        double v = ((double)x[i] - mean) * scale * (double)weight[i];
        real rounded = (real)(bias ? v + (double)bias[i] : v);
        y[i] = residual ? rounded + residual[i] : rounded;
    }
}

/* The rows row0 .. row1 - 1 of y. */
static void norm(const struct sa_norm *l, ptrdiff_t row0, ptrdiff_t row1)
{
    for (ptrdiff_t row = row0; row < row1; ++row)
        for (ptrdiff_t part = 0; part < l->parts; ++part) {
            ptrdiff_t at = row * l->stride + part * l->width;
            norm_part(l, (const real *)l->x + at, l->residual ? (const real *)l->residual + at : NULL,
                      (real *)l->y + at);
        }
}

#endif
