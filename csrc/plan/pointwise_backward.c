/* SPDX-License-Identifier: Apache-2.0 */
/* pointwise_backward.c -- gradients of activations, norms and biases, over all their tasks. A sum over rows is cut
 * into chunks of SA_SUM_ROWS rows, one task each. The sums of the chunks are added in order, for any number of
 * threads. */
#include "plan/tasks.h"

#include <stdlib.h>

struct activation_job {
    const struct sa_kernels *kernels;
    const struct sa_activation_backward *args;
};

static int activation_task(void *context, ptrdiff_t index)
{
    const struct activation_job *job = context;
    ptrdiff_t begin = index * SA_NUMBERS_PER_TASK;
    job->kernels->activation_backward(job->args, begin, smaller(begin + SA_NUMBERS_PER_TASK, job->args->n));
    return SA_OK;
}

int sa_activation_backward_run(const struct sa_kernels *kernels, const struct sa_activation_backward *a,
                               int num_threads)
{
    struct activation_job job = {kernels, a};
    num_threads = worthwhile_threads(16.0 * (double)a->n, num_threads);
    return sa_parallel_for(task_count(a->n, SA_NUMBERS_PER_TASK), activation_task, &job, num_threads);
}

struct chunks_job {
    const struct sa_kernels *kernels;
    const struct sa_norm_backward *norm;
    const char *x;
    ptrdiff_t rows, width, chunks;
    ptrdiff_t stride; /* numbers from chunk to chunk in `sums` */
    double *sums;
};

/* sums: chunks x stride. Without rows there is one chunk, whose sums are 0. */
static int allocate_sums(struct chunks_job *job)
{
    job->chunks = job->rows ? task_count(job->rows, SA_SUM_ROWS) : 1;
    job->sums = malloc((size_t)(job->chunks * job->stride + 1) * sizeof *job->sums);
    return job->sums ? SA_OK : SA_NO_MEMORY;
}

static int norm_chunk(void *context, ptrdiff_t index)
{
    const struct chunks_job *job = context;
    ptrdiff_t row0 = index * SA_SUM_ROWS, row1 = smaller(row0 + SA_SUM_ROWS, job->rows);
    job->kernels->norm_backward(job->norm, row0, row1, job->sums + index * job->stride);
    return SA_OK;
}

int sa_norm_backward_run(const struct sa_kernels *kernels, const struct sa_norm_backward *n, int num_threads)
{
    struct chunks_job job = {.kernels = kernels, .norm = n, .rows = n->rows, .width = n->width, .stride = 2 * n->width};
    int status = allocate_sums(&job);
    num_threads = worthwhile_threads(16.0 * (double)n->rows * (double)n->width, num_threads);
    if (!status) status = sa_parallel_for(job.chunks, norm_chunk, &job, num_threads);
    if (!status) {
        kernels->add_sums(job.sums, job.chunks, job.stride, job.width, n->grad_weight);
        kernels->add_sums(job.sums + job.width, job.chunks, job.stride, job.width, n->grad_bias);
    }
    free(job.sums);
    return status;
}

static int sum_chunk(void *context, ptrdiff_t index)
{
    const struct chunks_job *job = context;
    ptrdiff_t row0 = index * SA_SUM_ROWS, rows = smaller(SA_SUM_ROWS, job->rows - row0);
    job->kernels->sum_rows(job->x + row0 * job->width * job->kernels->number_bytes, rows, job->width,
                           job->sums + index * job->stride);
    return SA_OK;
}

int sa_sum_rows_run(const struct sa_kernels *kernels, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y,
                    int num_threads)
{
    struct chunks_job job = {.kernels = kernels, .x = x, .rows = rows, .width = width, .stride = width};
    int status = allocate_sums(&job);
    num_threads = worthwhile_threads(2.0 * (double)rows * (double)width, num_threads);
    if (!status) status = sa_parallel_for(job.chunks, sum_chunk, &job, num_threads);
    if (!status) kernels->add_sums(job.sums, job.chunks, job.stride, job.width, y);
    free(job.sums);
    return status;
}
