/* SPDX-License-Identifier: Apache-2.0 */
/* product.inc.h -- products of any number of rows and any depth, made of tiles.
 *
 * The parameters of all functions have the meaning that they have for tile (tile.inc.h), without its limit on rows; and
 *
 *   lanes     (nv * LANES,) factors for TILE_RESCALE; (rows,) factors for TILE_RESCALE_ROWS; (nv * LANES,) maxima,
 *             written by TILE_MAX and TILE_ADD_MAX; otherwise NULL
 *   prefetch  NULL, or two sets of rows: with each tile, the rows of the same number are prefetched */
#ifndef SELFATTN_MATMUL_PRODUCT_INC_H
#define SELFATTN_MATMUL_PRODUCT_INC_H

#include "matmul/prefetch.inc.h"
#include "matmul/tile.inc.h"

/* C (+)= A * B: full tiles, then tiles of 4, 2 and 1 rows. */
INLINE void multiply_nv(const int nv, const enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth, struct operand a,
                        const real *b, ptrdiff_t b_stride, struct lane_rows c, real *lanes,
                        const struct prefetch_rows prefetch[2])
{
    ptrdiff_t done = 0;
    vreal lane[MAX_NV];
    for (int v = 0; v < nv; ++v)
        lane[v] = mode == TILE_RESCALE ? vload(lanes + v * LANES) : vsplat(-INFINITY);
#define SA_TILES(height)                                                                                               \
    {                                                                                                                  \
        if (prefetch) {                                                                                                \
            issue_prefetch(&prefetch[0], done, height);                                                                \
            issue_prefetch(&prefetch[1], done, height);                                                                \
        }                                                                                                              \
        tile(height, nv, mode, depth, a, b, b_stride, c, lane, mode == TILE_RESCALE_ROWS ? lanes + done : NULL, NULL); \
        done += (height);                                                                                              \
        a.data += (height) * a.row;                                                                                    \
        c.data += (height) * c.stride;                                                                                 \
        rows -= (height);                                                                                              \
    }
    while (rows >= TILE_ROWS(nv))
        SA_TILES(TILE_ROWS(nv))
    if (TILE_ROWS(nv) > 4 && rows >= 4) SA_TILES(4)
    if (rows >= 2) SA_TILES(2)
    if (rows >= 1) SA_TILES(1)
#undef SA_TILES
    if (mode == TILE_MAX || mode == TILE_ADD_MAX)
        for (int v = 0; v < nv; ++v)
            vstore(lanes + v * LANES, lane[v]);
}

/* Calls `function` with the value of the variable nv, 1 .. MAX_NV, as a constant. */
#define SA_BY_VECTORS(function, ...)                                                                                   \
    if (nv == 1)                                                                                                       \
        function(1, __VA_ARGS__);                                                                                      \
    else if (nv == 2)                                                                                                  \
        function(2, __VA_ARGS__);                                                                                      \
    else if (MAX_NV > 2 && nv == 3)                                                                                    \
        function(MAX_NV > 2 ? 3 : 1, __VA_ARGS__);                                                                     \
    else if (MAX_NV > 2)                                                                                               \
    function(MAX_NV > 2 ? 4 : 1, __VA_ARGS__)

typedef void multiply(int nv, ptrdiff_t rows, ptrdiff_t depth, struct operand a, const real *b, ptrdiff_t b_stride,
                      struct lane_rows c, real *lanes, const struct prefetch_rows prefetch[2]);

/* The RESCALE modes read `lanes`, TILE_RESCALE_ROWS a factor for each row; the MAX modes write each lane's maximum
 * there. */
#define SA_MULTIPLY(name, mode)                                                                                        \
    static void name(int nv, ptrdiff_t rows, ptrdiff_t depth, struct operand a, const real *b, ptrdiff_t b_stride,     \
                     struct lane_rows c, real *lanes, const struct prefetch_rows prefetch[2])                          \
    {                                                                                                                  \
        SA_BY_VECTORS(multiply_nv, mode, rows, depth, a, b, b_stride, c, lanes, prefetch);                             \
    }
SA_MULTIPLY(multiply_store, TILE_STORE)
SA_MULTIPLY(multiply_add, TILE_ADD)
SA_MULTIPLY(multiply_rescale, TILE_RESCALE)
SA_MULTIPLY(multiply_rescale_rows, TILE_RESCALE_ROWS)
SA_MULTIPLY(multiply_max, TILE_MAX)
SA_MULTIPLY(multiply_add_max, TILE_ADD_MAX)
#undef SA_MULTIPLY

/* ---- B is a weight that is read from memory: tiles of every height, and the bytes behind B are prefetched ---- */

/* Products of fewer rows prefetch nothing: memory is the limit, and the processor's own prefetchers follow a wide panel
 * faster alone. A tile of less than half of MIN_STREAM_ROWS rows is the only one of its product. */
enum { MIN_STREAM_ROWS = WIDE_VECTORS ? 6 : 1 };

