/* SPDX-License-Identifier: Apache-2.0 */
/* backward_scores.inc.h -- passes 1 to 3 of the backward pass: P and dS of one key block and one panel, both keys x
 * lanes with ROW_STRIDE numbers from key to key. */
#ifndef SELFATTN_ATTENTION_BACKWARD_SCORES_INC_H
#define SELFATTN_ATTENTION_BACKWARD_SCORES_INC_H

#include "attention/backward_panel.inc.h"
#include "attention/dropout.inc.h"
#include "attention/scores.inc.h"

/* Which lanes have -0, the probability of a hidden key? */
INLINE vint is_hidden(vreal probability)
{
    return (vint)probability == (vint)vsplat(-0.0f);
}

/* Pass 1: scores, keys x lanes, become probabilities in place; -0 where the key is hidden. */
static void probabilities_by_lse(const struct backward_panel *g, const struct key_block *b, real log2_scale)
{
    const struct query_panel *p = &g->panel;
    for (int v = 0; v < p->nv; ++v) {
        vreal lse = vload(g->lse + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *at = b->scores + k * b->stride + v * LANES;
            vreal score = vload(at), probability = vexp2((score - lse) * vsplat(log2_scale));
            vstore(at, vselect(score == vsplat(-INFINITY), vsplat(-0.0f), probability));
        }
    }
}

/* g->alibi[lane] += sum over keys of -distance * dS[key, lane] */
static void add_alibi_gradient(struct backward_panel *g, const struct key_block *b, const real *score_gradients)
{
    const struct query_panel *p = &g->panel;
    for (int v = 0; v < p->nv; ++v) {
        vint distance = first_distances(p, b, v);
        vreal sum = vload(g->alibi + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k, distance += 1)
            sum = vfma(-magnitude_of(distance), vload(score_gradients + k * b->stride + v * LANES), sum);
        vstore(g->alibi + v * LANES, sum);
    }
}

/* Pass 3: dP in `score_gradients`, keys x lanes, becomes dS. The dS of a hidden key is 0. With dropout, P becomes the
 * factor of the values: P, dropped or enlarged. */
static void score_gradient_block(const struct sa_attention *a, const struct sa_attention_task *t,
                                 struct backward_panel *g, struct key_block *b, real *score_gradients)
{
    const struct query_panel *p = &g->panel;
    real *factors = a->options.dropout != 0.0
                        ? b->bias
                        : NULL; /* the bias is in the scores by now, so its buffer is free: keys x width */
    for (ptrdiff_t i = 0; factors && i < (b->last - b->first) * p->width; i += LANES)
        vstore(factors + i, vsplat(1.0f));
    if (factors) drop(a, t, p, b->first, b->last, factors, p->width);
    for (int v = 0; v < p->nv; ++v) {
        vreal delta = vload(g->delta + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *probability = b->scores + k * b->stride + v * LANES,
                 *gradient = score_gradients + k * b->stride + v * LANES;
            vreal w = vload(probability), from_out = vload(gradient), factor = vsplat(1.0f);
            vint hidden = is_hidden(w);
            if (factors) factor = vload(factors + k * p->width + v * LANES);
            if (factors) from_out *= factor;
            vstore(gradient, vzero_where(hidden, w * (from_out - delta)));
            if (factors) vstore(probability, w * factor);
        }
    }
}

/* dS through score = softcap * tanh(. / softcap): dS *= 1 - (score / softcap)^2. All are keys x lanes. */
static void uncap_score_gradients(const struct query_panel *p, const struct key_block *b, real *score_gradients,
                                  real softcap)
{
    for (ptrdiff_t k = 0; k < b->last - b->first; ++k)
        for (int i = 0; i < p->width; i += LANES) {
            real *gradient = score_gradients + k * b->stride + i;
            vreal tangent = vload(b->capped + k * b->stride + i) / vsplat(softcap);
            vreal flatter = vload(gradient) * vfma(-tangent, tangent, vsplat(1.0f));
            vstore(gradient, vzero_where(is_hidden(vload(b->scores + k * b->stride + i)), flatter));
        }
}

/* P and dS of the block that begins at key0, for one panel, in its columns of w->probabilities and w->score_gradients.
 * dS is the gradient of natural logits, after softcap. Returns 0 if all keys are hidden from the panel. */
static int score_gradients_of(const struct sa_attention *a, const struct sa_attention_task *t,
                              struct score_scale scaling, struct backward_work *w, int index, ptrdiff_t key0)
{
    struct backward_panel *g = &w->panels[index];
    struct key_block *b = &w->block;
    b->scores = w->probabilities + index * PANEL_LANES;
    b->stride = ROW_STRIDE;
    b->capped = w->capped ? w->capped + index * PANEL_LANES : NULL;
    if (!score_block(a, t, &g->panel, scaling, key0, b)) return 0;
    probabilities_by_lse(g, b, scaling.to_log2);
    struct lane_rows score_gradients = {w->score_gradients + index * PANEL_LANES, ROW_STRIDE};
    struct operand values = gathered_rows(a, t, &b->values, b->first, b->last);
    multiply_keys(&g->panel, b, a->value_dim, SA_SCORE_CHAIN, values, g->grad_out, score_gradients, NULL, NULL);
    score_gradient_block(a, t, g, b, score_gradients.data);
    if (t->alibi_slopes && t->grad_alibi) add_alibi_gradient(g, b, score_gradients.data);
    return 1;
}

#endif
