/* SPDX-License-Identifier: Apache-2.0 */
/* backward_query.inc.h -- pass 4 of the backward pass: the gradients of the queries, from one key block. */
#ifndef SELFATTN_ATTENTION_BACKWARD_QUERY_INC_H
#define SELFATTN_ATTENTION_BACKWARD_QUERY_INC_H

#include "attention/backward_scores.inc.h"
#include "attention/values_by_lane.inc.h"

/* grad_query[dim, lane] += sum over keys of keys[dim, key] * dS[key, lane], as below. A hidden key, whose
 * probability is -0, counts as 0: its NaN reaches only lanes that see it. */
static void add_visible_keys(const struct backward_panel *g, const struct key_block *b, struct operand keys,
                             ptrdiff_t dim, const real *score_gradients)
{
    const struct query_panel *p = &g->panel;
    for (ptrdiff_t d = 0; d < dim; ++d)
        for (int i = 0; i < p->width; i += LANES) {
            real *at = g->grad_query + d * p->width + i;
            vreal sum = vsplat(0.0f);
            for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
                vint hidden = is_hidden(vload(b->scores + k * b->stride + i));
                vreal key = vsplat(*(const scalar_any *)(keys.data + d * keys.row + k * keys.col));
                sum = vfma(vzero_where(hidden, key), vload(score_gradients + k * b->stride + i), sum);
            }
            if (!g->empty) sum += vload(at);
            vstore(at, sum);
        }
}

/* g->grad_query, head_dim x width, += sum over the keys of a block of key * dS. score_gradients: keys x ROW_STRIDE. */
static void add_query_gradient(const struct sa_attention *a, const struct sa_attention_task *t,
                               struct backward_panel *g, struct key_block *b, const real *score_gradients)
{
    ptrdiff_t count = b->last - b->first;
    struct operand rows = gathered_rows(a, t, &b->keys, b->first, b->last), keys = {rows.data, rows.col, rows.row};
    struct lane_rows sums = {g->grad_query, g->panel.width};
    if (is_masked(b) && !all_finite(keys, a->head_dim, count))
        add_visible_keys(g, b, keys, a->head_dim, score_gradients);
    else
        multiply_values(g->empty ? multiply_store : multiply_add, &g->panel, b, a->head_dim, keys, score_gradients,
                        ROW_STRIDE, sums, NULL, NULL);
    g->empty = 0;
}

#endif
