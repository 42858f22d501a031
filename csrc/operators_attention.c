/* operators_attention.c -- attention over all its tasks: which piece of the arrays a task computes, and how many threads
 * are worth waking. No arithmetic here. */
#include "operators.h"

#include <stdlib.h>

static ptrdiff_t leading_offset(const struct sa_attention *a, const struct sa_array *array, ptrdiff_t item)
{
    ptrdiff_t offset = 0;
    for (int d = a->num_leading - 1; d >= 0; --d) {
        offset += item % a->leading_shape[d] * array->leading[d];
        item /= a->leading_shape[d];
    }
    return offset;
}

static char *item_head(const struct sa_attention *a, const struct sa_array *array, ptrdiff_t item, ptrdiff_t head)
{
    return array->data ? array->data + leading_offset(a, array, item) + head * array->head : NULL;
}

static void move_rows(char **data, const struct sa_array *array, ptrdiff_t rows)
{
    if (*data) *data += rows * array->row;
}

/* Packed: there are no leading dimensions, an item is a range of rows. Returns how many keys it has. */
static ptrdiff_t take_rows(const struct sa_attention *a, ptrdiff_t item, struct sa_tile *t)
{
    ptrdiff_t query = (ptrdiff_t)a->cu_seqlens_q[item], key = (ptrdiff_t)a->cu_seqlens_kv[item];
    t->q_len = (ptrdiff_t)a->cu_seqlens_q[item + 1] - query;
    t->query += query * a->query.row;
    t->key += key * a->key.row;
    if (t->value) t->value += key * a->value.row;
    if (t->mask) t->mask += query * a->mask.row;
    if (t->bias) t->bias += query * a->bias.row;
    if (t->grad_out) t->grad_out += query * a->grad_out.row;
    move_rows(&t->out, &a->out, query);
    move_rows(&t->lse, &a->lse, query);
    move_rows(&t->grad_query, &a->grad_query, query);
    move_rows(&t->grad_sinks, &a->grad_sinks, query);
    move_rows(&t->grad_alibi, &a->grad_alibi, query);
    move_rows(&t->grad_key, &a->grad_key, key);
    move_rows(&t->grad_value, &a->grad_value, key);
    return (ptrdiff_t)a->cu_seqlens_kv[item + 1] - key;
}

static struct sa_tile tile_of(const struct sa_attention *a, ptrdiff_t item, ptrdiff_t kv_head, ptrdiff_t tile)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, head = kv_head * group;
    ptrdiff_t rows_of = a->block_table ? 0 : item; /* pages belong to no item */
    struct sa_tile t = {
        .query = item_head(a, &a->query, item, head),
        .key = item_head(a, &a->key, rows_of, kv_head),
        .value = item_head(a, &a->value, rows_of, kv_head),
        .key_scale = item_head(a, &a->key_scale, item, kv_head),
        .value_scale = item_head(a, &a->value_scale, item, kv_head),
        .mask = item_head(a, &a->mask, item, head),
        .bias = item_head(a, &a->bias, item, head),
        .out = item_head(a, &a->out, item, head),
        .lse = item_head(a, &a->lse, item, head),
        .grad_out = item_head(a, &a->grad_out, item, head),
        .grad_query = item_head(a, &a->grad_query, item, head),
        .grad_key = item_head(a, &a->grad_key, item, kv_head),
        .grad_value = item_head(a, &a->grad_value, item, kv_head),
        .grad_sinks = item_head(a, &a->grad_sinks, item, head),
        .grad_alibi = item_head(a, &a->grad_alibi, item, head),
        .item = item,
        .head = head,
        .pages = a->block_table ? a->block_table + item * a->table_width : NULL,
        .alibi_slopes = a->alibi_slopes ? a->alibi_slopes + head : NULL,
        .sinks = a->sinks ? a->sinks + head : NULL,
        .q_len = a->q_len,
        .row0 = tile * SA_TASK_ROWS,
    };
    ptrdiff_t kv_len = a->cu_seqlens_q ? take_rows(a, item, &t) : a->kv_len;
    t.valid_keys = a->kv_lengths ? (ptrdiff_t)a->kv_lengths[item / a->items_per_length] : kv_len;
    /* The last query stands at the last key: of all, or of the valid ones where that is asked for by name. */
    if (a->causal == SA_CAUSAL_BOTTOM_RIGHT || a->block_table) kv_len = t.valid_keys;
    t.position0 = a->causal == SA_CAUSAL_TOP_LEFT ? 0 : kv_len - t.q_len;
    t.rows = smaller(t.q_len * group - t.row0, SA_TASK_ROWS);
    return t;
}

