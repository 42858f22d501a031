/* attention.inc.h -- queries in the lanes: one panel of queries against all its keys.
 *
 *   pass 1  scores   S^T[key, lane]  = sum over head_dim of key * query          (tile.inc.h, mask.inc.h)
 *   pass 2  softmax  P^T = 2^((S^T - max) * scale), running maximum and sum, down the lanes: no shuffles
 *   pass 3  values   O^T[dim, lane] += sum over keys of value * P^T              (tile.inc.h)
 *           or, row by row, O[row, dim] += sum over keys of P * value            (rows.inc.h)
 *
 * Keys and values are read where they lie: broadcast, or as rows of whole vectors. Canonical order: the keys of a block
 * share a maximum, the blocks of a span one chain of additions, and the spans are merged in order. A key that a lane does
 * not see changes nothing in that lane, not even a rounding; so padding, batch and neighbours cannot be seen in a result. */

enum { SCORE_CHAIN = 64 }; /* products of a query and a key that are one chain of additions */

#include "attention/key_source.inc.h"
#include "attention/query_panel.inc.h"
#include "attention/mask.inc.h"
#include "attention/visible_vectors.inc.h"
#include "attention/dropout.inc.h"
#include "attention/decode_scores.inc.h"
#include "attention/decode_values.inc.h"
#include "attention/values_by_row.inc.h"

/* ---- pass 1: the scores of the keys first .. last - 1 of a block ---- */

/* The maximum of a panel of one vector. */
static void find_max(struct block *b)
{
    vreal max = vsplat(-INFINITY);
    for (ptrdiff_t k = 0; k < b->last - b->first; ++k)
        max = vmax(vload(b->scores + k * b->stride), max);
    vstore(b->max, max);
}

/* The keys of the block that begins at key0, and what mask and bias say of them. Returns 0 if no lane sees any. */
static int find_keys(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p, ptrdiff_t key0,
                     struct block *b)
{
    /* The same keys are always one step. One of them may be a key that no lane sees: it is in the range, and hidden. */
    b->first = larger(key0, p->min_first / TERMS * TERMS);
    b->last = smaller(b->keys.last, steps(p->max_last) * TERMS);
    b->biased = load_bias(a, t, p->row0, p->rows, p->nv, &b->first, &b->last, b->bias);
    b->ranged = b->first < p->max_first || b->last > p->min_last;
    b->partly_seen = partly_seen(p, b);
    return b->first < b->last && b->biased != ALL_MASKED;
}

/* Are the scores of a block done as they are multiplied? */
static int unmasked(const struct block *b, struct scaling scaling)
{
    return !is_masked(b) && !scaling.natural;
}

/* Returns 0 if no lane sees a key of the block that begins at key0. */
static int score_block(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p,
                       struct scaling scaling, ptrdiff_t key0, struct block *b)
{
    if (!find_keys(a, t, p, key0, b)) return 0;
    struct panel scores = {b->scores, b->stride};
    int done = unmasked(b, scaling);
    if (few(a, p)) {
        struct few_rows f;
        score_few(a, t, p, b, &f);
        few_to_panel(&f, p->rows, scores);
        if (done) find_max(b);
    } else {
        struct operand keys = staged_rows(a, t, &b->keys, b->first, b->last);
        int staged = needs_staging(a), wanted = staged ? !b->values.done : b->fetch;
        b->fetch = 0;
        ptrdiff_t next = b->first + (staged ? SA_KEY_BLOCK : 2 * MAX_TILE_ROWS);
        struct ahead ahead[2] = {rows_ahead(a, &b->keys, next, wanted), rows_ahead(a, &b->values, b->first, wanted)};
        multiply_keys(p, b, steps(a->head_dim), SCORE_CHAIN / TERMS, keys, p->query, scores, done ? b->max : NULL,
                      ahead);
    }
    if (!done) finish_scores(a, t, p, scaling, b);
    return 1;
}

/* ---- pass 2: the softmax, down the lanes ---- */

/* The maximum becomes the larger of block_max and itself; `rescale` receives what older weights are worth. Returns what
 * to subtract from the scores: -inf - -inf would be NaN. */
INLINE vreal raise_max(const real *block_max, real c, real *max, real *rescale)
{
    vreal old = vload(max), new = vmax(vload(block_max), old);
    vstore(max, new);
    new = vzero_where(new == vsplat(-INFINITY), new);
    vstore(rescale, vexp2((old - new) * vsplat(c)));
    return new;
}

