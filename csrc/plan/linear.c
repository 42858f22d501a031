/* SPDX-License-Identifier: Apache-2.0 */
/* linear.c -- linear layers and the packing of their weights, over all tasks. No arithmetic here. */
#include "plan/tasks.h"

struct linear_job {
    const struct sa_kernels *kernels;
    const struct sa_linear *args;
    ptrdiff_t panels, panels_per_task, tasks_per_block;
};

static int linear_task(void *context, ptrdiff_t index)
{
    const struct linear_job *job = context;
    ptrdiff_t row0 = index / job->tasks_per_block * SA_LINEAR_ROWS;
    ptrdiff_t panel0 = index % job->tasks_per_block * job->panels_per_task;
    ptrdiff_t row1 = row0 + SA_LINEAR_ROWS, panel1 = panel0 + job->panels_per_task;
    size_t bytes = job->kernels->linear_workspace(SA_LINEAR_ROWS, job->args->weight.depth);
    void *workspace = bytes ? sa_workspace(bytes) : NULL;
    if (bytes && !workspace) return SA_NO_MEMORY;
    job->kernels->linear(job->args, row0, smaller(row1, job->args->rows), panel0, smaller(panel1, job->panels),
                         workspace);
    return SA_OK;
}

int sa_linear_run(const struct sa_kernels *kernels, const struct sa_linear *l, int num_threads)
{
    ptrdiff_t blocks = task_count(l->rows, SA_LINEAR_ROWS);
    ptrdiff_t panels = task_count(l->weight.width, kernels->panel_width);
    if (blocks == 0 || panels == 0) return SA_OK;
    num_threads = worthwhile_threads((double)l->rows * (double)l->weight.depth * (double)l->weight.width, num_threads);
    double panel = (double)SA_LINEAR_ROWS * (double)kernels->panel_width * (double)(l->weight.depth + 1);
    ptrdiff_t target = num_threads > 1 ? task_count(16 * num_threads, blocks)
                                       : 1; /* 16 tasks for each thread, so that the threads end together */
    ptrdiff_t per_task = smaller(task_count(panels, target), 1 + (ptrdiff_t)(SA_TASK_MULTIPLY_ADDS / panel));
    struct linear_job job = {kernels, l, panels, per_task, task_count(panels, per_task)};
    return sa_parallel_for(blocks * job.tasks_per_block, linear_task, &job, num_threads);
}

struct pack_job {
    const struct sa_kernels *kernels;
    const struct sa_array *weight;
    ptrdiff_t depth, width;
    char *packed;
};

/* Steps of a sum over the depth of a weight. */
static ptrdiff_t packed_steps(const struct sa_kernels *kernels, ptrdiff_t depth)
{
    return task_count(depth, sa_formats[kernels->format].terms);
}

size_t sa_packed_bytes(const struct sa_kernels *kernels, ptrdiff_t depth, ptrdiff_t width)
{
    ptrdiff_t columns = task_count(width, kernels->lanes) * kernels->lanes; /* whole vectors of columns */
    ptrdiff_t bytes = packed_steps(kernels, depth) * columns * kernels->number_bytes;
    return (size_t)(task_count(bytes, 64) * 64);
}

static int pack_task(void *context, ptrdiff_t panel)
{
    const struct pack_job *job = context;
    const struct sa_array *w = job->weight;
    ptrdiff_t column = panel * job->kernels->panel_width;
    job->kernels->pack_weights(
        w->data + column * w->col, w->row, w->col, job->depth, smaller(job->kernels->panel_width, job->width - column),
        job->packed + column * packed_steps(job->kernels, job->depth) * job->kernels->number_bytes);
    return SA_OK;
}

int sa_pack_run(const struct sa_kernels *kernels, const struct sa_array *weight, ptrdiff_t depth, ptrdiff_t width,
                void *packed, int num_threads)
{
    struct pack_job job = {kernels, weight, depth, width, packed};
    num_threads = worthwhile_threads(8.0 * (double)depth * (double)width, num_threads);
    return sa_parallel_for(task_count(width, kernels->panel_width), pack_task, &job, num_threads);
}
