/* SPDX-License-Identifier: Apache-2.0 */
/* encoder.c -- memory, blocks of rows and threads of an encoder. No arithmetic, and no order of steps: see
 * encoder.h. */
#include "plan/encoder.h"
#include "plan/tasks.h"

#include <stdlib.h>

_Static_assert(SA_ROW_BLOCK % SA_ROW_BLOCK_MULTIPLE == 0, "rounded up, a row block still fits into its scratch");

/* ---- dtypes of activations ---- */

static ptrdiff_t dtype_bytes(enum sa_dtype dtype)
{
    return dtype == SA_BFLOAT16 ? 2 : sizeof(float);
}

static enum sa_dtype operand_dtype(const struct sa_encoder *e)
{
    return sa_formats[e->products->format].operand;
}

/* Queries and keys that are normed or rotated stay float32; attention rounds them. */
static enum sa_dtype qkv_dtype(const struct sa_encoder *e, const struct sa_layer *layer)
{
    int changed = layer->rotary_table >= 0 || layer->query_norm.weight || layer->key_norm.weight;
    return changed ? SA_FLOAT32 : operand_dtype(e);
}

/* Between the two matrices of the feed-forward network; a gate computes in float32. */
static enum sa_dtype hidden_dtype(const struct sa_encoder *e, const struct sa_layer *layer)
{
    return layer->gated ? SA_FLOAT32 : operand_dtype(e);
}

/* ---- memory ---- */

/* Buffers one after the other, in whole cache lines. Without a base a buffer has no address, and only the size is
 * counted. */
struct carving {
    char *base;
    ptrdiff_t used; /* bytes */
};

static char *carve(struct carving *c, ptrdiff_t bytes)
{
    char *at = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return at;
}

static ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

/* Bytes of a row of each buffer, in the layer that needs the most. */
struct row_bytes {
    ptrdiff_t qkv, context, hidden, gated;
    int positions;
};

static struct row_bytes row_bytes_of(const struct sa_encoder *e)
{
    struct row_bytes bytes = {0};
    for (ptrdiff_t i = 0; i < e->num_layers; ++i) {
        const struct sa_layer *layer = &e->layers[i];
        ptrdiff_t size = dtype_bytes(qkv_dtype(e, layer));
        bytes.qkv = larger(bytes.qkv, layer->qkv.weight.width * size);
        bytes.context = larger(bytes.context, layer->output.weight.depth * size);
        bytes.hidden = larger(bytes.hidden, layer->up.weight.width * dtype_bytes(hidden_dtype(e, layer)));
        if (layer->gated) bytes.gated = larger(bytes.gated, layer->down.weight.depth * (ptrdiff_t)sizeof(float));
        bytes.positions |= layer->rotary_table >= 0;
    }
    return bytes;
}

static void carve_rows(const struct sa_encoder *e, const struct row_bytes *bytes, struct carving *c, ptrdiff_t rows,
                       struct sa_rows *r)
{
    r->spare = (float *)carve(c, rows * e->d_model * (ptrdiff_t)sizeof(float));
    r->hidden = carve(c, rows * bytes->hidden);
    r->gated = (float *)carve(c, rows * bytes->gated);
}

/* Do threads share the columns of every step? They do with few rows for each thread. */
static int shares_columns(ptrdiff_t rows, int num_threads)
{
    return num_threads > 1 && rows < SA_ROW_BLOCK_LEAST * (ptrdiff_t)num_threads;
}

/* The activations of a micro-batch, and behind them the buffers of its row blocks. */
static void carve_micro_batch(const struct sa_encoder *e, struct carving *c, ptrdiff_t tokens, ptrdiff_t sequences,
                              struct sa_micro_batch *b, int64_t **cu_seqlens)
{
    const struct row_bytes bytes = row_bytes_of(e);
    struct sa_rows r;
    b->qkv = carve(c, tokens * bytes.qkv);
    b->context = carve(c, tokens * bytes.context);
    *cu_seqlens = (int64_t *)carve(c, (sequences + 1) * (ptrdiff_t)sizeof(int64_t));
    b->positions = bytes.positions ? (int32_t *)carve(c, tokens * (ptrdiff_t)sizeof(int32_t)) : NULL;
    b->scratch = carve(c, 0);
    if (shares_columns(tokens, b->num_threads))
        carve_rows(e, &bytes, c, tokens, &r);
    else
        for (int i = 0; i < b->num_threads; ++i)
            carve_rows(e, &bytes, c, SA_ROW_BLOCK, &r);
}

