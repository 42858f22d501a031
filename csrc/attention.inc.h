/* attention.inc.h -- queries in the lanes: one panel of queries against all its keys.
 *
 *   pass 1  scores   S^T[key, lane]  = sum over head_dim of key * query          (tile.inc.h, mask.inc.h)
 *   pass 2  softmax  P^T = 2^((S^T - max) * scale), running maximum and sum, down the lanes: no shuffles
 *   pass 3  values   O^T[dim, lane] += sum over keys of value * P^T              (tile.inc.h)
 *
 * Keys and values are the broadcast operands, read where they lie. Canonical order: the keys of a block share a
 * maximum, the blocks of a span one chain of additions, and the spans are merged in order. A key that a lane does not
 * see changes nothing in that lane, not even a rounding; so padding, batch and neighbours cannot be seen in a result. */

static const float LOG2E = 1.44269504f;

enum { SCORE_CHAIN = 128 }; /* products of a query and a key that are one chain of additions */

/* A running softmax: outputs = sum of 2^((score - max) * c) * value, sum = the sum of the weights. */
struct state {
    float *outputs; /* value_dim x lanes */
    float max[PANEL_LANES], sum[PANEL_LANES];
    int empty; /* no key so far: outputs not yet written */
};

struct lanes {
    int nv, width;        /* vectors, and nv * LANES */
    ptrdiff_t row0, rows; /* rows of the tile in these lanes, rows <= width */
    float *query;         /* head_dim x width */
    struct state span, total;
    ptrdiff_t first[PANEL_LANES], last[PANEL_LANES]; /* lane i sees the keys first[i] <= key < last[i] */
    ptrdiff_t min_first, max_first, min_last, max_last;
};

/* Scores times `units` are natural logits; `c` turns scores into powers of two. */
struct scaling {
    float query, units, c;
};

static struct scaling scaling_of(const struct sa_attention *a)
{
    /* Usually the queries stay as they are, and the scale waits for the exponent. The maximum needs a positive scale,
     * and one that -inf survives; otherwise the queries take it. */
    int in_exponent = a->scale > 1e-20f && a->scale < 1e20f;
    struct scaling s = {in_exponent ? 1.0f : a->scale, in_exponent ? a->scale : 1.0f, 0.0f};
    s.c = a->bias.data ? LOG2E : (float)((double)s.units * 1.4426950408889634);
    return s;
}

INLINE ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}
INLINE ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

/* What mask and bias say of a block. */
enum biased {
    NOT_BIASED, /* every lane sees every key, and nothing is added */
    ALL_MASKED, /* no lane sees any */
    BIASED
};

struct block {
    ptrdiff_t first, last; /* the keys of the block that some lane may see */
    float *scores, *bias;  /* keys x width */
    float max[PANEL_LANES]; /* of the scores */
    int ranged;             /* some lane's range begins or ends inside the block: */
    int32_t begin[PANEL_LANES], end[PANEL_LANES];
    enum biased biased;
};

#include "mask.inc.h"

/* ---- queries in, outputs out: blocked transposes between rows in memory and lanes ---- */

static const char *query_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    return t->query + row / group * a->query.row + row % group * a->query.head;
}
static char *out_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    return t->out + row / group * a->out.row + row % group * a->out.head;
}

/* n <= LANES values of a row that may have any stride and alignment. */
INLINE vfloat load_row(const char *row, ptrdiff_t col, ptrdiff_t n)
{
    if (col == (ptrdiff_t)sizeof(float))
        return n == LANES ? vload((const float *)row) : vload_first((const float *)row, n);
    vfloat v = vsplat(0.0f);
    for (ptrdiff_t i = 0; i < n; ++i)
        v[i] = *(const scalar_any *)(row + i * col);
    return v;
}
INLINE void store_row(char *row, ptrdiff_t col, ptrdiff_t n, vfloat v)
{
    if (col == (ptrdiff_t)sizeof(float)) {
        if (n == LANES)
            vstore((float *)row, v);
        else
            vstore_first((float *)row, v, n);
    } else {
        for (ptrdiff_t i = 0; i < n; ++i)
            *(scalar_any *)(row + i * col) = v[i];
    }
}

