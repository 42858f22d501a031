/* SPDX-License-Identifier: Apache-2.0 */
/* backward_panel.inc.h -- what a task brings to its backward pass: query panels, rows, delta, lse, and its buffers. */
#ifndef SELFATTN_ATTENTION_BACKWARD_PANEL_INC_H
#define SELFATTN_ATTENTION_BACKWARD_PANEL_INC_H

#include "attention/panels.inc.h"

enum { ROW_STRIDE = SA_TASK_ROWS }; /* numbers from key to key in P and dS: keys x rows of a task, panel beside panel */

_Static_assert((int)SA_TASK_ROWS == (int)SA_BACKWARD_ROWS, "the rows of a task are one chain of a key's gradient");
_Static_assert(MAX_PANELS *(int)PANEL_LANES == (int)ROW_STRIDE, "panels fill the rows of P and dS");

struct backward_panel {
    struct query_panel panel;
    real *grad_out, *grad_query; /* value_dim x width, and head_dim x width */
    real lse[PANEL_LANES];       /* in the units of the scores; 0 where the row sees no key */
    real delta[PANEL_LANES];
    real alibi[PANEL_LANES]; /* sum of -distance * dS */
    int empty;               /* no key so far: grad_query holds nothing yet */
};

/* The buffers of a task; they lie behind this structure in the workspace. */
struct backward_work {
    struct key_block block;
    struct backward_panel panels[MAX_PANELS];
    int count;
    real *probabilities, *score_gradients, *capped; /* P, dS, and with a softcap the capped scores: keys x ROW_STRIDE */
    real *query, *grad_out;       /* query * scale and grad_out: rows x dim, padded to whole vectors */
    real *sums;                   /* pass 5: keys x PANEL_LANES, before they are added to a gradient */
    int finite_query, finite_out; /* is every number of the rows finite? */
};

/* n, rounded up to whole vectors. */
static ptrdiff_t whole_vectors(ptrdiff_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

/* Gives the buffers of a task their places. */
static void place_backward(const struct sa_attention *a, struct layout *l, struct backward_work *w)
{
    place_block(a, l, &w->block);
    w->probabilities = place(l, SA_KEY_BLOCK * ROW_STRIDE);
    w->score_gradients = place(l, SA_KEY_BLOCK * ROW_STRIDE);
    w->capped = a->options.softcap != 0.0 ? place(l, SA_KEY_BLOCK * ROW_STRIDE) : NULL;
    w->sums = place_panel(l, SA_KEY_BLOCK);
    w->query = place(l, SA_TASK_ROWS * (size_t)whole_vectors(a->head_dim));
    w->grad_out = place(l, SA_TASK_ROWS * (size_t)whole_vectors(a->value_dim));
}

/* Gives the buffers of a panel their places: dim x lanes. */
static void place_backward_panel(const struct sa_attention *a, struct layout *l, struct backward_panel *g)
{
    g->panel.query = place_panel(l, a->head_dim);
    g->grad_query = place_panel(l, a->head_dim);
    g->grad_out = place_panel(l, a->value_dim);
}

enum { WORK_BYTES = (sizeof(struct backward_work) + 63) / 64 * 64 }; /* bytes before the buffers: whole cache lines */

/* Bytes of the workspace of one task. */
static size_t backward_workspace(const struct sa_attention *a)
{
    struct layout l = {NULL, 0};
    struct backward_work w;
    place_backward(a, &l, &w);
    for (int i = 0; i < MAX_PANELS; ++i)
        place_backward_panel(a, &l, &w.panels[i]);
    return WORK_BYTES + l.used * sizeof(real);
}

/* ---- the rows of a task ---- */

/* to: rows x whole_vectors(dim) = the rows of the task in an array, times a factor, padded with zeros. Returns whether
 * all numbers are finite. */
static int load_rows(const struct sa_attention *a, const struct sa_attention_task *t, const struct sa_array *array,
                     const char *data, ptrdiff_t dim, real factor, real *to)
{
    ptrdiff_t group = sa_group(a), stride = whole_vectors(dim);
    for (ptrdiff_t i = 0; i < t->rows; ++i) {
        real *row = to + i * stride;
        widen_row(row_of(array, data, group, t->row0 + i), array->col, dim, a->dtype, row);
        for (ptrdiff_t d = 0; d < dim; ++d)
            row[d] *= factor;
        for (ptrdiff_t d = dim; d < stride; ++d)
            row[d] = (real)0.0;
    }
    return all_finite((struct operand){(const char *)to, sizeof(real), stride * (ptrdiff_t)sizeof(real)}, dim, t->rows);
}

/* delta[lane] = sum over value_dim of grad_out * out, in chains of SA_SCORE_CHAIN products, as in dP. And the lse in
 * the units of the scores, where scores times `to_logits` are natural logits. */
static void load_row_sums(const struct sa_attention *a, const struct sa_attention_task *t, real to_logits,
                          struct backward_panel *g)
{
    ptrdiff_t group = sa_group(a);
    const struct query_panel *p = &g->panel;
    for (int v = 0; v < p->nv; ++v) {
        const char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = row_of(&a->out, t->out, group, p->row0 + v * LANES + i);
        vreal delta = vsplat(0.0f), chain = vsplat(0.0f);
        for (ptrdiff_t d = 0; d < a->value_dim; d += LANES) {
            vreal square[LANES];
            if (d % SA_SCORE_CHAIN == 0) delta += chain, chain = vsplat(0.0f);
            ptrdiff_t width = smaller(LANES, a->value_dim - d);
            load_transposed(rows, n, d * a->out.col, a->out.col, width, a->dtype, square);
            for (ptrdiff_t j = 0; j < width; ++j)
                chain = vfma(vload(g->grad_out + (d + j) * p->width + v * LANES), square[j], chain);
        }
        vstore(g->delta + v * LANES, delta + chain);
    }
    for (int i = 0; i < p->width; ++i) {
        ptrdiff_t row = p->row0 + smaller(i, p->rows - 1);
        real lse = *(const scalar_any *)row_of(&a->lse, t->lse, group, row);
        g->lse[i] = lse == -(real)INFINITY ? (real)0.0 : lse / to_logits;
        g->alibi[i] = (real)0.0;
    }
}

/* Lays out the workspace, and splits the rows of a task into panels. */
static struct backward_work *begin_backward(const struct sa_attention *a, const struct sa_attention_task *t,
                                            struct score_scale scaling, void *workspace)
{
    struct backward_work *w = workspace;
    struct layout l = {(real *)((char *)workspace + WORK_BYTES), 0};
    begin_blocks(a, t, &w->block);
    place_backward(a, &l, w);
    w->count = 0;
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES, ++w->count) {
        struct backward_panel *g = &w->panels[w->count];
        struct query_panel *p = &g->panel;
        begin_panel(a, t, row, p);
        place_backward_panel(a, &l, g);
        g->empty = 1;
        load_queries(a, t, p, scaling);
        load_panel(a, &a->grad_out, t->grad_out, a->value_dim, p, (real)1.0, g->grad_out);
        load_row_sums(a, t, scaling.logits ? (real)1.0 : scaling.to_logits, g);
    }
    return w;
}

#endif
