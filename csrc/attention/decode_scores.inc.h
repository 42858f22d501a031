/* SPDX-License-Identifier: Apache-2.0 */
/* decode_scores.inc.h -- pass 1 for few rows (decoding), whose queries would leave most lanes empty.
 *
 *   S[row, key] = sum over head_dim of query[dim, row] (broadcast) * key[dim, key]     keys in the lanes
 *   O[row, dim] += sum over keys of P[row, key] (broadcast) * value[key, dim]          dimensions in the lanes
 *
 * (The second product is in decode_values.inc.h.) Every sum is the same chain as in tile.inc.h, so the bits are the
 * same. Keys and values are read once, where they lie, in their own dtype; they are widened and scaled in registers. */
#ifndef SELFATTN_ATTENTION_DECODE_SCORES_INC_H
#define SELFATTN_ATTENTION_DECODE_SCORES_INC_H

#include "attention/key_block.inc.h"

enum { DECODE_ROWS = LANES < 8 ? LANES : 8, DECODE_STRIDE = SA_KEY_BLOCK };
enum { PREFETCH_UNIT = 256 }; /* the prefetch position is counted in 1/256 of a row */

/* A panel of few rows fills one vector of its buffers; behind it lie the same numbers row by row. */
_Static_assert((int)LANES + (int)DECODE_ROWS <= (int)PANEL_LANES, "a panel has space for its few rows twice");

/* The rows of a block in the order in which they are read: its keys, its values, and the keys of the next block. */
struct decode_rows {
    const char *rows[3 * SA_KEY_BLOCK];
    const char **keys, **values;
    real key_scales[SA_KEY_BLOCK], value_scales[SA_KEY_BLOCK]; /* of int8 */
    real scores[DECODE_ROWS * DECODE_STRIDE];                  /* rows x keys; then the probabilities */
    ptrdiff_t n;                                               /* keys of the block */
    ptrdiff_t distance, prefetched,
        count;       /* in rows: how far ahead to prefetch; how many are prefetched, of how many */
    ptrdiff_t bytes; /* bytes of a row, from the start of its first cache line */
    int from_memory; /* the keys and values of the call exceed SA_DECODE_CACHE_BYTES */
};

/* Does the panel have few rows, and keys and values of contiguous rows? */
static int is_decode(const struct sa_attention *a, const struct query_panel *p)
{
    ptrdiff_t width = size_of(a->kv_dtype);
    return TERMS == 1 && p->nv == 1 && p->rows <= DECODE_ROWS && a->key.col == width &&
           (!a->value.data || a->value.col == width) && (SA_REAL == SA_FLOAT32 || a->kv_dtype == SA_REAL);
}

/* The rows that a kernel takes: 1, 2, 4 or 8, at most DECODE_ROWS. */
INLINE int decode_row_count(ptrdiff_t rows)
{
    return rows <= 2 ? (int)rows : rows <= 4 ? 4 : DECODE_ROWS;
}

/* Calls `function` with the number of rows, rounded up, as a constant. */
#define SA_BY_ROWS(rows, function, ...)                                                                                \
    if (rows == 1)                                                                                                     \
        function(1, __VA_ARGS__);                                                                                      \
    else if (DECODE_ROWS == 2 || rows == 2)                                                                            \
        function(2, __VA_ARGS__);                                                                                      \
    else if (DECODE_ROWS == 4 || rows <= 4)                                                                            \
        function(4, __VA_ARGS__);                                                                                      \
    else                                                                                                               \
        function(DECODE_ROWS, __VA_ARGS__)

/* The queries of a panel, dim x decode_row_count(rows): behind the panel itself, which is dim x width. */
static real *decode_query(const struct query_panel *p, ptrdiff_t dim)
{
    return p->query + dim * p->width;
}

/* Fills decode_query from the panel; 0 for rows that do not exist. */
static void set_decode_query(const struct query_panel *p, ptrdiff_t dim)
{
    int count = decode_row_count(p->rows);
    for (ptrdiff_t d = 0; d < dim; ++d)
        for (int r = 0; r < count; ++r)
            decode_query(p, dim)[d * count + r] = r < p->rows ? p->query[d * p->width + r] : (real)0.0;
}

