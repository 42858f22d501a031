/* lanes.inc.h -- what lies in the lanes: the queries of a panel, what each may see, what it has summed up so far; and the
 * way in and out, blocked transposes between rows in memory and lanes. */
#ifndef SELFATTN_ATTENTION_QUERY_PANEL_INC_H
#define SELFATTN_ATTENTION_QUERY_PANEL_INC_H

#include "matmul/tile.inc.h"
#include "vector/convert.inc.h"
#include "vector/math.inc.h"

/* A running softmax: outputs = sum of 2^((score - max) * c) * value, sum = the sum of the weights. */
struct softmax_state {
    real *outputs; /* value_dim x lanes; or rows x value_dim (rows.inc.h) */
    real max[PANEL_LANES], sum[PANEL_LANES];
    int empty; /* no key so far: outputs not yet written */
};

struct query_panel {
    int nv, width;        /* vectors, and nv * LANES */
    ptrdiff_t row0, rows; /* rows of the tile in these lanes, rows <= width */
    real *query;          /* head_dim x width */
    int by_rows;          /* so lie the outputs */
    struct softmax_state span, total;
    real inverse[PANEL_LANES];                       /* what the weights and outputs of `total` are multiplied by */
    real sink_max[PANEL_LANES];                      /* the larger of maximum and sink, in natural to_logits */
    ptrdiff_t first[PANEL_LANES], last[PANEL_LANES]; /* lane i sees the keys first[i] <= key < last[i] */
    ptrdiff_t position[PANEL_LANES];                 /* where its query stands among the keys */
    ptrdiff_t min_first, max_first, min_last, max_last;
    ptrdiff_t visible_first[MAX_NV], visible_last[MAX_NV]; /* what some lane of a vector sees */
};

/* Scores times `to_logits` are natural logits; `c` turns scores into powers of two. */
struct score_scale {
    real query_factor, to_logits, to_log2;
    int logits; /* something is done to each score, which becomes a logit in natural to_logits by it */
};

static struct score_scale score_scale_of(const struct sa_attention *a)
{
    /* Usually the queries stay as they are, and the scale waits for the exponent. The maximum needs a positive scale,
     * and one that -inf survives; otherwise the queries take it. */
    int in_exponent = a->options.scale > 1e-20 && a->options.scale < 1e20;
    struct score_scale s = {.query_factor = in_exponent ? (real)1.0 : (real)a->options.scale,
                            .to_logits = in_exponent ? (real)a->options.scale : (real)1.0,
                            .logits = a->bias.data || a->options.relative_bias || a->options.alibi_slopes ||
                                      a->options.softcap != 0.0};
    s.to_log2 = s.logits ? LOG2E : (real)((double)s.to_logits * 1.4426950408889634);
    return s;
}

/* Which keys each lane may see, before mask and bias, by its position. Lanes without a row see what the last row sees. */
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

/* The ranges of the lanes, together. */
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
    for (int i = 0; i < p->width; ++i) { /* positions do not matter: all lanes see the same */
        p->first[i] = 0;
        p->last[i] = t->valid_keys;
    }
    p->min_first = p->max_first = 0;
    p->min_last = p->max_last = t->valid_keys;
}

/* ---- queries in, outputs out ---- */

/* Where a row of the tile is, in an array that has one for each query and head. */
static const char *row_of(const struct sa_array *array, const char *data, ptrdiff_t group, ptrdiff_t row)
{
    if (group == 1) return data + row * array->row; /* the rule; a division costs as much as a dozen additions */
    return data + row / group * array->row + row % group * array->head;
}
static char *out_row(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row)
{
    return (char *)row_of(&a->out, t->out, sa_group(a), row);
}

/* panel[step, lane] = the row of each lane, the dims of the step, * scale; lanes without a row are zero. */
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

/* The row of each lane = panel[dim, lane] * factor[lane]. */
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
        vreal zero = vsplat(0.0f); /* -0 becomes 0: a block that a lane does not see could do the same */
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
