/* mask.inc.h -- which keys a lane sees: ranges, boolean masks, additive biases.
 *
 * A block of mask and bias becomes one biases of floats, keys x lanes: the bias, and -inf where the mask is False.
 * A masked key contributes nothing: its score becomes -inf and its weight exactly 0, whatever key and value hold. */
#ifndef SELFATTN_ATTENTION_MASK_INC_H
#define SELFATTN_ATTENTION_MASK_INC_H

#include "attention/key_block.inc.h"
#include "vector/math.inc.h"

/* May a key of the block be hidden from some lane? */
static int is_masked(const struct key_block *b)
{
    return b->ranged || b->biased != NOT_BIASED;
}

/* Where one row of the tile has the element of a key, in mask or bias. */
static const char *element(const struct sa_attention *a, const struct sa_array *array, const char *data, ptrdiff_t row,
                           ptrdiff_t key)
{
    return row_of(array, data, sa_group(a), row) + key * array->col;
}

/* Do all lanes have the same row of this array? */
static int same_row(const struct sa_attention *a, const struct sa_array *array, ptrdiff_t rows)
{
    return rows == 1 || (array->row == 0 && (array->head == 0 || a->num_heads == a->num_kv_heads));
}

/* For each key of a block: is it shown to some row, is it hidden from some row? Sixteen keys at a time. */
struct shown {
    unsigned char any[SA_KEY_BLOCK], not_all[SA_KEY_BLOCK];
};
typedef unsigned char vbytes __attribute__((vector_size(16), aligned(1), may_alias));
typedef signed char vflags __attribute__((vector_size(16), aligned(1), may_alias));

_Static_assert(SA_KEY_BLOCK % sizeof(vbytes) == 0, "the flags of a block are whole vectors");

static void scan_mask(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row0, ptrdiff_t rows,
                      ptrdiff_t first, ptrdiff_t keys, struct shown *shown)
{
    ptrdiff_t k = 0, col = a->mask.col;
    if (same_row(a, &a->mask, rows)) rows = 1;
    for (; col == 1 && k + 16 <= keys; k += 16) {
        vbytes any = {0}, not_all = {0};
        for (ptrdiff_t i = 0; i < rows; ++i) {
            vbytes mask = *(const vbytes *)element(a, &a->mask, t->mask, row0 + i, first + k);
            any |= mask;
            not_all |= (vbytes)(vflags)(mask == 0);
        }
        memcpy(shown->any + k, &any, sizeof any);
        memcpy(shown->not_all + k, &not_all, sizeof not_all);
    }
    for (; k < keys; ++k) {
        shown->any[k] = shown->not_all[k] = 0;
        for (ptrdiff_t i = 0; i < rows; ++i) {
            char mask = *element(a, &a->mask, t->mask, row0 + i, first + k);
            shown->any[k] |= mask != 0;
            shown->not_all[k] |= mask == 0;
        }
    }
}

/* Narrows the keys *first .. *last - 1 to those that the mask shows to some row. Returns whether one is left; `hidden`
 * tells whether one of those is hidden from some row. */
static int trim_to_mask(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row0, ptrdiff_t rows,
                        ptrdiff_t *first, ptrdiff_t *last, int *hidden)
{
    struct shown shown;
    ptrdiff_t begin = 0, end = *last - *first;
    scan_mask(a, t, row0, rows, *first, end, &shown);
    while (end > 0 && !shown.any[end - 1])
        --end;
    while (begin < end && !shown.any[begin])
        ++begin;
    begin = begin / TERMS * TERMS; /* a pair's other key counts as hidden */
    end = smaller((end + TERMS - 1) / TERMS * TERMS, *last - *first);
    *hidden = 0;
    for (ptrdiff_t k = begin; k < end; ++k)
        *hidden |= shown.not_all[k];
    *last = *first + end;
    *first += begin;
    return begin < end;
}

/* Where a row has the relative bias of a key: its distance from the row's position, cut off at the reach. */
static ptrdiff_t relative_index(const struct sa_attention_options *o, ptrdiff_t distance)
{
    return smaller(larger(distance, -o->relative_reach), o->relative_reach) + o->relative_reach;
}

