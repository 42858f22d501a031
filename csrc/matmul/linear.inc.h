/* SPDX-License-Identifier: Apache-2.0 */
/* linear.inc.h -- y = act(x W + b) + residual, and the packing of W.
 *
 * W (depth, width) is packed once: panels of PANEL_LANES columns, each steps(depth) x lanes. The last panel is
 * padded with zeros to whole vectors. With TERMS = 2, a pair of W is two rows of one column; x is rounded to
 * bfloat16 into the workspace, where neighbours are pairs. */
#ifndef SELFATTN_MATMUL_LINEAR_INC_H
#define SELFATTN_MATMUL_LINEAR_INC_H

#include "matmul/product.inc.h"
#include "pointwise/activation.inc.h"
#include "vector/convert.inc.h"

/* Vectors of lanes of a panel of a matrix of `width` columns: fewer in the last panel. */
INLINE int panel_vectors(ptrdiff_t width, ptrdiff_t panel)
{
    ptrdiff_t columns = smaller(PANEL_LANES, width - panel * PANEL_LANES);
    return (int)((columns + LANES - 1) / LANES);
}

/* block: LANES x LANES = `rows` rows and `columns` columns of W, the first number at `from`; 0 elsewhere. row, col:
 * bytes from row to row and from column to column of W. */
INLINE void load_weight_square(const char *from, ptrdiff_t row, ptrdiff_t col, ptrdiff_t rows, ptrdiff_t columns,
                               vreal block[LANES])
{
    if (row == (ptrdiff_t)sizeof(real)) { /* a transposed weight: its columns are contiguous */
        const char *lines[LANES];
        for (int i = 0; i < LANES; ++i)
            lines[i] = from + smaller(i, columns - 1) * col;
        load_transposed(lines, columns, 0, row, rows, SA_REAL, block);
    } else {
        for (int i = 0; i < LANES; ++i)
            block[i] = i < rows ? load_row(from + i * row, col, columns, SA_REAL) : vsplat(0.0f);
    }
}

/* weight (depth, width), with byte strides row and col, becomes panels, one after the other. */
static void pack_weights(const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, ptrdiff_t width,
                         void *packed)
{
    real *to = packed;
    for (ptrdiff_t panel = 0; panel * PANEL_LANES < width; ++panel) {
        ptrdiff_t lanes = panel_vectors(width, panel) * LANES, first = panel * PANEL_LANES;
        for (ptrdiff_t p = 0; p < depth; p += LANES) {
            ptrdiff_t rows = smaller(LANES, depth - p);
            for (ptrdiff_t i = 0; i < lanes; i += LANES) {
                vreal block[LANES];
                load_weight_square(weight + p * row + (first + i) * col, row, col, rows,
                                   smaller(LANES, width - first - i), block);
                for (ptrdiff_t j = 0; j < steps(rows); ++j)
                    vstore(to + j * lanes + i, vpair(block[j * TERMS], block[j * TERMS + TERMS - 1]));
            }
            to += steps(rows) * lanes;
        }
    }
}

/* act(sum + bias) + residual, for one vector of a row, of which `lanes` numbers exist. */
INLINE vreal finish_vector(const enum sa_activation activation, vreal sum, const real *bias, const real *residual,
                           ptrdiff_t lanes)
{
    int whole = lanes == LANES;
    if (bias) sum += whole ? vload(bias) : vload_first(bias, lanes);
    sum = activate_vector(activation, sum);
    if (residual) sum += whole ? vload(residual) : vload_first(residual, lanes);
    return sum;
}

/* Stores n <= LANES numbers of y, from number `at` on. */
INLINE void store_result(const struct sa_linear *l, ptrdiff_t at, ptrdiff_t n, vreal v)
{
    if (TERMS == 2 && (l->y_dtype == SA_BFLOAT16))
        store_row((char *)l->y + 2 * at, 2, n, SA_BFLOAT16, v);
    else
        store_row((char *)((real *)l->y + at), sizeof(real), n, SA_REAL, v);
}

/* y = act(sum + bias) + residual, for the rows row0 .. row1 - 1 and the n columns from `column` on. sums: rows x
 * lanes. */
INLINE void finish_rows(const enum sa_activation activation, const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1,
                        ptrdiff_t column, ptrdiff_t n, struct lane_rows sums)
{
    const real *bias = l->bias ? (const real *)l->bias + column : NULL;
    for (ptrdiff_t row = row0; row < row1; ++row, sums.data += sums.stride) {
        const ptrdiff_t at = row * l->y_stride + column;
        const real *residual = l->residual ? (const real *)l->residual + row * l->residual_stride + column : NULL;
        ptrdiff_t i = 0;
        for (; i + LANES <= n; i += LANES)
            store_result(l, at + i, LANES,
                         finish_vector(activation, vload(sums.data + i), bias ? bias + i : NULL,
                                       residual ? residual + i : NULL, LANES));
        if (i < n)
            store_result(l, at + i, n - i,
                         finish_vector(activation, vload(sums.data + i), bias ? bias + i : NULL,
                                       residual ? residual + i : NULL, n - i));
    }
}