/* The scores become weights relative to the new maximum; `paired`: the weights of a step's keys, one operand. */
INLINE void softmax_nv(const int nv, const int paired, ptrdiff_t keys, real c, real *scores, const real *block_max,
                       struct state *s, real *rescale)
{
    vreal max[MAX_NV], sum[MAX_NV], other[MAX_NV], factor = vsplat(c);
    for (int v = 0; v < nv; ++v) {
        max[v] = raise_max(block_max + v * LANES, c, s->max + v * LANES, rescale + v * LANES);
        sum[v] = other[v] = vsplat(0.0f);
    }
    /* Two sums, of every other key: half the rounding errors' growth. */
    for (ptrdiff_t k = 0; k + 1 < keys; k += 2) {
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v) {
            real *score = scores + k * nv * LANES + v * LANES, *next = score + nv * LANES;
            vreal first = vexp2((vload(score) - max[v]) * factor), second = vexp2((vload(next) - max[v]) * factor);
            sum[v] += first;
            other[v] += second;
            vstore(paired ? scores + k / 2 * nv * LANES + v * LANES : score, paired ? vpair(first, second) : first);
            if (!paired) vstore(next, second);
        }
    }
    for (int v = 0; v < nv; ++v) {
        if (keys % 2) {
            vreal last = vexp2((vload(scores + ((keys - 1) * nv + v) * LANES) - max[v]) * factor);
            sum[v] += last;
            vstore(scores + ((paired ? keys / 2 : keys - 1) * nv + v) * LANES,
                   paired ? vpair(last, vsplat(0.0f)) : last);
        }
        vstore(s->sum + v * LANES, vfma(vload(s->sum + v * LANES), vload(rescale + v * LANES), sum[v] + other[v]));
    }
}

INLINE void softmax_by(int nv, const int paired, ptrdiff_t keys, real c, real *scores, const real *block_max,
                       struct state *s, real *rescale)
{
    if (nv == 1)
        softmax_nv(1, paired, keys, c, scores, block_max, s, rescale);
    else if (nv == 2)
        softmax_nv(2, paired, keys, c, scores, block_max, s, rescale);
    else if (MAX_NV > 2 && nv == 3)
        softmax_nv(MAX_NV > 2 ? 3 : 1, paired, keys, c, scores, block_max, s, rescale);
    else if (MAX_NV > 2)
        softmax_nv(MAX_NV > 2 ? 4 : 1, paired, keys, c, scores, block_max, s, rescale);
}

static void softmax(int nv, int paired, ptrdiff_t keys, real c, real *scores, const real *block_max, struct state *s,
                    real *rescale)
{
    if (TERMS == 2 && paired)
        softmax_by(nv, 1, keys, c, scores, block_max, s, rescale);
    else
        softmax_by(nv, 0, keys, c, scores, block_max, s, rescale);
}

/* ---- pass 3: the values ---- */

/* The weights of the keys of a step become one operand. */
static void pair_weights(const struct lanes *p, struct block *b)
{
    ptrdiff_t keys = b->last - b->first;
    for (ptrdiff_t k = 0; k < keys; k += TERMS)
        for (int i = 0; i < p->width; i += LANES) {
            const real *first = b->scores + k * p->width + i;
            vreal second = k + 1 < keys ? vload(first + p->width) : vsplat(0.0f);
            vstore(b->scores + k / TERMS * p->width + i, vpair(vload(first), second));
        }
}

/* So many rows of the next tile have been fetched. */
static void fetched_next(struct block *b, ptrdiff_t rows)
{
    b->next_rows -= rows;
    for (int i = 0; i < 2; ++i) {
        b->next[i] = ahead_from(b->next[i], rows);
        if (b->next_rows <= 0) b->next[i].bytes = 0;
    }
}

/* outputs = outputs * rescale + this block's chain */
static void add_values(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, struct block *b,
                       real *rescale)
{
    struct operand rows = staged_rows(a, t, &b->values, b->first, b->last), values = {rows.data, rows.col, rows.row};
    struct panel outputs = {p->span.outputs, p->width};
    int visible_only = hides_infinite(p, b, rows, a->value_dim);
    if (p->by_rows && visible_only)
        add_visible_rows(p, b, a->value_dim, rows, rescale);
    else if (p->by_rows)
        add_rows(p, b, a->value_dim, rows, rescale, b->next);
    else if (visible_only)
        add_visible_values(p, b, values, a->value_dim, outputs, rescale);
    else
        multiply_values(p->span.empty ? multiply_store : multiply_rescale, p, b, a->value_dim, values, b->scores,
                        p->width, outputs, rescale, b->next);
    if (b->next_rows > 0) fetched_next(b, p->by_rows ? p->rows : a->value_dim);
}