/* rows[i] = the address of key first + i, for n keys. */
static void set_row_addresses(const struct sa_attention *a, const struct sa_attention_task *t,
                              const struct key_source *s, ptrdiff_t first, ptrdiff_t n, const char **rows)
{
    for (ptrdiff_t i = 0; i < n;) { /* one page after the other */
        ptrdiff_t in_page = t->pages ? smaller(n - i, a->page_size - (first + i) % a->page_size) : n;
        const char *row = row_address(a, t, s, first + i);
        for (ptrdiff_t j = 0; j < in_page; ++j)
            rows[i + j] = row + j * s->array->row;
        i += in_page;
    }
}

/* scales[key] of n keys, 1 without scales. The last scale fills the places up to `padded`. */
static void set_scales(const struct key_source *s, ptrdiff_t first, ptrdiff_t n, ptrdiff_t padded, real *scales)
{
    for (ptrdiff_t i = 0; i < n; ++i)
        scales[i] = s->scale ? *(const float_any *)(s->scale + (first + i) * s->scale_row) : (real)1.0;
    for (ptrdiff_t i = n; i < padded; ++i)
        scales[i] = scales[n - 1];
}

/* The addresses and scales of the keys of a block, and of the rows that will be read next. */
static void set_decode_rows(const struct sa_attention *a, const struct sa_attention_task *t,
                            const struct query_panel *p, const struct key_block *b, struct decode_rows *f)
{
    ptrdiff_t n = b->last - b->first, padded = (n + LANES - 1) / LANES * LANES, width = size_of(a->kv_dtype);
    ptrdiff_t bytes = larger(a->head_dim, a->value_dim) * width;
    f->n = n;
    f->distance = larger(LANES, smaller(SA_KEY_BLOCK, SA_DECODE_PREFETCH_BYTES / larger(1, bytes)));
    f->from_memory = 2 * bytes * a->kv_len * a->num_kv_heads * a->items > SA_DECODE_CACHE_BYTES;
    f->keys = f->rows;
    f->values = f->rows + padded;
    set_row_addresses(a, t, &b->keys, b->first, n, f->keys);
    for (ptrdiff_t i = n; i < padded; ++i)
        f->keys[i] = f->keys[n - 1];
    if (t->value) set_row_addresses(a, t, &b->values, b->first, n, f->values);
    ptrdiff_t next = larger(0, smaller(f->distance, p->max_last - b->last));
    set_row_addresses(a, t, &b->keys, b->last, next, f->values + n);
    f->count = t->value ? padded + n + next : 0;
    f->prefetched = smaller(f->distance, f->count);
    f->bytes = bytes + (b->keys.array->row == bytes ? 0 : (ptrdiff_t)((uintptr_t)f->keys[0] % 64));
    if (a->kv_dtype != SA_INT8) return;
    set_scales(&b->keys, b->first, n, padded, f->key_scales);
    set_scales(&b->values, b->first, n, n, f->value_scales);
}

/* Prefetches the rows before `end`, and once more the rows a third and two thirds of the distance nearer. The
 * processor drops a prefetch while too many lines are on their way from memory, and a line that is missing costs a
 * whole latency. */
static __attribute__((noinline)) void prefetch_repeatedly(struct decode_rows *f, ptrdiff_t end)
{
    const ptrdiff_t bytes = f->bytes, third = f->distance / 3;
    for (; f->prefetched < end; ++f->prefetched) {
        const char *const *rows = f->rows + f->prefetched;
        const char *first = rows[0], *second = rows[-third], *last = rows[-2 * third];
        for (ptrdiff_t at = 0; at < bytes; at += 64) {
            __builtin_prefetch(first + at, 0, 2);
            __builtin_prefetch(second + at, 0, 2);
            __builtin_prefetch(last + at, 0, 2);
        }
    }
}

/* Prefetches the rows before `row`, in the order of memory. */
INLINE void prefetch_to(struct decode_rows *f, ptrdiff_t row)
{
    const ptrdiff_t end = smaller(row, f->count);
    if (f->prefetched >= end) return;
    if (f->from_memory) {
        prefetch_repeatedly(f, end);
        return;
    }
    for (; f->prefetched < end; ++f->prefetched)
        for (ptrdiff_t at = 0; at < f->bytes; at += 64)
            __builtin_prefetch(f->rows[f->prefetched] + at, 0, 2);
}

