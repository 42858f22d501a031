/* SPDX-License-Identifier: Apache-2.0 */
/* arguments.h -- the arguments of the operators. Strides of arrays are in bytes and may have any value (negative, zero,
 * odd); row, column and head counts may be zero. */
#ifndef SELFATTN_CONTRACTS_ARGUMENTS_H
#define SELFATTN_CONTRACTS_ARGUMENTS_H

#include <stddef.h>
#include <stdint.h>

#include "contracts/formats.h"

enum { SA_MAX_LEADING = 16 }; /* leading (batch) dimensions */

/* An array as it lies in memory: a base address and byte strides. data is NULL for an argument not given. */
struct sa_array {
    char *data;
    ptrdiff_t leading[SA_MAX_LEADING]; /* byte strides; of pages, leading[0] is from page to page */
    ptrdiff_t head, row, col;
};

/* ---- attention ---- */

/* Query i, at position i or i + keys - q_len, sees every key, or the keys up to its position. */
enum sa_causal { SA_NOT_CAUSAL = 0, SA_CAUSAL_TOP_LEFT, SA_CAUSAL_BOTTOM_RIGHT };

/* One side of a window: a query sees the keys at most `size` positions from its own. */
struct sa_side {
    int bounded;
    ptrdiff_t size;
};

/* The options of attention that a layer may keep. Arrays of one call (mask, bias, lengths) are in sa_attention. */
struct sa_attention_options {
    enum sa_causal causal;
    struct sa_side left, right; /* the window */
    double scale, softcap;      /* softcap: 0 for none */
    double dropout;             /* the probability that a weight is dropped; 0 for none */
    uint64_t seed;              /* of dropout */
    enum sa_format format;      /* of the operands of products, where this processor has an instruction for it */
    const double *alibi_slopes, *sinks; /* NULL, or (num_heads,) */
    const double *relative_bias;        /* NULL, or (num_heads, 2 * relative_reach + 1): added to the logit of a key */
    ptrdiff_t relative_reach;           /* by its distance from the query's position, clamped to +-relative_reach */
};

/* Numbers of one head in relative_bias. */
static inline ptrdiff_t sa_relative_width(const struct sa_attention_options *o)
{
    return 2 * o->relative_reach + 1;
}

/* One call of the attention operator. Arrays are (leading..., head, row, col): query and out rows are queries, key
 * and value rows are keys; mask and bias are (..., head, query, key); lse and the scales have no column. Dense:
 * every item has q_len queries and kv_len keys. Packed (cu_seqlens_* given): item i has the rows cu_seqlens_q[i] ..
 * cu_seqlens_q[i + 1] - 1 of query, out, mask and bias, and likewise rows of key and value by cu_seqlens_kv. Paged
 * (block_table given): key and value are (page, head, row, col); key j of item i is row j % page_size of page
 * block_table[i * table_width + j / page_size]. */
struct sa_attention {
    struct sa_array query, key, value, out, mask, bias, lse;
    struct sa_array key_scale, value_scale; /* float32: factors of int8 keys and values */
    struct sa_array grad_out, grad_query, grad_key, grad_value, grad_bias, grad_sinks, grad_alibi; /* backward only */
    double *grad_relative_bias;                /* (num_heads, 2 * relative_reach + 1), or NULL */
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
    const int64_t *positions; /* NULL, or (q_len,): positions of the queries among the keys */
    struct sa_attention_options options;
};

/* The number of query heads that share a key head. */
static inline ptrdiff_t sa_group(const struct sa_attention *a)
{
    return a->num_heads / a->num_kv_heads;
}

/* The result of a call:
 * SA_ATTENTION       the weighted values in out, and lse if it is given
 * SA_WEIGHTS         the attention weights; out is (..., head, query, key)
 * SA_ROW_STATISTICS  maximum and inverse sum of each row; lse is (..., head, query, 2), contiguous
 * SA_COLUMN_SUMS     the weights summed over the queries, from the row statistics; out is float64 (..., head, key),
 *                    contiguous
 * Only SA_ATTENTION reads values. */
enum sa_result { SA_ATTENTION = 0, SA_WEIGHTS, SA_ROW_STATISTICS, SA_COLUMN_SUMS };

/* ---- layers ---- */

enum sa_activation { SA_IDENTITY = 0, SA_GELU, SA_GELU_TANH, SA_RELU, SA_SILU };

/* A weight (depth, width), packed: panels of columns, in the format of the kernels that packed it. */
struct sa_packed_weight {
    const void *data;
    ptrdiff_t depth, width;
};

/* y = act(x W + b) + residual. x and y are of x_dtype and y_dtype: the dtype of the kernels, or of the operands of
 * their format. All other arrays are of the dtype of the kernels. */
struct sa_linear {
    const void *x, *bias, *residual; /* bias, residual: NULL if none */
    struct sa_packed_weight weight;
    void *y;
    ptrdiff_t x_stride, y_stride, residual_stride; /* numbers from row to row */
    ptrdiff_t rows;
    enum sa_activation activation;
    enum sa_dtype x_dtype, y_dtype;
};

/* grad_weight (d_in, d_out) = x^T grad_y, over rows of x (rows, d_in) and grad_y (rows, d_out). */
struct sa_linear_backward {
    const void *x, *grad_y;
    void *grad_weight;
    ptrdiff_t rows, d_in, d_out;
};

/* Rotary positions (Su et al., 2021): the rows of x are rotated in place, by the angles of their positions. */
struct sa_rotary {
    void *x;                     /* (rows, num_heads, head_dim); the first 2 * pairs channels are rotated */
    const void *cosines, *sines; /* (positions, pairs) */
    const int32_t *positions;    /* (rows,) */
    ptrdiff_t x_stride;          /* numbers from row to row */
    ptrdiff_t rows, num_heads, head_dim, pairs;
    int interleaved; /* a pair is (2i, 2i + 1), else (i, i + pairs) */
};

/* LayerNorm or RMSNorm of rows. A row may consist of parts; each part is normalised by itself. */
struct sa_norm {
    const void *x, *weight, *bias; /* weight and bias (width,), the same for every part; bias: NULL if none */
    const void *residual;          /* NULL, or rows that are added to the result; strides of y */
    void *y;                       /* may be x, and may be the residual */
    ptrdiff_t rows, width;
    ptrdiff_t parts, stride; /* parts of a row, side by side; numbers from row to row of x and y */
    double eps;
    int rms;
};

/* Gradients of y = act(x), or with a gate of y = act(x) * up. Without a gate, up and grad_up are NULL. */
struct sa_activation_backward {
    const void *grad_y, *x, *up;
    void *grad_x, *grad_up; /* grad_x may be grad_y */
    ptrdiff_t n;
    enum sa_activation activation;
};

/* Gradients of a norm. Mean and scale of each row are computed again from x. */
struct sa_norm_backward {
    const void *grad_y, *x, *weight;
    void *grad_x;                  /* may be grad_y */
    void *grad_weight, *grad_bias; /* (width,) */
    ptrdiff_t rows, width;
    double eps;
    int rms;
};

#endif
