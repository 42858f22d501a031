/* decode.inc.h -- few rows against one key block: all three passes row by row. */
#ifndef SELFATTN_ATTENTION_DECODE_INC_H
#define SELFATTN_ATTENTION_DECODE_INC_H

#include "attention/decode_values.inc.h"
#include "attention/dropout.inc.h"
#include "attention/scores.inc.h"
#include "attention/softmax.inc.h"
#include "attention/values.inc.h"

/* The maxima of the rows, in the lanes. */
static vreal decode_max(const struct decode_rows *f, ptrdiff_t rows)
{
    vreal square[LANES];
    for (int i = 0; i < LANES; ++i) {
        square[i] = vsplat(-INFINITY);
        for (ptrdiff_t k = 0; i < rows && k < f->n; k += LANES) /* past the end: the last key again */
            square[i] = vmax(vload(f->scores + i * DECODE_STRIDE + k), square[i]);
    }
    vtranspose(square);
    for (int i = 1; i < LANES; ++i)
        square[0] = vmax(square[i], square[0]);
    return square[0];
}

/* The sums of the rows' weights: of every other key and of the others in the two lanes, the rows side by side, as each
 * addition waits for the one before it. */
INLINE void decode_sums_of(const int count, const struct decode_rows *f, real *sums)
{
    vtwo both[DECODE_ROWS] = {{0}};
    const real *at = f->scores;
    for (ptrdiff_t k = 0; k + 1 < f->n; k += 2, at += 2)
#pragma GCC unroll 8
        for (int r = 0; r < count; ++r)
            both[r] += *(const vtwo *)(at + r * DECODE_STRIDE);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) {
        if (f->n % 2) both[r][0] += at[r * DECODE_STRIDE];
        sums[r] = both[r][0] + both[r][1];
    }
}

/* The scores of the rows become weights; sums receives their sums. */
static void decode_probabilities(struct decode_rows *f, ptrdiff_t rows, const real *max, real log2_scale, real *sums)
{
    for (ptrdiff_t r = 0; r < rows; ++r)
        for (ptrdiff_t k = 0; k < f->n; k += LANES) {
            real *at = f->scores + r * DECODE_STRIDE + k;
            vstore(at, vexp2((vload(at) - vsplat(max[r])) * vsplat(log2_scale)));
        }
    SA_BY_ROWS(rows, decode_sums_of, f, sums);
}

/* The softmax of a few rows, row by row. */
static void softmax_decode(ptrdiff_t rows, real log2_scale, struct decode_rows *f, struct softmax_state *s,
                           real *rescale)
{
    real max[LANES], sums[LANES] = {0};
    vstore(max, decode_max(f, rows));
    vreal new = raise_max(max, log2_scale, s->max, rescale);
    vstore(max, new);
    decode_probabilities(f, rows, max, log2_scale, sums);
    vstore(s->sum, vfma(vload(s->sum), vload(rescale), vload(sums)));
}

static void attend_decode(const struct sa_attention *a, const struct sa_attention_task *t, struct query_panel *p,
                          struct score_scale scaling, struct key_block *b)
{
    real rescale[PANEL_LANES];
    struct decode_rows f;
    struct lane_rows scores = {b->scores, b->stride};
    score_decode(a, t, p, b, &f);
    if (unmasked(b, scaling) && a->options.dropout == 0.0) {
        softmax_decode(p->rows, scaling.to_log2, &f, &p->span, rescale);
    } else {
        decode_to_panel(&f, p->rows, scores);
        if (unmasked(b, scaling))
            find_max(b);
        else
            finish_scores(a, t, p, scaling, b);
        softmax(p->nv, 0, f.n, scaling.to_log2, b->scores, b->max, &p->span, rescale);
        if (a->options.dropout != 0.0) drop(a, t, p, b->first, b->last, b->scores, b->stride);
        decode_from_panel(&f, p->rows, scores);
    }
    if (p->span.outputs) {
        struct operand values =
            is_masked(b) ? gathered_rows(a, t, &b->values, b->first, b->last) : (struct operand){NULL, 0, 0};
        struct decode_sums sums = {p->span.outputs + a->value_dim * p->width /* behind them */, p->span.outputs,
                                   p->span.empty ? NULL : rescale, a->value_dim};
        if (hides_infinite(p, b, values, a->value_dim))
            add_visible_rows(p, b, a->value_dim, values, rescale);
        else
            decode_values(a->kv_dtype, p->rows, &f, &sums);
    }
    p->span.empty = 0;
}

#endif