/* How many dimensions of a key a lane of 4 bytes holds before the transpose. */
INLINE int packed_dimensions(const enum sa_dtype dtype)
{
    return dtype == SA_BFLOAT16 ? 2 : dtype == SA_INT8 ? 4 : 1;
}

/* Bytes of a number, as a constant. */
INLINE int number_bytes(const enum sa_dtype dtype)
{
    return dtype == SA_REAL ? (int)sizeof(real) : dtype == SA_INT8 ? 1 : 2;
}

/* LANES * packed_dimensions(dtype) numbers. */
INLINE vreal decode_load(const enum sa_dtype dtype, const char *at)
{
    (void)dtype;
#ifndef SA_FLOAT64_KERNELS
    if (dtype == SA_FLOAT16) return widen_float16(*(const vhalf *)at);
#endif
    return vload((const real *)at);
}

/* Dimension `part` of each lane, as numbers. */
INLINE vreal decode_unpack(const enum sa_dtype dtype, vreal packed, const int part)
{
    if (dtype == SA_BFLOAT16) return part ? (vreal)((vbits)packed & 0xffff0000) : (vreal)((vbits)packed << 16);
    if (dtype == SA_INT8) return __builtin_convertvector((vint)((vbits)packed << (24 - 8 * part)) >> 24, vreal);
    return packed;
}

/* ---- scores ---- */

/* chain[row] += the products of LANES keys with `count` rows of queries, over the dimensions of one step. `at`: bytes
 * from the start of a row. query: dimensions x count. chain: count vectors of keys. */