/* out[k] += the relative bias of key first + k, of a row at a position. */
static void add_relative_bias(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row,
                              ptrdiff_t position, ptrdiff_t first, ptrdiff_t n, real *out)
{
    const double *table = t->relative_bias + row % sa_group(a) * sa_relative_width(&a->options);
    for (ptrdiff_t k = 0; k < n; ++k)
        out[k] += (real)table[relative_index(&a->options, first + k - position)];
}

/* out[k] = bias of key first + k for one row of the task, the relative one included, or 0 without any; -inf where the
 * mask is False. Returns whether a key is visible. */
static int expand_row(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row,
                      ptrdiff_t position, ptrdiff_t first, ptrdiff_t n, real *restrict out)
{
    if (t->bias)
        widen_row(element(a, &a->bias, t->bias, row, first), a->bias.col, n, a->bias_dtype, out);
    else
        memset(out, 0, (size_t)n * sizeof(real));
    if (t->relative_bias) add_relative_bias(a, t, row, position, first, n, out);
    if (t->mask) {
        const char *restrict mask = element(a, &a->mask, t->mask, row, first);
        ptrdiff_t col = a->mask.col;
        if (col == 1) {
            for (ptrdiff_t k = 0; k < n; ++k)
                out[k] = mask[k] ? out[k] : -INFINITY;
        } else {
            for (ptrdiff_t k = 0; k < n; ++k)
                out[k] = mask[k * col] ? out[k] : -INFINITY;
        }
    }
    int visible = 0;
    for (ptrdiff_t k = 0; k < n; ++k)
        visible |= out[k] != -INFINITY;
    return visible;
}

/* The rows of the v-th vector of lanes, transposed into the biases. */
static int expand_lanes(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                        int v, ptrdiff_t first, ptrdiff_t n, real *biases)
{
    real expanded[LANES][SA_KEY_BLOCK] = {{0}};
    int visible = 0;
    for (ptrdiff_t i = v * LANES; i < smaller((v + 1) * LANES, p->rows); ++i)
        visible |= expand_row(a, t, p->row0 + i, p->position[i], first, n, expanded[i % LANES]);
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        vreal square[LANES];
        for (int i = 0; i < LANES; ++i)
            square[i] = vload(expanded[i] + k);
        vtranspose(square);
        for (ptrdiff_t j = 0; j < LANES && k + j < n; ++j)
            vstore(biases + (k + j) * p->width + v * LANES, square[j]);
    }
    return visible;
}

/* A row shared by all lanes: keys at both ends that it masks, by mask or bias, are cut off the block, not computed. */
static int expand_shared(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                         ptrdiff_t *first, ptrdiff_t *last, real *biases)
{
    real row[SA_KEY_BLOCK];
    ptrdiff_t begin = 0, end = *last - *first;
    if (!expand_row(a, t, p->row0, p->position[0], *first, end, row)) return 0;
    while (row[begin] == -INFINITY)
        ++begin;
    while (row[end - 1] == -INFINITY)
        --end;
    begin = begin / TERMS * TERMS;
    *last = *first + end;
    *first += begin;
    for (ptrdiff_t k = begin; k < end; ++k)
        for (int i = 0; i < p->width; i += LANES)
            vstore(biases + (k - begin) * p->width + i, vsplat(row[k]));
    return 1;
}

/* Do all lanes have the same mask and biases? */
static int all_shared(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t rows)
{
    return (!t->mask || same_row(a, &a->mask, rows)) && (!t->bias || same_row(a, &a->bias, rows)) &&
           (!t->relative_bias || rows == 1);
}

/* Fills the biases for the keys *first .. *last - 1, which it may narrow. */
static enum biased load_bias(const struct sa_attention *a, const struct sa_attention_task *t,
                             const struct query_panel *p, ptrdiff_t *first, ptrdiff_t *last, real *biases)
{
    int hidden = 0, visible = 0, biased = t->bias || t->relative_bias;
    if ((!t->mask && !biased) || *first >= *last) return NOT_BIASED;
    if (t->mask && !trim_to_mask(a, t, p->row0, p->rows, first, last, &hidden)) return ALL_MASKED;
    if (!biased && !hidden) return NOT_BIASED;
    if (all_shared(a, t, p->rows)) return expand_shared(a, t, p, first, last, biases) ? BIASED : ALL_MASKED;
    for (int v = 0; v < p->nv; ++v)
        visible |= expand_lanes(a, t, p, v, *first, *last - *first, biases);
    return visible ? BIASED : ALL_MASKED;
}