/* All tiles of a call, in the order in which they are begun. */
struct tiles {
    ptrdiff_t count, per_head; /* per_head: dense, or of the longest sequence */
    ptrdiff_t *first;          /* packed: the first tile of item i, and the count in the end; otherwise NULL */
    double scores;             /* of one head of all items */
};

static ptrdiff_t tiles_of(const struct sa_attention *a, ptrdiff_t q_len)
{
    return task_count(q_len * (a->num_heads / a->num_kv_heads), SA_TASK_ROWS);
}

/* SA_OK, and the caller frees first; or SA_NO_MEMORY. */
static int plan_tiles(const struct sa_attention *a, struct tiles *tiles)
{
    ptrdiff_t per_head = tiles_of(a, a->q_len);
    *tiles = (struct tiles){per_head * a->items * a->num_kv_heads, per_head, NULL,
                            (double)a->items * (double)a->q_len * (double)a->kv_len};
    if (!a->cu_seqlens_q) return SA_OK;
    tiles->count = 0, tiles->scores = 0.0; /* sequences differ in length, and so in the number of their tiles */
    tiles->first = malloc((size_t)(a->items + 1) * sizeof *tiles->first);
    if (!tiles->first) return SA_NO_MEMORY;
    for (ptrdiff_t i = 0; i < a->items; ++i) {
        ptrdiff_t q_len = (ptrdiff_t)(a->cu_seqlens_q[i + 1] - a->cu_seqlens_q[i]);
        tiles->first[i] = tiles->count;
        tiles->count += tiles_of(a, q_len) * a->num_kv_heads;
        tiles->scores += (double)q_len * (double)(a->cu_seqlens_kv[i + 1] - a->cu_seqlens_kv[i]);
    }
    tiles->first[a->items] = tiles->count;
    return SA_OK;
}

/* The item that a tile of a packed batch belongs to. */
static ptrdiff_t packed_item(const struct sa_attention *a, const struct tiles *tiles, ptrdiff_t index)
{
    ptrdiff_t low = 0, high = a->items; /* first[low] <= index < first[high] */
    while (high - low > 1) {
        ptrdiff_t middle = low + (high - low) / 2;
        if (tiles->first[middle] <= index)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Tiles go head by head, so that keys and values stay in the cache, and begin with a head's last: under a causal mask
 * that is the one with the most keys, and what remains at the very end is short. */
static struct sa_tile tile_at(const struct sa_attention *a, const struct tiles *tiles, ptrdiff_t index)
{
    ptrdiff_t item, rest, per_head = tiles->per_head;
    if (tiles->first) {
        item = packed_item(a, tiles, index);
        rest = index - tiles->first[item];
        per_head = (tiles->first[item + 1] - tiles->first[item]) / a->num_kv_heads;
    } else {
        item = index / (per_head * a->num_kv_heads);
        rest = index % (per_head * a->num_kv_heads);
    }
    return tile_of(a, item, rest / per_head, per_head - 1 - rest % per_head);
}

struct attention_job {
    const struct sa_kernels *kernels;
    const struct sa_attention *args;
    struct tiles tiles;
    ptrdiff_t spans; /* of the keys of one item */
    size_t workspace;
    int (*compute)(const struct sa_attention *, const struct sa_tile *, void *); /* forward */
};

static double multiply_adds(const struct attention_job *job)
{
    const struct sa_attention *a = job->args;
    return job->tiles.scores * (double)a->num_heads * (double)(a->head_dim + a->value_dim);
}

/* ---- forward ---- */

static int attention_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    struct sa_tile t = tile_at(job->args, &job->tiles, index);
    void *workspace = sa_workspace(job->workspace);
    return workspace ? job->compute(job->args, &t, workspace) : SA_NO_MEMORY;
}

/* The columns of one span of keys: all the queries' rows, one tile after the other. */
static int column_sums_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct sa_attention *a = job->args;
    ptrdiff_t head = index / job->spans, span = index % job->spans;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t tile = 0; tile < job->tiles.per_head && !status; ++tile) {
        struct sa_tile t = tile_of(a, head / a->num_kv_heads, head % a->num_kv_heads, tile);
        status = job->kernels->column_sums(a, &t, span * SA_KEY_SPAN, workspace);
    }
    return status;
}