INLINE void decode_scores_step(const enum sa_dtype dtype, const int count, const char *const *rows, ptrdiff_t at,
                               const real *query, vreal scale, vreal *chain)
{
    const int packed = packed_dimensions(dtype);
    vreal square[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
        square[i] = decode_load(dtype, rows[i] + at);
    vtranspose(square);
#pragma GCC unroll 16
    for (int j = 0; j < LANES; ++j)
#pragma GCC unroll 4
        for (int part = 0; part < packed; ++part) {
            vreal key = decode_unpack(dtype, square[j], part);
            if (dtype == SA_INT8) key *= scale;
#pragma GCC unroll 8
            for (int r = 0; r < count; ++r)
                chain[r] = vfma(key, vsplat(query[(j * packed + part) * count + r]), chain[r]);
        }
}

/* square: dims x LANES keys = the last `dims` numbers of LANES rows; fewer than one step has. */
static void load_remainder(enum sa_dtype dtype, const char *const *rows, ptrdiff_t at, ptrdiff_t dims, vreal *square)
{
    for (ptrdiff_t d = 0; d < dims; d += LANES, square += LANES) {
#pragma GCC unroll 1
        for (int i = 0; i < LANES; ++i)
            square[i] = load_row(rows[i] + at + d * size_of(dtype), size_of(dtype), smaller(LANES, dims - d), dtype);
        vtranspose(square);
    }
}

/* chain[row] += the products of the last `dims` dimensions. Shapes are as in decode_scores_step. */
INLINE void decode_scores_remainder(const enum sa_dtype dtype, const int count, const char *const *rows, ptrdiff_t at,
                                    ptrdiff_t dims, const real *query, vreal scale, vreal *chain)
{
    vreal square[4 * LANES]; /* dims x LANES: one step of int8 has 4 * LANES dimensions */
    load_remainder(dtype, rows, at, dims, square);
#pragma GCC unroll 1
    for (ptrdiff_t d = 0; d < dims; ++d) {
        vreal key = square[d];
        if (dtype == SA_INT8) key *= scale;
#pragma GCC unroll 8
        for (int r = 0; r < count; ++r)
            chain[r] = vfma(key, vsplat(query[d * count + r]), chain[r]);
    }
}

/* f->scores[row, key] of vectors * LANES keys, from key `first` of the block on. query: dim x count. */
INLINE void decode_scores_tile(const enum sa_dtype dtype, const int count, const int vectors, struct decode_rows *f,
                               ptrdiff_t first, ptrdiff_t dim, const real *query)
{
    const int step = packed_dimensions(dtype) * LANES;
    vreal chain[DECODE_ROWS * 4], sums[DECODE_ROWS * 4], scale[4];
    ptrdiff_t part = vectors * LANES * step * PREFETCH_UNIT / larger(1, dim);
    ptrdiff_t from = (first + f->distance) * PREFETCH_UNIT;
#pragma GCC unroll 32
    for (int i = 0; i < count * vectors; ++i)
        chain[i] = sums[i] = vsplat(0.0f);
    for (ptrdiff_t d = 0; d < dim; d += step) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            const char *const *rows = f->keys + first + v * LANES;
            scale[v] = dtype == SA_INT8 ? vload(f->key_scales + first + v * LANES) : vsplat(0.0f);
            ptrdiff_t at = d * number_bytes(dtype);
            if (dim - d >= step)
                decode_scores_step(dtype, count, rows, at, query + d * count, scale[v], chain + v * count);
            else
                decode_scores_remainder(dtype, count, rows, at, dim - d, query + d * count, scale[v],
                                        chain + v * count);
        }
        prefetch_to(f, (from += part) / PREFETCH_UNIT);
        if ((d + step) % SA_SCORE_CHAIN == 0 || d + step >= dim) {
#pragma GCC unroll 32
            for (int i = 0; i < count * vectors; ++i) {
                if (d < SA_SCORE_CHAIN)
                    sums[i] = chain[i];
                else
                    sums[i] += chain[i];
                chain[i] = vsplat(0.0f);
            }
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 8
        for (int r = 0; r < count; ++r)
            vstore(f->scores + r * DECODE_STRIDE + first + v * LANES, sums[v * count + r]);
}

/* f->scores of all keys of the block, for a constant number of rows. query: dim x count. */
INLINE void decode_scores_of(const int count, const enum sa_dtype dtype, struct decode_rows *f, ptrdiff_t dim,
                             const real *query)
{
    const int vectors = count <= 2 && dtype != SA_REAL ? 2 : 1; /* of keys, whose chains of additions overlap */
    ptrdiff_t k = 0;
    for (; k + (vectors - 1) * LANES < f->n; k += vectors * LANES)
        decode_scores_tile(dtype, count, vectors, f, k, dim, query);
    for (; vectors > 1 && k < f->n; k += LANES)
        decode_scores_tile(dtype, count, 1, f, k, dim, query);
}

INLINE void decode_scores_by(const enum sa_dtype dtype, ptrdiff_t rows, struct decode_rows *f, ptrdiff_t dim,
                             const real *query)
{
    SA_BY_ROWS(rows, decode_scores_of, dtype, f, dim, query);
}

static void decode_scores(enum sa_dtype dtype, ptrdiff_t rows, struct decode_rows *f, ptrdiff_t dim, const real *query)
{
    if (dtype == SA_REAL) decode_scores_by(SA_REAL, rows, f, dim, query);
#ifndef SA_FLOAT64_KERNELS
    if (dtype == SA_FLOAT16) decode_scores_by(SA_FLOAT16, rows, f, dim, query);
    if (dtype == SA_BFLOAT16) decode_scores_by(SA_BFLOAT16, rows, f, dim, query);
    if (dtype == SA_INT8) decode_scores_by(SA_INT8, rows, f, dim, query);
#endif
}

/* Pass 1 of a panel of few rows: f->scores becomes rows x DECODE_STRIDE keys. */
static void score_decode(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                         const struct key_block *b, struct decode_rows *f)
{
    set_decode_rows(a, t, p, b, f);
    decode_scores(a->kv_dtype, p->rows, f, a->head_dim, decode_query(p, a->head_dim));
}

/* rows x keys becomes keys x lanes, as masks and softmax.inc.h need it; and back. */
static void decode_to_panel(const struct decode_rows *f, ptrdiff_t rows, struct lane_rows panel)
{
    for (ptrdiff_t k = 0; k < f->n; k += LANES) {
        vreal square[LANES];
        for (int i = 0; i < LANES; ++i) /* lanes without a row repeat row 0 */
            square[i] = vload(f->scores + (i < rows ? i : 0) * DECODE_STRIDE + k);
        vtranspose(square);
        for (ptrdiff_t j = 0; j < smaller(LANES, f->n - k); ++j)
            vstore(panel.data + (k + j) * panel.stride, square[j]);
    }
}

static void decode_from_panel(struct decode_rows *f, ptrdiff_t rows, struct lane_rows panel)
{
    for (ptrdiff_t k = 0; k < f->n; ++k)
        for (ptrdiff_t r = 0; r < rows; ++r)
            f->scores[r * DECODE_STRIDE + k] = panel.data[k * panel.stride + r];
}

#endif
