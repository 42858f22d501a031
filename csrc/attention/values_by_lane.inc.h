/* SPDX-License-Identifier: Apache-2.0 */
/* values_by_lane.inc.h -- pass 3 with the rows in the lanes: O^T[dim, lane] += sum over keys of value * P^T. */
#ifndef SELFATTN_ATTENTION_VALUES_BY_LANE_INC_H
#define SELFATTN_ATTENTION_VALUES_BY_LANE_INC_H

#include "attention/mask.inc.h"
#include "attention/visible_vectors.inc.h"

/* out[dim, lane] (+)= sum over the steps of a block of values[dim, step] * weights[step, lane]. values: dim x steps.
 * weights: steps x lanes, `stride` numbers from step to step. */
static void multiply_values(multiply *with, const struct query_panel *p, const struct key_block *b, ptrdiff_t dim,
                            struct operand values, const real *weights, ptrdiff_t stride, struct lane_rows out,
                            real *lanes, const struct prefetch_rows prefetch[2])
{
    if (!b->partly_visible) {
        with(p->nv, dim, steps(b->last - b->first), values, weights, stride, out, lanes, prefetch);
        return;
    }
    for (int v = 0; v < p->nv; ++v) {
        ptrdiff_t first, last;
        visible_keys(p, b, v, &first, &last);
        ptrdiff_t step = (first - b->first) / TERMS, visible_steps = steps(last - first), lane = v * LANES;
        struct operand part = {values.data + step * values.col, values.row, values.col};
        with(1, dim, visible_steps, part, weights + step * stride + lane, stride,
             (struct lane_rows){out.data + lane, out.stride}, lanes ? lanes + lane : NULL,
             v + 1 < p->nv ? NULL : prefetch);
    }
}

/* The same sums where a value is not finite: the same chain of additions, but a hidden value counts as 0. outputs:
 * dim x lanes. rescale: (lanes,). */
static void add_visible_values(const struct query_panel *p, const struct key_block *b, struct operand values,
                               ptrdiff_t dim, struct lane_rows outputs, const real *rescale)
{
    for (ptrdiff_t d = 0; d < dim; ++d)
        for (int v = 0; v < p->nv; ++v) {
            real *at = outputs.data + d * outputs.stride + v * LANES;
            vreal sum = vsplat(0.0f);
            for (ptrdiff_t k = 0; k < steps(b->last - b->first); ++k) {
                vreal value = vsplat(*(const scalar_any *)(values.data + d * values.row + k * values.col));
                value = (vreal)((vbits)value & visible_bits(p, b, k, v));
                sum = vterm(value, vload(b->scores + k * b->stride + v * LANES), sum);
            }
            if (!p->span.empty) sum = vfma(vload(at), vload(rescale + v * LANES), sum);
            vstore(at, sum);
        }
}

#endif
