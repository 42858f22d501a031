/* SPDX-License-Identifier: Apache-2.0 */
/* query_panel.inc.h -- queries side by side in the lanes: their ranges of keys and their running softmax; and the
 * blocked transposes between rows in memory (rows x dim) and panels (dim x lanes). */
#ifndef SELFATTN_ATTENTION_QUERY_PANEL_INC_H
#define SELFATTN_ATTENTION_QUERY_PANEL_INC_H

#include "matmul/tile.inc.h"
#include "vector/convert.inc.h"
#include "vector/math.inc.h"

/* A running softmax, lane by lane: sum = sum over keys of 2^((score - max) * log2_scale), outputs = sum over keys of
 * the same * value. */
struct softmax_state {
    real *outputs; /* value_dim x lanes; or rows x value_dim (values_by_row.inc.h) */
    real max[PANEL_LANES], sum[PANEL_LANES];
    int empty; /* no key so far: outputs hold nothing yet */
};

struct query_panel {
    int nv, width;                    /* vectors of lanes, and nv * LANES */
    ptrdiff_t row0, rows;             /* the rows row0 .. row0 + rows - 1 of the key head, rows <= width */
    real *query;                      /* head_dim x width */
    int by_rows;                      /* outputs are rows x value_dim */
    struct softmax_state span, total; /* of the current span, and of all spans before it */
    real inverse[PANEL_LANES];        /* 1 / sum, the factor of the outputs of `total` */
    real sink_max[PANEL_LANES];       /* the larger of maximum and sink, as a natural logit */
    ptrdiff_t first[PANEL_LANES], last[PANEL_LANES]; /* lane i sees the keys first[i] <= key < last[i] */
    ptrdiff_t position[PANEL_LANES];                 /* of the query among the keys */
    ptrdiff_t min_first, max_first, min_last, max_last;
    ptrdiff_t visible_first[MAX_NV], visible_last[MAX_NV]; /* the range that the lanes of a vector see, together */
};

/* Queries times query_factor give scores. Scores times to_logits are natural logits, times to_log2 exponents of two. */
struct score_scale {
    real query_factor, to_logits, to_log2;
    int logits; /* finish_scores() turns each score into a natural logit, with a bias, ALiBi or a softcap */
};

static struct score_scale score_scale_of(const struct sa_attention *a)
{
    /* Usually the exponent takes the scale, and the queries stay as they are. But the maximum of scores needs a
     * positive scale, and -inf must survive it; for other scales the queries take it. */
    int in_exponent = a->options.scale > 1e-20 && a->options.scale < 1e20;
    struct score_scale s = {.query_factor = in_exponent ? (real)1.0 : (real)a->options.scale,
                            .to_logits = in_exponent ? (real)a->options.scale : (real)1.0,
                            .logits = a->bias.data || a->options.relative_bias || a->options.alibi_slopes ||
                                      a->options.softcap != 0.0};
    s.to_log2 = s.logits ? LOG2E : (real)((double)s.to_logits * 1.4426950408889634);
    return s;
}

/* The keys that each lane may see by its position, before mask and bias. Lanes without a row repeat the last row. */
static void set_lane_ranges(const struct sa_attention *a, const struct sa_attention_task *t, struct query_panel *p)
{
    ptrdiff_t group = sa_group(a), query = p->row0 / group, head = p->row0 % group;
    for (int i = 0; i < p->width; ++i) {
        ptrdiff_t position = a->positions ? (ptrdiff_t)a->positions[query] : query + t->position0;
        ptrdiff_t last = t->valid_keys;
        if (a->options.causal) last = smaller(last, position + 1);
        if (a->options.right.bounded) last = smaller(last, position + a->options.right.size + 1);
        p->position[i] = position;
        p->first[i] = a->options.left.bounded ? larger(0, position - a->options.left.size) : 0;
        p->last[i] = larger(0, last);
        if (i + 1 < p->rows && ++head == group) head = 0, ++query;
    }
}

