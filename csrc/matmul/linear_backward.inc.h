/* SPDX-License-Identifier: Apache-2.0 */
/* linear_backward.inc.h -- the gradient of the weight of a linear layer: grad_weight[i, j] = sum over rows of x[row,
 * i] * grad_y[row, j], in chains of SA_LINEAR_CHAIN rows, added in order.
 *
 * The rows of a chain lie far apart in memory. So a block of columns of x is gathered once for all panels of grad_y,
 * and each panel of grad_y once for the whole block. Both stay in the L2 cache; the next panel is prefetched
 * meanwhile. */
#ifndef SELFATTN_MATMUL_LINEAR_BACKWARD_INC_H
#define SELFATTN_MATMUL_LINEAR_BACKWARD_INC_H

#include "matmul/linear.inc.h"
#include "pointwise/pointwise_backward.inc.h"

/* Numbers from row to row of a block: an odd number of vectors, so that the rows spread over all sets of the caches. */
enum { COLUMNS_STRIDE = SA_WEIGHT_GRADIENT_BYTES / sizeof(real) + LANES };

_Static_assert(
    SA_WEIGHT_GRADIENT_BYTES % (SA_WEIGHT_GRADIENT_COLUMNS * (int)sizeof(real)) == 0,
    "the widest block is whole multiples of SA_WEIGHT_GRADIENT_COLUMNS, so that it fits into COLUMNS_STRIDE");
_Static_assert(COLUMNS_STRIDE % LANES == 0, "the rows of a block begin at whole vectors");

/* Bytes of the workspace: a block of x and a panel of grad_y. */
static size_t linear_backward_workspace(void)
{
    return SA_LINEAR_CHAIN * (COLUMNS_STRIDE + PANEL_LANES) * sizeof(real);
}

/* to: rows x columns, each row padded with zeros to whole vectors. Strides: numbers from row to row. */
INLINE void gather_rows(const real *from, ptrdiff_t from_stride, ptrdiff_t rows, ptrdiff_t columns, real *to,
                        ptrdiff_t to_stride)
{
    ptrdiff_t whole = columns / LANES * LANES, tail = columns - whole;
    for (ptrdiff_t row = 0; row < rows; ++row, from += from_stride, to += to_stride) {
        for (ptrdiff_t i = 0; i < whole; i += LANES)
            vstore(to + i, vload(from + i));
        if (tail) vstore(to + whole, vload_first(from + whole, tail));
    }
}

/* grad_weight, rows x columns, = sums, or += sums after the first chain. */
static void add_chain(real *grad_weight, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t columns, struct lane_rows sums,
                      int first)
{
    for (ptrdiff_t row = 0; row < rows; ++row, grad_weight += stride, sums.data += sums.stride)
        for (ptrdiff_t i = 0; i < columns; i += LANES) {
            ptrdiff_t lanes = smaller(LANES, columns - i);
            vreal sum = vload(sums.data + i);
            if (!first) sum += load_lanes(grad_weight, i, lanes);
            store_lanes(grad_weight, i, sum, lanes);
        }
}

/* One chain: `count` columns of x, from column i on, times one panel of grad_y. block: rows x COLUMNS_STRIDE, from
 * column i on. packed: rows x nv * LANES. */
static void chain_of_panel(const struct sa_linear_backward *g, ptrdiff_t panel, int first, ptrdiff_t rows, ptrdiff_t i,
                           ptrdiff_t count, const real *block, const real *packed, const struct prefetch_rows next[2])
{
    real scratch[SA_LINEAR_SCRATCH_ROWS * PANEL_LANES] __attribute__((aligned(64)));
    int nv = panel_vectors(g->d_out, panel);
    ptrdiff_t column = panel * PANEL_LANES, columns = smaller(PANEL_LANES, g->d_out - column);
    struct operand x = {(const char *)block, sizeof(real), COLUMNS_STRIDE * sizeof(real)};
    struct lane_rows to = {(real *)g->grad_weight + i * g->d_out + column, g->d_out}, sums = {scratch, nv * LANES};
    struct prefetch_rows outputs = part_of_rows(g->grad_weight, sizeof(real), g->d_out, i, column, columns);
    issue_prefetch(&outputs, 0, (int)count);
    if (columns < nv * LANES) {
        multiply_store(nv, count, rows, x, packed, nv * LANES, sums, NULL, next);
        add_chain(to.data, to.stride, count, columns, sums, first);
    } else if (first)
        multiply_store(nv, count, rows, x, packed, nv * LANES, to, NULL, next);
    else
        multiply_add(nv, count, rows, x, packed, nv * LANES, to, NULL, next);
}

/* The rows row0 .. row1 - 1, of which row0 begins a chain; the columns in0 .. in1 - 1 of x; the panels panel0 ..
 * panel1 - 1 of grad_y. */
static void linear_backward(const struct sa_linear_backward *g, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t in0,
                            ptrdiff_t in1, ptrdiff_t panel0, ptrdiff_t panel1, void *workspace)
{
    real *block = workspace, *packed = block + SA_LINEAR_CHAIN * COLUMNS_STRIDE;
    for (ptrdiff_t row = row0; row < row1; row += SA_LINEAR_CHAIN) {
        ptrdiff_t rows = smaller(SA_LINEAR_CHAIN, row1 - row);
        gather_rows((const real *)g->x + row * g->d_in + in0, g->d_in, rows, in1 - in0, block, COLUMNS_STRIDE);
        for (ptrdiff_t panel = panel0; panel < panel1; ++panel) {
            const real *grad_y = (const real *)g->grad_y + row * g->d_out, *from = grad_y + panel * PANEL_LANES;
            gather_rows(from, g->d_out, rows, smaller(PANEL_LANES, g->d_out - panel * PANEL_LANES), packed,
                        panel_vectors(g->d_out, panel) * LANES);
            from = panel + 1 < panel1 ? from + PANEL_LANES : grad_y + SA_LINEAR_CHAIN * g->d_out + panel0 * PANEL_LANES;
            for (ptrdiff_t i = in0; i < in1; i += SA_LINEAR_SCRATCH_ROWS) {
                ptrdiff_t count = smaller(SA_LINEAR_SCRATCH_ROWS, in1 - i);
                /* two rows of the next panel for each column of x */
                struct prefetch_rows next = part_of_rows(from, sizeof(real), g->d_out, 2 * (i - in0), 0, PANEL_LANES);
                struct prefetch_rows prefetch[2] = {next, prefetch_from(next, count)};
                chain_of_panel(g, panel, row == 0, rows, i, count, block + i - in0, packed, prefetch);
            }
        }
    }
}

#endif
