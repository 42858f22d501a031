/* SPDX-License-Identifier: Apache-2.0 */
/* values_by_row.inc.h -- pass 3 row by row: dimensions are in the lanes, as they lie in memory.
 *
 *   O[row, dim] (+)= sum over the keys of P[row, key] (broadcast) * V[key, dim]
 *
 * No transpose is needed on the way out, and each tile of rows multiplies only the values of keys that its rows see.
 * The probabilities are keys x lanes, as in the panel. Every sum is the same chain as with the rows in the lanes. */
#ifndef SELFATTN_ATTENTION_VALUES_BY_ROW_INC_H
#define SELFATTN_ATTENTION_VALUES_BY_ROW_INC_H

#include "attention/decode_scores.inc.h"
#include "attention/mask.inc.h"
#include "matmul/product.inc.h"

/* Are the outputs of a panel rows x value_dim? Few rows always are (decode.inc.h). Other panels are where a row of
 * values is whole vectors, of 64 bytes: panels of shorter vectors have 16 rows, too few for full tiles. Values that
 * are read where they lie must be wider than one vector: rows on pages of their own come from the L2 cache for every
 * tile, at 0.8 of the speed. And they must fit one tile: a second pass over the weights costs 1 % of the time. */
static int outputs_by_rows(const struct sa_attention *a, const struct query_panel *p)
{
    const ptrdiff_t size = sizeof(real);
    if (is_decode(a, p)) return 1;
    if (!WIDE_VECTORS || a->value_dim % LANES != 0) return 0;
    if (TERMS == 2 || a->kv_dtype != SA_REAL) return 1;
    return a->value_dim > LANES && a->value_dim <= MAX_NV * LANES && a->value.col == size && a->value.row % size == 0;
}

/* The keys *first .. *last - 1 that any of the rows sees, counted from the block's first; *first begins a step. */
static void visible_to_rows(const struct key_block *b, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t *first, ptrdiff_t *last)
{
    ptrdiff_t begin = b->begin[row], end = b->end[row];
    for (ptrdiff_t i = row + 1; i < row + rows; ++i) {
        begin = smaller(begin, b->begin[i]);
        end = larger(end, b->end[i]);
    }
    *first = begin / TERMS * TERMS;
    *last = larger(*first, end);
}

/* How many of the remaining vectors of dimensions to multiply together: as many as a tile takes, but never leave
 * one. */
static int vectors_together(ptrdiff_t left)
{
    if (left <= MAX_NV) return (int)left;
    return left == MAX_NV + 1 ? MAX_NV - 1 : MAX_NV;
}

/* p->span.outputs, rows x dim, = outputs * rescale[row] + the chain of this block. values: steps x dim, whole
 * vectors. */
static void add_rows(const struct query_panel *p, const struct key_block *b, ptrdiff_t dim, struct operand values,
                     real *rescale, const struct prefetch_rows next[2])
{
    const ptrdiff_t size = sizeof(real), stride = values.row / size;
    multiply *with = p->span.empty ? multiply_store : multiply_rescale_rows;
    for (ptrdiff_t d = 0; d < dim;) {
        const int nv = vectors_together((dim - d) / LANES), is_last = d + nv * LANES == dim;
        const ptrdiff_t height = b->ranged ? TILE_ROWS(nv) : p->rows;
        ptrdiff_t first = 0, last = b->last - b->first;
        for (ptrdiff_t row = 0; row < p->rows; row += height) {
            ptrdiff_t rows = smaller(height, p->rows - row);
            if (b->ranged) visible_to_rows(b, row, rows, &first, &last);
            const struct prefetch_rows prefetch[2] = {prefetch_from(next[0], row), prefetch_from(next[1], row)};
            struct operand weights = {(const char *)(b->scores + first / TERMS * p->width + row), size,
                                      p->width * size};
            with(nv, rows, steps(last - first), weights, (const real *)values.data + first / TERMS * stride + d, stride,
                 (struct lane_rows){p->span.outputs + row * dim + d, dim}, rescale + row, is_last ? prefetch : NULL);
        }
        d += nv * LANES;
    }
}

/* The same sums where a value is not finite: a hidden value counts as 0. values: steps x dim. rescale: (rows,). */
static void add_visible_rows(const struct query_panel *p, const struct key_block *b, ptrdiff_t dim,
                             struct operand values, const real *rescale)
{
    const ptrdiff_t size = sizeof(real);
    for (ptrdiff_t row = 0; row < p->rows; ++row)
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            char *at = (char *)(p->span.outputs + row * dim + d);
            ptrdiff_t n = smaller(LANES, dim - d);
            vreal sum = vsplat(0.0f);
            for (ptrdiff_t k = 0; k < steps(b->last - b->first); ++k) {
                bits visible = visible_bits(p, b, k, (int)(row / LANES))[row % LANES];
                vreal value = load_row(values.data + k * values.row + d * size, size, n, SA_REAL);
                sum = vterm((vreal)((vbits)value & visible), vsplat(b->scores[k * b->stride + row]), sum);
            }
            if (!p->span.empty) sum = vfma(load_row(at, size, n, SA_REAL), vsplat(rescale[row]), sum);
            store_row(at, size, n, SA_REAL, sum);
        }
}

/* outputs = span * factor + outputs * old_factor, for the rows of the v-th vector of lanes. Outputs are rows x dim. */
static void merge_rows(struct query_panel *p, int v, ptrdiff_t dim, vreal factor, vreal old_factor)
{
    const ptrdiff_t size = sizeof(real);
    for (ptrdiff_t i = 0; i < smaller(LANES, p->rows - v * LANES); ++i)
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            ptrdiff_t n = smaller(LANES, dim - d), at = (v * LANES + i) * dim + d;
            char *total = (char *)(p->total.outputs + at), *span = (char *)(p->span.outputs + at);
            vreal old = load_row(total, size, n, SA_REAL) * vsplat(old_factor[i]);
            store_row(total, size, n, SA_REAL, vfma(load_row(span, size, n, SA_REAL), vsplat(factor[i]), old));
        }
}

/* row = outputs * factor; both (dim,) */
INLINE void store_output(const enum sa_dtype dtype, const int whole, char *row, ptrdiff_t col, ptrdiff_t dim,
                         const real *outputs, real factor)
{
    vreal zero = vsplat(0.0f); /* -0 becomes 0, as in store_panel */
    for (ptrdiff_t d = 0; d < dim; d += LANES) {
        ptrdiff_t n = whole ? LANES : smaller(LANES, dim - d);
        vreal numbers = load_row((const char *)(outputs + d), sizeof(real), n, SA_REAL);
        store_row(row + d * col, whole ? (ptrdiff_t)sizeof(real) : col, n, dtype, vfma(numbers, vsplat(factor), zero));
    }
}

/* The rows of a panel in an array = outputs[row, dim] * factor[row]. outputs: rows x dim. */
static void store_rows(const struct sa_attention *a, const struct sa_array *array, char *data, ptrdiff_t dim,
                       const struct query_panel *p, const real *outputs, const real *factor)
{
    const ptrdiff_t group = sa_group(a);
    const int whole = a->dtype == SA_REAL && array->col == (ptrdiff_t)sizeof(real) && dim % LANES == 0;
    for (ptrdiff_t i = 0; i < p->rows; ++i, outputs += dim) {
        char *row = (char *)row_of(array, data, group, p->row0 + i);
        if (whole)
            store_output(SA_REAL, 1, row, sizeof(real), dim, outputs, factor[i]);
        else
            store_output(a->dtype, 0, row, array->col, dim, outputs, factor[i]);
    }
}

#endif
