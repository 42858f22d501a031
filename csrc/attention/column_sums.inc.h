/* SPDX-License-Identifier: Apache-2.0 */
/* column_sums.inc.h -- how much attention each key receives: the attention weights, summed over the queries. */
#ifndef SELFATTN_ATTENTION_COLUMN_SUMS_INC_H
#define SELFATTN_ATTENTION_COLUMN_SUMS_INC_H

#include "attention/attention_weights.inc.h"

/* Two numbers of a row: its maximum, and the inverse of its sum. */
static real *statistics_row(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row)
{
    return (real *)row_of(&a->lse, t->lse, sa_group(a), row);
}

/* The maximum and the inverse sum of each row, which to_probabilities() needs, by a pass over all keys. They are
 * written into lse, (row, 2), for the tasks that share the row. */
static int row_statistics(const struct sa_attention *a, const struct sa_attention_task *t, void *workspace)
{
    struct query_panel panels[MAX_PANELS];
    struct key_block b;
    struct score_scale scaling = score_scale_of(a);
    int count, status = attend(a, t, scaling, workspace, &b, panels, &count);
    for (int i = 0; i < count && !status; ++i)
        for (ptrdiff_t row = 0; row < panels[i].rows; ++row) {
            real *statistics = statistics_row(a, t, panels[i].row0 + row);
            statistics[0] = panels[i].total.max[row];
            statistics[1] = panels[i].inverse[row];
        }
    return status;
}

/* out[head, key] += the weights of a block, keys x lanes in b->scores, row after row: the order does not depend on the
 * number of lanes. */
static void add_columns(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                        const struct key_block *b)
{
    ptrdiff_t group = sa_group(a), keys = b->last - b->first;
    for (int v = 0; v < p->nv; ++v)
        for (ptrdiff_t k = 0; k < keys; k += LANES) {
            vreal square[LANES];
            ptrdiff_t width = smaller(LANES, keys - k), rows = smaller(LANES, p->rows - v * LANES);
            for (ptrdiff_t j = 0; j < LANES; ++j)
                square[j] = vload(b->scores + (k + smaller(j, width - 1)) * b->stride + v * LANES);
            vtranspose(square);
            for (ptrdiff_t i = 0; i < rows; ++i) {
                ptrdiff_t head = (p->row0 + v * LANES + i) % group;
                double *sums = (double *)(t->out + head * a->out.head) + b->first + k;
                for (ptrdiff_t j = 0; j < width; ++j)
                    sums[j] += (double)square[i][j];
            }
        }
}

/* The sums over the rows of one task, for the keys of the span that begins at first_key. */
static int column_sums(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t first_key,
                       void *workspace)
{
    struct query_panel panels[MAX_PANELS];
    struct key_block b;
    struct score_scale scaling = score_scale_of(a);
    int count = begin_task(a, t, scaling, workspace, &b, panels);
    for (int i = 0; i < count; ++i) {
        struct query_panel *p = &panels[i];
        for (int lane = 0; lane < p->width; ++lane) {
            const real *statistics = statistics_row(a, t, p->row0 + smaller(lane, p->rows - 1));
            p->total.max[lane] = statistics[0];
            p->inverse[lane] = statistics[1];
        }
        ptrdiff_t key = larger(first_key, p->min_first / SA_KEY_BLOCK * SA_KEY_BLOCK);
        for (; key < smaller(first_key + SA_KEY_SPAN, p->max_last); key += SA_KEY_BLOCK)
            if (probabilities_of_block(a, t, p, scaling, key, &b)) add_columns(a, t, p, &b);
    }
    return sa_checkpoint();
}

#endif
