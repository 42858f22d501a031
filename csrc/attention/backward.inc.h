/* backward.inc.h -- the gradients of attention, from its lse: one tile of queries against its keys.
 *
 *   pass 1  scores    S^T as in the forward pass, and the weights P^T = 2^((S^T - lse) * c)
 *   pass 2  dP^T[key, lane]   = sum over value_dim of value * grad_out
 *   pass 3  dS^T = P^T * (dP^T - delta), delta[lane] = sum over value_dim of grad_out * out
 *   pass 4  grad_query^T[dim, lane] += sum over keys of key * dS^T
 *   pass 5  grad_value[key, dim]    += sum over rows of P * grad_out;   grad_key[key, dim] += sum over rows of dS * query
 *
 * (FlashAttention-2, Dao 2023, algorithm 2.) Canonical order: a sum over keys is a chain per block, a sum over queries a
 * chain per tile, added in order. The weight of a masked key is -0: its sign says that the key is not seen, should a NaN
 * have to be kept from passing. */

enum { ROW_STRIDE = SA_TASK_ROWS }; /* P and dS of a tile: keys x rows, panel beside panel */

struct gradient_lanes {
    struct lanes lanes;
    real *grad_out, *grad_query; /* value_dim x width, head_dim x width */
    real lse[PANEL_LANES];       /* in units of the scores; 0 without a key */
    real delta[PANEL_LANES];
    real alibi[PANEL_LANES]; /* sum of -distance * dS */
    int empty;               /* no key so far: grad_query not yet written */
};

/* What a tile works with. */
struct gradient_work {
    struct block block;
    struct gradient_lanes panels[MAX_PANELS];
    int count;
    real *weights, *slopes, *capped; /* P, dS: keys x rows; the capped scores likewise, with a softcap */
    real *query, *grad_out;          /* rows x dim, padded to whole vectors: query * scale, grad_out */
    real *sums;                      /* keys x panel, before they are added */
    int finite_query, finite_out;    /* is every number of the rows finite? */
};

static ptrdiff_t whole_vectors(ptrdiff_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

static size_t backward_workspace(const struct sa_attention *a)
{
    size_t tile = (size_t)SA_KEY_BLOCK * ROW_STRIDE + APART;
    size_t numbers = attention_workspace(a) / sizeof(real) + 3 * tile + panel_numbers(SA_KEY_BLOCK);
    numbers += MAX_PANELS * panel_numbers(a->head_dim); /* queries as there, their gradients in addition */
    numbers += SA_TASK_ROWS * (size_t)(whole_vectors(a->head_dim) + whole_vectors(a->value_dim)) + 2 * APART;
    return numbers * sizeof(real) + sizeof(struct gradient_work) + 64;
}

/* ---- what the queries of a tile bring along ---- */

/* The tile's rows of an array, times a factor, side by side and padded with zeros. Returns whether all are finite. */
static int load_rows(const struct sa_attention *a, const struct sa_tile *t, const struct sa_array *array,
                     const char *data, ptrdiff_t dim, real factor, real *to)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, stride = whole_vectors(dim);
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

/* delta, lane by lane down the dimensions, in chains as long as those of the products that it is subtracted from; and the
 * lse, where scores times `units` are natural. */
static void load_row_sums(const struct sa_attention *a, const struct sa_tile *t, real units, struct gradient_lanes *g)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    const struct lanes *p = &g->lanes;
    for (int v = 0; v < p->nv; ++v) {
        const char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = row_of(&a->out, t->out, group, p->row0 + v * LANES + i);
        vreal delta = vsplat(0.0f), chain = vsplat(0.0f);
        for (ptrdiff_t d = 0; d < a->value_dim; d += LANES) {
            vreal tile[LANES];
            if (d % SCORE_CHAIN == 0) delta += chain, chain = vsplat(0.0f);
            ptrdiff_t width = smaller(LANES, a->value_dim - d);
            load_turned(rows, n, d * a->out.col, a->out.col, width, a->dtype, tile);
            for (ptrdiff_t j = 0; j < width; ++j)
                chain = vfma(vload(g->grad_out + (d + j) * p->width + v * LANES), tile[j], chain);
        }
        vstore(g->delta + v * LANES, delta + chain);
    }
    for (int i = 0; i < p->width; ++i) {
        ptrdiff_t row = p->row0 + smaller(i, p->rows - 1);
        real lse = *(const scalar_any *)row_of(&a->lse, t->lse, group, row);
        g->lse[i] = lse == -(real)INFINITY ? (real)0.0 : lse / units;
        g->alibi[i] = (real)0.0;
    }
}

