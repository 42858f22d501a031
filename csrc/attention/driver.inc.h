/* SPDX-License-Identifier: Apache-2.0 */
/* driver.inc.h -- the forward pass of a task: its query panels against all keys that they may see.
 *
 *   pass 1  scores   S^T[key, lane]  = sum over head_dim of key * query          (scores.inc.h, mask.inc.h)
 *   pass 2  softmax  P^T = 2^((S^T - max) * log2_scale), down the lanes: no shuffles          (softmax.inc.h)
 *   pass 3  values   O^T[dim, lane] += sum over keys of value * P^T              (values_by_lane.inc.h)
 *           or       O[row, dim]    += sum over keys of P * value                (values_by_row.inc.h)
 *
 * A task of few rows does the three passes row by row (decode.inc.h). Keys and values are read where they lie, or
 * gathered once for each key block (key_source.inc.h).
 *
 * Canonical order: the keys of a block share one maximum, the blocks of a span are one chain of additions, and the
 * spans are merged in order. A hidden key changes nothing in its lane, not even a rounding. So a result does not
 * depend on padding, on the batch, or on neighbours. */
#ifndef SELFATTN_ATTENTION_DRIVER_INC_H
#define SELFATTN_ATTENTION_DRIVER_INC_H

#include "attention/decode.inc.h"
#include "attention/dropout.inc.h"
#include "attention/merge_spans.inc.h"
#include "attention/panels.inc.h"
#include "attention/scores.inc.h"
#include "attention/softmax.inc.h"
#include "attention/values.inc.h"

/* The three passes of one panel over one key block. scores: keys x p->width, which become probabilities in place. */
static void attend_block(const struct sa_attention *a, const struct sa_attention_task *t, struct query_panel *p,
                         struct score_scale scaling, ptrdiff_t key0, struct key_block *b)
{
    real rescale[PANEL_LANES];
    b->stride = p->width;
    if (is_decode(a, p)) {
        if (find_keys(a, t, p, key0, b)) attend_decode(a, t, p, scaling, b);
        return;
    }
    if (!score_block(a, t, p, scaling, key0, b)) return;
    int dropped = a->options.dropout != 0.0;
    softmax(p->nv, !dropped, b->last - b->first, scaling.to_log2, b->scores, b->max, &p->span, rescale);
    if (dropped) drop(a, t, p, b->first, b->last, b->scores, b->stride);
    if (TERMS == 2 && dropped) pair_probabilities(p, b);
    if (p->span.outputs) add_values(a, t, p, b, rescale);
    p->span.empty = 0;
}

/* All key blocks of one span, for the `count` panels of a task. The panels may see the keys first .. last - 1. */
static void attend_span(const struct sa_attention *a, const struct sa_attention_task *t, struct score_scale scaling,
                        struct query_panel *panels, int count, ptrdiff_t span, ptrdiff_t first, ptrdiff_t last,
                        struct key_block *b)
{
    for (int i = 0; i < count; ++i)
        begin_softmax(&panels[i], &panels[i].span);
    ptrdiff_t end = smaller(span + SA_KEY_SPAN, last);
    for (ptrdiff_t key = larger(span, first / SA_KEY_BLOCK * SA_KEY_BLOCK); key < end; key += SA_KEY_BLOCK) {
        begin_block(b, larger(key, first), smaller(key + SA_KEY_BLOCK, last));
        for (int i = 0; i < count; ++i)
            attend_block(a, t, &panels[i], scaling, key, b);
    }
}

/* Begins a task, and does all its spans. panel_count receives the number of panels, at most MAX_PANELS or, with
 * gathered keys, SHARED_PANELS. */
static int attend(const struct sa_attention *a, const struct sa_attention_task *t, struct score_scale scaling,
                  void *workspace, struct key_block *b, struct query_panel *panels, int *panel_count)
{
    int count = *panel_count = begin_task(a, t, scaling, workspace, b, panels);
    ptrdiff_t first, last;
    all_keys(panels, count, &first, &last);
    for (ptrdiff_t span = first / SA_KEY_SPAN * SA_KEY_SPAN; span < last; span += SA_KEY_SPAN) {
        int status = sa_checkpoint();
        if (status) return status;
        if (span + SA_KEY_SPAN >= last) prefetch_next_task(a, t->next, b);
        attend_span(a, t, scaling, panels, count, span, first, last, b);
        for (int i = 0; i < count; ++i)
            merge_span(&panels[i], a->value_dim, scaling.to_log2);
    }
    for (int i = 0; i < 2 && b->next_task_rows > 0; ++i)
        issue_prefetch(&b->next_task[i], 0, (int)b->next_task_rows);
    for (int i = 0; i < count; ++i)
        close_total(a, t, &panels[i], scaling);
    return SA_OK;
}

/* outputs / sum -> out, and the lse. p->total.outputs: value_dim x width, or rows x value_dim. */
static void store_total(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                        struct score_scale scaling)
{
    if (p->total.empty) memset(p->total.outputs, 0, (size_t)a->value_dim * (size_t)p->width * sizeof(real));
    (p->by_rows ? store_rows : store_panel)(a, &a->out, t->out, a->value_dim, p, p->total.outputs, p->inverse);
    if (t->lse) store_lse(a, t, p, scaling);
}

/* One task of attention, from its queries to its rows of out and lse. */
static int attention(const struct sa_attention *a, const struct sa_attention_task *t, void *workspace)
{
    struct query_panel panels[SHARED_PANELS];
    struct key_block b;
    struct score_scale scaling = score_scale_of(a);
    int count, status = attend(a, t, scaling, workspace, &b, panels, &count);
    for (int i = 0; i < count && !status; ++i)
        store_total(a, t, &panels[i], scaling);
    return status;
}

#endif
