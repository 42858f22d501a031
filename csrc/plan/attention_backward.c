/* operators_backward.c -- the gradients of attention over all their tasks. No arithmetic here. */
#include "plan/tasks.h"
#include "plan/attention_tasks.h"

#include <stdlib.h>

struct backward_job {
    const struct sa_kernels *kernels;
    const struct sa_attention *args;
    struct sa_tiles tiles;
    ptrdiff_t spans; /* of the keys of one item */
    size_t workspace;
};

enum part { OWN_ROWS, KEYS, BOTH }; /* of the gradients: the queries' and their heads'; the keys' and values' */
enum { ALL_KEYS = -1 };

/* A tile's part in the gradients. */
static int backward_tile(const struct backward_job *job, struct sa_tile t, enum part part, ptrdiff_t span,
                         void *workspace)
{
    if (part == OWN_ROWS) t.grad_key = t.grad_value = NULL;
    if (part == KEYS) t.grad_query = t.grad_sinks = t.grad_alibi = NULL;
    ptrdiff_t first = span == ALL_KEYS ? 0 : span * SA_KEY_SPAN, last = first + SA_KEY_SPAN;
    return job->kernels->attention_backward(job->args, &t, first, span == ALL_KEYS ? PTRDIFF_MAX : last, workspace);
}

/* All tiles of a head, in order. */
static int backward_tiles(const struct backward_job *job, ptrdiff_t head_index, enum part part, ptrdiff_t span)
{
    const struct sa_attention *a = job->args;
    ptrdiff_t item = head_index / a->num_kv_heads, kv_head = head_index % a->num_kv_heads;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t tile = 0; !status; ++tile) {
        struct sa_tile t = sa_tile_of(a, item, kv_head, tile, SA_TASK_ROWS);
        if (t.rows <= 0) break;
        t.first = tile == 0;
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
    const struct backward_job *job = context;
    return backward_tiles(job, index / job->spans, KEYS, index % job->spans);
}

static int backward_rows_task(void *context, ptrdiff_t index)
{
    const struct backward_job *job = context;
    void *workspace = sa_workspace(job->workspace);
    if (!workspace) return SA_NO_MEMORY;
    return backward_tile(job, sa_tile_at(job->args, &job->tiles, index), OWN_ROWS, ALL_KEYS, workspace);
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
    const struct backward_job *job = context;
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
                struct sa_tile t = sa_tile_of(a, item, head, tile, SA_TASK_ROWS);
                t.grad_query = t.grad_key = t.grad_value = t.grad_sinks = t.grad_alibi = NULL;
                t.grad_bias = sa_item_head(a, bias, item, head * (a->num_heads / a->num_kv_heads));
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
    if (own_rows(a, &a->grad_bias)) tasks *= sa_tiles_of(a, a->q_len, SA_TASK_ROWS);
    return tasks;
}

/* Head by head, each tile's five products at once; or, where there are too few heads for the threads, the rows' gradients
 * first and then the keys', at seven products in all. The sums are the same to the last bit. */
int sa_attention_backward_run(const struct sa_kernels *kernels, const struct sa_attention *a, int num_threads)
{
    if (a->dtype == SA_FLOAT64) kernels = kernels->float64;
    struct backward_job job = {
        .kernels = kernels,
        .args = a,
        .spans = task_count(a->kv_len, SA_KEY_SPAN),
        .workspace = kernels->backward_workspace(a),
    };
    int status = sa_plan_tiles(a, SA_TASK_ROWS, &job.tiles);
    ptrdiff_t heads = a->items * a->num_kv_heads;
    num_threads = worthwhile_threads(2.5 * sa_multiply_adds(a, &job.tiles), num_threads);
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
