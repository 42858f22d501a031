/* SPDX-License-Identifier: Apache-2.0 */
/* mask.inc.h -- which keys a lane sees: ranges, boolean masks, additive biases.
 *
 * Mask and bias of a key block become one array of numbers, keys x lanes: the bias, and -inf where the mask is False.
 * A masked key contributes nothing: its score becomes -inf and its weight exactly 0, whatever key and value hold. */
#ifndef SELFATTN_ATTENTION_MASK_INC_H
#define SELFATTN_ATTENTION_MASK_INC_H

#include "attention/key_block.inc.h"
#include "vector/math.inc.h"

/* May a key of the block be hidden from a lane? */
static int is_masked(const struct key_block *b)
{
    return b->ranged || b->biased != NOT_BIASED;
}

/* The address of the element of a row and a key, in mask or bias. */
static const char *element(const struct sa_attention *a, const struct sa_array *array, const char *data, ptrdiff_t row,
                           ptrdiff_t key)
{
    return row_of(array, data, sa_group(a), row) + key * array->col;
}

/* Do all lanes have the same row of the array? */
static int same_row(const struct sa_attention *a, const struct sa_array *array, ptrdiff_t rows)
{
    return rows == 1 || (array->row == 0 && (array->head == 0 || a->num_heads == a->num_kv_heads));
}

/* For each key of a block: does the mask show it to any row, and not to all rows? */
struct shown {
    unsigned char any[SA_KEY_BLOCK], not_all[SA_KEY_BLOCK];
};
typedef unsigned char vbytes __attribute__((vector_size(16), aligned(1), may_alias));
typedef signed char vflags __attribute__((vector_size(16), aligned(1), may_alias));

_Static_assert(SA_KEY_BLOCK % sizeof(vbytes) == 0, "the flags of a block are whole vectors");

/* Scans the mask of `rows` rows and `keys` keys, 16 keys at a time where they are contiguous. */
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

/* Narrows the keys *first .. *last - 1 to the range that the mask shows to any row. Returns whether a key is left;
 * `hidden` receives whether a key in the range is hidden from a row. */
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
    begin = begin / TERMS * TERMS; /* the other key of a pair counts as hidden */
    end = smaller((end + TERMS - 1) / TERMS * TERMS, *last - *first);
    *hidden = 0;
    for (ptrdiff_t k = begin; k < end; ++k)
        *hidden |= shown.not_all[k];
    *last = *first + end;
    *first += begin;
    return begin < end;
}

/* The index of the relative bias of a key: its distance from the position of the row, clamped to the reach, from 0
 * on. */
static ptrdiff_t relative_index(const struct sa_attention_options *o, ptrdiff_t distance)
{
    return smaller(larger(distance, -o->relative_reach), o->relative_reach) + o->relative_reach;
}

/* out[k] += the relative bias of key first + k, for a row at a position. out: (n,). */
static void add_relative_bias(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row,
                              ptrdiff_t position, ptrdiff_t first, ptrdiff_t n, real *out)
{
    const double *table = t->relative_bias + row % sa_group(a) * sa_relative_width(&a->options);
    for (ptrdiff_t k = 0; k < n; ++k)
        out[k] += (real)table[relative_index(&a->options, first + k - position)];
}

/* out[k] = bias of key first + k for one row of the task, with the relative bias, or 0 without a bias; -inf where the
 * mask is False. out: (n,). Returns whether a key is visible. */
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

/* The rows of the v-th vector of lanes, transposed into biases: keys x p->width. Returns whether a key is visible. */
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

/* One row for all lanes. Keys at both ends that mask or bias hide are cut off the block, and never computed. biases:
 * keys x p->width. Returns whether a key is visible. */
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

/* Do all lanes have the same masks and biases? */
static int all_shared(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t rows)
{
    return (!t->mask || same_row(a, &a->mask, rows)) && (!t->bias || same_row(a, &a->bias, rows)) &&
           (!t->relative_bias || rows == 1);
}

/* Fills biases, keys x p->width, for the keys *first .. *last - 1; may narrow the range. */
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

/* ---- visibility, lane by lane ---- */

/* The lanes' ranges, counted from the block's first key. */
static void set_block_ranges(const struct query_panel *p, struct key_block *b)
{
    ptrdiff_t keys = b->last - b->first;
    for (int i = 0; i < p->width; ++i) {
        b->begin[i] = (integer)smaller(larger(p->first[i] - b->first, 0), keys);
        b->end[i] = (integer)smaller(larger(p->last[i] - b->first, 0), keys);
    }
}

/* Which lanes of the v-th vector see a key of the block? The key is counted from the block's first. */
INLINE vint visible_lanes(const struct query_panel *p, const struct key_block *b, ptrdiff_t key, int v)
{
    vint k = visplat((integer)key);
    vint visible = (k >= *(const vint *)(b->begin + v * LANES)) & (k < *(const vint *)(b->end + v * LANES));
    if (b->biased == BIASED) visible &= vload(b->bias + key * p->width + v * LANES) != vsplat(-INFINITY);
    return visible;
}

/* ---- steps on the scores of a block, in the order 1, 2, 3; an option that is not given costs nothing ----
 *
 * Scores are keys x lanes, b->stride numbers from key to key. */

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

/* The distance of the block's first key from the position of each lane, at most 2^30 keys on either side. */
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

/* |distance|, as numbers. */
INLINE vreal magnitude_of(vint distance)
{
    vint negative = distance < 0;
    return __builtin_convertvector((distance ^ negative) - negative, vreal);
}

/* 2. alibi: score = score * to_logits - slope * |key - position of the query| */
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

/* 3. bias and masks: score = score * to_logits + bias where the lane sees the key, -inf elsewhere; and b->max, the
 * maximum of each lane. */
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
            if (biased) score = vselect(bias == vsplat(-INFINITY), bias, score); /* -inf even where the score is NaN */
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

/* Steps 1 to 3: scores become logits, or stay scores in need of a scale, with -inf for hidden keys. */
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

/* ---- infinities and NaN in values: they must not reach a lane that they are hidden from ---- */

/* Is every number of `a`, rows x depth, finite? Of pairs, both halves. An exponent of all ones, and no other,
 * carries into the sign bit when it is raised by one. */
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

/* Do the values of hidden keys (with a mask or bias: of all keys) contain a number that is not finite? Its product
 * with a weight of 0 would be NaN. rows: steps x dim. */
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

/* All ones in the bits of a step's value that belong to keys which a lane sees, 0 elsewhere. */
INLINE vbits visible_bits(const struct query_panel *p, const struct key_block *b, ptrdiff_t step, int v)
{
    if (TERMS == 1) return (vbits)visible_lanes(p, b, step, v);
    vbits visible = (vbits)visible_lanes(p, b, 2 * step, v) & 0xffff;
    if (2 * step + 1 < b->last - b->first) visible |= (vbits)visible_lanes(p, b, 2 * step + 1, v) & 0xffff0000;
    return visible;
}

#endif
