/* SPDX-License-Identifier: Apache-2.0 */
/* attention_weights.inc.h -- the attention weights themselves, as an array.
 *
 * Two passes over the scores: the first finds the maximum and the sum of each lane, the second writes the weights. */
#ifndef SELFATTN_ATTENTION_ATTENTION_WEIGHTS_INC_H
#define SELFATTN_ATTENTION_ATTENTION_WEIGHTS_INC_H

#include "attention/driver.inc.h"

/* The weights of a block, keys x p->width in b->scores, become columns b->first .. b->last - 1 of out. */
static void store_probabilities(const struct sa_attention *a, const struct sa_attention_task *t,
                                const struct query_panel *p, const struct key_block *b)
{
    ptrdiff_t keys = b->last - b->first;
    for (int v = 0; v < p->nv; ++v) {
        char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = out_row(a, t, p->row0 + v * LANES + i);
        for (ptrdiff_t k = 0; k < keys; k += LANES) {
            vreal square[LANES];
            ptrdiff_t width = smaller(LANES, keys - k);
            for (ptrdiff_t j = 0; j < LANES; ++j)
                square[j] = vload(b->scores + (k + smaller(j, width - 1)) * b->stride + v * LANES);
            store_transposed(square, rows, n, (b->first + k) * a->out.col, a->out.col, width, a->dtype);
        }
    }
}

/* The rows of a panel in out become 0. */
static void clear_rows(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p)
{
    for (ptrdiff_t i = 0; i < p->rows; ++i)
        for (ptrdiff_t k = 0; k < a->kv_len; ++k)
            memset(out_row(a, t, p->row0 + i) + k * a->out.col, 0, (size_t)size_of(a->dtype));
}

/* Scores, keys x p->width, become weights: 2^((score - max) * log2_scale) / sum. The weight of a hidden key is 0, also
 * in a row of NaN. */
static void to_probabilities(const struct query_panel *p, const struct key_block *b, real log2_scale)
{
    for (int v = 0; v < p->nv; ++v) {
        vreal max = vload(p->total.max + v * LANES), inverse = vload(p->inverse + v * LANES);
        max = vzero_where(max == vsplat(-INFINITY), max);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *at = b->scores + k * b->stride + v * LANES;
            vreal score = vload(at), weight = vexp2((score - max) * vsplat(log2_scale)) * inverse;
            vstore(at, vzero_where(score == vsplat(-INFINITY), weight));
        }
    }
}

/* The weights of the block that begins at `key`, in the place of its scores. Returns 0 if all its keys are hidden. */
static int probabilities_of_block(const struct sa_attention *a, const struct sa_attention_task *t,
                                  const struct query_panel *p, struct score_scale scaling, ptrdiff_t key,
                                  struct key_block *b)
{
    begin_block(b, larger(key, p->min_first), smaller(key + SA_KEY_BLOCK, p->max_last));
    b->stride = p->width;
    if (!score_block(a, t, p, scaling, key, b)) return 0;
    to_probabilities(p, b, scaling.to_log2);
    return 1;
}

/* One task: out is (rows, keys), the weights of all keys; 0 for hidden keys. */
static int attention_weights(const struct sa_attention *a, const struct sa_attention_task *t, void *workspace)
{
    struct query_panel panels[MAX_PANELS];
    struct key_block b;
    struct score_scale scaling = score_scale_of(a);
    int count, status = attend(a, t, scaling, workspace, &b, panels, &count);
    for (int i = 0; i < count && !status; ++i) {
        struct query_panel *p = &panels[i];
        clear_rows(a, t, p);
        ptrdiff_t key = p->min_first / SA_KEY_BLOCK * SA_KEY_BLOCK;
        for (; key < p->max_last && !status; key += SA_KEY_BLOCK) {
            if (probabilities_of_block(a, t, p, scaling, key, &b)) store_probabilities(a, t, p, &b);
            status = sa_checkpoint();
        }
    }
    return status;
}

#endif
