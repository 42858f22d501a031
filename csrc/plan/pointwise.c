/* SPDX-License-Identifier: Apache-2.0 */
/* pointwise.c -- norms, rotary positions, activations and gates, over all their tasks. No arithmetic here. */
#include "plan/tasks.h"

struct rows_job {
    const struct sa_kernels *kernels;
    const struct sa_norm *norm;
    const struct sa_rotary *rotary;
    enum sa_activation activation;
    const char *gate_up;
    char *y;
    ptrdiff_t rows, width;
};

static int norm_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t row0 = index * SA_ROWS_PER_TASK, row1 = row0 + SA_ROWS_PER_TASK;
    job->kernels->norm(job->norm, row0, smaller(row1, job->norm->rows));
    return SA_OK;
}

int sa_norm_run(const struct sa_kernels *kernels, const struct sa_norm *n, int num_threads)
{
    struct rows_job job = {.kernels = kernels, .norm = n};
    num_threads = worthwhile_threads(8.0 * (double)n->rows * (double)n->parts * (double)n->width, num_threads);
    return sa_parallel_for(task_count(n->rows, SA_ROWS_PER_TASK), norm_task, &job, num_threads);
}

static int rotary_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t row0 = index * SA_ROWS_PER_TASK, row1 = row0 + SA_ROWS_PER_TASK;
    job->kernels->rotary(job->rotary, row0, smaller(row1, job->rotary->rows));
    return SA_OK;
}

int sa_rotary_run(const struct sa_kernels *kernels, const struct sa_rotary *r, int num_threads)
{
    struct rows_job job = {.kernels = kernels, .rotary = r};
    double work = 4.0 * (double)r->rows * (double)r->num_heads * (double)r->pairs;
    return sa_parallel_for(task_count(r->rows, SA_ROWS_PER_TASK), rotary_task, &job,
                           worthwhile_threads(work, num_threads));
}

static int activate_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t begin = index * SA_NUMBERS_PER_TASK, left = job->rows - begin;
    job->kernels->activate(job->activation, job->y + begin * job->kernels->number_bytes,
                           smaller(left, SA_NUMBERS_PER_TASK));
    return SA_OK;
}

int sa_activate_run(const struct sa_kernels *kernels, enum sa_activation activation, void *x, ptrdiff_t n,
                    int num_threads)
{
    struct rows_job job = {.kernels = kernels, .activation = activation, .y = x, .rows = n};
    num_threads = worthwhile_threads(16.0 * (double)n, num_threads);
    return sa_parallel_for(task_count(n, SA_NUMBERS_PER_TASK), activate_task, &job, num_threads);
}

static int gate_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t row0 = index * SA_ROWS_PER_TASK, left = job->rows - row0;
    ptrdiff_t row_bytes = job->width * job->kernels->number_bytes;
    job->kernels->gate(job->activation, job->gate_up + row0 * 2 * row_bytes, smaller(left, SA_ROWS_PER_TASK),
                       job->width, job->y + row0 * row_bytes);
    return SA_OK;
}

int sa_gate_run(const struct sa_kernels *kernels, enum sa_activation activation, const void *gate_up, ptrdiff_t rows,
                ptrdiff_t width, void *y, int num_threads)
{
    struct rows_job job = {
        .kernels = kernels, .activation = activation, .gate_up = gate_up, .y = y, .rows = rows, .width = width};
    num_threads = worthwhile_threads(16.0 * (double)rows * (double)width, num_threads);
    return sa_parallel_for(task_count(rows, SA_ROWS_PER_TASK), gate_task, &job, num_threads);
}