/* ---- what the lanes of a block see ---- */

/* The lanes' ranges, counted from the block's first key. */
static void set_block_ranges(const struct query_panel *p, struct key_block *b)
{
    ptrdiff_t keys = b->last - b->first;
    for (int i = 0; i < p->width; ++i) {
        b->begin[i] = (integer)smaller(larger(p->first[i] - b->first, 0), keys);
        b->end[i] = (integer)smaller(larger(p->last[i] - b->first, 0), keys);
    }
}

INLINE vint visible_lanes(const struct query_panel *p, const struct key_block *b, ptrdiff_t key, int v)
{
    vint k = visplat((integer)key);
    vint visible = (k >= *(const vint *)(b->begin + v * LANES)) & (k < *(const vint *)(b->end + v * LANES));
    if (b->biased == BIASED) visible &= vload(b->bias + key * p->width + v * LANES) != vsplat(-INFINITY);
    return visible;
}

/* ---- what is done to the scores of a block, in this order; what is not asked for costs nothing ---- */

/* 1. softcap: score = softcap * tanh(score * to_logits / softcap) */
static void cap_scores(const struct query_panel *p, struct key_block *b, real to_logits, real softcap)
{
    for (ptrdiff_t k = 0; k < b->last - b->first; ++k)
        for (int i = 0; i < p->width; i += LANES) {
            real *at = b->scores + k * b->stride + i;
            vreal capped = vsplat(softcap) * vtanh(vload(at) * vsplat(to_logits) / vsplat(softcap));
            vstore(at, capped);
            if (b->capped) vstore(b->capped + k * b->stride + i, capped);
        }
}

/* How far the block's first key is from each lane's position. */
INLINE vint first_distances(const struct query_panel *p, const struct key_block *b, int v)
{
    const ptrdiff_t limit = (ptrdiff_t)1 << 30;
    integer first[LANES];
    vint distance;
    for (int i = 0; i < LANES; ++i)
        first[i] = (integer)larger(-limit, smaller(limit, b->first - p->position[v * LANES + i]));
    memcpy(&distance, first, sizeof distance);
    return distance;
}

INLINE vreal magnitude_of(vint distance)
{
    vint negative = distance < 0;
    return __builtin_convertvector((distance ^ negative) - negative, vreal);
}

/* 2. alibi: score = score * to_logits - slope * |how far the key is from the query's position| */
static void add_alibi(const struct sa_attention_task *t, ptrdiff_t group, const struct query_panel *p,
                      struct key_block *b, real to_logits)
{
    for (int v = 0; v < p->nv; ++v) {
        real slopes[LANES];
        for (int i = 0; i < LANES; ++i)
            slopes[i] = -(real)t->alibi_slopes[(p->row0 + v * LANES + i) % group];
        vreal slope = vload(slopes);
        vint distance = first_distances(p, b, v);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k, distance += 1) {
            real *at = b->scores + k * b->stride + v * LANES;
            vstore(at, vfma(slope, magnitude_of(distance), vload(at) * vsplat(to_logits)));
        }
    }
}

/* 3. bias and masks: scores = scores * to_logits + bias where the lane sees the key, -inf elsewhere; and their maximum. */
INLINE void mask_scores_of(const int biased, const int ranged, const struct query_panel *p, struct key_block *b,
                           real to_logits)
{
    for (int v = 0; v < p->nv; ++v) {
        vreal max = vsplat(-INFINITY);
        vint begin = *(const vint *)(b->begin + v * LANES), end = *(const vint *)(b->end + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *at = b->scores + k * b->stride + v * LANES;
            vreal score = vload(at) * vsplat(to_logits), bias = vsplat(0.0f);
            if (biased) bias = vload(b->bias + k * p->width + v * LANES);
            if (biased) score = vfma(vload(at), vsplat(to_logits), bias);
            vint key = visplat((integer)k);
            if (biased) score = vselect(bias == vsplat(-INFINITY), bias, score); /* whatever the score is */
            if (ranged) score = vselect((key >= begin) & (key < end), score, vsplat(-INFINITY));
            max = vmax(score, max);
            vstore(at, score);
        }
        vstore(b->max + v * LANES, max);
    }
}