/* ---- the run ---- */

/* Returns the end of the sequences from `first` on that fit into a micro-batch, at least one. */
static ptrdiff_t micro_batch_end(const int64_t *cu_seqlens, ptrdiff_t first, ptrdiff_t sequences, int num_threads)
{
    ptrdiff_t end = first + 1;
    while (end < sequences && cu_seqlens[end + 1] - cu_seqlens[first] <= SA_MICRO_BATCH_TOKENS * (int64_t)num_threads)
        ++end;
    return end;
}

static void begin_micro_batch(struct sa_micro_batch *b, float *x, const int64_t *cu_seqlens, ptrdiff_t first,
                              ptrdiff_t end, int64_t *local)
{
    b->x = x + cu_seqlens[first] * b->encoder->d_model;
    b->sequences = end - first;
    for (ptrdiff_t i = 0; i <= b->sequences; ++i)
        local[i] = cu_seqlens[first + i] - cu_seqlens[first];
    b->cu_seqlens = local;
    b->tokens = (ptrdiff_t)local[b->sequences];
    for (ptrdiff_t i = 0; b->positions && i < b->sequences; ++i)
        for (int64_t token = local[i]; token < local[i + 1]; ++token)
            b->positions[token] = (int32_t)(token - local[i]);
}

int sa_encoder_run(const struct sa_encoder *e, float *x, const int64_t *cu_seqlens, ptrdiff_t sequences,
                   const struct sa_rotary_table *tables, sa_layer_loop loop, ptrdiff_t first_layer, ptrdiff_t end_layer,
                   int num_threads)
{
    struct sa_micro_batch b = {.encoder = e, .tables = tables, .num_threads = num_threads};
    ptrdiff_t tokens = 0, count = 0, end;
    for (ptrdiff_t first = 0; first < sequences; first = end) {
        end = micro_batch_end(cu_seqlens, first, sequences, num_threads);
        tokens = larger(tokens, (ptrdiff_t)(cu_seqlens[end] - cu_seqlens[first]));
        count = larger(count, end - first);
    }
    struct carving carving = {NULL, 0};
    int64_t *local;
    carve_micro_batch(e, &carving, tokens, count, &b, &local);
    char *memory = malloc((size_t)carving.used + 64);
    if (!memory) return SA_NO_MEMORY;
    carving = (struct carving){memory + (64 - (uintptr_t)memory % 64) % 64, 0};
    carve_micro_batch(e, &carving, tokens, count, &b, &local);
    int status = SA_OK;
    for (ptrdiff_t first = 0; first < sequences && !status; first = end) {
        end = micro_batch_end(cu_seqlens, first, sequences, num_threads);
        begin_micro_batch(&b, x, cu_seqlens, first, end, local);
        status = loop(&b, first_layer, end_layer);
    }
    free(memory);
    return status;
}

/* ---- attention, over all rows ---- */

static struct sa_array heads_at(char *data, ptrdiff_t row_numbers, ptrdiff_t dim, ptrdiff_t size)
{
    return (struct sa_array){.data = data, .row = row_numbers * size, .head = dim * size, .col = size};
}

int sa_micro_batch_attend(const struct sa_micro_batch *b, const struct sa_layer *layer)
{
    const struct sa_encoder *e = b->encoder;
    const enum sa_dtype dtype = qkv_dtype(e, layer);
    const ptrdiff_t size = dtype_bytes(dtype), width = layer->qkv.weight.width;
    char *key = b->qkv + layer->num_heads * layer->head_dim * size;
    char *value = key + layer->num_kv_heads * layer->head_dim * size;
    struct sa_attention a = {
        .query = heads_at(b->qkv, width, layer->head_dim, size),
        .key = heads_at(key, width, layer->head_dim, size),
        .value = heads_at(value, width, layer->value_dim, size),
        .out = heads_at(b->context, layer->output.weight.depth, layer->value_dim, size),
        .dtype = dtype,
        .kv_dtype = dtype,
        .items = b->sequences,
        .num_heads = layer->num_heads,
        .num_kv_heads = layer->num_kv_heads,
        .head_dim = layer->head_dim,
        .value_dim = layer->value_dim,
        .cu_seqlens_q = b->cu_seqlens,
        .cu_seqlens_kv = b->cu_seqlens,
        .options = layer->attention,
    };
    a.options.format = e->products->format;
    return sa_attention_run(e->kernels, &a, SA_ATTENTION, b->num_threads);
}

