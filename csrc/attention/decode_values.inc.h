/* SPDX-License-Identifier: Apache-2.0 */
/* decode_values.inc.h -- pass 3 for few rows: the weighted values, with dimensions in the lanes; see
 * decode_scores.inc.h. */
#ifndef SELFATTN_ATTENTION_DECODE_VALUES_INC_H
#define SELFATTN_ATTENTION_DECODE_VALUES_INC_H

#include "attention/decode_scores.inc.h"

_Static_assert(SA_KEY_BLOCK % SA_DECODE_CHUNK_KEYS == 0, "a key block is whole chunks");

struct decode_sums {
    real *chain, *outputs; /* rows x dim: the chain so far, and the outputs */
    const real *rescale;   /* factor of each row's outputs; NULL: there are no outputs yet */
    ptrdiff_t dim;
};

/* The v-th vector of numbers of a row. With `split`, one vector of memory holds the bfloat16 numbers of two: even v
 * receives the numbers of even index, odd v the numbers of odd index. */
INLINE vreal decode_value(const enum sa_dtype dtype, const int split, const char *row, const int v)
{
    if (split) return decode_unpack(dtype, vload((const real *)(row + v / 2 * SA_VECTOR_BYTES)), v % 2);
    return load_whole(row + v * LANES * number_bytes(dtype), dtype);
}

/* Sums in the order of memory become sums of even and of odd dimensions; with `restore`, the reverse. sum: vectors x
 * count. */
#ifdef SA_FLOAT64_KERNELS
INLINE void convert_halves(const int count, const int vectors, const int restore, vreal *sum)
{
    (void)count, (void)vectors, (void)restore, (void)sum; /* float64 kernels have no bfloat16 */
}
#else
INLINE void convert_halves(const int count, const int vectors, const int restore, vreal *sum)
{
#pragma GCC unroll 4
    for (int v = 0; v + 1 < vectors; v += 2)
#pragma GCC unroll 8
        for (int r = 0; r < count; ++r) {
            vreal *even = sum + v * count + r, *odd = even + count;
            if (restore)
                vinterleave(even, odd);
            else
                vsplit(even, odd);
        }
}
#endif

/* The keys first .. last - 1 of a block, for `count` rows and `vectors` vectors of dimensions from d on. The sums
 * continue s->chain; with the last key of the block they are added to s->outputs. Both are rows x dim. */
INLINE void decode_values_tile(const enum sa_dtype dtype, const int count, const int vectors, struct decode_rows *f,
                               ptrdiff_t first, ptrdiff_t last, ptrdiff_t d, const struct decode_sums *s)
{
    const int width = number_bytes(dtype);
    vreal sum[DECODE_ROWS * 8];
    ptrdiff_t dims = smaller(vectors * LANES, s->dim - d), part = dims * PREFETCH_UNIT / s->dim;
    ptrdiff_t from =
        ((f->values - f->rows) + f->distance + first) * PREFETCH_UNIT + (last - first) * d * PREFETCH_UNIT / s->dim;
    const int whole = vectors > 1 || dims == LANES, split = dtype == SA_BFLOAT16 && vectors % 2 == 0;
#pragma GCC unroll 64
    for (int i = 0; i < count * vectors; ++i) {
        const real *at = s->chain + i % count * s->dim + d + i / count * LANES;
        sum[i] = first == 0 ? vsplat(0.0f) : whole ? vload(at) : vload_first(at, dims);
    }
    if (split && first) convert_halves(count, vectors, 0, sum);
    for (ptrdiff_t k = first; k < last; ++k, from += part) {
        const char *row = f->values[k] + d * width, padded[SA_VECTOR_BYTES] = {0};
        const real *weight = f->scores + k;
        prefetch_to(f, from / PREFETCH_UNIT);
        if (!whole) row = memcpy((char *)padded, row, (size_t)(dims * width));
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            vreal value = decode_value(dtype, split, row, v);
            if (dtype == SA_INT8) value *= vsplat(f->value_scales[k]);
#pragma GCC unroll 8
            for (int r = 0; r < count; ++r)
                sum[v * count + r] = vfma(value, vsplat(weight[r * DECODE_STRIDE]), sum[v * count + r]);
        }
    }
    if (split) convert_halves(count, vectors, 1, sum);
#pragma GCC unroll 64
    for (int i = 0; i < count * vectors; ++i) {
        ptrdiff_t r = i % count, at = r * s->dim + d + i / count * LANES;
        real *to = last < f->n ? s->chain : s->outputs;
        if (last == f->n && s->rescale)
            sum[i] = vfma(whole ? vload(to + at) : vload_first(to + at, dims), vsplat(s->rescale[r]), sum[i]);
        if (whole)
            vstore(to + at, sum[i]);
        else
            vstore_first(to + at, sum[i], dims);
    }
}

/* Takes as many vectors of dimensions at once as registers hold, and as many keys as the L1 cache holds. */
INLINE void decode_values_of(const int count, const enum sa_dtype dtype, struct decode_rows *f,
                             const struct decode_sums *s)
{
    const int vectors = count == 1 ? 8 : 4 * MAX_NV / count;
    ptrdiff_t chunk = s->dim <= vectors * LANES ? SA_KEY_BLOCK : SA_DECODE_CHUNK_KEYS;
    for (ptrdiff_t first = 0; first < f->n; first += chunk)
        for (ptrdiff_t d = 0, last = smaller(first + chunk, f->n); d < s->dim;) {
            if (s->dim - d >= vectors * LANES) {
                decode_values_tile(dtype, count, vectors, f, first, last, d, s);
                d += vectors * LANES;
            } else if (vectors > 4 && s->dim - d >= 4 * LANES) {
                decode_values_tile(dtype, count, 4, f, first, last, d, s);
                d += 4 * LANES;
            } else {
                decode_values_tile(dtype, count, 1, f, first, last, d, s);
                d += LANES;
            }
        }
}

INLINE void decode_values_by(const enum sa_dtype dtype, ptrdiff_t rows, struct decode_rows *f,
                             const struct decode_sums *s)
{
    SA_BY_ROWS(rows, decode_values_of, dtype, f, s);
}

static void decode_values(enum sa_dtype dtype, ptrdiff_t rows, struct decode_rows *f, const struct decode_sums *s)
{
    if (dtype == SA_REAL) decode_values_by(SA_REAL, rows, f, s);
#ifndef SA_FLOAT64_KERNELS
    if (dtype == SA_FLOAT16) decode_values_by(SA_FLOAT16, rows, f, s);
    if (dtype == SA_BFLOAT16) decode_values_by(SA_BFLOAT16, rows, f, s);
    if (dtype == SA_INT8) decode_values_by(SA_INT8, rows, f, s);
#endif
}

#endif
