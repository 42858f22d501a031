/* SPDX-License-Identifier: Apache-2.0 */
/* linear_backward.c -- the gradient of the weight of a linear layer, over all its tasks. No arithmetic here. */
#include "plan/tasks.h"

#include <string.h>

struct weight_job {
    const struct sa_kernels *kernels;
    const struct sa_linear_backward *args;
    ptrdiff_t block, panels, panels_per_task, tasks_per_block;
    ptrdiff_t row0, row1;
};

static int weight_task(void *context, ptrdiff_t index)
{
    const struct weight_job *job = context;
    ptrdiff_t in0 = index / job->tasks_per_block * job->block, in1 = in0 + job->block;
    ptrdiff_t panel0 = index % job->tasks_per_block * job->panels_per_task, panel1 = panel0 + job->panels_per_task;
    void *workspace = sa_workspace(job->kernels->linear_backward_workspace());
    if (!workspace) return SA_NO_MEMORY;
    job->kernels->linear_backward(job->args, job->row0, job->row1, in0, smaller(in1, job->args->d_in), panel0,
                                  smaller(panel1, job->panels), workspace);
    return SA_OK;
}

/* Chains of rows, one after the other, each over all of grad_weight: no task is long, and the sums have one order. */
int sa_linear_backward_run(const struct sa_kernels *kernels, const struct sa_linear_backward *g, int num_threads)
{
    ptrdiff_t blocks = task_count(g->d_in, SA_WEIGHT_GRADIENT_BYTES / kernels->number_bytes);
    ptrdiff_t panels = task_count(g->d_out, kernels->panel_width);
    if (g->rows == 0) memset(g->grad_weight, 0, (size_t)(g->d_in * g->d_out * kernels->number_bytes));
    if (blocks == 0 || panels == 0) return SA_OK;
    num_threads = worthwhile_threads((double)g->rows * (double)g->d_in * (double)g->d_out, num_threads);
    struct weight_job job = {.kernels = kernels, .args = g, .panels = panels};
    job.block = task_count(task_count(g->d_in, blocks), SA_WEIGHT_GRADIENT_COLUMNS) * SA_WEIGHT_GRADIENT_COLUMNS;
    /* A task gathers its block of x once for all its panels. So a task has many panels, but each thread two tasks. */
    job.panels_per_task = task_count(panels, num_threads == 1 ? 1 : task_count(2 * num_threads, blocks));
    job.tasks_per_block = task_count(panels, job.panels_per_task);
    ptrdiff_t outputs = job.block * job.panels_per_task * kernels->panel_width;
    ptrdiff_t step = SA_LINEAR_CHAIN * (1 + (ptrdiff_t)(SA_TASK_MULTIPLY_ADDS / SA_LINEAR_CHAIN / (double)outputs));
    int status = SA_OK;
    for (ptrdiff_t row = 0; !status && row < g->rows; row += step) {
        job.row0 = row, job.row1 = smaller(row + step, g->rows);
        status = sa_parallel_for(task_count(g->d_in, job.block) * job.tasks_per_block, weight_task, &job, num_threads);
    }
    return status;
}
