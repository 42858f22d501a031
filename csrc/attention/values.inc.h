/* SPDX-License-Identifier: Apache-2.0 */
/* values.inc.h -- pass 3: the values of a key block, with the rows in the lanes or row by row. */
#ifndef SELFATTN_ATTENTION_VALUES_INC_H
#define SELFATTN_ATTENTION_VALUES_INC_H

#include "attention/values_by_lane.inc.h"
#include "attention/values_by_row.inc.h"

/* b->scores: keys x lanes become steps x lanes; the probabilities of the two keys of a step are one operand. */
static void pair_probabilities(const struct query_panel *p, struct key_block *b)
{
    ptrdiff_t keys = b->last - b->first;
    for (ptrdiff_t k = 0; k < keys; k += TERMS)
        for (int i = 0; i < p->width; i += LANES) {
            const real *first = b->scores + k * p->width + i;
            vreal second = k + 1 < keys ? vload(first + p->width) : vsplat(0.0f);
            vstore(b->scores + k / TERMS * p->width + i, vpair(vload(first), second));
        }
}

/* `rows` rows of the next task have been prefetched. */
static void note_prefetched(struct key_block *b, ptrdiff_t rows)
{
    b->next_task_rows -= rows;
    for (int i = 0; i < 2; ++i) {
        b->next_task[i] = prefetch_from(b->next_task[i], rows);
        if (b->next_task_rows <= 0) b->next_task[i].bytes = 0;
    }
}

/* p->span.outputs = outputs * rescale + the chain of this block. outputs: value_dim x width, or rows x value_dim.
 * rescale: (width,). */
static void add_values(const struct sa_attention *a, const struct sa_attention_task *t, struct query_panel *p,
                       struct key_block *b, real *rescale)
{
    struct operand rows = gathered_rows(a, t, &b->values, b->first, b->last), values = {rows.data, rows.col, rows.row};
    struct lane_rows outputs = {p->span.outputs, p->width};
    int visible_only = hides_infinite(p, b, rows, a->value_dim);
    if (p->by_rows && visible_only)
        add_visible_rows(p, b, a->value_dim, rows, rescale);
    else if (p->by_rows)
        add_rows(p, b, a->value_dim, rows, rescale, b->next_task);
    else if (visible_only)
        add_visible_values(p, b, values, a->value_dim, outputs, rescale);
    else
        multiply_values(p->span.empty ? multiply_store : multiply_rescale, p, b, a->value_dim, values, b->scores,
                        p->width, outputs, rescale, b->next_task);
    if (b->next_task_rows > 0) note_prefetched(b, p->by_rows ? p->rows : a->value_dim);
}

#endif
