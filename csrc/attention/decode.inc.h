/* SPDX-License-Identifier: Apache-2.0 */
/* decode.inc.h -- few rows against one key block: the three passes, row by row.
 *
 * Scores and probabilities are rows x DECODE_STRIDE keys in f->scores, outputs are rows x value_dim. */
#ifndef SELFATTN_ATTENTION_DECODE_INC_H
#define SELFATTN_ATTENTION_DECODE_INC_H

#include "attention/decode_values.inc.h"
#include "attention/dropout.inc.h"
#include "attention/scores.inc.h"
#include "attention/softmax.inc.h"
#include "attention/values.inc.h"

/* Lane r receives the maximum of row r. */
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

/* sums[row] = sum of the row's probabilities: of even keys in one lane, of odd keys in the other. Rows alternate,
 * because each addition waits for the one before it. */
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

/* Scores become probabilities in place; sums[row] receives their sum. */
static void decode_probabilities(struct decode_rows *f, ptrdiff_t rows, const real *max, real log2_scale, real *sums)
{
    for (ptrdiff_t r = 0; r < rows; ++r)
        for (ptrdiff_t k = 0; k < f->n; k += LANES) {
            real *at = f->scores + r * DECODE_STRIDE + k;
            vstore(at, vexp2((vload(at) - vsplat(max[r])) * vsplat(log2_scale)));
        }
    SA_BY_ROWS(rows, decode_sums_of, f, sums);
}

/* Pass 2 row by row. rescale[row]: what the outputs so far are multiplied by. */
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

/* Passes 1 to 3 of a panel of few rows. With masks, the scores make a detour as keys x lanes. */
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
        struct decode_sums sums = {p->span.outputs + a->value_dim * p->width /* behind the outputs */, p->span.outputs,
                                   p->span.empty ? NULL : rescale, a->value_dim};
        if (hides_infinite(p, b, values, a->value_dim))
            add_visible_rows(p, b, a->value_dim, values, rescale);
        else
            decode_values(a->kv_dtype, p->rows, &f, &sums);
    }
    p->span.empty = 0;
}

#endif