static void set_gradient_panels(const struct sa_attention *a, const struct sa_tile *t, struct scaling scaling,
                                real *memory, struct gradient_work *w)
{
    memory = set_block(a, t, memory, &w->block);
    w->weights = memory, memory += SA_KEY_BLOCK * ROW_STRIDE + APART;
    w->slopes = memory, memory += SA_KEY_BLOCK * ROW_STRIDE + APART;
    w->capped = a->softcap != 0.0 ? memory : NULL, memory += SA_KEY_BLOCK * ROW_STRIDE + APART;
    w->sums = memory, memory += panel_numbers(SA_KEY_BLOCK);
    w->query = memory, memory += SA_TASK_ROWS * whole_vectors(a->head_dim) + APART;
    w->grad_out = memory, memory += SA_TASK_ROWS * whole_vectors(a->value_dim) + APART;
    w->count = 0;
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES, ++w->count) {
        struct gradient_lanes *g = &w->panels[w->count];
        struct lanes *p = &g->lanes;
        begin_panel(a, t, row, p);
        p->query = memory, memory += panel_numbers(a->head_dim);
        g->grad_query = memory, memory += panel_numbers(a->head_dim);
        g->grad_out = memory, memory += panel_numbers(a->value_dim);
        g->empty = 1;
        load_queries(a, t, p, scaling);
        load_panel(a, &a->grad_out, t->grad_out, a->value_dim, p, (real)1.0, g->grad_out);
        load_row_sums(a, t, scaling.natural ? (real)1.0 : scaling.units, g);
    }
}

/* ---- passes 1 to 3 ---- */

INLINE vint is_hidden(vreal weight)
{
    return (vint)weight == (vint)vsplat(-0.0f);
}

/* Scores become weights; where the lane does not see the key, -0. */
static void weigh_by_lse(const struct gradient_lanes *g, const struct block *b, real c)
{
    const struct lanes *p = &g->lanes;
    for (int v = 0; v < p->nv; ++v) {
        vreal lse = vload(g->lse + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *at = b->scores + k * b->stride + v * LANES;
            vreal score = vload(at), weight = vexp2((score - lse) * vsplat(c));
            vstore(at, vselect(score == vsplat(-INFINITY), vsplat(-0.0f), weight));
        }
    }
}

/* alibi += -distance * dS */
static void add_alibi_gradient(struct gradient_lanes *g, const struct block *b, const real *slopes)
{
    const struct lanes *p = &g->lanes;
    for (int v = 0; v < p->nv; ++v) {
        vint distance = first_distances(p, b, v);
        vreal sum = vload(g->alibi + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k, distance += 1)
            sum = vfma(-magnitude_of(distance), vload(slopes + k * b->stride + v * LANES), sum);
        vstore(g->alibi + v * LANES, sum);
    }
}

/* dP in `slopes` becomes dS; P and dS of a key that is not seen are -0 and 0. With dropout, P becomes what the values
 * were multiplied by. */
static void slope_block(const struct sa_attention *a, const struct sa_tile *t, struct gradient_lanes *g,
                        struct block *b, real *slopes)
{
    const struct lanes *p = &g->lanes;
    real *factors = a->dropout != 0.0 ? b->bias : NULL; /* its room; the bias is in the scores by now */
    for (ptrdiff_t i = 0; factors && i < (b->last - b->first) * p->width; i += LANES)
        vstore(factors + i, vsplat(1.0f));
    if (factors) drop(a, t, p, b->first, b->last, factors, p->width);
    for (int v = 0; v < p->nv; ++v) {
        vreal delta = vload(g->delta + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *weight = b->scores + k * b->stride + v * LANES, *slope = slopes + k * b->stride + v * LANES;
            vreal w = vload(weight), from_out = vload(slope), factor = vsplat(1.0f);
            vint hidden = is_hidden(w);
            if (factors) factor = vload(factors + k * p->width + v * LANES);
            if (factors) from_out *= factor;
            vstore(slope, vzero_where(hidden, w * (from_out - delta)));
            if (factors) vstore(weight, w * factor);
        }
    }
}

