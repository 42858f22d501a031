/* tile.inc.h -- the microkernel behind scores, values and linear layers.
 *
 *   C[rows x NV vectors] (+)= sum over p < depth, in order, of  A[row, p] * B[p, NV vectors]
 *
 * A is broadcast value by value from wherever it lies (any two byte strides, any alignment); B and C are panels:
 * contiguous lanes, a fixed number of floats from one row to the next. Every sum is one chain of fused multiply-adds over
 * p, begun at 0, whatever the tile it falls into: that is the canonical order, and it is why results do not depend on
 * the instruction set, the batch or the thread. Long sums are several chains, added in order: their rounding errors grow
 * with the square root of a chain's length. */
#ifndef SELFATTN_MATMUL_TILE_INC_H
#define SELFATTN_MATMUL_TILE_INC_H

#include "matmul/prefetch.inc.h"
#include "vector/vector.inc.h"

struct operand { /* A */
    const char *data;
    ptrdiff_t row, col; /* bytes */
};
struct lane_rows { /* B or C */
    real *data;
    ptrdiff_t stride; /* floats from row to row */
};

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

/* What happens to the sums: they become C; are added to C; are added to C times a factor for each lane, or for each row; or
 * they become C, or are added to C, and raise the running maximum of each lane. */
enum tile_mode { TILE_STORE, TILE_ADD, TILE_RESCALE, TILE_RESCALE_ROWS, TILE_MAX, TILE_ADD_MAX };

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
