/* kernels.h -- the contract every instruction set fulfils. To add a kernel: one line in struct sa_kernels, one function
 * in a *.inc.h. Strides are in bytes and may be anything (negative, zero, odd); row, column and head counts may be zero.
 */
#ifndef SELFATTN_KERNELS_H
#define SELFATTN_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "runtime/pool.h"

enum {
    SA_MAX_LEADING = 16,             /* leading (batch) dimensions */
    SA_TASK_ROWS = 64,               /* rows of the score matrix (queries x grouped heads) that one task takes */
    SA_MOST_SHARED = 4,              /* so many times more, where its panels share keys and values that are staged */
    SA_KEY_BLOCK = 144,              /* keys that share one maximum ... */
    SA_KEY_SPAN = 12 * SA_KEY_BLOCK, /* ... and one chain of additions: functions of nothing but the key's index */
};

/* What the numbers in memory are. Arithmetic is float32, or float64 where the queries are; int8 comes with scales. */
enum sa_dtype { SA_FLOAT32 = 0, SA_FLOAT64, SA_FLOAT16, SA_BFLOAT16, SA_INT8 };

/* An array as it lies in memory: a base address and byte strides. data is NULL for an argument not given. */
struct sa_array {
    char *data;
    ptrdiff_t leading[SA_MAX_LEADING]; /* of pages: from page to page, in leading[0] */
    ptrdiff_t head, row, col;
};

/* Query i, at position i or i + keys - q_len, sees every key, or the keys up to its position. */
enum sa_causal { SA_NOT_CAUSAL = 0, SA_CAUSAL_TOP_LEFT, SA_CAUSAL_BOTTOM_RIGHT };

/* How far from its position a query sees keys on one side, itself included. */
struct sa_side {
    int bounded;
    ptrdiff_t size;
};

/* One call of the attention operator. Arrays are (leading..., head, row, col): query and out rows are queries, key and
 * value rows are keys; mask and bias are (..., head, query, key); lse and the scales have no column.
 * Dense: every item has q_len queries and kv_len keys. Packed (cu_seqlens_* given): item i has the rows
 * cu_seqlens_q[i] .. cu_seqlens_q[i + 1] - 1 of query, out, mask and bias, and those of cu_seqlens_kv of key and value.
 * Paged (block_table given): key and value are (page, head, row, col); key j of item i is row j % page_size of page
 * block_table[i * table_width + j / page_size]. */
struct sa_attention {
    struct sa_array query, key, value, out, mask, bias, lse;
    struct sa_array key_scale, value_scale; /* float32, what int8 keys and values are multiplied by */
    struct sa_array grad_out, grad_query, grad_key, grad_value, grad_bias, grad_sinks, grad_alibi; /* backward only */
    enum sa_dtype dtype, kv_dtype, bias_dtype; /* of query and out; of key and value; lse is float32, or float64 */
    int num_leading;
    ptrdiff_t leading_shape[SA_MAX_LEADING];
    ptrdiff_t items; /* product of leading_shape, or the number of packed sequences */
    ptrdiff_t num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim;
    const int64_t *cu_seqlens_q, *cu_seqlens_kv;
    const int64_t *block_table;
    ptrdiff_t table_width, page_size;
    const int64_t *kv_lengths; /* NULL, or valid keys of item i at kv_lengths[i / items_per_length] */
    ptrdiff_t items_per_length;
    const int64_t *positions; /* NULL, or (q_len,): where the queries stand among the keys */
    enum sa_causal causal;
    struct sa_side left, right;         /* the window */
    double scale, softcap;              /* softcap: 0 for none */
    double dropout;                     /* the probability, 0 for none; */
    uint64_t seed;                      /* of what is dropped */
    int bfloat16;                       /* products in bfloat16, where this processor has an instruction for it */
    const double *alibi_slopes, *sinks; /* NULL, or (num_heads,) */
};

/* Are a head's keys and values more than a core has of the last cache? */
static inline int sa_many_keys(const struct sa_attention *a)
{
    return (double)a->kv_len * (double)(a->head_dim + a->value_dim) * sizeof(float) >= 4 << 20;
}

/* What a call is for: the weighted values, with or without lse; the weights (out is (..., head, query, key)); what is to
 * be known of each row (in the place of lse, (..., head, query, 2), contiguous) for the weights' sums over the queries
 * (out is float64 (..., head, key), contiguous). Only the first has values. */
enum sa_result { SA_ATTENTION = 0, SA_WEIGHTS, SA_ROW_STATISTICS, SA_COLUMN_SUMS };