int sa_attention_run(const struct sa_kernels *kernels, const struct sa_attention *a, enum sa_result result,
                     int num_threads)
{
    if (a->dtype == SA_FLOAT64) kernels = kernels->float64;
    kernels = sa_for_products(kernels, a->bfloat16);
    struct attention_job job = {
        .kernels = kernels,
        .args = a,
        .spans = task_count(a->kv_len, SA_KEY_SPAN),
        .workspace = kernels->attention_workspace(a),
        .compute = result == SA_WEIGHTS          ? kernels->attention_weights
                   : result == SA_ROW_STATISTICS ? kernels->row_statistics
                                                 : kernels->attention,
    };
    int status = plan_tiles(a, &job.tiles), by_columns = result == SA_COLUMN_SUMS;
    ptrdiff_t tasks = by_columns ? job.spans * a->items * a->num_kv_heads : job.tiles.count;
    if (!status && tasks > 0 && !sa_workspace(job.workspace)) status = SA_NO_MEMORY; /* before anything is written */
    if (!status)
        status = sa_parallel_for(tasks, by_columns ? column_sums_task : attention_task, &job,
                                 worthwhile_threads(multiply_adds(&job), num_threads));
    free(job.tiles.first);
    return status;
}

/* ---- backward ---- */

enum part { OWN_ROWS, KEYS, BOTH }; /* of the gradients: the queries' and their heads'; the keys' and values' */
enum { ALL_KEYS = -1 };

/* A tile's part in the gradients. */
static int backward_tile(const struct attention_job *job, struct sa_tile t, enum part part, ptrdiff_t span,
                         void *workspace)
{
    if (part == OWN_ROWS) t.grad_key = t.grad_value = NULL;
    if (part == KEYS) t.grad_query = t.grad_sinks = t.grad_alibi = NULL;
    ptrdiff_t first = span == ALL_KEYS ? 0 : span * SA_KEY_SPAN, last = first + SA_KEY_SPAN;
    return job->kernels->attention_backward(job->args, &t, first, span == ALL_KEYS ? PTRDIFF_MAX : last, workspace);
}

/* All tiles of a head, in order. */
static int backward_tiles(const struct attention_job *job, ptrdiff_t head_index, enum part part, ptrdiff_t span)
{
    const struct sa_attention *a = job->args;
    ptrdiff_t item = head_index / a->num_kv_heads, kv_head = head_index % a->num_kv_heads;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t tile = 0; !status; ++tile) {
        struct sa_tile t = tile_of(a, item, kv_head, tile);
        if (t.rows <= 0) break;
        status = backward_tile(job, t, part, span, workspace);
    }
    return status;
}

static int backward_head_task(void *context, ptrdiff_t index)
{
    return backward_tiles(context, index, BOTH, ALL_KEYS);
}

static int backward_keys_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    return backward_tiles(job, index / job->spans, KEYS, index % job->spans);
}

static int backward_rows_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    void *workspace = sa_workspace(job->workspace);
    if (!workspace) return SA_NO_MEMORY;
    return backward_tile(job, tile_at(job->args, &job->tiles, index), OWN_ROWS, ALL_KEYS, workspace);
}