INLINE void partial_tile_nv(const int nv, const enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth, struct operand a,
                            const real *b, ptrdiff_t b_stride, struct lane_rows c, struct prefetch_stream *stream)
{
    switch (rows) {
#define SA_HEIGHT(height)                                                                                              \
    case (height):                                                                                                     \
        if ((height) < TILE_ROWS(nv))                                                                                  \
            tile(height, nv, mode, depth, a, b, b_stride, c, NULL, NULL,                                               \
                 2 * (height) < MIN_STREAM_ROWS ? NULL : stream);                                                      \
        break;
        SA_HEIGHT(1)
        SA_HEIGHT(2)
        SA_HEIGHT(3)
        SA_HEIGHT(4)
        SA_HEIGHT(5)
        SA_HEIGHT(6)
        SA_HEIGHT(7)
#undef SA_HEIGHT
    default:
        break;
    }
}

/* A tile that is not full. Not inlined: the loop of full tiles is faster without it. */
static __attribute__((noinline)) void partial_tile(int nv, enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth,
                                                   struct operand a, const real *b, ptrdiff_t b_stride,
                                                   struct lane_rows c, struct prefetch_stream *stream)
{
    if (mode == TILE_STORE) {
        SA_BY_VECTORS(partial_tile_nv, TILE_STORE, rows, depth, a, b, b_stride, c, stream);
    } else {
        SA_BY_VECTORS(partial_tile_nv, TILE_ADD, rows, depth, a, b, b_stride, c, stream);
    }
}

/* The rows of the next tile: a full tile, or half of the remaining rows, where a last tile of 1 or 2 rows would be
 * slow. */
INLINE ptrdiff_t streamed_height(ptrdiff_t left, ptrdiff_t full)
{
    if (left == full || left > full + 2) return full;
    return left > full ? (left + 1) / 2 : left;
}

INLINE void multiply_streamed_nv(const int nv, const enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth,
                                 struct operand a, const real *b, ptrdiff_t b_stride, struct lane_rows c,
                                 const struct prefetch_rows prefetch[2])
{
    const ptrdiff_t full = TILE_ROWS(nv), bytes = rows < MIN_STREAM_ROWS ? 0 : b_stride * (ptrdiff_t)sizeof(real);
    struct prefetch_stream stream = {
        rows > full ? (const char *)(b + depth * b_stride) : (const char *)b + SA_WEIGHT_PREFETCH_BYTES, 0};
    for (ptrdiff_t done = 0, height; done < rows; done += height) {
        height = streamed_height(rows - done, full);
        stream.bytes = (bytes * height + rows - 1) / rows; /* the tiles share the bytes of one step of B */
        if (prefetch) {
            issue_prefetch(&prefetch[0], done, (int)height);
            issue_prefetch(&prefetch[1], done, (int)height);
        }
        if (height == full)
            tile(TILE_ROWS(nv), nv, mode, depth, a, b, b_stride, c, NULL, NULL, &stream);
        else
            partial_tile(nv, mode, height, depth, a, b, b_stride, c, &stream);
        a.data += height * a.row;
        c.data += height * c.stride;
    }
}

/* C = A * B, or C += A * B; mode is TILE_STORE or TILE_ADD. */
static void multiply_streamed(int nv, enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth, struct operand a,
                              const real *b, ptrdiff_t b_stride, struct lane_rows c,
                              const struct prefetch_rows prefetch[2])
{
    if (mode == TILE_STORE) {
        SA_BY_VECTORS(multiply_streamed_nv, TILE_STORE, rows, depth, a, b, b_stride, c, prefetch);
    } else {
        SA_BY_VECTORS(multiply_streamed_nv, TILE_ADD, rows, depth, a, b, b_stride, c, prefetch);
    }
}

/* ---- any depth ---- */

/* C = A * B, in chains of `chain` steps, added in order. `max`: NULL, or (nv * LANES,) maxima of the lanes of C,
 * written. `streamed`: B is read from memory, and the bytes behind it come next. */
INLINE void multiply_long(int nv, int streamed, ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t chain, struct operand a,
                          const real *b, ptrdiff_t b_stride, struct lane_rows c, real *max,
                          const struct prefetch_rows prefetch[2])
{
    for (ptrdiff_t left = depth; left > 0 || left == depth; left -= chain) {
        ptrdiff_t terms = left < chain ? left : chain;
        int first = left == depth, raise = max && left <= chain;
        if (streamed)
            multiply_streamed(nv, first ? TILE_STORE : TILE_ADD, rows, terms, a, b, b_stride, c,
                              first ? prefetch : NULL);
        else if (first)
            (raise ? multiply_max : multiply_store)(nv, rows, terms, a, b, b_stride, c, max, prefetch);
        else
            (raise ? multiply_add_max : multiply_add)(nv, rows, terms, a, b, b_stride, c, max, NULL);
        a.data += chain * a.col;
        b += chain * b_stride;
    }
}

#endif