/* What one task computes: rows row0 .. row0 + rows - 1 of one item's key/value head. Row r is query r / group of head
 * r % group of the group: grouped heads lie side by side in the lanes and share every load of a key. */
struct sa_tile {
    const char *query, *key, *value, *mask, *bias, *key_scale, *value_scale; /* of the item and the (first) head */
    char *out, *lse;
    const char *grad_out;
    char *grad_query, *grad_key, *grad_value, *grad_bias, *grad_sinks, *grad_alibi; /* NULL where not wanted */
    ptrdiff_t item, head;               /* what it is of: the item, the first head */
    const int64_t *pages;               /* of the item, or NULL */
    const double *alibi_slopes, *sinks; /* of the first head, or NULL */
    ptrdiff_t q_len, valid_keys;        /* no key from valid_keys on is seen */
    ptrdiff_t position0;                /* of query 0 among the keys */
    ptrdiff_t row0, rows;
    int first;                  /* of its head to be begun: it brings keys and values into the caches */
    const struct sa_tile *next; /* NULL, or the one this thread is likely to compute next: fetched meanwhile */
};

enum sa_activation { SA_IDENTITY = 0, SA_GELU, SA_GELU_TANH, SA_RELU, SA_SILU };

/* y = act(x W + b) + residual on packed weights. Numbers are float32, or float64 for the float64 kernels. */
enum { SA_LINEAR_CHAIN = 384 }; /* terms of a chain; so much of a panel is reused from the L2 cache while x passes by */
struct sa_linear {
    const void *x, *packed, *bias, *residual; /* bias, residual: NULL if none */
    void *y;
    ptrdiff_t x_stride, y_stride, residual_stride; /* numbers from row to row */
    ptrdiff_t rows, depth, width;
    enum sa_activation activation;
    int bfloat16_x, bfloat16_y; /* x, y are bfloat16: of the kernels that multiply pairs of them */
};

/* grad_weight (d_in, d_out) = x^T grad_y, over rows of x (rows, d_in) and grad_y (rows, d_out). */
enum { SA_GRADIENT_BLOCK_BYTES = 288 * 4 }; /* of a row of x: what a task takes of it at most */
struct sa_weight_gradient {
    const void *x, *grad_y;
    void *grad_weight;
    ptrdiff_t rows, d_in, d_out;
};

/* Rows, normalised: LayerNorm, or RMSNorm. */
struct sa_norm {
    const void *x, *weight, *bias; /* bias: NULL if none */
    void *y;                       /* may be x */
    ptrdiff_t rows, width;
    double eps;
    int rms;
};

/* The way back through y = act(x), or with a gate through y = act(x) * up: up and grad_up are NULL without one. */
struct sa_activation_backward {
    const void *grad_y, *x, *up;
    void *grad_x, *grad_up; /* grad_x may be grad_y */
    ptrdiff_t n;
    enum sa_activation activation;
};

/* The way back through a norm. What it knows of a row is computed anew from x. */
struct sa_norm_backward {
    const void *grad_y, *x, *weight;
    void *grad_x;                  /* may be grad_y */
    void *grad_weight, *grad_bias; /* (width,) */
    ptrdiff_t rows, width;
    double eps;
    int rms;
};

struct sa_kernels {
    const char *isa;
    int lanes;                        /* numbers per vector */
    int number_bytes;                 /* 4, or 8 for the float64 kernels */
    int terms;                        /* products of a step: 1, or 2 for the bfloat16 kernels */
    ptrdiff_t panel_width;            /* columns of one packed panel of weights */
    int (*runs_here)(void);           /* do this CPU and its operating system support it? */
    const struct sa_kernels *float64; /* the same in float64 */
    const struct sa_kernels
        *bfloat16; /* attention with products in bfloat16; NULL where there is no instruction for it */

    int (*needs_staging)(const struct sa_attention *); /* do a tile's panels share a copy of keys and values? */
    size_t (*attention_workspace)(const struct sa_attention *);
    int (*attention)(const struct sa_attention *, const struct sa_tile *, void *workspace);
    /* The same in parts: each span of the keys that a tile may see, kept in span_bytes; then all of them merged. */
    void (*key_range)(const struct sa_attention *, const struct sa_tile *, ptrdiff_t *first_key, ptrdiff_t *last_key);
    size_t (*span_bytes)(const struct sa_attention *);
    int (*attention_span)(const struct sa_attention *, const struct sa_tile *, ptrdiff_t first_key, void *states,
                          void *workspace);
    void (*merge_spans)(const struct sa_attention *, const struct sa_tile *, ptrdiff_t spans, void *states);
    int (*attention_weights)(const struct sa_attention *, const struct sa_tile *, void *workspace);
    int (*row_statistics)(const struct sa_attention *, const struct sa_tile *, void *workspace);
    size_t (*backward_workspace)(const struct sa_attention *);
    int (*attention_backward)(const struct sa_attention *, const struct sa_tile *, ptrdiff_t first_key,
                              ptrdiff_t last_key, void *workspace);
    int (*column_sums)(const struct sa_attention *, const struct sa_tile *, ptrdiff_t first_key, void *workspace);

