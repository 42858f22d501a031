/* SPDX-License-Identifier: Apache-2.0 */
/* backward_keys.inc.h -- pass 5 of the backward pass: the gradients of the keys and values of one key block.
 *
 * factors: P or dS of a task, keys x ROW_STRIDE rows. rows: queries or grad_out of a task, rows x dim, padded to whole
 * vectors. */
#ifndef SELFATTN_ATTENTION_BACKWARD_KEYS_INC_H
#define SELFATTN_ATTENTION_BACKWARD_KEYS_INC_H

#include "attention/backward_scores.inc.h"

/* sums[key, :] as below, row by row, without the rows that a key is hidden from: a NaN reaches only keys that its row
 * sees. sums: keys x whole_vectors(columns). */
static void sum_visible_rows(const struct backward_work *w, const real *factors, const real *rows, ptrdiff_t stride,
                             ptrdiff_t count, ptrdiff_t keys, ptrdiff_t columns)
{
    for (ptrdiff_t k = 0; k < keys; ++k)
        for (ptrdiff_t d = 0; d < columns; d += LANES) {
            vreal sum = vsplat(0.0f);
            for (ptrdiff_t i = 0; i < count; ++i)
                if (!is_hidden(vsplat(w->probabilities[k * ROW_STRIDE + i]))[0])
                    sum = vfma(vsplat(factors[k * ROW_STRIDE + i]), vload(rows + i * stride + d), sum);
            vstore(w->sums + k * whole_vectors(columns) + d, sum);
        }
}

/* sums[key, :] = sum over the rows of the task of factors[key, row] * rows[row, :]. sums: keys x nv * LANES. In a
 * task of one panel, vectors of rows that a key is hidden from are left out: their factors are 0. */
static void sum_visible_vectors(const struct backward_work *w, ptrdiff_t count, struct operand factors,
                                const real *rows, ptrdiff_t stride, struct lane_rows sums)
{
    const struct key_block *b = &w->block;
    const int nv = (int)(sums.stride / LANES);
    const ptrdiff_t first = b->keys.first, last = b->keys.last;
    if (w->count > 1 || !b->partly_visible) {
        multiply_store(nv, last - first, count, factors, rows, stride, sums, NULL, NULL);
        return;
    }
    for (ptrdiff_t key = first, end; key < last; key = end) {
        int from = 0, to = 0; /* no vector, before the first visible key and after the last */
        end = key < b->last ? same_visible_vectors(&w->panels[0].panel, b, key, &from, &to) : last;
        ptrdiff_t at = key - first, row = from * LANES, visible_rows = larger(0, smaller(count, to * LANES) - row);
        struct operand part = {factors.data + at * factors.row + row * factors.col, factors.row, factors.col};
        multiply_store(nv, end - key, visible_rows, part, rows + row * stride, stride,
                       (struct lane_rows){sums.data + at * sums.stride, sums.stride}, NULL, NULL);
    }
}

/* to[key, :] += sum over the rows of the task of factors[key, row] * rows[row, :], for the keys b->keys.first ..
 * b->keys.last - 1. to: keys x dim, array->row bytes from key to key. */
static void add_key_gradient(const struct sa_attention_task *t, const struct backward_work *w, const real *factors,
                             const real *rows, ptrdiff_t dim, int finite, const struct sa_array *array, char *to)
{
    ptrdiff_t first = w->block.keys.first, keys = w->block.keys.last - first, stride = whole_vectors(dim);
    struct operand a = {(const char *)factors, ROW_STRIDE * (ptrdiff_t)sizeof(real), sizeof(real)};
    for (ptrdiff_t column = 0; column < dim; column += PANEL_LANES) {
        ptrdiff_t columns = smaller(PANEL_LANES, dim - column), width = whole_vectors(columns);
        struct lane_rows sums = {w->sums, width};
        if (finite)
            sum_visible_vectors(w, t->rows, a, rows + column, stride, sums);
        else
            sum_visible_rows(w, factors, rows + column, stride, t->rows, keys, columns);
        for (ptrdiff_t k = 0; k < keys; ++k) {
            real *row = (real *)(to + (first + k) * array->row) + column;
            ptrdiff_t i = 0;
            for (; i + LANES <= columns; i += LANES)
                vstore(row + i, vload(row + i) + vload(w->sums + k * width + i));
            for (; i < columns; ++i)
                row[i] += w->sums[k * width + i];
        }
    }
}

#endif