/* finish_rows for the activation of the layer. */
static void finish(const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t column, ptrdiff_t n,
                   struct lane_rows sums)
{
    switch (l->activation) { /* outside the loops */
    case SA_GELU:
        finish_rows(SA_GELU, l, row0, row1, column, n, sums);
        break;
    case SA_GELU_TANH:
        finish_rows(SA_GELU_TANH, l, row0, row1, column, n, sums);
        break;
    case SA_RELU:
        finish_rows(SA_RELU, l, row0, row1, column, n, sums);
        break;
    case SA_SILU:
        finish_rows(SA_SILU, l, row0, row1, column, n, sums);
        break;
    default:
        finish_rows(SA_IDENTITY, l, row0, row1, column, n, sums);
    }
}

/* Bytes of the workspace: pairs of `rows` rows of x, or nothing. */
static size_t linear_workspace(ptrdiff_t rows, ptrdiff_t depth)
{
    return TERMS == 2 ? (size_t)(rows * steps(depth)) * sizeof(real) : 0;
}

/* linear_rows: the rows row0 .. row1 - 1 of x as an operand, rows x steps(depth). Numbers are read where they lie;
 * so are pairs, if x is bfloat16 already. */
#ifdef SA_BFLOAT16_KERNELS
INLINE void pair_rows(const enum sa_dtype dtype, const char *x, ptrdiff_t x_row, ptrdiff_t rows, ptrdiff_t depth,
                      real *to)
{
    const ptrdiff_t size = size_of(dtype);
    for (ptrdiff_t row = 0; row < rows; ++row, x += x_row, to += steps(depth)) {
        ptrdiff_t i = 0;
        for (; i + 2 * LANES <= depth; i += 2 * LANES)
            vstore(to + i / 2, vneighbours(load_whole(x + i * size, dtype), load_whole(x + (i + LANES) * size, dtype)));
        ptrdiff_t n = depth - i;
        if (n == 0) continue;
        vreal first = load_row(x + i * size, size, smaller(LANES, n), dtype), second = vsplat(0.0f);
        if (n > LANES) second = load_row(x + (i + LANES) * size, size, n - LANES, dtype);
        vstore_first(to + i / 2, vneighbours(first, second), steps(n));
    }
}

static struct operand linear_rows(const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1, void *workspace)
{
    ptrdiff_t row = l->x_stride * ((l->x_dtype == SA_BFLOAT16) ? 2 : (ptrdiff_t)sizeof(real));
    const char *x = (const char *)l->x + row0 * row;
    if ((l->x_dtype == SA_BFLOAT16) && l->weight.depth % 2 == 0) return (struct operand){x, row, sizeof(real)};
    if ((l->x_dtype == SA_BFLOAT16))
        pair_rows(SA_BFLOAT16, x, row, row1 - row0, l->weight.depth, workspace);
    else
        pair_rows(SA_REAL, x, row, row1 - row0, l->weight.depth, workspace);
    return (struct operand){workspace, steps(l->weight.depth) * (ptrdiff_t)sizeof(real), sizeof(real)};
}
#else
static struct operand linear_rows(const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1, void *workspace)
{
    (void)row1, (void)workspace;
    return (struct operand){(const char *)((const real *)l->x + row0 * l->x_stride),
                            l->x_stride * (ptrdiff_t)sizeof(real), sizeof(real)};
}
#endif

/* The rows of a matrix from `row` on, `columns` columns each, to prefetch; none without a matrix. stride: numbers
 * from row to row; size: bytes of a number. */
INLINE struct prefetch_rows part_of_rows(const void *matrix, ptrdiff_t size, ptrdiff_t stride, ptrdiff_t row,
                                         ptrdiff_t column, ptrdiff_t columns)
{
    if (!matrix) return (struct prefetch_rows){0};
    return (struct prefetch_rows){
        .data = (const char *)matrix + (row * stride + column) * size, .row = stride * size, .bytes = columns * size};
}

/* The rows row0 .. row1 - 1 of y, and the columns of the panels panel0 .. panel1 - 1. Sums wait in `scratch`, rows x
 * lanes in the L1 cache, for bias, activation and residual. */
static void linear(const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t panel0, ptrdiff_t panel1,
                   void *workspace)
{
    real scratch[SA_LINEAR_SCRATCH_ROWS * PANEL_LANES] __attribute__((aligned(64)));
    const struct operand rows = linear_rows(l, row0, row1, workspace);
    for (ptrdiff_t panel = panel0; panel < panel1; ++panel) {
        int nv = panel_vectors(l->weight.width, panel);
        const real *packed = (const real *)l->weight.data + panel * PANEL_LANES * steps(l->weight.depth);
        ptrdiff_t column = panel * PANEL_LANES, columns = smaller(PANEL_LANES, l->weight.width - column);
        struct lane_rows c = {scratch, nv * LANES};
        for (ptrdiff_t row = row0; row < row1; row += SA_LINEAR_SCRATCH_ROWS) {
            ptrdiff_t last = smaller(row + SA_LINEAR_SCRATCH_ROWS, row1);
            struct operand x = {rows.data + (row - row0) * rows.row, rows.row, rows.col};
            struct prefetch_rows finished[2] = {
                part_of_rows(l->y, (l->y_dtype == SA_BFLOAT16) ? 2 : sizeof(real), l->y_stride, row, column, columns),
                part_of_rows(l->residual, sizeof(real), l->residual_stride, row, column, columns)};
            multiply_long(nv, row == row0, last - row, steps(l->weight.depth), SA_LINEAR_CHAIN / TERMS, x, packed,
                          nv * LANES, c, NULL, finished);
            finish(l, row, last, column, columns, c);
        }
    }
}

#endif
