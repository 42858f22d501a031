/* SPDX-License-Identifier: Apache-2.0 */
/* softmax.inc.h -- pass 2: the softmax of a key block, down the lanes. */
#ifndef SELFATTN_ATTENTION_SOFTMAX_INC_H
#define SELFATTN_ATTENTION_SOFTMAX_INC_H

#include "attention/query_panel.inc.h"
#include "matmul/product.inc.h"
#include "vector/math.inc.h"

/* No key so far: the maximum is -inf, the sum 0. */
static void begin_softmax(const struct query_panel *p, struct softmax_state *s)
{
    for (int i = 0; i < p->width; ++i) {
        s->max[i] = -INFINITY;
        s->sum[i] = 0.0f;
    }
    s->empty = 1;
}

/* The maximum becomes the larger of block_max and itself; `rescale` receives the factor of older sums and outputs.
 * Returns what to subtract from the scores: 0 instead of -inf, because -inf - -inf is NaN. All are one vector of
 * lanes. */
INLINE vreal raise_max(const real *block_max, real log2_scale, real *max, real *rescale)
{
    vreal old = vload(max), new = vmax(vload(block_max), old);
    vstore(max, new);
    new = vzero_where(new == vsplat(-INFINITY), new);
    vstore(rescale, vexp2((old - new) * vsplat(log2_scale)));
    return new;
}

/* scores, keys x nv * LANES, become probabilities relative to the new maximum. With `paired` the result is steps x nv *
 * LANES: the probabilities of the two keys of a step are one operand. block_max, rescale: (nv * LANES,). */
INLINE void softmax_nv(const int nv, const int paired, ptrdiff_t keys, real log2_scale, real *scores,
                       const real *block_max, struct softmax_state *s, real *rescale)
{
    vreal max[MAX_NV], even[MAX_NV], odd[MAX_NV], factor = vsplat(log2_scale);
    for (int v = 0; v < nv; ++v) {
        max[v] = raise_max(block_max + v * LANES, log2_scale, s->max + v * LANES, rescale + v * LANES);
        even[v] = odd[v] = vsplat(0.0f);
    }
    /* One sum of the even keys and one of the odd keys: the rounding errors grow half as fast. */
    for (ptrdiff_t k = 0; k + 1 < keys; k += 2) {
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v) {
            real *score = scores + k * nv * LANES + v * LANES, *next = score + nv * LANES;
            vreal first = vexp2((vload(score) - max[v]) * factor), second = vexp2((vload(next) - max[v]) * factor);
            even[v] += first;
            odd[v] += second;
            vstore(paired ? scores + k / 2 * nv * LANES + v * LANES : score, paired ? vpair(first, second) : first);
            if (!paired) vstore(next, second);
        }
    }
    for (int v = 0; v < nv; ++v) {
        if (keys % 2) {
            vreal last = vexp2((vload(scores + ((keys - 1) * nv + v) * LANES) - max[v]) * factor);
            even[v] += last;
            vstore(scores + ((paired ? keys / 2 : keys - 1) * nv + v) * LANES,
                   paired ? vpair(last, vsplat(0.0f)) : last);
        }
        vstore(s->sum + v * LANES, vfma(vload(s->sum + v * LANES), vload(rescale + v * LANES), even[v] + odd[v]));
    }
}

INLINE void softmax_by(int nv, const int paired, ptrdiff_t keys, real log2_scale, real *scores, const real *block_max,
                       struct softmax_state *s, real *rescale)
{
    SA_BY_VECTORS(softmax_nv, paired, keys, log2_scale, scores, block_max, s, rescale);
}

/* softmax_nv for nv vectors; without pairs of TERMS == 2, `paired` has no effect. */
static void softmax(int nv, int paired, ptrdiff_t keys, real log2_scale, real *scores, const real *block_max,
                    struct softmax_state *s, real *rescale)
{
    if (TERMS == 2 && paired)
        softmax_by(nv, 1, keys, log2_scale, scores, block_max, s, rescale);
    else
        softmax_by(nv, 0, keys, log2_scale, scores, block_max, s, rescale);
}

/* After the last key: p->inverse, and the sinks as a part of the sum. */
static void close_total(const struct sa_attention *a, const struct sa_attention_task *t, struct query_panel *p,
                        struct score_scale scaling)
{
    ptrdiff_t group = sa_group(a);
    for (int v = 0; v < p->nv; ++v) {
        vreal sum = vload(p->total.sum + v * LANES), share = vsplat(1.0f);
        vint empty = sum == vsplat(0.0f); /* no key: 0, with any sink */
        if (t->sinks) {
            real sinks[LANES];
            for (int i = 0; i < LANES; ++i)
                sinks[i] = (real)t->sinks[(p->row0 + v * LANES + i) % group];
            vreal max = vload(p->total.max + v * LANES) * vsplat(scaling.logits ? (real)1.0 : scaling.to_logits);
            vreal sink = vload(sinks), top = vmax(sink, max);
            share = vexp2((max - top) * vsplat(LOG2E));
            sum = vfma(sum, share, vexp2((sink - top) * vsplat(LOG2E)));
            vstore(p->total.sum + v * LANES, vzero_where(empty, sum));
            vstore(p->sink_max + v * LANES, top);
        }
        vstore(p->inverse + v * LANES, vzero_where(empty, share / sum));
    }
}

/* lse = log of the sum of exponentials, -inf without a key. */
static void store_lse(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                      struct score_scale s)
{
    ptrdiff_t group = sa_group(a);
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        double sum = (double)p->total.sum[i];
        double max =
            t->sinks ? (double)p->sink_max[i] : (double)p->total.max[i] * (s.logits ? 1.0 : (double)s.to_logits);
        double lse = sum == 0.0 ? -(double)INFINITY : max + natural_log(sum);
        *(scalar_any *)row_of(&a->lse, t->lse, group, p->row0 + i) = (real)lse;
    }
}

#endif
