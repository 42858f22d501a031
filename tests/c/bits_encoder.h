/* SPDX-License-Identifier: Apache-2.0 */
/* bits_encoder.h -- hashes of whole encoders and of rotary angles. The layer loop is that of
 * selfattn/_native/encoder.pyx, step by step. */
#ifndef SELFATTN_TESTS_BITS_ENCODER_H
#define SELFATTN_TESTS_BITS_ENCODER_H

#include "bits_support.h"
#include "plan/encoder.h"

/* ---- the layer loop ---- */

static void begin_attention(struct sa_rows *r, const struct sa_layer *layer)
{
    sa_rows_project(r, layer, layer->norm_first ? sa_rows_normed(r, &layer->attention_norm, r->x) : r->x);
}

static void post_norm(struct sa_rows *r, const struct sa_layer *layer)
{
    sa_rows_output(r, layer, r->x, r->spare);
    sa_rows_norm(r, &layer->attention_norm, r->spare, NULL, r->x);
    sa_rows_feed_forward(r, layer, r->x, r->x, r->spare);
    sa_rows_norm(r, &layer->feed_forward_norm, r->spare, NULL, r->x);
}

static void pre_norm(struct sa_rows *r, const struct sa_layer *layer)
{
    sa_rows_output(r, layer, r->x, r->x);
    sa_rows_feed_forward(r, layer, sa_rows_normed(r, &layer->feed_forward_norm, r->x), r->x, r->x);
}

static void pre_and_post_norm(struct sa_rows *r, const struct sa_layer *layer)
{
    sa_rows_output(r, layer, NULL, r->spare);
    sa_rows_norm(r, &layer->attention_post_norm, r->spare, r->x, r->x);
    sa_rows_feed_forward(r, layer, sa_rows_normed(r, &layer->feed_forward_norm, r->x), NULL, r->spare);
    sa_rows_norm(r, &layer->feed_forward_post_norm, r->spare, r->x, r->x);
}

static void between_attentions(struct sa_rows *r, const struct sa_layer *done, const struct sa_layer *next)
{
    if (done) {
        if (!done->norm_first)
            post_norm(r, done);
        else if (!done->attention_post_norm.weight && !done->feed_forward_post_norm.weight)
            pre_norm(r, done);
        else
            pre_and_post_norm(r, done);
    }
    if (next) begin_attention(r, next);
}

static int run_layers(const struct sa_micro_batch *batch, ptrdiff_t first, ptrdiff_t end)
{
    const struct sa_layer *layers = batch->encoder->layers;
    int status = sa_micro_batch_rows(batch, NULL, &layers[first], between_attentions);
    for (ptrdiff_t i = first; i < end; ++i) {
        if (!status) status = sa_micro_batch_attend(batch, &layers[i]);
        if (!status)
            status = sa_micro_batch_rows(batch, &layers[i], i + 1 < end ? &layers[i + 1] : NULL, between_attentions);
    }
    return status;
}

/* ---- encoders of random weights ---- */

enum { LAYERS = 2, D_MODEL = 40, D_FF = 56, ENCODER_HEADS = 4, HEAD_DIM = 12, VALUE_DIM = 10, MAX_POSITIONS = 300 };
enum { RELATIVE_REACH = 7 };

enum norms { POST_NORM, PRE_NORM, PRE_AND_POST_NORM, NUM_NORMS };

enum feature {
    ROTARY = 1,
    ROTARY_NEIGHBOURS = 2, /* pairs of neighbours, of a part of the channels */
    NORM_OF_HEADS = 4,     /* queries and keys, each head by itself */
    NORM_OF_ROWS = 8,      /* queries and keys, all heads of a row together */
    LOCAL = 16,            /* a window in the second layer */
    CAPPED = 32,
    DISTANT = 64, /* ALiBi */
    SUNK = 128,   /* attention sinks */
    RELATIVE = 256,
    GROUPED = 512,
    FORWARD = 1024, /* causal */
    BARE = 2048,    /* no biases; RMSNorm */
};

/* n numbers in [-4, 4) times a power of two. */
static float *small_floats(ptrdiff_t n, float power_of_two)
{
    float *x = floats(n);
    for (ptrdiff_t i = 0; i < n; ++i)
        x[i] *= power_of_two;
    return x;
}