    void (*pack_weights)(const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, ptrdiff_t width,
                         void *packed);
    size_t (*linear_workspace)(ptrdiff_t rows, ptrdiff_t depth);
    void (*linear)(const struct sa_linear *, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t panel0, ptrdiff_t panel1,
                   void *workspace);
    size_t (*weight_gradient_workspace)(void);
    void (*weight_gradient)(const struct sa_weight_gradient *, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t in0,
                            ptrdiff_t in1, ptrdiff_t panel0, ptrdiff_t panel1, void *workspace);
    void (*norm)(const struct sa_norm *, ptrdiff_t row0, ptrdiff_t row1);
    void (*activate)(enum sa_activation, void *x, ptrdiff_t n); /* in place */
    void (*gate)(enum sa_activation, const void *gate_up, ptrdiff_t rows, ptrdiff_t width, void *y);

    void (*activation_backward)(const struct sa_activation_backward *, ptrdiff_t begin, ptrdiff_t end);
    /* Sums over the rows of a chunk: (2, width), of weight and bias; (width,). And the chunks' sums added up into y. */
    void (*norm_backward)(const struct sa_norm_backward *, ptrdiff_t row0, ptrdiff_t row1, double *sums);
    void (*sum_rows)(const void *x, ptrdiff_t rows, ptrdiff_t width, double *sums);
    void (*add_sums)(double *sums, ptrdiff_t chunks, ptrdiff_t stride, ptrdiff_t width, void *y);

    double (*peak_loop)(ptrdiff_t iterations);          /* multiply-adds only; returns the floating-point operations */
    double (*read_loop)(const void *data, ptrdiff_t n); /* reads n numbers */
};

extern const struct sa_kernels sa_kernels_baseline, sa_kernels_avx2, sa_kernels_avx512, sa_kernels_neon;
extern const struct sa_kernels sa_kernels_baseline_float64, sa_kernels_avx2_float64, sa_kernels_avx512_float64,
    sa_kernels_neon_float64, sa_kernels_avx512_bfloat16;

/* Those that multiply pairs of bfloat16, if it is asked for and this processor does. */
const struct sa_kernels *sa_for_products(const struct sa_kernels *, int bfloat16);
const struct sa_kernels *sa_active(void);
const struct sa_kernels *sa_available(int index); /* best first; NULL past the end */
int sa_use(const char *isa);                      /* 0, or -1 if that instruction set cannot run here */

/* The operators over all their tasks, on the pool's threads; each returns SA_OK or the pool's status. */
int sa_attention_run(const struct sa_kernels *, const struct sa_attention *, enum sa_result, int num_threads);
/* From out, lse and grad_out: the gradients whose arrays are given. grad_key and grad_value (float32 or float64,
 * contiguous rows) and grad_bias (float64) are added to; grad_sinks and grad_alibi are one number for each row. */
int sa_attention_backward_run(const struct sa_kernels *, const struct sa_attention *, int num_threads);
int sa_linear_run(const struct sa_kernels *, const struct sa_linear *, int num_threads);
int sa_pack_run(const struct sa_kernels *, const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth,
                ptrdiff_t width, void *packed, int num_threads);
int sa_norm_run(const struct sa_kernels *, const struct sa_norm *, int num_threads);
int sa_activate_run(const struct sa_kernels *, enum sa_activation, void *x, ptrdiff_t n, int num_threads);
int sa_gate_run(const struct sa_kernels *, enum sa_activation, const void *gate_up, ptrdiff_t rows, ptrdiff_t width,
                void *y, int num_threads);

int sa_weight_gradient_run(const struct sa_kernels *, const struct sa_weight_gradient *, int num_threads);
int sa_activation_backward_run(const struct sa_kernels *, const struct sa_activation_backward *, int num_threads);
int sa_norm_backward_run(const struct sa_kernels *, const struct sa_norm_backward *, int num_threads);
int sa_sum_rows_run(const struct sa_kernels *, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y,
                    int num_threads);

#endif
