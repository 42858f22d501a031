/* SPDX-License-Identifier: Apache-2.0 */
/* convert.inc.h -- rows in memory, of any dtype, stride and alignment, become numbers of the arithmetic; and back.
 *
 * `col` is the stride in bytes from number to number of a row. */
#ifndef SELFATTN_VECTOR_CONVERT_INC_H
#define SELFATTN_VECTOR_CONVERT_INC_H

#include "vector/vector.inc.h"

INLINE ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}
INLINE ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

/* Bytes of a number. */
static ptrdiff_t size_of(enum sa_dtype dtype)
{
    static const ptrdiff_t sizes[] = {
        [SA_FLOAT32] = 4, [SA_FLOAT64] = 8, [SA_FLOAT16] = 2, [SA_BFLOAT16] = 2, [SA_INT8] = 1};
    _Static_assert(sizeof sizes / sizeof *sizes == SA_INT8 + 1, "each dtype has a size");
    return sizes[dtype];
}

#ifdef SA_FLOAT64_KERNELS /* the arrays of float64 kernels are float64; a bias may be float32 */
INLINE void widen_halves(const char *from, ptrdiff_t col, ptrdiff_t n, enum sa_dtype dtype, real *to)
{
    (void)from, (void)col, (void)n, (void)dtype, (void)to;
}
INLINE void narrow_halves(vreal x, char *to, ptrdiff_t col, ptrdiff_t n, enum sa_dtype dtype)
{
    (void)x, (void)to, (void)col, (void)n, (void)dtype;
}
#else
INLINE vreal widen_half(enum sa_dtype dtype, vhalf h)
{
    return dtype == SA_FLOAT16 ? widen_float16(h) : widen_bfloat16(h);
}
INLINE vhalf narrow_half(enum sa_dtype dtype, vreal x)
{
    return dtype == SA_FLOAT16 ? narrow_float16(x) : narrow_bfloat16(x);
}

/* n numbers of float16 or bfloat16. */
static void widen_halves(const char *from, ptrdiff_t col, ptrdiff_t n, enum sa_dtype dtype, real *to)
{
    ptrdiff_t i = 0;
    for (; col == 2 && i + LANES <= n; i += LANES)
        vstore(to + i, widen_half(dtype, *(const vhalf *)(from + i * col)));
    for (; i < n; i += LANES) {
        uint16_t buffer[LANES] = {0};
        ptrdiff_t lanes = smaller(LANES, n - i);
        for (ptrdiff_t j = 0; j < lanes; ++j)
            buffer[j] = *(const half_any *)(from + (i + j) * col);
        vstore_first(to + i, widen_half(dtype, *(const vhalf *)buffer), lanes);
    }
}

/* The first n <= LANES numbers of a vector. */
INLINE void narrow_halves(vreal x, char *to, ptrdiff_t col, ptrdiff_t n, enum sa_dtype dtype)
{
    vhalf h = narrow_half(dtype, x);
    if (col == 2 && n == LANES)
        *(vhalf *)to = h;
    else
        for (ptrdiff_t i = 0; i < n; ++i)
            *(half_any *)(to + i * col) = h[i];
}
#endif

/* to: (n,) = n numbers of a row. */
static void widen_row(const char *from, ptrdiff_t col, ptrdiff_t n, enum sa_dtype dtype, real *to)
{
    if (dtype == SA_REAL && col == (ptrdiff_t)sizeof(real)) {
        memcpy(to, from, (size_t)n * sizeof(real));
    } else if (dtype == SA_REAL) {
        for (ptrdiff_t i = 0; i < n; ++i)
            to[i] = *(const scalar_any *)(from + i * col);
    } else if (dtype == SA_FLOAT32) {
        for (ptrdiff_t i = 0; i < n; ++i)
            to[i] = *(const float_any *)(from + i * col);
    } else if (dtype == SA_INT8) {
        for (ptrdiff_t i = 0; i < n; ++i)
            to[i] = *(const signed char *)(from + i * col);
    } else {
        widen_halves(from, col, n, dtype, to);
    }
}

/* LANES contiguous numbers. */
INLINE vreal load_whole(const char *at, const enum sa_dtype dtype)
{
    (void)dtype;
#ifndef SA_FLOAT64_KERNELS
    if (dtype == SA_FLOAT16 || dtype == SA_BFLOAT16) return widen_half(dtype, *(const vhalf *)at);
    if (dtype == SA_INT8) return widen_bytes(at);
#endif
    return vload((const real *)at);
}

/* n <= LANES numbers of a row; the other lanes are zero. */
INLINE vreal load_row(const char *row, ptrdiff_t col, ptrdiff_t n, enum sa_dtype dtype)
{
    if (n == LANES && col == size_of(dtype) && (dtype == SA_REAL || SA_REAL == SA_FLOAT32))
        return load_whole(row, dtype);
    if (dtype == SA_REAL && col == (ptrdiff_t)sizeof(real)) return vload_first((const real *)row, n);
    real buffer[LANES] = {0};
    widen_row(row, col, n, dtype, buffer);
    return vload(buffer);
}

/* Stores the first n <= LANES numbers of a vector. */
INLINE void store_row(char *row, ptrdiff_t col, ptrdiff_t n, enum sa_dtype dtype, vreal v)
{
    if (dtype != SA_REAL) {
        narrow_halves(v, row, col, n, dtype);
    } else if (col != (ptrdiff_t)sizeof(real)) {
        for (ptrdiff_t i = 0; i < n; ++i)
            *(scalar_any *)(row + i * col) = v[i];
    } else if (n == LANES) {
        vstore((real *)row, v);
    } else {
        vstore_first((real *)row, v, n);
    }
}

/* Steps of a sum of n products, TERMS products each. */
INLINE ptrdiff_t steps(ptrdiff_t n)
{
    return (n + TERMS - 1) / TERMS;
}

/* square: width x LANES. square[j] holds the numbers at byte offset + j * col of the n given rows; 0 in other lanes. */
INLINE void load_transposed(const char *const rows[LANES], ptrdiff_t n, ptrdiff_t offset, ptrdiff_t col,
                            ptrdiff_t width, enum sa_dtype dtype, vreal square[LANES])
{
    if (n == LANES && width == LANES && col == (ptrdiff_t)sizeof(real) && dtype == SA_REAL) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i)
            square[i] = vload((const real *)(rows[i] + offset));
    } else {
        for (int i = 0; i < LANES; ++i) {
            square[i] = vsplat(0.0f);
            if (i < n) square[i] = load_row(rows[i] + offset, col, width, dtype);
        }
    }
    vtranspose(square);
}

/* The reverse: square, width x LANES, becomes `width` numbers of n rows. */
INLINE void store_transposed(vreal square[LANES], char *const rows[LANES], ptrdiff_t n, ptrdiff_t offset, ptrdiff_t col,
                             ptrdiff_t width, enum sa_dtype dtype)
{
    vtranspose(square);
    if (n == LANES && width == LANES && col == (ptrdiff_t)sizeof(real) && dtype == SA_REAL) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i)
            vstore((real *)(rows[i] + offset), square[i]);
    } else {
        for (ptrdiff_t i = 0; i < n; ++i)
            store_row(rows[i] + offset, col, width, dtype, square[i]);
    }
}

#endif