/* The union and the intersection of the ranges of all lanes, and the union of each vector. */
static void join_ranges(struct query_panel *p)
{
    p->min_first = p->min_last = PTRDIFF_MAX;
    p->max_first = p->max_last = 0;
    for (int v = 0; v < p->nv; ++v) {
        ptrdiff_t min_first = PTRDIFF_MAX, max_first = 0, min_last = PTRDIFF_MAX, max_last = 0;
        for (int i = v * LANES; i < (v + 1) * LANES; ++i) {
            min_first = smaller(min_first, p->first[i]);
            max_first = larger(max_first, p->first[i]);
            min_last = smaller(min_last, p->last[i]);
            max_last = larger(max_last, p->last[i]);
        }
        p->visible_first[v] = min_first;
        p->visible_last[v] = max_last;
        p->min_first = smaller(p->min_first, min_first);
        p->max_first = larger(p->max_first, max_first);
        p->min_last = smaller(p->min_last, min_last);
        p->max_last = larger(p->max_last, max_last);
    }
}

static void set_ranges(const struct sa_attention *a, const struct sa_attention_task *t, struct query_panel *p)
{
    if (a->options.causal || a->options.left.bounded || a->options.right.bounded || a->options.alibi_slopes ||
        a->options.relative_bias) {
        set_lane_ranges(a, t, p);
        join_ranges(p);
        return;
    }
    for (int i = 0; i < p->width; ++i) { /* no option depends on positions: all lanes see the same keys */
        p->first[i] = 0;
        p->last[i] = t->valid_keys;
    }
    p->min_first = p->max_first = 0;
    p->min_last = p->max_last = t->valid_keys;
}

/* ---- queries in, outputs out ---- */

/* The address of a row of the key head, in an array (head, query, ...): query row / group of head row % group. */
static const char *row_of(const struct sa_array *array, const char *data, ptrdiff_t group, ptrdiff_t row)
{
    if (group == 1) return data + row * array->row; /* the usual case; a division takes as long as 12 additions */
    return data + row / group * array->row + row % group * array->head;
}
static char *out_row(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row)
{
    return (char *)row_of(&a->out, t->out, sa_group(a), row);
}

/* panel: steps(dim) x p->width. panel[step, lane] = the dimensions of the step of the lane's row, times scale; 0 in
 * lanes without a row. */
static void load_panel(const struct sa_attention *a, const struct sa_array *array, const char *data, ptrdiff_t dim,
                       const struct query_panel *p, real scale, real *panel)
{
    ptrdiff_t group = sa_group(a);
    vreal factor = vsplat(scale);
    for (int v = 0; v < p->nv; ++v) {
        const char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = row_of(array, data, group, p->row0 + v * LANES + i);
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            vreal square[LANES];
            ptrdiff_t width = smaller(LANES, dim - d);
            load_transposed(rows, n, d * array->col, array->col, width, a->dtype, square);
            real *to = panel + d / TERMS * p->width + v * LANES;
            if (width == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j += TERMS)
                    vstore(to + j / TERMS * p->width, vpair(square[j] * factor, square[j + TERMS - 1] * factor));
            } else {
                for (ptrdiff_t j = 0; j < width; j += TERMS)
                    vstore(to + j / TERMS * p->width, vpair(square[j] * factor, square[j + TERMS - 1] * factor));
            }
        }
    }
}

/* The row of each lane in an array = panel[dim, lane] * factor[lane]. panel: dim x p->width. */
static void store_panel(const struct sa_attention *a, const struct sa_array *array, char *data, ptrdiff_t dim,
                        const struct query_panel *p, const real *panel, const real *factor)
{
    ptrdiff_t group = sa_group(a);
    for (int v = 0; v < p->nv; ++v) {
        char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = (char *)row_of(array, data, group, p->row0 + v * LANES + i);
        vreal times = vload(factor + v * LANES);
        vreal zero = vsplat(0.0f); /* -0 becomes 0, as it would by a further block of hidden keys */
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            vreal square[LANES];
            ptrdiff_t width = smaller(LANES, dim - d);
            const real *from = panel + d * p->width + v * LANES;
            if (width == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    square[j] = vfma(vload(from + j * p->width), times, zero);
            } else {
                for (ptrdiff_t j = 0; j < LANES; ++j)
                    square[j] = vfma(vload(from + smaller(j, width - 1) * p->width), times, zero);
            }
            store_transposed(square, rows, n, d * array->col, array->col, width, a->dtype);
        }
    }
}

#endif
