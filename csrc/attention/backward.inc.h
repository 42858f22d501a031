/* SPDX-License-Identifier: Apache-2.0 */
/* backward.inc.h -- the gradients of attention, from its lse: the rows of one task against its keys.
 *
 *   pass 1  P^T[key, lane] = 2^((S^T - lse) * log2_scale), from the scores S^T                 (backward_scores.inc.h)
 *   pass 2  dP^T[key, lane] = sum over value_dim of value * grad_out                           (backward_scores.inc.h)
 *   pass 3  dS^T = P^T * (dP^T - delta), delta[lane] = sum over value_dim of grad_out * out    (backward_scores.inc.h)
 *   pass 4  grad_query^T[dim, lane] += sum over keys of key * dS^T                             (backward_query.inc.h)
 *   pass 5  grad_value[key, dim] += sum over rows of P * grad_out                              (backward_keys.inc.h)
 *           grad_key[key, dim]   += sum over rows of dS * query
 *
 * (FlashAttention-2, Dao 2023, algorithm 2.) Canonical order: a sum over keys is one chain for each key block; a sum
 * over rows is one chain for each task of 64 rows; chains are added in order. The probability of a hidden key is -0.
 * Its sign tells the later passes that the key is hidden, where a NaN must not pass. */
#ifndef SELFATTN_ATTENTION_BACKWARD_INC_H
#define SELFATTN_ATTENTION_BACKWARD_INC_H

#include "attention/backward_keys.inc.h"
#include "attention/backward_query.inc.h"

/* ---- gradients of biases: a task for them alone sums over the broadcast dimensions in order ---- */

/* grad_bias += dS, row by row. score_gradients: keys x lanes, b->stride numbers from key to key. */
static void add_bias_gradient(const struct sa_attention *a, const struct sa_attention_task *t,
                              const struct backward_panel *g, const struct key_block *b, const real *score_gradients)
{
    ptrdiff_t group = sa_group(a), keys = b->last - b->first, col = a->grad_bias.col;
    const struct query_panel *p = &g->panel;
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        char *row = (char *)row_of(&a->grad_bias, t->grad_bias, group, p->row0 + i) + b->first * col;
        for (ptrdiff_t k = 0; k < keys; ++k)
            *(double *)(row + k * col) += (double)score_gradients[k * b->stride + i];
    }
}

/* grad_relative_bias[head, distance of the key] += dS, row by row. score_gradients: as for add_bias_gradient. */
static void add_relative_gradient(const struct sa_attention *a, const struct sa_attention_task *t,
                                  const struct backward_panel *g, const struct key_block *b,
                                  const real *score_gradients)
{
    const struct query_panel *p = &g->panel;
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        double *table = t->grad_relative_bias + (p->row0 + i) % sa_group(a) * sa_relative_width(&a->options);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k)
            table[relative_index(&a->options, b->first + k - p->position[i])] +=
                (double)score_gradients[k * b->stride + i];
    }
}

/* ---- the task ---- */

/* The keys begin .. end - 1 of a panel are hidden: P becomes -0, dS becomes 0 (keys x ROW_STRIDE). */
static void clear_columns(const struct backward_work *w, int index, ptrdiff_t begin, ptrdiff_t end)
{
    for (ptrdiff_t k = begin; k < end; ++k)
        for (int i = 0; i < w->panels[index].panel.width; i += LANES) {
            ptrdiff_t at = k * ROW_STRIDE + index * PANEL_LANES + i;
            vstore(w->probabilities + at, vsplat(-0.0f));
            vstore(w->score_gradients + at, vsplat(0.0f));
        }
}

/* Moves the keys of a panel down to where the block's first key is row 0, and hides the keys around them. */
static void align_columns(const struct backward_work *w, int index, int visible)
{
    const struct key_block *b = &w->block;
    ptrdiff_t keys = b->keys.last - b->keys.first, begin = visible ? b->first - b->keys.first : keys;
    ptrdiff_t end = visible ? b->last - b->keys.first : keys;
    for (ptrdiff_t k = end - 1; begin > 0 && k >= begin; --k) {
        ptrdiff_t to = k * ROW_STRIDE + index * PANEL_LANES, from = to - begin * ROW_STRIDE;
        memcpy(w->probabilities + to, w->probabilities + from, PANEL_LANES * sizeof(real));
        memcpy(w->score_gradients + to, w->score_gradients + from, PANEL_LANES * sizeof(real));
    }
    clear_columns(w, index, 0, begin);
    clear_columns(w, index, end, keys);
}

