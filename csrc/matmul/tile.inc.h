/* SPDX-License-Identifier: Apache-2.0 */
/* tile.inc.h -- the microkernel of scores, values and linear layers.
 *
 *   C[rows, nv vectors] (+)= sum over p < depth, in order, of  A[row, p] * B[p, nv vectors]
 *
 * A is broadcast number by number from wherever it lies. B and C are rows of contiguous lanes. Every sum is one
 * chain of fused multiply-adds over p that begins at 0, in whatever tile it falls. That is the canonical order, and
 * it is why results do not depend on the instruction set, the batch or the thread. Long sums are several chains,
 * added in order: their rounding errors grow with the square root of the length of a chain.
 *
 * decode_scores.inc.h and decode_values.inc.h hold the second microkernel, for few rows. */
#ifndef SELFATTN_MATMUL_TILE_INC_H
#define SELFATTN_MATMUL_TILE_INC_H

#include "matmul/prefetch.inc.h"
#include "vector/vector.inc.h"

/* A: rows x depth. */
struct operand {
    const char *data;   /* the number at row 0, step 0; any alignment */
    ptrdiff_t row, col; /* bytes from row to row, and from step to step; any numbers */
};
/* C: rows x lanes. */
struct lane_rows {
    real *data;
    ptrdiff_t stride; /* numbers from row to row */
};

/* sums[row][vector] += A * B, and the prefetches of `stream`. Parameters: see tile. */
INLINE void tile_multiply(const int rows, const int nv, ptrdiff_t depth, struct operand a, const real *b,
                          ptrdiff_t b_stride, struct prefetch_stream *stream, vreal sums[MAX_TILE_ROWS][MAX_NV])
{
    const char *at = stream ? stream->at : NULL, *to = at;
    for (ptrdiff_t p = 0; p < depth; ++p) {
        if (stream)
            for (to += stream->bytes; at < to; at += 64)
                __builtin_prefetch(at, 0, 2);
        vreal bv[MAX_NV];
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v)
            bv[v] = vload(b + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
            vreal av = vsplat(*(const scalar_any *)(a.data + i * a.row));
#pragma GCC unroll 4
            for (int v = 0; v < nv; ++v)
                sums[i][v] = vterm(av, bv[v], sums[i][v]);
        }
        a.data += a.col;
        b += b_stride;
    }
    if (stream) stream->at = at;
}

/* What becomes of the sums. */
enum tile_mode {
    TILE_STORE,        /* C = sum */
    TILE_ADD,          /* C = C + sum, rounded once more */
    TILE_RESCALE,      /* C = C * lane[] + sum, in one rounding */
    TILE_RESCALE_ROWS, /* C = C * factors[row] + sum, in one rounding */
    TILE_MAX,          /* C = sum, and lane[] = max(lane[], C) */
    TILE_ADD_MAX       /* C = C + sum, and lane[] = max(lane[], C) */
};

/* One tile. rows, nv and mode are compile-time constants, so that all sums stay in registers.
 *
 *   rows      rows of A and C: 1 to TILE_ROWS(nv). There is no padding: a tile of fewer rows is another tile.
 *   nv        vectors of lanes of B and C: 1 to MAX_NV. All LANES numbers of a vector are read and written.
 *   mode      what becomes of the sums; only TILE_STORE and TILE_MAX do not read C
 *   depth     steps of the sum, >= 0; with 0 the sums are 0. A step is TERMS products.
 *   a         A: rows x depth. Every number is read once, alone; nothing past the last is read. With TERMS = 2 a number
 *             is a pair of bfloat16.
 *   b         B: depth x nv * LANES, contiguous lanes, any alignment; padding lanes must be readable
 *   b_stride  numbers from step to step of B
 *   c         C: rows x nv * LANES, contiguous lanes, any alignment; padding lanes must be writable
 *   lane      (nv,) vectors, read by TILE_RESCALE, raised by TILE_MAX and TILE_ADD_MAX; otherwise unused, may be NULL
 *   factors   (rows,) numbers for TILE_RESCALE_ROWS; otherwise unused, may be NULL
 *   stream    NULL, or what to prefetch meanwhile: stream->bytes bytes with each step; stream->at moves on */

INLINE void tile(const int rows, const int nv, const enum tile_mode mode, ptrdiff_t depth, struct operand a,
                 const real *b, ptrdiff_t b_stride, struct lane_rows c, vreal lane[MAX_NV], const real *factors,
                 struct prefetch_stream *stream)
{
    vreal sum[MAX_TILE_ROWS][MAX_NV];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v)
            sum[i][v] = vsplat(0.0f);
    tile_multiply(rows, nv, depth, a, b, b_stride, stream, sum);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v) {
            real *at = c.data + i * c.stride + v * LANES;
            if (mode == TILE_ADD || mode == TILE_ADD_MAX) sum[i][v] += vload(at);
            if (mode == TILE_RESCALE) sum[i][v] = vfma(vload(at), lane[v], sum[i][v]);
            if (mode == TILE_RESCALE_ROWS) sum[i][v] = vfma(vload(at), vsplat(factors[i]), sum[i][v]);
            vstore(at, sum[i][v]);
            if (mode == TILE_MAX || mode == TILE_ADD_MAX) lane[v] = vmax(sum[i][v], lane[v]);
        }
}

#endif
