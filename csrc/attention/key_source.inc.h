/* SPDX-License-Identifier: Apache-2.0 */
/* key_source.inc.h -- the keys and values of a block as operands of products.
 *
 * They are read where they lie, if they have the dtype of the arithmetic and one good stride. Otherwise (float16,
 * bfloat16, int8, pages, pairs) they are gathered into a copy once per block, for all panels of the task. */
#ifndef SELFATTN_ATTENTION_KEY_SOURCE_INC_H
#define SELFATTN_ATTENTION_KEY_SOURCE_INC_H

#include "matmul/tile.inc.h"
#include "vector/convert.inc.h"

struct key_source {
    const struct sa_array *array;
    const char *data, *scale; /* of the item's head */
    ptrdiff_t scale_row;      /* bytes from scale to scale */
    ptrdiff_t width;          /* head_dim of keys, value_dim of values */
    int keys_per_step;        /* 2 where TERMS == 2 and a pair is two keys (values), else 1 */
    real *copy;               /* SA_KEY_BLOCK x width; NULL where nothing needs to be gathered */
    ptrdiff_t first, last;    /* the keys first .. last - 1 to gather: all of the block that a panel may see */
    int copied;               /* the keys of this block are in `copy` */
};

/* Do the rows of the keys share few sets of the L1 cache, and are they read often? Rows a multiple of 4096 bytes apart
 * share sets; panels of 16 queries read them often. (Gathering is 1.03 to 1.12 times as fast on AVX2.) */
static int rows_alias_in_cache(const struct sa_attention *a)
{
    return SHORT_PANELS && a->key.row % 4096 == 0 && a->key.row != 0 &&
           a->q_len * a->num_heads >= SA_TASK_ROWS * a->num_kv_heads;
}

/* Do the panels of a task share a copy of keys and values? */
static int gathers_keys(const struct sa_attention *a)
{
    return a->kv_dtype != SA_REAL || a->block_table || TERMS == 2 || rows_alias_in_cache(a);
}

static const char *row_address(const struct sa_attention *a, const struct sa_attention_task *t,
                               const struct key_source *s, ptrdiff_t key)
{
    if (!t->pages) return s->data + key * s->array->row;
    ptrdiff_t page = (ptrdiff_t)t->pages[key / a->page_size];
    return s->data + page * s->array->leading[0] + key % a->page_size * s->array->row;
}

/* LANES numbers of a row from a column on; int8 is scaled; zeros past the end of the row. */
INLINE vreal row_part(const enum sa_dtype dtype, const char *row, ptrdiff_t col, ptrdiff_t column, ptrdiff_t width,
                      real scale)
{
    if (width <= column) return vsplat(0.0f);
    vreal part = load_row(row + column * col, col, smaller(LANES, width - column), dtype);
    if (dtype == SA_INT8) part *= vsplat(scale);
    return part;
}

/* The factor of a key or value of int8; 1 without scales. */
static real scale_of(const struct key_source *s, ptrdiff_t key)
{
    return s->scale ? (real) * (const float_any *)(s->scale + key * s->scale_row) : (real)1.0;
}

/* The functions below store whole vectors: past the end of a row lies the next row, which is written later, or the gap
 * between two buffers. */
#ifndef SA_BFLOAT16_KERNELS
/* copy: keys x width numbers. */
INLINE void gather_as(const enum sa_dtype dtype, const struct sa_attention *a, const struct sa_attention_task *t,
                      const struct key_source *s)
{
    const ptrdiff_t width = s->width, col = s->array->col;
    real *to = s->copy;
    for (ptrdiff_t key = s->first; key < s->last; ++key, to += width) {
        const char *row = row_address(a, t, s, key);
        real scale = scale_of(s, key);
        for (ptrdiff_t i = 0; i < width; i += LANES)
            vstore(to + i, row_part(dtype, row, col, i, width, scale));
    }
}

#else
/* copy: keys x steps(width) pairs of neighbouring dimensions of a key. */
INLINE void gather_dimension_pairs(const enum sa_dtype dtype, const struct sa_attention *a,
                                   const struct sa_attention_task *t, const struct key_source *s)
{
    const ptrdiff_t width = s->width, col = s->array->col;
    real *to = s->copy;
    for (ptrdiff_t key = s->first; key < s->last; ++key, to += steps(width)) {
        const char *row = row_address(a, t, s, key);
        real scale = scale_of(s, key);
        for (ptrdiff_t i = 0; i < width; i += 2 * LANES)
            vstore(to + i / 2, vneighbours(row_part(dtype, row, col, i, width, scale),
                                           row_part(dtype, row, col, i + LANES, width, scale)));
    }
}

