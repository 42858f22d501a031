/* SPDX-License-Identifier: Apache-2.0 */
/* bits_attention.h -- hashes of attention and of its gradients. */
#ifndef SELFATTN_TESTS_BITS_ATTENTION_H
#define SELFATTN_TESTS_BITS_ATTENTION_H

#include "bits_support.h"

enum { ITEMS = 2, HEADS = 4, KV_HEADS = 2, PAGE = 40, REACH = 5, RELATIVE_WIDTH = 2 * REACH + 1 };
enum masking {
    NO_MASK,
    CAUSAL,
    BOTTOM_RIGHT,
    LENGTHS,
    MASK_AND_BIAS,
    WINDOW,
    SOFTCAP,
    ALIBI_AND_SINKS,
    DROPOUT,
    EVERYTHING,
    PACKED,
    PAGES,
    RELATIVE_BIAS,
    RELATIVE_EVERYTHING, /* everything, and a relative bias */
};

static void mask_by(enum masking how, struct sa_attention *a, ptrdiff_t q_len, ptrdiff_t kv_len)
{
    static int64_t lengths[ITEMS];
    static double relative_bias[HEADS * RELATIVE_WIDTH];
    static const double slopes[HEADS] = {0.5, 0.25, 0.125, 0.0625}, sinks[HEADS] = {0.0, 1.0, -2.0, 3.0};
    int all = how == EVERYTHING || how == RELATIVE_EVERYTHING;
    a->options.causal = how == CAUSAL                ? SA_CAUSAL_TOP_LEFT
                        : how == BOTTOM_RIGHT || all ? SA_CAUSAL_BOTTOM_RIGHT
                                                     : SA_NOT_CAUSAL;
    if (how == LENGTHS || how == PAGES || all) {
        lengths[0] = kv_len / 2;
        lengths[1] = kv_len;
        a->kv_lengths = lengths;
        a->items_per_length = 1;
    }
    if (how == MASK_AND_BIAS || all) {
        ptrdiff_t n = ITEMS * HEADS * q_len * kv_len;
        char *mask = malloc((size_t)n + 1);
        if (!mask) exit(3);
        for (ptrdiff_t i = 0; i < n; ++i)
            mask[i] = random_float() < 2.0f;
        a->mask = array(mask, 1, HEADS, q_len, kv_len);
        a->bias_dtype = a->dtype;
        a->bias = array(numbers(a->dtype, n), SIZES[a->dtype], HEADS, q_len, kv_len);
    }
    if (how == WINDOW || all) {
        a->options.left = (struct sa_side){1, 1 + kv_len / 3};
        a->options.right = (struct sa_side){1, 2};
    }
    if (how == SOFTCAP || all) a->options.softcap = 3.0;
    if (how == DROPOUT || all) {
        a->options.dropout = 0.3;
        a->options.seed = 42;
    }
    if (how == ALIBI_AND_SINKS || all) {
        a->options.alibi_slopes = slopes;
        a->options.sinks = sinks;
    }
    if (how == RELATIVE_BIAS || how == RELATIVE_EVERYTHING) {
        for (int i = 0; i < HEADS * RELATIVE_WIDTH; ++i)
            relative_bias[i] = (double)random_float();
        a->options.relative_bias = relative_bias;
        a->options.relative_reach = REACH;
    }
}

/* The first item's rows as two packed sequences; or keys as pages, in another order, the same for all heads. */
static void lay_out_as(enum masking how, struct sa_attention *a)
{
    static int64_t q[ITEMS + 1], kv[ITEMS + 1], table[ITEMS * 100];
    if (how == PACKED) {
        q[1] = a->q_len / 2, q[2] = a->q_len;
        kv[1] = a->kv_len / 3, kv[2] = a->kv_len;
        a->cu_seqlens_q = q, a->cu_seqlens_kv = kv;
        a->num_leading = 0;
    }
    if (how == PAGES) {
        ptrdiff_t pages = (a->kv_len + PAGE - 1) / PAGE, row = a->key.row, value_row = a->value.row;
        a->key = (struct sa_array){.data = a->key.data, .leading = {PAGE * row}, .row = row, .col = a->key.col};
        a->value = (struct sa_array){
            .data = a->value.data, .leading = {PAGE * value_row}, .row = value_row, .col = a->value.col};
        for (ptrdiff_t i = 0; i < ITEMS * pages; ++i)
            table[i] = (i * 7 + 1) % pages;
        a->block_table = table;
        a->table_width = pages;
        a->page_size = PAGE;
    }
}

