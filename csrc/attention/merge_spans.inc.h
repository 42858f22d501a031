/* SPDX-License-Identifier: Apache-2.0 */
/* merge_spans.inc.h -- the running softmax of a span is merged into that of all spans before it, in order. */
#ifndef SELFATTN_ATTENTION_MERGE_SPANS_INC_H
#define SELFATTN_ATTENTION_MERGE_SPANS_INC_H

#include "attention/query_panel.inc.h"
#include "attention/values_by_row.inc.h"
#include "vector/math.inc.h"

/* outputs = span * factor + outputs * old_factor, for the v-th vector of lanes. Outputs are dim x p->width. */
static void merge_lanes(struct query_panel *p, int v, ptrdiff_t dim, vreal factor, vreal old_factor)
{
    for (ptrdiff_t d = 0; d < dim; ++d) {
        real *total = p->total.outputs + d * p->width + v * LANES;
        const real *span = p->span.outputs + d * p->width + v * LANES;
        vstore(total, vfma(vload(span), factor, vload(total) * old_factor));
    }
}

/* total = total + span, both rescaled to the larger maximum. The first span with a key becomes the total as it is. */
static void merge_span(struct query_panel *p, ptrdiff_t value_dim, real log2_scale)
{
    struct softmax_state *total = &p->total, *span = &p->span;
    if (span->empty) return;
    if (total->empty) {
        real *unused = total->outputs;
        *total = *span;
        span->outputs = unused;
        return;
    }
    for (int v = 0; v < p->nv; ++v) {
        vreal old = vload(total->max + v * LANES), add = vload(span->max + v * LANES), max = vmax(add, old);
        vreal base = vzero_where(max == vsplat(-INFINITY), max);
        vreal old_factor = vexp2((old - base) * vsplat(log2_scale)),
              add_factor = vexp2((add - base) * vsplat(log2_scale));
        vstore(total->max + v * LANES, max);
        vreal sum = vload(total->sum + v * LANES) * old_factor;
        vstore(total->sum + v * LANES, vfma(vload(span->sum + v * LANES), add_factor, sum));
        if (total->outputs) (p->by_rows ? merge_rows : merge_lanes)(p, v, value_dim, add_factor, old_factor);
    }
}

#endif