/* Is the item the one of this number among those that have a bias of their own? */
static int own_item(const struct sa_attention *a, const struct sa_array *bias, ptrdiff_t item, ptrdiff_t number)
{
    for (int d = a->num_leading - 1; d >= 0; --d) {
        if (bias->leading[d]) {
            if (item % a->leading_shape[d] != number % a->leading_shape[d]) return 0;
            number /= a->leading_shape[d];
        }
        item /= a->leading_shape[d];
    }
    return 1;
}

/* Does every row of the bias belong to one tile? Not where all heads have the same one and a query's heads, a group,
 * lie in two tiles. */
static int own_rows(const struct sa_attention *a, const struct sa_array *bias)
{
    return bias->row && (bias->head || SA_TASK_ROWS % (a->num_heads / a->num_kv_heads) == 0);
}

/* One task for each of the bias' own dimensions; what it is broadcast over is summed in order within the task. */
static int backward_bias_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct sa_attention *a = job->args;
    const struct sa_array *bias = &a->grad_bias;
    ptrdiff_t tiles = job->tiles.per_head; /* packed batches have no such gradient */
    ptrdiff_t own_tile = own_rows(a, bias) ? index % tiles : -1, rest = own_tile < 0 ? index : index / tiles;
    ptrdiff_t own_head = bias->head ? rest % a->num_kv_heads : -1;
    rest = bias->head ? rest / a->num_kv_heads : rest;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t item = 0; item < a->items; ++item) {
        if (!own_item(a, bias, item, rest)) continue;
        for (ptrdiff_t head = 0; head < a->num_kv_heads; ++head)
            for (ptrdiff_t tile = 0; tile < tiles && !status; ++tile) {
                if ((own_head >= 0 && head != own_head) || (own_tile >= 0 && tile != own_tile)) continue;
                struct sa_tile t = tile_of(a, item, head, tile);
                t.grad_query = t.grad_key = t.grad_value = t.grad_sinks = t.grad_alibi = NULL;
                t.grad_bias = item_head(a, bias, item, head * (a->num_heads / a->num_kv_heads));
                status = backward_tile(job, t, OWN_ROWS, ALL_KEYS, workspace);
            }
    }
    return status;
}

static ptrdiff_t bias_tasks(const struct sa_attention *a)
{
    ptrdiff_t tasks = 1;
    for (int d = 0; d < a->num_leading; ++d)
        if (a->grad_bias.leading[d]) tasks *= a->leading_shape[d];
    if (a->grad_bias.head) tasks *= a->num_kv_heads;
    if (own_rows(a, &a->grad_bias)) tasks *= tiles_of(a, a->q_len);
    return tasks;
}

/* Head by head, each tile's five products at once; or, where there are too few heads for the threads, the rows' gradients
 * first and then the keys', at seven products in all. The sums are the same to the last bit. */
int sa_attention_backward_run(const struct sa_kernels *kernels, const struct sa_attention *a, int num_threads)
{
    if (a->dtype == SA_FLOAT64) kernels = kernels->float64;
    struct attention_job job = {
        .kernels = kernels,
        .args = a,
        .spans = task_count(a->kv_len, SA_KEY_SPAN),
        .workspace = kernels->backward_workspace(a),
    };
    int status = plan_tiles(a, &job.tiles);
    ptrdiff_t heads = a->items * a->num_kv_heads;
    num_threads = worthwhile_threads(2.5 * multiply_adds(&job), num_threads);
    int by_rows = a->grad_query.data || a->grad_sinks.data || a->grad_alibi.data, by_keys = a->grad_key.data != NULL;
    double rounds = (double)task_count(heads, num_threads), share = (double)heads / num_threads;
    if (by_rows && by_keys && 5.0 * rounds <= 7.0 * share) {
        if (!status) status = sa_parallel_for(heads, backward_head_task, &job, num_threads);
    } else {
        if (by_rows && !status) status = sa_parallel_for(job.tiles.count, backward_rows_task, &job, num_threads);
        if (by_keys && !status) status = sa_parallel_for(job.spans * heads, backward_keys_task, &job, num_threads);
    }
    if (a->grad_bias.data && !status) status = sa_parallel_for(bias_tasks(a), backward_bias_task, &job, num_threads);
    free(job.tiles.first);
    return status;
}