/* The softmax of a few rows, row by row. */
static void softmax_few(ptrdiff_t rows, real c, struct few_rows *f, struct state *s, real *rescale)
{
    real max[LANES], sums[LANES] = {0};
    vstore(max, few_max(f, rows));
    vreal new = raise_max(max, c, s->max, rescale);
    vstore(max, new);
    few_weights(f, rows, max, c, sums);
    vstore(s->sum, vfma(vload(s->sum), vload(rescale), vload(sums)));
}

static void attend_few(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, struct scaling scaling,
                       struct block *b)
{
    real rescale[PANEL_LANES];
    struct few_rows f;
    struct panel scores = {b->scores, b->stride};
    score_few(a, t, p, b, &f);
    if (unmasked(b, scaling) && a->dropout == 0.0) {
        softmax_few(p->rows, scaling.c, &f, &p->span, rescale);
    } else {
        few_to_panel(&f, p->rows, scores);
        if (unmasked(b, scaling))
            find_max(b);
        else
            finish_scores(a, t, p, scaling, b);
        softmax(p->nv, 0, f.n, scaling.c, b->scores, b->max, &p->span, rescale);
        if (a->dropout != 0.0) drop(a, t, p, b->first, b->last, b->scores, b->stride);
        few_from_panel(&f, p->rows, scores);
    }
    if (p->span.outputs) {
        struct operand values =
            is_masked(b) ? staged_rows(a, t, &b->values, b->first, b->last) : (struct operand){NULL, 0, 0};
        struct few_sums sums = {p->span.outputs + a->value_dim * p->width /* behind them */, p->span.outputs,
                                p->span.empty ? NULL : rescale, a->value_dim};
        if (hides_infinite(p, b, values, a->value_dim))
            add_visible_rows(p, b, a->value_dim, values, rescale);
        else
            few_values(a->kv_dtype, p->rows, &f, &sums);
    }
    p->span.empty = 0;
}

/* ---- blocks make a span, and spans the whole (spans.inc.h) ---- */

static void begin_state(const struct lanes *p, struct state *s)
{
    for (int i = 0; i < p->width; ++i) {
        s->max[i] = -INFINITY;
        s->sum[i] = 0.0f;
    }
    s->empty = 1;
}

static void attend_block(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, struct scaling scaling,
                         ptrdiff_t key0, struct block *b)
{
    real rescale[PANEL_LANES];
    b->stride = p->width;
    if (few(a, p)) {
        if (find_keys(a, t, p, key0, b)) attend_few(a, t, p, scaling, b);
        return;
    }
    if (!score_block(a, t, p, scaling, key0, b)) return;
    int dropped = a->dropout != 0.0;
    softmax(p->nv, !dropped, b->last - b->first, scaling.c, b->scores, b->max, &p->span, rescale);
    if (dropped) drop(a, t, p, b->first, b->last, b->scores, b->stride);
    if (TERMS == 2 && dropped) pair_weights(p, b);
    if (p->span.outputs) add_values(a, t, p, b, rescale);
    p->span.empty = 0;
}

enum { MAX_PANELS = SA_TASK_ROWS / PANEL_LANES, SHARED_PANELS = SA_MOST_SHARED * MAX_PANELS };
enum { APART = 64 / (int)sizeof(real) /* between buffers: not 4096 bytes */ };

static size_t panel_numbers(ptrdiff_t dim)
{
    return (size_t)dim * PANEL_LANES + APART;
}

static size_t attention_workspace(const struct sa_attention *a)
{
    size_t numbers = 2 * panel_numbers(SA_KEY_BLOCK);
    numbers += (size_t)(needs_staging(a) ? SHARED_PANELS : MAX_PANELS) *
               (panel_numbers(a->head_dim) + 2 * panel_numbers(a->value_dim));
    if (needs_staging(a)) numbers += SA_KEY_BLOCK * (size_t)(a->head_dim + a->value_dim) + 2 * APART;
    return numbers * sizeof(real);
}