static void attention(enum sa_dtype dtype, enum sa_dtype kv_dtype, const ptrdiff_t lengths[2], const ptrdiff_t dims[2],
                      enum masking how)
{
    ptrdiff_t q_len = lengths[0], kv_len = lengths[1], head_dim = dims[0], value_dim = dims[1];
    ptrdiff_t rows = ITEMS * HEADS * q_len, keys = ITEMS * KV_HEADS * (kv_len + PAGE);
    void *query = numbers(dtype, rows * head_dim), *key = numbers(kv_dtype, keys * head_dim);
    void *value = numbers(kv_dtype, keys * value_dim), *out = numbers(dtype, rows * value_dim);
    void *lse = numbers(SA_FLOAT64, rows), *scales = floats(keys);
    size_t size = SIZES[dtype], kv_size = SIZES[kv_dtype];
    struct sa_attention a = {
        .query = array(query, size, HEADS, q_len, head_dim),
        .key = array(key, kv_size, KV_HEADS, kv_len, head_dim),
        .value = array(value, kv_size, KV_HEADS, kv_len, value_dim),
        .out = array(out, size, HEADS, q_len, value_dim),
        .lse = array(lse, dtype == SA_FLOAT64 ? 8 : 4, HEADS, q_len, 1),
        .dtype = dtype,
        .kv_dtype = kv_dtype,
        .num_leading = 1,
        .leading_shape = {ITEMS},
        .items = ITEMS,
        .num_heads = HEADS,
        .num_kv_heads = KV_HEADS,
        .q_len = q_len,
        .kv_len = kv_len,
        .head_dim = head_dim,
        .value_dim = value_dim,
        .options.scale = 0.25,
    };
    if (kv_dtype == SA_INT8) a.key_scale = a.value_scale = array(scales, sizeof(float), KV_HEADS, kv_len, 1);
    mask_by(how, &a, q_len, kv_len);
    lay_out_as(how, &a);
    if (sa_attention_run(kernels, &a, SA_ATTENTION, 2) != 0) exit(4);
    report("attention", (ptrdiff_t[]){dtype, kv_dtype, q_len, kv_len, head_dim, value_dim, how}, 7,
           hash_bytes(lse, (size_t)rows * 8, hash_bytes(out, (size_t)(rows * value_dim) * size, HASH_START)));
    free(query), free(key), free(value), free(out), free(lse), free(scales);
    free(a.mask.data), free(a.bias.data);
}

/* Out and lse of the forward pass, and then every gradient. */
static void backward(enum sa_dtype dtype, const ptrdiff_t lengths[2], const ptrdiff_t dims[2], enum masking how)
{
    ptrdiff_t q_len = lengths[0], kv_len = lengths[1], head_dim = dims[0], value_dim = dims[1];
    ptrdiff_t rows = ITEMS * HEADS * q_len, keys = ITEMS * KV_HEADS * kv_len, scores = ITEMS * HEADS * q_len * kv_len;
    size_t size = SIZES[dtype], wide = dtype == SA_FLOAT64 ? 8 : 4;
    void *arrays[] = {numbers(dtype, rows * head_dim), numbers(dtype, keys * head_dim),
                      numbers(dtype, keys * value_dim), numbers(dtype, rows * value_dim),
                      numbers(dtype, rows * value_dim)};
    void *lse = room(2 * rows), *sinks = room(2 * rows), *alibi = room(2 * rows);
    double grad_relative[HEADS * RELATIVE_WIDTH] = {0};
    void *grad_query = room(2 * rows * head_dim), *grad_key = room(2 * keys * head_dim);
    void *grad_value = room(2 * keys * value_dim), *grad_bias = room(2 * scores);
    memset(grad_key, 0, (size_t)(keys * head_dim) * 8), memset(grad_value, 0, (size_t)(keys * value_dim) * 8);
    memset(grad_bias, 0, (size_t)scores * 8);
    struct sa_attention a = {
        .query = array(arrays[0], size, HEADS, q_len, head_dim),
        .key = array(arrays[1], size, KV_HEADS, kv_len, head_dim),
        .value = array(arrays[2], size, KV_HEADS, kv_len, value_dim),
        .out = array(arrays[3], size, HEADS, q_len, value_dim),
        .grad_out = array(arrays[4], size, HEADS, q_len, value_dim),
        .lse = array(lse, wide, HEADS, q_len, 1),
        .dtype = dtype,
        .kv_dtype = dtype,
        .num_leading = 1,
        .leading_shape = {ITEMS},
        .items = ITEMS,
        .num_heads = HEADS,
        .num_kv_heads = KV_HEADS,
        .q_len = q_len,
        .kv_len = kv_len,
        .head_dim = head_dim,
        .value_dim = value_dim,
        .options.scale = 0.25,
    };
    mask_by(how, &a, q_len, kv_len);
    if (sa_attention_run(kernels, &a, SA_ATTENTION, 2) != 0) exit(4);
    a.grad_query = array(grad_query, size, HEADS, q_len, head_dim);
    a.grad_key = array(grad_key, wide, KV_HEADS, kv_len, head_dim);
    a.grad_value = array(grad_value, wide, KV_HEADS, kv_len, value_dim);
    if (a.bias.data) a.grad_bias = array(grad_bias, 8, HEADS, q_len, kv_len);
    if (a.options.relative_bias) a.grad_relative_bias = grad_relative;
    if (a.options.sinks) a.grad_sinks = array(sinks, wide, HEADS, q_len, 1);
    if (a.options.alibi_slopes) a.grad_alibi = array(alibi, wide, HEADS, q_len, 1);
    if (sa_attention_backward_run(kernels, &a, 2) != 0) exit(4);
    uint64_t h = hash_bytes(grad_query, (size_t)(rows * head_dim) * size, HASH_START);
    h = hash_bytes(grad_key, (size_t)(keys * head_dim) * wide, h);
    h = hash_bytes(grad_value, (size_t)(keys * value_dim) * wide, h);
    h = hash_bytes(grad_bias, (size_t)scores * 8, h);
    if (a.options.sinks) h = hash_bytes(sinks, (size_t)rows * wide, h);
    if (a.options.alibi_slopes) h = hash_bytes(alibi, (size_t)rows * wide, h);
    if (a.options.relative_bias) h = hash_bytes(grad_relative, sizeof grad_relative, h);
    report("backward", (ptrdiff_t[]){dtype, q_len, kv_len, head_dim, value_dim, how}, 6, h);
    for (int i = 0; i < 5; ++i)
        free(arrays[i]);
    free(lse), free(sinks), free(alibi), free(grad_query), free(grad_key), free(grad_value), free(grad_bias);
    free(a.mask.data), free(a.bias.data);
}