/* Passes 1 to 5 for the key block that begins at key0. */
static void backward_block(const struct sa_attention *a, const struct sa_attention_task *t, struct score_scale scaling,
                           struct backward_work *w, ptrdiff_t key0)
{
    int any_visible = 0;
    for (int i = 0; i < w->count; ++i) {
        struct backward_panel *g = &w->panels[i];
        real *score_gradients = w->score_gradients + i * PANEL_LANES;
        int visible = score_gradients_of(a, t, scaling, w, i, key0);
        if (visible && t->grad_bias) add_bias_gradient(a, t, g, &w->block, score_gradients);
        if (visible && t->grad_relative_bias) add_relative_gradient(a, t, g, &w->block, score_gradients);
        if (visible && w->capped)
            uncap_score_gradients(&g->panel, &w->block, score_gradients, (real)a->options.softcap);
        if (visible && t->grad_query) add_query_gradient(a, t, g, &w->block, score_gradients);
        if (t->grad_key) align_columns(w, i, visible);
        any_visible |= visible;
    }
    if (!any_visible || !t->grad_key) return;
    add_key_gradient(t, w, w->probabilities, w->grad_out, a->value_dim, w->finite_out, &a->grad_value, t->grad_value);
    add_key_gradient(t, w, w->score_gradients, w->query, a->head_dim, w->finite_query, &a->grad_key, t->grad_key);
}

/* The gradients of the rows of a panel: of their queries, and of their parts in the sink and the slope of their
 * head. */
static void store_row_gradients(const struct sa_attention *a, const struct sa_attention_task *t,
                                struct backward_panel *g)
{
    ptrdiff_t group = sa_group(a);
    const struct query_panel *p = &g->panel;
    real scale[PANEL_LANES];
    for (int i = 0; i < p->width; ++i)
        scale[i] = (real)a->options.scale;
    if (t->grad_query && g->empty) memset(g->grad_query, 0, (size_t)a->head_dim * (size_t)p->width * sizeof(real));
    if (t->grad_query) store_panel(a, &a->grad_query, t->grad_query, a->head_dim, p, g->grad_query, scale);
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        ptrdiff_t row = p->row0 + i;
        if (t->grad_alibi) *(scalar_any *)row_of(&a->grad_alibi, t->grad_alibi, group, row) = g->alibi[i];
        if (!t->grad_sinks) continue;
        real lse = *(const scalar_any *)row_of(&a->lse, t->lse, group, row);
        vreal probability = vexp2(vsplat(((real)t->sinks[row % group] - lse) * LOG2E));
        real gradient = lse == -(real)INFINITY ? (real)0.0 : -probability[0] * g->delta[i];
        *(scalar_any *)row_of(&a->grad_sinks, t->grad_sinks, group, row) = gradient;
    }
}

/* One task against the keys first_key .. last_key - 1. Both begin a key block, or last_key is the end of the keys. */
static int attention_backward(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t first_key,
                              ptrdiff_t last_key, void *workspace)
{
    struct score_scale scaling = score_scale_of(a);
    struct backward_work *w = begin_backward(a, t, scaling, workspace);
    if (t->grad_key) {
        w->finite_query = load_rows(a, t, &a->query, t->query, a->head_dim, (real)a->options.scale, w->query);
        w->finite_out = load_rows(a, t, &a->grad_out, t->grad_out, a->value_dim, (real)1.0, w->grad_out);
    }
    ptrdiff_t first = PTRDIFF_MAX, last = 0;
    for (int i = 0; i < w->count; ++i) {
        first = smaller(first, w->panels[i].panel.min_first);
        last = larger(last, w->panels[i].panel.max_last);
    }
    first = larger(first, first_key), last = smaller(last, last_key);
    for (ptrdiff_t key = first / SA_KEY_BLOCK * SA_KEY_BLOCK; key < last; key += SA_KEY_BLOCK) {
        begin_block(&w->block, larger(key, first), smaller(key + SA_KEY_BLOCK, last));
        backward_block(a, t, scaling, w, key);
        int status = sa_checkpoint();
        if (status) return status;
    }
    for (int i = 0; i < w->count; ++i)
        store_row_gradients(a, t, &w->panels[i]);
    return SA_OK;
}

#endif