/* ---- blocks of rows, between two attentions ---- */

struct rows_job {
    const struct sa_micro_batch *batch;
    const struct sa_layer *done, *next;
    sa_between_attentions between;
    ptrdiff_t rows_per_task;
};

/* One block of rows; block_rows is the most that its buffers hold. */
static int run_block(const struct rows_job *job, ptrdiff_t first, ptrdiff_t count, ptrdiff_t block_rows, int slot,
                     int num_threads)
{
    const struct sa_micro_batch *b = job->batch;
    const struct row_bytes bytes = row_bytes_of(b->encoder);
    struct carving carving = {b->scratch, 0};
    struct sa_rows r;
    for (int i = 0; i <= slot; ++i)
        carve_rows(b->encoder, &bytes, &carving, block_rows, &r);
    r.batch = b;
    r.first = first;
    r.count = count;
    r.x = b->x + first * b->encoder->d_model;
    r.num_threads = num_threads;
    r.status = SA_OK;
    job->between(&r, job->done, job->next);
    return r.status;
}

static int block_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t first = index * job->rows_per_task;
    return run_block(job, first, smaller(job->rows_per_task, job->batch->tokens - first), SA_ROW_BLOCK, sa_slot(), 1);
}

static double weight_size(const struct sa_dense *d)
{
    return (double)d->weight.depth * (double)d->weight.width;
}

static double multiply_adds(const struct rows_job *job)
{
    double of_row = job->next ? weight_size(&job->next->qkv) : 0.0;
    if (job->done)
        of_row += weight_size(&job->done->output) + weight_size(&job->done->up) + weight_size(&job->done->down);
    return of_row * (double)job->batch->tokens;
}

int sa_micro_batch_rows(const struct sa_micro_batch *b, const struct sa_layer *done, const struct sa_layer *next,
                        sa_between_attentions between)
{
    struct rows_job job = {b, done, next, between, 0};
    if (shares_columns(b->tokens, b->num_threads)) return run_block(&job, 0, b->tokens, b->tokens, 0, b->num_threads);
    ptrdiff_t tasks =
        b->num_threads * task_count(b->tokens, b->num_threads * SA_ROW_BLOCK); /* so that the threads end together */
    job.rows_per_task = task_count(task_count(b->tokens, tasks), SA_ROW_BLOCK_MULTIPLE) * SA_ROW_BLOCK_MULTIPLE;
    return sa_parallel_for(task_count(b->tokens, job.rows_per_task), block_task, &job,
                           worthwhile_threads(multiply_adds(&job), b->num_threads));
}

/* ---- the steps of a block of rows ---- */

void sa_rows_norm(struct sa_rows *r, const struct sa_norm_weights *n, const float *x, const float *residual, float *y)
{
    const struct sa_encoder *e = r->batch->encoder;
    if (r->status) return;
    if (!n->weight) {
        for (ptrdiff_t i = 0; i < r->count * e->d_model; ++i)
            y[i] = residual ? x[i] + residual[i] : x[i];
        return;
    }
    struct sa_norm args = {.x = x,
                           .weight = n->weight,
                           .bias = n->bias,
                           .residual = residual,
                           .y = y,
                           .rows = r->count,
                           .width = e->d_model,
                           .parts = 1,
                           .stride = e->d_model,
                           .eps = n->eps,
                           .rms = n->rms};
    r->status = sa_norm_run(e->kernels, &args, r->num_threads);
}

const float *sa_rows_normed(struct sa_rows *r, const struct sa_norm_weights *n, const float *x)
{
    if (!n->weight) return x;
    sa_rows_norm(r, n, x, NULL, r->spare);
    return r->spare;
}