static void mask_scores(const struct query_panel *p, struct key_block *b, real to_logits)
{
    set_block_ranges(p, b);
    if (b->biased == BIASED && b->ranged)
        mask_scores_of(1, 1, p, b, to_logits);
    else if (b->biased == BIASED)
        mask_scores_of(1, 0, p, b, to_logits);
    else
        mask_scores_of(0, 1, p, b, to_logits);
}

static void finish_scores(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                          struct score_scale scaling, struct key_block *b)
{
    real to_logits = scaling.logits ? scaling.to_logits : (real)1.0;
    if (a->options.softcap != 0.0) {
        cap_scores(p, b, to_logits, (real)a->options.softcap);
        to_logits = (real)1.0;
    }
    if (t->alibi_slopes) {
        add_alibi(t, sa_group(a), p, b, to_logits);
        to_logits = (real)1.0;
    }
    mask_scores(p, b, to_logits);
}

/* ---- values that must not reach every lane ---- */

/* Is every element of A finite, of pairs both halves? An exponent of ones alone carries into the sign, if it is
 * raised by one. */
static int all_finite(struct operand a, ptrdiff_t rows, ptrdiff_t depth)
{
    const bits sign = (bits)1 << (8 * sizeof(bits) - 1), signs = TERMS == 2 ? sign | 0x8000 : sign;
    const bits exponent = sizeof(bits) == 4 ? (bits)1 << 23 : (bits)((uint64_t)1 << 52);
    const bits one = TERMS == 2 ? exponent | 0x80 : exponent;
    vbits carried = {0};
    bits found = 0;
    for (ptrdiff_t p = 0; p < depth; ++p) {
        const char *at = a.data + p * a.col;
        ptrdiff_t i = 0;
        for (; a.row == (ptrdiff_t)sizeof(real) && i + LANES <= rows; i += LANES)
            carried |= ((vbits)vload((const real *)(at + i * a.row)) & ~signs) + one;
        for (; i < rows; ++i)
            found |= (*(const bits_any *)(at + i * a.row) & ~signs) + one;
    }
    for (int i = 0; i < LANES; ++i)
        found |= carried[i];
    return !(found & signs);
}

/* Is there a number that must not reach every lane, among the values of the keys that some lane does not see (with a mask
 * or bias, of all)? 0 * NaN is NaN. rows: from step to step, and from dimension to dimension. */
static int hides_infinite(const struct query_panel *p, const struct key_block *b, struct operand rows, ptrdiff_t dim)
{
    if (!is_masked(b)) return 0;
    ptrdiff_t keys = b->last - b->first, first = keys, last = keys; /* all lanes see the keys first .. last - 1 */
    if (b->biased == NOT_BIASED) {
        first = smaller(keys, larger(0, p->max_first - b->first));
        last = larger(first, smaller(keys, p->min_last - b->first));
    }
    ptrdiff_t after = last < keys ? last / TERMS : steps(keys);
    return !all_finite((struct operand){rows.data, rows.col, rows.row}, dim, steps(first)) ||
           !all_finite((struct operand){rows.data + after * rows.row, rows.col, rows.row}, dim, steps(keys) - after);
}

/* Which bits of a step's values each lane sees: all, or none, of each key's. */
INLINE vbits visible_bits(const struct query_panel *p, const struct key_block *b, ptrdiff_t step, int v)
{
    if (TERMS == 1) return (vbits)visible_lanes(p, b, step, v);
    vbits visible = (vbits)visible_lanes(p, b, 2 * step, v) & 0xffff;
    if (2 * step + 1 < b->last - b->first) visible |= (vbits)visible_lanes(p, b, 2 * step + 1, v) & 0xffff0000;
    return visible;
}

#endif