/* dS through score = cap * tanh(. / cap): times 1 - (score / cap)^2 */
static void uncap_slopes(const struct lanes *p, const struct block *b, real *slopes, real softcap)
{
    for (ptrdiff_t k = 0; k < b->last - b->first; ++k)
        for (int i = 0; i < p->width; i += LANES) {
            real *slope = slopes + k * b->stride + i;
            vreal tangent = vload(b->capped + k * b->stride + i) / vsplat(softcap);
            vreal flatter = vload(slope) * vfma(-tangent, tangent, vsplat(1.0f));
            vstore(slope, vzero_where(is_hidden(vload(b->scores + k * b->stride + i)), flatter));
        }
}

/* P and dS of the keys of a block that this panel may see, in its columns of `weights` and `slopes`; they are of natural
 * scores after softcap, before the scale. Returns whether it sees any. */
static int slopes_of(const struct sa_attention *a, const struct sa_tile *t, struct scaling scaling,
                     struct gradient_work *w, int index, ptrdiff_t key0)
{
    struct gradient_lanes *g = &w->panels[index];
    struct block *b = &w->block;
    b->scores = w->weights + index * PANEL_LANES;
    b->stride = ROW_STRIDE;
    b->capped = w->capped ? w->capped + index * PANEL_LANES : NULL;
    if (!score_block(a, t, &g->lanes, scaling, key0, b)) return 0;
    weigh_by_lse(g, b, scaling.c);
    struct panel slopes = {w->slopes + index * PANEL_LANES, ROW_STRIDE};
    struct operand values = staged_rows(a, t, &b->values, b->first, b->last);
    multiply_keys(&g->lanes, b, a->value_dim, SCORE_CHAIN, values, g->grad_out, slopes, NULL, NULL);
    slope_block(a, t, g, b, slopes.data);
    if (t->alibi_slopes && t->grad_alibi) add_alibi_gradient(g, b, slopes.data);
    return 1;
}

/* ---- pass 4 ---- */

/* C += A * B with lanes' visibility in the sign of `weights`: a NaN in A reaches only lanes that see its key. */
static void add_visible_keys(const struct gradient_lanes *g, const struct block *b, struct operand keys, ptrdiff_t dim,
                             const real *slopes)
{
    const struct lanes *p = &g->lanes;
    for (ptrdiff_t d = 0; d < dim; ++d)
        for (int i = 0; i < p->width; i += LANES) {
            real *at = g->grad_query + d * p->width + i;
            vreal sum = vsplat(0.0f);
            for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
                vint hidden = is_hidden(vload(b->scores + k * b->stride + i));
                vreal key = vsplat(*(const scalar_any *)(keys.data + d * keys.row + k * keys.col));
                sum = vfma(vzero_where(hidden, key), vload(slopes + k * b->stride + i), sum);
            }
            if (!g->empty) sum += vload(at);
            vstore(at, sum);
        }
}

static void add_query_gradient(const struct sa_attention *a, const struct sa_tile *t, struct gradient_lanes *g,
                               struct block *b, const real *slopes)
{
    ptrdiff_t count = b->last - b->first;
    struct operand rows = staged_rows(a, t, &b->keys, b->first, b->last), keys = {rows.data, rows.col, rows.row};
    struct panel sums = {g->grad_query, g->lanes.width};
    if (is_masked(b) && !all_finite(keys, a->head_dim, count))
        add_visible_keys(g, b, keys, a->head_dim, slopes);
    else
        multiply_values(g->empty ? multiply_store : multiply_add, &g->lanes, b, a->head_dim, keys, slopes, ROW_STRIDE,
                        sums, NULL, NULL);
    g->empty = 0;
}

#include "attention/backward_keys.inc.h"

/* ---- the bias, in a pass of its own: what it is broadcast over is summed in order ---- */

/* grad_bias += dS, row by row. */
static void add_bias_gradient(const struct sa_attention *a, const struct sa_tile *t, const struct gradient_lanes *g,
                              const struct block *b, const real *slopes)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, keys = b->last - b->first, col = a->grad_bias.col;
    const struct lanes *p = &g->lanes;
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        char *row = (char *)row_of(&a->grad_bias, t->grad_bias, group, p->row0 + i) + b->first * col;
        for (ptrdiff_t k = 0; k < keys; ++k)
            *(double *)(row + k * col) += (double)slopes[k * b->stride + i];
    }
}

/* ---- the tile ---- */

/* Columns of keys that a panel does not see: nothing, and not seen. */
static void clear_columns(const struct gradient_work *w, int index, ptrdiff_t begin, ptrdiff_t end)
{
    for (ptrdiff_t k = begin; k < end; ++k)
        for (int i = 0; i < w->panels[index].lanes.width; i += LANES) {
            ptrdiff_t at = k * ROW_STRIDE + index * PANEL_LANES + i;
            vstore(w->weights + at, vsplat(-0.0f));
            vstore(w->slopes + at, vsplat(0.0f));
        }
}

