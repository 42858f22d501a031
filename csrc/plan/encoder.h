/* SPDX-License-Identifier: Apache-2.0 */
/* encoder.h -- a stack of encoder layers over packed tokens: the layer, and the steps that it is made of.
 *
 * The order of the steps, which is the mathematics, belongs to the caller: selfattn/_native/encoder.pyx. This file
 * and encoder.c carve memory into activations, cut rows into blocks, and find threads for them.
 *
 * Whole sequences go through all layers together, as many as a micro-batch holds. Attention needs all rows at once.
 * Between two attentions, each thread carries a block of rows all the way, so that it stays in the cache of its
 * core. */
#ifndef SELFATTN_PLAN_ENCODER_H
#define SELFATTN_PLAN_ENCODER_H

#include "contracts/operators.h"

struct sa_dense { /* y = x W + b */
    struct sa_packed_weight weight;
    const float *bias; /* NULL without one */
};

struct sa_norm_weights {
    const float *weight, *bias; /* weight NULL: there is no norm */
    double eps;
    int rms;
    ptrdiff_t width;
};

/* Cosines and sines of positions: (positions, pairs) each. */
struct sa_rotary_table {
    const float *cosines, *sines;
};

struct sa_layer {
    ptrdiff_t num_heads, num_kv_heads, head_dim, value_dim;
    struct sa_attention_options attention;
    struct sa_dense qkv, output, up, down; /* qkv: query | key | value; up: with a gate, gate | up */
    struct sa_norm_weights query_norm,
        key_norm; /* of each head, or of all heads of a row together: their width tells */
    struct sa_norm_weights attention_norm, attention_post_norm, feed_forward_norm, feed_forward_post_norm;
    ptrdiff_t rotary_table; /* index of the table that rotates queries and keys; -1: none */
    ptrdiff_t rotary_pairs;
    int rotary_interleaved;
    int norm_first, gated;
    enum sa_activation activation;
};

/* With products of a narrower format, activations that only products read are kept in that format. */
struct sa_encoder {
    const struct sa_kernels *kernels, *products; /* products: of the linear layers */
    struct sa_layer *layers;
    ptrdiff_t num_layers, d_model;
};

/* Whole sequences on their way through all layers. */
struct sa_micro_batch {
    const struct sa_encoder *encoder;
    float *x;                  /* (tokens, d_model): the input, and in the end the output */
    char *qkv;                 /* (tokens, query | key | value) */
    char *context;             /* (tokens, num_heads * value_dim) */
    int32_t *positions;        /* (tokens,): position of a token in its sequence; NULL if no layer needs it */
    const int64_t *cu_seqlens; /* (sequences + 1,), from 0 */
    ptrdiff_t sequences, tokens;
    const struct sa_rotary_table *tables;
    char *scratch; /* buffers of the row blocks */
    int num_threads;
};

/* A block of rows between two attentions. Steps that follow a failed one do nothing. */
struct sa_rows {
    const struct sa_micro_batch *batch;
    ptrdiff_t first, count;
    float *x;        /* (count, d_model), of the micro-batch */
    float *spare;    /* (count, d_model): a norm's result, or a sum on its way to a norm */
    char *hidden;    /* (count, d_ff, or gate | up) */
    float *gated;    /* (count, d_ff) */
    int num_threads; /* that share each step */
    int status;
};

/* ---- the run ---- */

/* Calls the layer loop for each micro-batch of x (tokens, d_model). The loop changes x in place. */
typedef int (*sa_layer_loop)(const struct sa_micro_batch *, ptrdiff_t first_layer, ptrdiff_t end_layer);
int sa_encoder_run(const struct sa_encoder *, float *x, const int64_t *cu_seqlens, ptrdiff_t sequences,
                   const struct sa_rotary_table *, sa_layer_loop, ptrdiff_t first_layer, ptrdiff_t end_layer,
                   int num_threads);

/* query | key | value -> context, over all rows of the micro-batch. */
int sa_micro_batch_attend(const struct sa_micro_batch *, const struct sa_layer *);

/* Calls `between` for each block of rows, between the attention of layer `done` and that of layer `next` (NULL:
 * none). */
typedef void (*sa_between_attentions)(struct sa_rows *, const struct sa_layer *done, const struct sa_layer *next);
int sa_micro_batch_rows(const struct sa_micro_batch *, const struct sa_layer *done, const struct sa_layer *next,
                        sa_between_attentions);

/* ---- the steps of a block of rows ---- */

/* y = norm(x) + residual, which may be NULL; without a norm, y = x + residual. */
void sa_rows_norm(struct sa_rows *, const struct sa_norm_weights *, const float *x, const float *residual, float *y);

/* norm(x) in the spare rows; without a norm, x. */
const float *sa_rows_normed(struct sa_rows *, const struct sa_norm_weights *, const float *x);

/* query | key | value = x W + b; then queries and keys are normed, and rotated by their positions. */
void sa_rows_project(struct sa_rows *, const struct sa_layer *, const float *x);

/* y = context W + b + residual; y may be the residual. */
void sa_rows_output(struct sa_rows *, const struct sa_layer *, const float *residual, float *y);

/* y = act(x W + b) W + b + residual, where act may be a gate; y may be x, and may be the residual. */
void sa_rows_feed_forward(struct sa_rows *, const struct sa_layer *, const float *x, const float *residual, float *y);

#endif