/* y = act(x W + b) + residual */
static void dense(struct sa_rows *r, const struct sa_dense *d, enum sa_activation activation, const void *x,
                  enum sa_dtype x_dtype, const float *residual, void *y, enum sa_dtype y_dtype)
{
    if (r->status) return;
    struct sa_linear args = {.x = x,
                             .bias = d->bias,
                             .residual = residual,
                             .weight = d->weight,
                             .y = y,
                             .x_stride = d->weight.depth,
                             .y_stride = d->weight.width,
                             .residual_stride = d->weight.width,
                             .rows = r->count,
                             .activation = activation,
                             .x_dtype = x_dtype,
                             .y_dtype = y_dtype};
    r->status = sa_linear_run(r->batch->encoder->products, &args, r->num_threads);
}

/* Norms heads in place. They lie side by side in rows of `stride` numbers, heads_width numbers in all. */
static void norm_heads(struct sa_rows *r, const struct sa_norm_weights *n, ptrdiff_t heads_width, ptrdiff_t stride,
                       float *x)
{
    if (r->status || !n->weight) return;
    struct sa_norm args = {.x = x,
                           .weight = n->weight,
                           .bias = n->bias,
                           .y = x,
                           .rows = r->count,
                           .width = n->width,
                           .parts = heads_width / n->width,
                           .stride = stride,
                           .eps = n->eps,
                           .rms = n->rms};
    r->status = sa_norm_run(r->batch->encoder->kernels, &args, r->num_threads);
}

static void rotate_heads(struct sa_rows *r, const struct sa_layer *layer, ptrdiff_t num_heads, float *x)
{
    if (r->status || layer->rotary_table < 0) return;
    const struct sa_rotary_table *table = &r->batch->tables[layer->rotary_table];
    struct sa_rotary args = {.x = x,
                             .cosines = table->cosines,
                             .sines = table->sines,
                             .positions = r->batch->positions + r->first,
                             .x_stride = layer->qkv.weight.width,
                             .rows = r->count,
                             .num_heads = num_heads,
                             .head_dim = layer->head_dim,
                             .pairs = layer->rotary_pairs,
                             .interleaved = layer->rotary_interleaved};
    r->status = sa_rotary_run(r->batch->encoder->kernels, &args, r->num_threads);
}

void sa_rows_project(struct sa_rows *r, const struct sa_layer *layer, const float *x)
{
    const struct sa_encoder *e = r->batch->encoder;
    const enum sa_dtype dtype = qkv_dtype(e, layer);
    const ptrdiff_t width = layer->qkv.weight.width;
    const ptrdiff_t queries = layer->num_heads * layer->head_dim, keys = layer->num_kv_heads * layer->head_dim;
    char *qkv = r->batch->qkv + r->first * width * dtype_bytes(dtype);
    dense(r, &layer->qkv, SA_IDENTITY, x, SA_FLOAT32, NULL, qkv, dtype);
    if (dtype != SA_FLOAT32) return; /* bfloat16 rows are neither normed nor rotated */
    norm_heads(r, &layer->query_norm, queries, width, (float *)qkv);
    norm_heads(r, &layer->key_norm, keys, width, (float *)qkv + queries);
    rotate_heads(r, layer, layer->num_heads, (float *)qkv);
    rotate_heads(r, layer, layer->num_kv_heads, (float *)qkv + queries);
}

void sa_rows_output(struct sa_rows *r, const struct sa_layer *layer, const float *residual, float *y)
{
    const enum sa_dtype dtype = qkv_dtype(r->batch->encoder, layer);
    const char *context = r->batch->context + r->first * layer->output.weight.depth * dtype_bytes(dtype);
    dense(r, &layer->output, SA_IDENTITY, context, dtype, residual, y, SA_FLOAT32);
}

void sa_rows_feed_forward(struct sa_rows *r, const struct sa_layer *layer, const float *x, const float *residual,
                          float *y)
{
    const struct sa_encoder *e = r->batch->encoder;
    const enum sa_dtype dtype = hidden_dtype(e, layer);
    const void *hidden = layer->gated ? (const void *)r->gated : r->hidden;
    dense(r, &layer->up, layer->gated ? SA_IDENTITY : layer->activation, x, SA_FLOAT32, NULL, r->hidden, dtype);
    if (layer->gated && !r->status)
        r->status = sa_gate_run(e->kernels, layer->activation, r->hidden, r->count, layer->down.weight.depth, r->gated,
                                r->num_threads);
    dense(r, &layer->down, SA_IDENTITY, hidden, dtype, residual, y, SA_FLOAT32);
}