/* p->query[dim, lane] = query[row of lane, dim] * scale; lanes without a row are zero. */
static void load_queries(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, float scale)
{
    vfloat factor = vsplat(scale);
    for (int v = 0; v < p->nv; ++v) {
        const char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = query_row(a, t, p->row0 + v * LANES + i);
        for (ptrdiff_t d = 0; d < a->head_dim; d += LANES) {
            vfloat tile[LANES];
            ptrdiff_t width = smaller(LANES, a->head_dim - d);
            for (ptrdiff_t i = 0; i < LANES; ++i)
                tile[i] = i < n ? load_row(rows[i] + d * a->query.col, a->query.col, width) : vsplat(0.0f);
            vtranspose(tile);
            for (ptrdiff_t j = 0; j < width; ++j)
                vstore(p->query + (d + j) * p->width + v * LANES, tile[j] * factor);
        }
    }
}

static void store_outputs(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p)
{
    for (int v = 0; v < p->nv; ++v) {
        char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = out_row(a, t, p->row0 + v * LANES + i);
        vfloat sum = vload(p->total.sum + v * LANES);
        vfloat inverse = vselect(sum == vsplat(0.0f), sum, vsplat(1.0f) / sum); /* no key: 0 */
        for (ptrdiff_t d = 0; d < a->value_dim; d += LANES) {
            vfloat tile[LANES];
            ptrdiff_t width = smaller(LANES, a->value_dim - d);
            for (ptrdiff_t j = 0; j < LANES; ++j) {
                tile[j] = vsplat(0.0f);
                if (j < width)
                    tile[j] = vload(p->total.outputs + (d + j) * p->width + v * LANES) * inverse;
            }
            vtranspose(tile);
            for (ptrdiff_t i = 0; i < n; ++i)
                store_row(rows[i] + d * a->out.col, a->out.col, width, tile[i]);
        }
    }
}

static void store_lse(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p, float units)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    double scale = a->bias.data ? 1.0 : (double)units;
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        ptrdiff_t row = p->row0 + i;
        double sum = (double)p->total.sum[i];
        double lse = sum == 0.0 ? -(double)INFINITY : (double)p->total.max[i] * scale + natural_log(sum);
        *(scalar_any *)(t->lse + row / group * a->lse.row + row % group * a->lse.head) = (float)lse;
    }
}

/* ---- pass 1: the scores of the keys first .. last - 1 of a block ---- */

/* Returns 0 if no lane sees a key of the block that begins at key0. */
static int score_block(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p,
                       struct scaling scaling, ptrdiff_t key0, struct block *b)
{
    b->first = larger(key0, p->min_first);
    b->last = smaller(key0 + SA_KEY_BLOCK, p->max_last);
    b->biased = load_bias(a, t, p->row0, p->rows, p->nv, &b->first, &b->last, b->bias);
    if (b->first >= b->last || b->biased == ALL_MASKED)
        return 0;
    b->ranged = b->first < p->max_first || b->last > p->min_last;
    struct operand keys = {t->key + b->first * a->key.row, a->key.row, a->key.col};
    struct panel scores = {b->scores, p->width};
    if (!b->ranged && b->biased == NOT_BIASED && a->head_dim <= SCORE_CHAIN) {
        multiply_max(p->nv, b->last - b->first, a->head_dim, keys, p->query, p->width, scores, b->max);
    } else {
        multiply_long(p->nv, b->last - b->first, a->head_dim, SCORE_CHAIN, keys, p->query, p->width, scores);
        mask_scores(p, b, a->bias.data ? scaling.units : 1.0f);
    }
    return 1;
}

/* ---- pass 2: the softmax, down the lanes ---- */

/* The scores become weights relative to the new maximum; `rescale` receives what older weights are worth. */
INLINE void softmax_nv(const int nv, ptrdiff_t keys, float c, float *scores, const float *block_max, struct state *s,
                      float *rescale)
{
    vfloat max[MAX_NV], sum[MAX_NV], factor = vsplat(c);
    for (int v = 0; v < nv; ++v) {
        vfloat old = vload(s->max + v * LANES), new = vmax(vload(block_max + v * LANES), old);
        vstore(s->max + v * LANES, new);
        max[v] = vselect(new == vsplat(-INFINITY), vsplat(0.0f), new); /* -inf - -inf would be NaN */
        vstore(rescale + v * LANES, vexp2((old - max[v]) * factor));
        sum[v] = vsplat(0.0f);
    }
    for (ptrdiff_t k = 0; k < keys; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v) {
            float *score = scores + k * nv * LANES + v * LANES;
            vfloat weight = vexp2((vload(score) - max[v]) * factor);
            vstore(score, weight);
            sum[v] += weight;
        }
    for (int v = 0; v < nv; ++v)
        vstore(s->sum + v * LANES, vfma(vload(s->sum + v * LANES), vload(rescale + v * LANES), sum[v]));
}