static struct sa_dense random_dense(ptrdiff_t depth, ptrdiff_t width, int features)
{
    float *weight = small_floats(depth * width, 0x1p-5f);
    struct sa_dense d = {.weight = {pack(weight, depth, width), depth, width}};
    if (!(features & BARE)) d.bias = small_floats(width, 0x1p-3f);
    free(weight);
    return d;
}

static struct sa_norm_weights random_norm(ptrdiff_t width, int features)
{
    struct sa_norm_weights n = {.weight = small_floats(width, 0x1p-2f), .eps = 1e-5, .width = width};
    n.rms = (features & BARE) != 0;
    if (!n.rms) n.bias = small_floats(width, 0x1p-3f);
    return n;
}

static struct sa_attention_options random_options(int features, int index)
{
    static const double slopes[ENCODER_HEADS] = {0.5, 0.25, 0.125, 0.0625},
                        sinks[ENCODER_HEADS] = {0.0, 1.0, -2.0, 3.0};
    static double relative_bias[ENCODER_HEADS * (2 * RELATIVE_REACH + 1)];
    struct sa_attention_options o = {.scale = 0.25};
    if (features & LOCAL && index == 1) o.left = o.right = (struct sa_side){1, 9};
    if (features & CAPPED) o.softcap = 3.0;
    if (features & DISTANT) o.alibi_slopes = slopes;
    if (features & SUNK) o.sinks = sinks;
    if (features & FORWARD) o.causal = SA_CAUSAL_BOTTOM_RIGHT;
    if (features & RELATIVE) {
        for (size_t i = 0; i < sizeof relative_bias / sizeof *relative_bias; ++i)
            relative_bias[i] = (double)random_float();
        o.relative_bias = relative_bias;
        o.relative_reach = RELATIVE_REACH;
    }
    return o;
}

static struct sa_layer random_layer(enum norms norms, int gated, int features, int index)
{
    const ptrdiff_t kv_heads = features & GROUPED ? 2 : ENCODER_HEADS;
    const ptrdiff_t queries = ENCODER_HEADS * HEAD_DIM, keys = kv_heads * HEAD_DIM, values = kv_heads * VALUE_DIM;
    struct sa_layer l = {
        .num_heads = ENCODER_HEADS,
        .num_kv_heads = kv_heads,
        .head_dim = HEAD_DIM,
        .value_dim = VALUE_DIM,
        .rotary_table = features & (ROTARY | ROTARY_NEIGHBOURS) ? 0 : -1,
        .rotary_pairs = features & ROTARY_NEIGHBOURS ? HEAD_DIM / 4 : HEAD_DIM / 2,
        .rotary_interleaved = (features & ROTARY_NEIGHBOURS) != 0,
        .norm_first = norms != POST_NORM,
        .gated = gated,
        .activation = (enum sa_activation)(SA_GELU + (int)norms + gated),
    };
    l.attention = random_options(features, index);
    l.qkv = random_dense(D_MODEL, queries + keys + values, features);
    l.output = random_dense(ENCODER_HEADS * VALUE_DIM, D_MODEL, features);
    l.up = random_dense(D_MODEL, gated ? 2 * D_FF : D_FF, features);
    l.down = random_dense(D_FF, D_MODEL, features);
    if (features & (NORM_OF_HEADS | NORM_OF_ROWS)) {
        l.query_norm = random_norm(features & NORM_OF_HEADS ? HEAD_DIM : queries, features);
        l.key_norm = random_norm(features & NORM_OF_HEADS ? HEAD_DIM : keys, features);
    }
    l.attention_norm = random_norm(D_MODEL, features);
    l.feed_forward_norm = random_norm(D_MODEL, features);
    if (norms == PRE_AND_POST_NORM) {
        l.attention_post_norm = random_norm(D_MODEL, features);
        l.feed_forward_post_norm = random_norm(D_MODEL, features);
    }
    return l;
}

static void free_dense(const struct sa_dense *d)
{
    free((void *)d->weight.data), free((void *)d->bias);
}

static void free_norm(const struct sa_norm_weights *n)
{
    free((void *)n->weight), free((void *)n->bias);
}

static void free_layer(const struct sa_layer *l)
{
    const struct sa_dense *dense[] = {&l->qkv, &l->output, &l->up, &l->down};
    const struct sa_norm_weights *norms[] = {&l->query_norm,        &l->key_norm,
                                             &l->attention_norm,    &l->attention_post_norm,
                                             &l->feed_forward_norm, &l->feed_forward_post_norm};
    for (size_t i = 0; i < sizeof dense / sizeof *dense; ++i)
        free_dense(dense[i]);
    for (size_t i = 0; i < sizeof norms / sizeof *norms; ++i)
        free_norm(norms[i]);
}

