/* SPDX-License-Identifier: Apache-2.0 */
/* attention.c -- attention over all its tasks, and the number of threads that are worth waking. No arithmetic here. */
#include "plan/attention_tasks.h"

#include <stdlib.h>

_Static_assert((SA_SHARED_PANELS & (SA_SHARED_PANELS - 1)) == 0, "doubling the rows of a task ends at the limit");

/* The rows of a task. Panels that gather keys and values share the copy: a task has up to SA_SHARED_PANELS times as
 * many rows, as long as the threads have enough tasks. Bits do not depend on it. */
static ptrdiff_t rows_to_share(const struct sa_kernels *kernels, const struct sa_attention *a, int num_threads)
{
    ptrdiff_t rows = SA_TASK_ROWS, heads = a->items * a->num_kv_heads;
    if (!kernels->gathers_keys(a)) return rows;
    while (rows < SA_SHARED_PANELS * SA_TASK_ROWS &&
           heads * sa_attention_tasks_of(a, a->q_len, 2 * rows) >= SA_TASKS_PER_THREAD * num_threads)
        rows *= 2;
    return rows;
}

/* The last tasks of a call, where they are fewer than the threads: each of their spans is a task of its own. */
struct split {
    ptrdiff_t first_task, tasks;
    ptrdiff_t first_key, spans; /* all that the rows of the tasks may see, together */
    size_t bytes;               /* of the kept states of one span */
    char *states;               /* tasks x spans, `bytes` each */
};

struct attention_job {
    const struct sa_kernels *kernels;
    const struct sa_attention *args;
    struct sa_attention_tasks tasks;
    struct split split;  /* forward */
    ptrdiff_t spans;     /* of the keys of one item */
    ptrdiff_t next_task; /* tasks from one task of a thread to its likely next one */
    size_t workspace;
    int (*compute)(const struct sa_attention *, const struct sa_attention_task *, void *); /* forward */
};

/* ---- forward ---- */

/* Splits nothing where there is one span to see, or no memory: a task may always be done as a whole. The caller frees
 * states. */
static struct split split_tasks(const struct attention_job *job, int num_threads)
{
    const struct sa_attention *a = job->args;
    struct split s = {.tasks = job->tasks.count % num_threads};
    ptrdiff_t first_key = PTRDIFF_MAX, last_key = 0;
    s.first_task = job->tasks.count - s.tasks;
    for (ptrdiff_t task = s.first_task; task < job->tasks.count && a->kv_len > SA_KEY_SPAN; ++task) {
        struct sa_attention_task t = sa_attention_task_at(a, &job->tasks, task);
        ptrdiff_t first, last;
        job->kernels->key_range(a, &t, &first, &last);
        first_key = smaller(first_key, first);
        last_key = last > last_key ? last : last_key;
    }
    s.first_key = first_key / SA_KEY_SPAN * SA_KEY_SPAN;
    s.spans = task_count(last_key - s.first_key, SA_KEY_SPAN);
    s.bytes = job->kernels->span_bytes(a);
    if (s.spans > 1) s.states = malloc((size_t)s.tasks * (size_t)s.spans * s.bytes);
    if (!s.states) s.first_task = job->tasks.count, s.tasks = s.spans = 0;
    return s;
}

/* Does a task prefetch the queries and outputs of the next task? Worth while where they come from memory, that is
 * beyond SA_PREFETCH_NEXT_NUMBERS. One row is prefetched with each row or dimension of the outputs: there must be
 * enough. */
static int prefetches_next_task(const struct sa_attention *a)
{
    double queries = a->cu_seqlens_q ? (double)(a->cu_seqlens_q[a->items] - a->cu_seqlens_q[0])
                                     : (double)a->items * (double)a->q_len;
    return a->value_dim >= SA_PREFETCH_NEXT_DIMENSIONS && queries >= SA_PREFETCH_NEXT_QUERIES * (double)a->items &&
           queries * (double)a->num_heads * (double)(a->head_dim + a->value_dim) > SA_PREFETCH_NEXT_NUMBERS;
}

/* Do tasks begin in the order of their index, rather than in shares? Shares need many tasks for each thread, because
 * masks make tasks unequal. And in order, all threads read the same keys and values at about the same time. */