static void softmax(int nv, ptrdiff_t keys, float c, float *scores, const float *block_max, struct state *s,
                    float *rescale)
{
    if (nv == 1)
        softmax_nv(1, keys, c, scores, block_max, s, rescale);
    else if (nv == 2)
        softmax_nv(2, keys, c, scores, block_max, s, rescale);
    else if (nv == 3)
        softmax_nv(MAX_NV > 2 ? 3 : 1, keys, c, scores, block_max, s, rescale);
    else
        softmax_nv(MAX_NV > 2 ? 4 : 1, keys, c, scores, block_max, s, rescale);
}

/* ---- pass 3: the values ---- */

/* outputs = outputs * rescale + this block's chain */
static void add_values(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, const struct block *b,
                       float *rescale)
{
    ptrdiff_t keys = b->last - b->first;
    struct operand values = {t->value + b->first * a->value.row, a->value.col, a->value.row};
    struct panel outputs = {p->span.outputs, p->width};
    if ((b->ranged || b->biased != NOT_BIASED) && !all_finite(values, a->value_dim, keys))
        add_visible_values(p, b, values, a->value_dim, outputs, rescale); /* 0 * NaN must not reach a lane that does not see it */
    else if (p->span.empty)
        multiply_store(p->nv, a->value_dim, keys, values, b->scores, p->width, outputs, NULL);
    else
        multiply_rescale(p->nv, a->value_dim, keys, values, b->scores, p->width, outputs, rescale);
}

/* ---- blocks make a span, spans make the whole ---- */

static void begin_state(const struct lanes *p, struct state *s)
{
    for (int i = 0; i < p->width; ++i) {
        s->max[i] = -INFINITY;
        s->sum[i] = 0.0f;
    }
    s->empty = 1;
}

static void attend_block(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p,
                         struct scaling scaling, ptrdiff_t key0, struct block *b)
{
    float rescale[PANEL_LANES];
    if (!score_block(a, t, p, scaling, key0, b))
        return;
    softmax(p->nv, b->last - b->first, scaling.c, b->scores, b->max, &p->span, rescale);
    if (p->span.outputs)
        add_values(a, t, p, b, rescale);
    p->span.empty = 0;
}

/* total = total + span, both rescaled to the larger maximum; the first span with a key is taken as it is. */
static void merge_span(struct lanes *p, ptrdiff_t value_dim, float c)
{
    struct state *total = &p->total, *span = &p->span;
    if (span->empty)
        return;
    if (total->empty) {
        struct state swap = *total;
        *total = *span;
        *span = swap;
        return;
    }
    for (int v = 0; v < p->nv; ++v) {
        vfloat old = vload(total->max + v * LANES), add = vload(span->max + v * LANES), max = vmax(add, old);
        vfloat base = vselect(max == vsplat(-INFINITY), vsplat(0.0f), max);
        vfloat old_factor = vexp2((old - base) * vsplat(c)), add_factor = vexp2((add - base) * vsplat(c));
        vstore(total->max + v * LANES, max);
        vfloat sum = vload(total->sum + v * LANES) * old_factor;
        vstore(total->sum + v * LANES, vfma(vload(span->sum + v * LANES), add_factor, sum));
        for (ptrdiff_t d = 0; total->outputs && d < value_dim; ++d) {
            float *o = total->outputs + d * p->width + v * LANES;
            const float *s = span->outputs + d * p->width + v * LANES;
            vstore(o, vfma(vload(s), add_factor, vload(o) * old_factor));
        }
    }
}