/* Lays the block's buffers out in the workspace; returns what follows them. */
static real *set_block(const struct sa_attention *a, const struct sa_tile *t, real *memory, struct block *b)
{
    b->capped = NULL;
    b->next[0] = b->next[1] = (struct ahead){0};
    b->next_rows = 0;
    b->afar = come_from_afar(a, t);
    b->scores = memory;
    b->bias = memory += panel_numbers(SA_KEY_BLOCK);
    memory += panel_numbers(SA_KEY_BLOCK);
    b->keys = (struct staged){&a->key, t->key, t->key_scale, a->key_scale.row, a->head_dim, 1, NULL, 0, 0, 0};
    b->values =
        (struct staged){&a->value, t->value, t->value_scale, a->value_scale.row, a->value_dim, TERMS, NULL, 0, 0, 0};
    if (needs_staging(a)) {
        b->keys.room = memory;
        b->values.room = memory += SA_KEY_BLOCK * a->head_dim + APART;
        memory += SA_KEY_BLOCK * a->value_dim + APART;
    }
    return memory;
}

/* The rows of a tile in an array that has one for each query and head, each of numbers side by side. */
static struct ahead rows_of_tile(const struct sa_attention *a, const struct sa_tile *t, const struct sa_array *array,
                                 const char *data, ptrdiff_t dim)
{
    ptrdiff_t size = size_of(a->dtype), bytes = array->col == size ? dim * size : 0;
    return (struct ahead){data, array->row, bytes, t->row0, a->num_heads / a->num_kv_heads, array->head};
}

/* The queries are wanted at once, all at a time; the outputs' lines will be written when the last key is done. (Rows side
 * by side the processor fetches by itself.) */
static void fetch_rows(const struct sa_attention *a, const struct sa_tile *t)
{
    const struct ahead rows[2] = {rows_of_tile(a, t, &a->query, t->query, a->head_dim),
                                  rows_of_tile(a, t, &a->out, t->out, a->value_dim)};
    for (int i = 0; i < 2; ++i)
        if (rows[i].row != rows[i].bytes) fetch_ahead(&rows[i], 0, (int)t->rows);
}

/* The same of the tile that is likely to be next: spread over the values of its panels, a row with each of
 * their rows or dimensions; what is left then, at the end. */
static void fetch_next(const struct sa_attention *a, const struct sa_tile *next, struct block *b)
{
    if (!next) return;
    b->next_rows = next->rows;
    b->next[0] = rows_of_tile(a, next, &a->query, next->query, a->head_dim);
    b->next[1] = rows_of_tile(a, next, &a->out, next->out, a->value_dim);
}

/* The rows of a tile from the row-th on: as many as the panel takes, and what each may see. */
static void begin_panel(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row, struct lanes *p)
{
    p->row0 = t->row0 + row;
    p->rows = smaller(PANEL_LANES, t->rows - row);
    p->nv = (int)((p->rows + LANES - 1) / LANES);
    p->width = p->nv * LANES;
    p->by_rows = outputs_by_rows(a, p);
    set_ranges(a, t, p);
}

static void load_queries(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, struct scaling scaling)
{
    load_panel(a, &a->query, t->query, a->head_dim, p, scaling.query, p->query);
    if (few(a, p)) set_few_query(p, a->head_dim);
}

/* Lays out the workspace, and splits the rows of a tile into panels; returns how many. */
static int begin_tile(const struct sa_attention *a, const struct sa_tile *t, struct scaling scaling, void *workspace,
                      struct block *b, struct lanes *panels)
{
    int count = 0;
    real *memory = set_block(a, t, workspace, b);
    if (!t->next) fetch_rows(a, t); /* otherwise they have been the next, but for the first tile */
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES, ++count) {
        struct lanes *p = &panels[count];
        begin_panel(a, t, row, p);
        p->query = memory;
        memory += panel_numbers(a->head_dim);
        p->span.outputs = t->value ? memory : NULL;
        p->total.outputs = t->value ? memory + panel_numbers(a->value_dim) : NULL;
        memory += 2 * panel_numbers(a->value_dim);
        begin_state(p, &p->total);
        load_queries(a, t, p, scaling);
    }
    return count;
}

/* The keys that the panels may see, together. */
static void all_keys(const struct lanes *panels, int count, ptrdiff_t *first, ptrdiff_t *last)
{
    *first = panels[0].min_first;
    *last = panels[0].max_last;
    for (int i = 1; i < count; ++i) {
        *first = smaller(*first, panels[i].min_first);
        *last = larger(*last, panels[i].max_last);
    }
}

static void begin_block(struct block *b, ptrdiff_t first, ptrdiff_t last)
{
    b->keys.first = b->values.first = first / TERMS * TERMS;
    b->keys.last = b->values.last = last;
    b->keys.done = b->values.done = 0;
    b->fetch = b->afar;
}