/* cosines and sines (MAX_POSITIONS, pairs) */
static struct sa_rotary_table rotary_table(ptrdiff_t pairs)
{
    static const double frequencies[] = {1.0, 0.5, 0.2, 0.05, 0.01, 0.001};
    float *cosines = room(MAX_POSITIONS * pairs), *sines = room(MAX_POSITIONS * pairs);
    sa_rotary_angles(frequencies, pairs, MAX_POSITIONS, 1.0, cosines, sines);
    return (struct sa_rotary_table){cosines, sines};
}

/* Ragged sequences: on one thread two micro-batches, on three blocks of rows or shared columns. */
static void encoder(enum norms norms, int gated, int features)
{
    static const int64_t many[] = {0, 5, 5, 6, 136, 173, 433, 441}, few[] = {0, 1, 24, 31};
    struct sa_layer layers[LAYERS];
    for (int i = 0; i < LAYERS; ++i)
        layers[i] = random_layer(norms, gated, features, i);
    const struct sa_encoder e = {kernels, kernels, layers, LAYERS, D_MODEL};
    const struct sa_rotary_table table = rotary_table(layers[0].rotary_pairs);
    for (int is_few = 0; is_few < 2; ++is_few) {
        const int64_t *cu_seqlens = is_few ? few : many;
        const ptrdiff_t sequences = is_few ? 3 : 7, tokens = (ptrdiff_t)cu_seqlens[sequences];
        float *x = floats(tokens * D_MODEL), *y = room(tokens * D_MODEL);
        for (int threads = 1; threads <= 3; threads += 2) {
            memcpy(y, x, (size_t)(tokens * D_MODEL) * sizeof *y);
            if (sa_encoder_run(&e, y, cu_seqlens, sequences, &table, run_layers, 0, LAYERS, threads) != 0) exit(4);
            for (ptrdiff_t i = 0; i < tokens * D_MODEL; ++i)
                if (!(y[i] - y[i] == 0.0f)) exit(5); /* not finite: the hash would say little */
            report("encoder", (ptrdiff_t[]){norms, gated, features, tokens, threads}, 5,
                   hash(y, tokens * D_MODEL, HASH_START));
        }
        free(x), free(y);
    }
    for (int i = 0; i < LAYERS; ++i)
        free_layer(&layers[i]);
    free((void *)table.cosines), free((void *)table.sines);
}

static void all_encoders(void)
{
    static const int features[] = {
        0,
        BARE,
        ROTARY,
        ROTARY_NEIGHBOURS | BARE,
        NORM_OF_HEADS,
        NORM_OF_ROWS | GROUPED,
        LOCAL,
        CAPPED,
        DISTANT,
        SUNK,
        RELATIVE,
        GROUPED,
        FORWARD,
        ROTARY | NORM_OF_HEADS | LOCAL | CAPPED | DISTANT | SUNK | RELATIVE | GROUPED | BARE,
        ROTARY_NEIGHBOURS | NORM_OF_ROWS | LOCAL | SUNK | RELATIVE | FORWARD,
    };
    for (int norms = POST_NORM; norms < NUM_NORMS; ++norms)
        for (int gated = 0; gated < 2; ++gated)
            for (size_t i = 0; i < sizeof features / sizeof *features; ++i)
                encoder((enum norms)norms, gated, features[i]);
}

/* Positions up to 100000, every one of them. */
static void all_angles(void)
{
    enum { PAIRS = 5, POSITIONS = 100001 };
    static const double frequencies[PAIRS] = {1.0, 0.31622776601683794, 0.1, 0.01, 0.0001};
    static const double factors[] = {1.0, 0.7071067811865476};
    float *cosines = room(POSITIONS * PAIRS), *sines = room(POSITIONS * PAIRS);
    for (int i = 0; i < 2; ++i) {
        sa_rotary_angles(frequencies, PAIRS, POSITIONS, factors[i], cosines, sines);
        report("rotary_angles", (ptrdiff_t[]){POSITIONS, PAIRS, i}, 3,
               hash(sines, POSITIONS * PAIRS, hash(cosines, POSITIONS * PAIRS, HASH_START)));
    }
    free(cosines), free(sines);
}

#endif
