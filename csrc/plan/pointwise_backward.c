/* operators_gradients.c -- the way back through activations, norms and biases over all its tasks. What sums over rows
 * does so in chunks of a fixed number of rows, a task each, whose sums are added in order: the threads cannot be seen. */
#include "plan/tasks.h"

#include <stdlib.h>
#include <string.h>

struct weight_job {
    const struct sa_kernels *kernels;
    const struct sa_weight_gradient *args;
    ptrdiff_t block, panels, panels_per_task, tasks_per_block;
    ptrdiff_t row0, row1;
};

static int weight_task(void *context, ptrdiff_t index)
{
    const struct weight_job *job = context;
    ptrdiff_t in0 = index / job->tasks_per_block * job->block, in1 = in0 + job->block;
    ptrdiff_t panel0 = index % job->tasks_per_block * job->panels_per_task, panel1 = panel0 + job->panels_per_task;
    void *workspace = sa_workspace(job->kernels->weight_gradient_workspace());
    if (!workspace) return SA_NO_MEMORY;
    job->kernels->weight_gradient(job->args, job->row0, job->row1, in0, smaller(in1, job->args->d_in), panel0,
                                  smaller(panel1, job->panels), workspace);
    return SA_OK;
}

/* Some rows after the others, each time over all of grad_weight: no task is long, and the sums have one order. */
int sa_weight_gradient_run(const struct sa_kernels *kernels, const struct sa_weight_gradient *g, int num_threads)
{
    enum { TILES = 48 }; /* columns of whole tiles, whatever the instruction set */
    ptrdiff_t blocks = task_count(g->d_in, SA_GRADIENT_BLOCK_BYTES / kernels->number_bytes);
    ptrdiff_t panels = task_count(g->d_out, kernels->panel_width);
    if (g->rows == 0) memset(g->grad_weight, 0, (size_t)(g->d_in * g->d_out * kernels->number_bytes));
    if (blocks == 0 || panels == 0) return SA_OK;
    num_threads = worthwhile_threads((double)g->rows * (double)g->d_in * (double)g->d_out, num_threads);
    struct weight_job job = {.kernels = kernels, .args = g, .panels = panels};
    job.block = task_count(task_count(g->d_in, blocks), TILES) * TILES;
    /* A task gathers its block of x once for its panels: as many as leave two tasks for each thread. */
    job.panels_per_task = task_count(panels, num_threads == 1 ? 1 : task_count(2 * num_threads, blocks));
    job.tasks_per_block = task_count(panels, job.panels_per_task);
    ptrdiff_t outputs = job.block * job.panels_per_task * kernels->panel_width;
    ptrdiff_t step = SA_LINEAR_CHAIN * (1 + (ptrdiff_t)(TASK_MULTIPLY_ADDS / SA_LINEAR_CHAIN / (double)outputs));
    int status = SA_OK;
    for (ptrdiff_t row = 0; !status && row < g->rows; row += step) {
        job.row0 = row, job.row1 = smaller(row + step, g->rows);
        status = sa_parallel_for(task_count(g->d_in, job.block) * job.tasks_per_block, weight_task, &job, num_threads);
    }
    return status;
}

enum { CHUNK_ROWS = 64 };

struct activation_job {
    const struct sa_kernels *kernels;
    const struct sa_activation_backward *args;
};

static int activation_task(void *context, ptrdiff_t index)
{
    const struct activation_job *job = context;
    ptrdiff_t begin = index * NUMBERS_PER_TASK;
    job->kernels->activation_backward(job->args, begin, smaller(begin + NUMBERS_PER_TASK, job->args->n));
    return SA_OK;
}

int sa_activation_backward_run(const struct sa_kernels *kernels, const struct sa_activation_backward *a,
                               int num_threads)
{
    struct activation_job job = {kernels, a};
    num_threads = worthwhile_threads(16.0 * (double)a->n, num_threads);
    return sa_parallel_for(task_count(a->n, NUMBERS_PER_TASK), activation_task, &job, num_threads);
}

struct chunks_job {
    const struct sa_kernels *kernels;
    const struct sa_norm_backward *norm;
    const char *x;
    ptrdiff_t rows, width, chunks;
    ptrdiff_t stride; /* sums of a chunk */
    double *sums;
};

/* One chunk where there is no row, whose sums are 0. */
static int allocate_sums(struct chunks_job *job)
{
    job->chunks = job->rows ? task_count(job->rows, CHUNK_ROWS) : 1;
    job->sums = malloc((size_t)(job->chunks * job->stride + 1) * sizeof *job->sums);
    return job->sums ? SA_OK : SA_NO_MEMORY;
}

static int norm_chunk(void *context, ptrdiff_t index)
{
    const struct chunks_job *job = context;
    ptrdiff_t row0 = index * CHUNK_ROWS, row1 = smaller(row0 + CHUNK_ROWS, job->rows);
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
    ptrdiff_t row0 = index * CHUNK_ROWS, rows = smaller(CHUNK_ROWS, job->rows - row0);
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