/* Moves a panel's columns down to where the block's first key is row 0; clears what is around them. */
static void align_columns(const struct gradient_work *w, int index, int seen)
{
    const struct block *b = &w->block;
    ptrdiff_t keys = b->keys.last - b->keys.first, begin = seen ? b->first - b->keys.first : keys;
    ptrdiff_t end = seen ? b->last - b->keys.first : keys;
    for (ptrdiff_t k = end - 1; begin > 0 && k >= begin; --k) {
        ptrdiff_t to = k * ROW_STRIDE + index * PANEL_LANES, from = to - begin * ROW_STRIDE;
        memcpy(w->weights + to, w->weights + from, PANEL_LANES * sizeof(real));
        memcpy(w->slopes + to, w->slopes + from, PANEL_LANES * sizeof(real));
    }
    clear_columns(w, index, 0, begin);
    clear_columns(w, index, end, keys);
}

static void backward_block(const struct sa_attention *a, const struct sa_tile *t, struct scaling scaling,
                           struct gradient_work *w, ptrdiff_t key0)
{
    int some = 0;
    for (int i = 0; i < w->count; ++i) {
        struct gradient_lanes *g = &w->panels[i];
        real *slopes = w->slopes + i * PANEL_LANES;
        int seen = slopes_of(a, t, scaling, w, i, key0);
        if (seen && t->grad_bias) add_bias_gradient(a, t, g, &w->block, slopes);
        if (seen && w->capped) uncap_slopes(&g->lanes, &w->block, slopes, (real)a->softcap);
        if (seen && t->grad_query) add_query_gradient(a, t, g, &w->block, slopes);
        if (t->grad_key) align_columns(w, i, seen);
        some |= seen;
    }
    if (!some || !t->grad_key) return;
    add_key_gradient(t, w, w->weights, w->grad_out, a->value_dim, w->finite_out, &a->grad_value, t->grad_value);
    add_key_gradient(t, w, w->slopes, w->query, a->head_dim, w->finite_query, &a->grad_key, t->grad_key);
}

/* The gradients of a row's own: its query, and its part in those of the sink and the slope of its head. */
static void store_row_gradients(const struct sa_attention *a, const struct sa_tile *t, struct gradient_lanes *g)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    const struct lanes *p = &g->lanes;
    real scale[PANEL_LANES];
    for (int i = 0; i < p->width; ++i)
        scale[i] = (real)a->scale;
    if (t->grad_query && g->empty) memset(g->grad_query, 0, (size_t)a->head_dim * (size_t)p->width * sizeof(real));
    if (t->grad_query) store_panel(a, &a->grad_query, t->grad_query, a->head_dim, p, g->grad_query, scale);
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        ptrdiff_t row = p->row0 + i;
        if (t->grad_alibi) *(scalar_any *)row_of(&a->grad_alibi, t->grad_alibi, group, row) = g->alibi[i];
        if (!t->grad_sinks) continue;
        real lse = *(const scalar_any *)row_of(&a->lse, t->lse, group, row);
        vreal weight = vexp2(vsplat(((real)t->sinks[row % group] - lse) * LOG2E));
        real gradient = lse == -(real)INFINITY ? (real)0.0 : -weight[0] * g->delta[i];
        *(scalar_any *)row_of(&a->grad_sinks, t->grad_sinks, group, row) = gradient;
    }
}

/* The tile's rows against the keys from first_key to before last_key, both at the beginning of a block or the end. */
static int attention_backward(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t first_key,
                              ptrdiff_t last_key, void *workspace)
{
    struct scaling scaling = scaling_of(a);
    struct gradient_work *w = workspace;
    set_gradient_panels(a, t, scaling, (real *)((char *)workspace + (sizeof *w + 63) / 64 * 64), w);
    if (t->grad_key) {
        w->finite_query = load_rows(a, t, &a->query, t->query, a->head_dim, (real)a->scale, w->query);
        w->finite_out = load_rows(a, t, &a->grad_out, t->grad_out, a->value_dim, (real)1.0, w->grad_out);
    }
    ptrdiff_t first = PTRDIFF_MAX, last = 0;
    for (int i = 0; i < w->count; ++i) {
        first = smaller(first, w->panels[i].lanes.min_first);
        last = larger(last, w->panels[i].lanes.max_last);
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