static void all_backward(void)
{
    static const ptrdiff_t lengths[][2] = {{1, 1}, {5, 300}, {35, 97}, {70, 193}};
    static const ptrdiff_t dims[][2] = {{1, 1}, {33, 65}, {64, 64}, {70, 24}};
    static const enum sa_dtype dtypes[] = {SA_FLOAT32, SA_FLOAT64, SA_BFLOAT16};
    for (size_t t = 0; t < sizeof dtypes / sizeof *dtypes; ++t)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; ++l)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; ++d)
                for (int how = NO_MASK; how <= EVERYTHING; ++how)
                    backward(dtypes[t], lengths[l], dims[d], (enum masking)how);
}

static void all_attention(void)
{
    static const ptrdiff_t lengths[][2] = {{1, 1}, {1, 40}, {3, 17}, {5, 300}, {17, 33}, {35, 97}, {70, 193}};
    static const ptrdiff_t dims[][2] = {{1, 1}, {7, 9}, {16, 16}, {33, 65}, {64, 64}, {129, 24}};
    static const enum sa_dtype dtypes[][2] = {{SA_FLOAT32, SA_FLOAT32},
                                              {SA_FLOAT64, SA_FLOAT64},
                                              {SA_FLOAT16, SA_FLOAT16},
                                              {SA_BFLOAT16, SA_BFLOAT16},
                                              {SA_FLOAT32, SA_INT8}};
    for (size_t t = 0; t < sizeof dtypes / sizeof *dtypes; ++t)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; ++l)
            for (size_t d = t ? 3 : 0; d < sizeof dims / sizeof *dims; d += t ? 2 : 1)
                for (int how = NO_MASK; how <= PAGES; ++how)
                    attention(dtypes[t][0], dtypes[t][1], lengths[l], dims[d], (enum masking)how);
    attention(SA_FLOAT32, SA_FLOAT32, (ptrdiff_t[]){2, 3100}, (ptrdiff_t[]){32, 32}, NO_MASK);
    attention(SA_FLOAT32, SA_FLOAT32, (ptrdiff_t[]){20, 1600}, (ptrdiff_t[]){24, 24}, BOTTOM_RIGHT);
}

/* Rows of decode are among them. */
static void all_relative(void)
{
    static const ptrdiff_t lengths[][2] = {{1, 40}, {1, 300}, {2, 97}, {3, 17}, {35, 97}, {70, 193}};
    static const ptrdiff_t dims[][2] = {{16, 16}, {33, 65}};
    static const enum sa_dtype dtypes[] = {SA_FLOAT32, SA_FLOAT64, SA_BFLOAT16};
    for (size_t t = 0; t < sizeof dtypes / sizeof *dtypes; ++t)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; ++l)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; ++d)
                for (int how = RELATIVE_BIAS; how <= RELATIVE_EVERYTHING; ++how) {
                    attention(dtypes[t], dtypes[t], lengths[l], dims[d], (enum masking)how);
                    backward(dtypes[t], lengths[l], dims[d], (enum masking)how);
                }
}

#endif