/* copy: steps x width pairs of the two keys of a step; 0 for a key past the end. */
INLINE void gather_key_pairs(const enum sa_dtype dtype, const struct sa_attention *a, const struct sa_attention_task *t,
                             const struct key_source *s)
{
    const ptrdiff_t width = s->width, col = s->array->col;
    real *to = s->copy;
    for (ptrdiff_t key = s->first; key < s->last; key += 2, to += width) {
        ptrdiff_t next_key = smaller(key + 1, s->last - 1), next_width = key + 1 < s->last ? width : 0;
        const char *row = row_address(a, t, s, key), *next = row_address(a, t, s, next_key);
        real scale = scale_of(s, key), next_scale = scale_of(s, next_key);
        for (ptrdiff_t i = 0; i < width; i += LANES)
            vstore(to + i, vpair(row_part(dtype, row, col, i, width, scale),
                                 row_part(dtype, next, col, i, next_width, next_scale)));
    }
}

INLINE void gather_as(const enum sa_dtype dtype, const struct sa_attention *a, const struct sa_attention_task *t,
                      const struct key_source *s)
{
    if (s->keys_per_step == 2)
        gather_key_pairs(dtype, a, t, s);
    else
        gather_dimension_pairs(dtype, a, t, s);
}

#endif

static void gather_key_rows(const struct sa_attention *a, const struct sa_attention_task *t, const struct key_source *s)
{
    if (a->kv_dtype == SA_REAL)
        gather_as(SA_REAL, a, t, s);
    else if (a->kv_dtype == SA_FLOAT16)
        gather_as(SA_FLOAT16, a, t, s);
    else if (a->kv_dtype == SA_BFLOAT16)
        gather_as(SA_BFLOAT16, a, t, s);
    else
        gather_as(SA_INT8, a, t, s);
}

/* The operand of the keys first .. last - 1: keys x width; of values with TERMS == 2, steps x width. Gathers if
 * needed. */
static struct operand gathered_rows(const struct sa_attention *a, const struct sa_attention_task *t,
                                    struct key_source *s, ptrdiff_t first, ptrdiff_t last)
{
    int one_stride = !t->pages || first / a->page_size == (last - 1) / a->page_size;
    int as_it_lies = a->kv_dtype == SA_REAL && !rows_alias_in_cache(a);
    if (TERMS == 2) /* neighbours in memory are pairs of dimensions already */
        as_it_lies = a->kv_dtype == SA_BFLOAT16 && s->keys_per_step == 1 && s->array->col == 2 && s->width % 2 == 0;
    if (as_it_lies && one_stride)
        return (struct operand){row_address(a, t, s, first), s->array->row, s->array->col * TERMS};
    if (!s->copied) gather_key_rows(a, t, s);
    s->copied = 1;
    ptrdiff_t row = (s->keys_per_step == 2 ? s->width : steps(s->width)) * (ptrdiff_t)sizeof(real);
    return (struct operand){(const char *)s->copy + (first - s->first) / s->keys_per_step * row, row, sizeof(real)};
}

/* Does a task prefetch keys and values that are read where they lie? The first task of a head does: it brings them into
 * the caches. For later tasks a prefetch costs 1 % of the time, on AVX2 4 %. They prefetch where keys and values exceed
 * the cache, or where a window lets them see other keys than the first task. */
static int should_prefetch_keys(const struct sa_attention *a, const struct sa_attention_task *t)
{
    return t->first || a->options.left.bounded || sa_keys_exceed_cache(a);
}

/* The rows of keys or values to prefetch, from `key` on; none unless is_due. Pages are not prefetched. A prefetch may
 * point past the end of an array: it never faults. */
static struct prefetch_rows prefetch_key_rows(const struct sa_attention *a, const struct key_source *s, ptrdiff_t key,
                                              int is_due)
{
    int usable = is_due && s->data && s->array->col == size_of(a->kv_dtype) && !a->block_table;
    return usable ? (struct prefetch_rows){.data = s->data + key * s->array->row,
                                           .row = s->array->row,
                                           .bytes = s->width * s->array->col}
                  : (struct prefetch_rows){0};
}

#endif