static int runs_in_order(const struct attention_job *job, int num_threads)
{
    return job->tasks.count < SA_TASKS_PER_THREAD * (ptrdiff_t)num_threads || sa_keys_exceed_cache(job->args);
}

/* One whole task, or one span of a split task. */
static int attention_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct split *s = &job->split;
    void *workspace = sa_workspace(job->workspace);
    if (!workspace) return SA_NO_MEMORY;
    if (index < s->first_task) {
        struct sa_attention_task t = sa_attention_task_at(job->args, &job->tasks, index), next;
        if (job->next_task < s->first_task - index) {
            next = sa_attention_task_at(job->args, &job->tasks, index + job->next_task);
            t.next = &next;
        }
        return job->compute(job->args, &t, workspace);
    }
    ptrdiff_t part = index - s->first_task, first_key = s->first_key + part % s->spans * SA_KEY_SPAN;
    struct sa_attention_task t = sa_attention_task_at(job->args, &job->tasks, s->first_task + part / s->spans);
    return job->kernels->attention_span(job->args, &t, first_key, s->states + (size_t)part * s->bytes, workspace);
}

static int merge_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct split *s = &job->split;
    struct sa_attention_task t = sa_attention_task_at(job->args, &job->tasks, s->first_task + index);
    job->kernels->merge_spans(job->args, &t, s->spans, s->states + (size_t)(index * s->spans) * s->bytes);
    return SA_OK;
}

static int run_tasks(struct attention_job *job, int forward, int num_threads)
{
    int in_order = runs_in_order(job, num_threads);
    job->next_task = !forward || !prefetches_next_task(job->args) ? PTRDIFF_MAX : in_order ? num_threads : 1;
    job->split = forward ? split_tasks(job, num_threads) : (struct split){.first_task = job->tasks.count};
    const struct split *s = &job->split;
    int (*run)(ptrdiff_t, sa_task_function, void *, int) = in_order ? sa_parallel_in_order : sa_parallel_for;
    int status = run(s->first_task + s->tasks * s->spans, attention_task, job, num_threads);
    if (!status && s->tasks) status = sa_parallel_for(s->tasks, merge_task, job, num_threads);
    free(s->states);
    return status;
}

/* The column sums of one span of keys: the rows of all queries, one task after the other. */
static int column_sums_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct sa_attention *a = job->args;
    ptrdiff_t head = index / job->spans, span = index % job->spans;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t task = 0; task < job->tasks.per_head && !status; ++task) {
        struct sa_attention_task t =
            sa_attention_task_of(a, head / a->num_kv_heads, head % a->num_kv_heads, task, SA_TASK_ROWS);
        t.first = task == 0;
        status = job->kernels->column_sums(a, &t, span * SA_KEY_SPAN, workspace);
    }
    return status;
}

int sa_attention_run(const struct sa_kernels *kernels, const struct sa_attention *a, enum sa_result result,
                     int num_threads)
{
    if (a->dtype == SA_FLOAT64) kernels = kernels->float64;
    kernels = sa_kernels_of(kernels, a->options.format);
    struct attention_job job = {
        .kernels = kernels,
        .args = a,
        .spans = task_count(a->kv_len, SA_KEY_SPAN),
        .workspace = kernels->attention_workspace(a),
        .compute = result == SA_WEIGHTS          ? kernels->attention_weights
                   : result == SA_ROW_STATISTICS ? kernels->row_statistics
                                                 : kernels->attention,
    };
    ptrdiff_t rows = result == SA_ATTENTION ? rows_to_share(kernels, a, num_threads) : SA_TASK_ROWS;
    int status = sa_plan_attention_tasks(a, rows, &job.tasks), by_columns = result == SA_COLUMN_SUMS;
    ptrdiff_t tasks = by_columns ? job.spans * a->items * a->num_kv_heads : job.tasks.count;
    if (!status && tasks > 0 && !sa_workspace(job.workspace)) status = SA_NO_MEMORY; /* before anything is written */
    num_threads = worthwhile_threads(sa_multiply_adds(a, &job.tasks), num_threads);
    if (!status)
        status = by_columns ? sa_parallel_for(tasks, column_sums_task, &job, num_threads)
                            : run_tasks(&job, result == SA_ATTENTION, num_threads);
    free(job.tasks.first);
    return status;
}
