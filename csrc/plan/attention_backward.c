/* SPDX-License-Identifier: Apache-2.0 */
/* attention_backward.c -- the gradients of attention over all their tasks. No arithmetic here. */
#include "plan/attention_tasks.h"

#include <stdlib.h>

struct backward_job {
    const struct sa_kernels *kernels;
    const struct sa_attention *args;
    struct sa_attention_tasks tasks;
    ptrdiff_t spans; /* of the keys of one item */
    size_t workspace;
};

enum part {
    ROW_GRADIENTS,
    KEY_GRADIENTS,
    ALL_GRADIENTS
}; /* of queries, sinks and slopes; of keys and values; of all */
enum { ALL_KEYS = -1 };

/* The gradients that `part` names, of one task and one span of keys, or all keys. */
static int run_backward(const struct backward_job *job, struct sa_attention_task t, enum part part, ptrdiff_t span,
                        void *workspace)
{
    if (part == ROW_GRADIENTS) t.grad_key = t.grad_value = NULL;
    if (part == KEY_GRADIENTS) t.grad_query = t.grad_sinks = t.grad_alibi = NULL;
    ptrdiff_t first = span == ALL_KEYS ? 0 : span * SA_KEY_SPAN, last = first + SA_KEY_SPAN;
    return job->kernels->attention_backward(job->args, &t, first, span == ALL_KEYS ? PTRDIFF_MAX : last, workspace);
}

/* All tasks of a key head, in order. */
static int backward_head(const struct backward_job *job, ptrdiff_t head_index, enum part part, ptrdiff_t span)
{
    const struct sa_attention *a = job->args;
    ptrdiff_t item = head_index / a->num_kv_heads, kv_head = head_index % a->num_kv_heads;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t task = 0; !status; ++task) {
        struct sa_attention_task t = sa_attention_task_of(a, item, kv_head, task, SA_TASK_ROWS);
        if (t.rows <= 0) break;
        t.first = task == 0;
        status = run_backward(job, t, part, span, workspace);
    }
    return status;
}

static int backward_head_task(void *context, ptrdiff_t index)
{
    return backward_head(context, index, ALL_GRADIENTS, ALL_KEYS);
}

static int backward_keys_task(void *context, ptrdiff_t index)
{
    const struct backward_job *job = context;
    return backward_head(job, index / job->spans, KEY_GRADIENTS, index % job->spans);
}

static int backward_rows_task(void *context, ptrdiff_t index)
{
    const struct backward_job *job = context;
    void *workspace = sa_workspace(job->workspace);
    if (!workspace) return SA_NO_MEMORY;
    return run_backward(job, sa_attention_task_at(job->args, &job->tasks, index), ROW_GRADIENTS, ALL_KEYS, workspace);
}

/* Does the item have the bias of this number? Biases are numbered over the leading dimensions that are not
 * broadcast. */
static int has_same_bias(const struct sa_attention *a, const struct sa_array *bias, ptrdiff_t item, ptrdiff_t number)
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

/* Does every row of the bias belong to one task? Not where all heads have the same bias, and the group of a query
 * may lie in two tasks. */
static int rows_have_one_task(const struct sa_attention *a, const struct sa_array *bias)
{
    return bias->row && (bias->head || SA_TASK_ROWS % sa_group(a) == 0);
}

/* One task for each item, key head and 64 rows of the bias that are not broadcast. The task sums over the broadcast
 * dimensions in order. */