/* Which keys each lane may see, before mask and bias. Lanes without a row see what the last row sees. */
static void set_ranges(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, offset = a->bottom_right ? t->kv_len - t->q_len : 0;
    for (int i = 0; i < p->width; ++i) {
        ptrdiff_t query = (p->row0 + smaller(i, p->rows - 1)) / group;
        p->first[i] = 0;
        p->last[i] = a->causal ? larger(0, smaller(t->valid_keys, query + 1 + offset)) : t->valid_keys;
        p->min_first = i ? smaller(p->min_first, p->first[i]) : p->first[i];
        p->max_first = i ? larger(p->max_first, p->first[i]) : p->first[i];
        p->min_last = i ? smaller(p->min_last, p->last[i]) : p->last[i];
        p->max_last = i ? larger(p->max_last, p->last[i]) : p->last[i];
    }
}

enum { MAX_PANELS = SA_TASK_ROWS / PANEL_LANES, APART = 16 /* floats between buffers: not 4096 bytes apart */ };

static size_t panel_floats(ptrdiff_t dim)
{
    return (size_t)dim * PANEL_LANES + APART;
}

static size_t attention_workspace(const struct sa_attention *a)
{
    size_t floats = 2 * panel_floats(SA_KEY_BLOCK);
    floats += MAX_PANELS * (panel_floats(a->head_dim) + 2 * panel_floats(a->value_dim));
    return floats * sizeof(float);
}

/* Splits the rows of a tile into panels; returns how many. `outputs`: whether there are values to add. */
static int set_panels(const struct sa_attention *a, const struct sa_tile *t, float *memory, int outputs, float scale,
                      struct lanes panels[MAX_PANELS])
{
    int count = 0;
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES, ++count) {
        struct lanes *p = &panels[count];
        p->row0 = t->row0 + row;
        p->rows = smaller(PANEL_LANES, t->rows - row);
        p->nv = (int)((p->rows + LANES - 1) / LANES);
        p->width = p->nv * LANES;
        p->query = memory;
        memory += panel_floats(a->head_dim);
        p->span.outputs = outputs ? memory : NULL;
        p->total.outputs = outputs ? memory + panel_floats(a->value_dim) : NULL;
        memory += 2 * panel_floats(a->value_dim);
        begin_state(p, &p->total);
        set_ranges(a, t, p);
        load_queries(a, t, p, scale);
    }
    return count;
}

/* All blocks of all spans for the panels of a tile. */
static int attend(const struct sa_attention *a, const struct sa_tile *t, struct scaling scaling, struct lanes *panels,
                  int count, struct block *b)
{
    ptrdiff_t first = panels[0].min_first, last = panels[0].max_last;
    for (int i = 1; i < count; ++i) {
        first = smaller(first, panels[i].min_first);
        last = larger(last, panels[i].max_last);
    }
    for (ptrdiff_t span = first / SA_KEY_SPAN * SA_KEY_SPAN; span < last; span += SA_KEY_SPAN) {
        int status = sa_checkpoint();
        if (status)
            return status;
        for (int i = 0; i < count; ++i)
            begin_state(&panels[i], &panels[i].span);
        ptrdiff_t end = smaller(span + SA_KEY_SPAN, last);
        for (ptrdiff_t key = larger(span, first / SA_KEY_BLOCK * SA_KEY_BLOCK); key < end; key += SA_KEY_BLOCK)
            for (int i = 0; i < count; ++i)
                attend_block(a, t, &panels[i], scaling, key, b);
        for (int i = 0; i < count; ++i)
            merge_span(&panels[i], a->value_dim, scaling.c);
    }
    return SA_OK;
}

static int attention(const struct sa_attention *a, const struct sa_tile *t, void *workspace)
{
    struct lanes panels[MAX_PANELS];
    struct block b = {.scores = workspace, .bias = (float *)workspace + panel_floats(SA_KEY_BLOCK)};
    struct scaling scaling = scaling_of(a);
    int count = set_panels(a, t, b.bias + panel_floats(SA_KEY_BLOCK), 1, scaling.query, panels);
    int status = attend(a, t, scaling, panels, count, &b);
    for (int i = 0; i < count && !status; ++i) {
        if (panels[i].total.empty)
            memset(panels[i].total.outputs, 0, (size_t)a->value_dim * (size_t)panels[i].width * sizeof(float));
        store_outputs(a, t, &panels[i]);
        if (t->lse)
            store_lse(a, t, &panels[i], scaling.units);
    }
    return status;
}