static int backward_bias_task(void *context, ptrdiff_t index)
{
    const struct backward_job *job = context;
    const struct sa_attention *a = job->args;
    const struct sa_array *bias = &a->grad_bias;
    ptrdiff_t tasks = job->tasks.per_head; /* packed batches have no gradient of a bias */
    ptrdiff_t fixed_task = rows_have_one_task(a, bias) ? index % tasks : -1,
              remainder = fixed_task < 0 ? index : index / tasks;
    ptrdiff_t fixed_head = bias->head ? remainder % a->num_kv_heads : -1;
    remainder = bias->head ? remainder / a->num_kv_heads : remainder;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t item = 0; item < a->items; ++item) {
        if (!has_same_bias(a, bias, item, remainder)) continue;
        for (ptrdiff_t head = 0; head < a->num_kv_heads; ++head)
            for (ptrdiff_t task = 0; task < tasks && !status; ++task) {
                if ((fixed_head >= 0 && head != fixed_head) || (fixed_task >= 0 && task != fixed_task)) continue;
                struct sa_attention_task t = sa_attention_task_of(a, item, head, task, SA_TASK_ROWS);
                t.grad_query = t.grad_key = t.grad_value = t.grad_sinks = t.grad_alibi = NULL;
                t.grad_bias = sa_item_head(a, bias, item, head * sa_group(a));
                status = run_backward(job, t, ROW_GRADIENTS, ALL_KEYS, workspace);
            }
    }
    return status;
}

/* The relative bias of one key head's group: the sum over all items and tasks, in order. */
static int backward_relative_task(void *context, ptrdiff_t kv_head)
{
    const struct backward_job *job = context;
    const struct sa_attention *a = job->args;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    double *grad = a->grad_relative_bias + kv_head * sa_group(a) * sa_relative_width(&a->options);
    for (ptrdiff_t item = 0; item < a->items && !status; ++item)
        for (ptrdiff_t i = 0; !status; ++i) {
            struct sa_attention_task t = sa_attention_task_of(a, item, kv_head, i, SA_TASK_ROWS);
            if (t.rows <= 0) break;
            t.grad_query = t.grad_key = t.grad_value = t.grad_sinks = t.grad_alibi = NULL;
            t.grad_relative_bias = grad;
            status = run_backward(job, t, ROW_GRADIENTS, ALL_KEYS, workspace);
        }
    return status;
}

static ptrdiff_t bias_tasks(const struct sa_attention *a)
{
    ptrdiff_t tasks = 1;
    for (int d = 0; d < a->num_leading; ++d)
        if (a->grad_bias.leading[d]) tasks *= a->leading_shape[d];
    if (a->grad_bias.head) tasks *= a->num_kv_heads;
    if (rows_have_one_task(a, &a->grad_bias)) tasks *= sa_attention_tasks_of(a, a->q_len, SA_TASK_ROWS);
    return tasks;
}

/* Either head by head, five products for each task. Or, with too few heads for the threads, first the gradients of
 * rows, then the gradients of keys: seven products in all. The sums are the same to the last bit. */
int sa_attention_backward_run(const struct sa_kernels *kernels, const struct sa_attention *a, int num_threads)
{
    if (a->dtype == SA_FLOAT64) kernels = kernels->float64;
    struct backward_job job = {
        .kernels = kernels,
        .args = a,
        .spans = task_count(a->kv_len, SA_KEY_SPAN),
        .workspace = kernels->backward_workspace(a),
    };
    int status = sa_plan_attention_tasks(a, SA_TASK_ROWS, &job.tasks);
    ptrdiff_t heads = a->items * a->num_kv_heads;
    num_threads = worthwhile_threads(2.5 * sa_multiply_adds(a, &job.tasks), num_threads);
    int by_rows = a->grad_query.data || a->grad_sinks.data || a->grad_alibi.data, by_keys = a->grad_key.data != NULL;
    double rounds = (double)task_count(heads, num_threads), share = (double)heads / num_threads;
    if (by_rows && by_keys && 5.0 * rounds <= 7.0 * share) {
        if (!status) status = sa_parallel_for(heads, backward_head_task, &job, num_threads);
    } else {
        if (by_rows && !status) status = sa_parallel_for(job.tasks.count, backward_rows_task, &job, num_threads);
        if (by_keys && !status) status = sa_parallel_for(job.spans * heads, backward_keys_task, &job, num_threads);
    }
    if (a->grad_bias.data && !status) status = sa_parallel_for(bias_tasks(a), backward_bias_task, &job, num_threads);
    if (a->grad_relative_bias && !status)
        status = sa_parallel_for(a->num_kv_heads, backward_relative_task, &job, num_threads);
    free(job.tasks.first);
    return status;
}
