/* operators.c -- the layers' operators over all their tasks: which piece of the arrays a task computes. No arithmetic. */
#include "plan/tasks.h"

/* ---- linear layers ---- */

enum { LINEAR_ROWS = 96 };

struct linear_job {
    const struct sa_kernels *kernels;
    const struct sa_linear *args;
    ptrdiff_t panels, panels_per_task, tasks_per_block;
};

static int linear_task(void *context, ptrdiff_t index)
{
    const struct linear_job *job = context;
    ptrdiff_t row0 = index / job->tasks_per_block * LINEAR_ROWS;
    ptrdiff_t panel0 = index % job->tasks_per_block * job->panels_per_task;
    ptrdiff_t row1 = row0 + LINEAR_ROWS, panel1 = panel0 + job->panels_per_task;
    size_t bytes = job->kernels->linear_workspace(LINEAR_ROWS, job->args->depth);
    void *workspace = bytes ? sa_workspace(bytes) : NULL;
    if (bytes && !workspace) return SA_NO_MEMORY;
    job->kernels->linear(job->args, row0, smaller(row1, job->args->rows), panel0, smaller(panel1, job->panels),
                         workspace);
    return SA_OK;
}

int sa_linear_run(const struct sa_kernels *kernels, const struct sa_linear *l, int num_threads)
{
    ptrdiff_t blocks = task_count(l->rows, LINEAR_ROWS);
    ptrdiff_t panels = task_count(l->width, kernels->panel_width);
    if (blocks == 0 || panels == 0) return SA_OK;
    num_threads = worthwhile_threads((double)l->rows * (double)l->depth * (double)l->width, num_threads);
    double panel = (double)LINEAR_ROWS * (double)kernels->panel_width * (double)(l->depth + 1);
    ptrdiff_t wanted = num_threads > 1 ? task_count(16 * num_threads, blocks) : 1; /* many, to end together */
    ptrdiff_t per_task = smaller(task_count(panels, wanted), 1 + (ptrdiff_t)(TASK_MULTIPLY_ADDS / panel));
    struct linear_job job = {kernels, l, panels, per_task, task_count(panels, per_task)};
    return sa_parallel_for(blocks * job.tasks_per_block, linear_task, &job, num_threads);
}

struct pack_job {
    const struct sa_kernels *kernels;
    const char *weight;
    ptrdiff_t row, col, depth, width;
    char *packed;
};

static int pack_task(void *context, ptrdiff_t panel)
{
    const struct pack_job *job = context;
    ptrdiff_t column = panel * job->kernels->panel_width, steps = task_count(job->depth, job->kernels->terms);
    job->kernels->pack_weights(job->weight + column * job->col, job->row, job->col, job->depth,
                               smaller(job->kernels->panel_width, job->width - column),
                               job->packed + column * steps * job->kernels->number_bytes);
    return SA_OK;
}

int sa_pack_run(const struct sa_kernels *kernels, const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth,
                ptrdiff_t width, void *packed, int num_threads)
{
    struct pack_job job = {kernels, weight, row, col, depth, width, packed};
    num_threads = worthwhile_threads(8.0 * (double)depth * (double)width, num_threads);
    return sa_parallel_for(task_count(width, kernels->panel_width), pack_task, &job, num_threads);
}

/* ---- row by row ---- */

enum { ROWS_PER_TASK = 64 };

struct rows_job {
    const struct sa_kernels *kernels;
    const struct sa_norm *norm;
    enum sa_activation activation;
    const char *gate_up;
    char *y;
    ptrdiff_t rows, width;
};

static int norm_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t row0 = index * ROWS_PER_TASK, row1 = row0 + ROWS_PER_TASK;
    job->kernels->norm(job->norm, row0, smaller(row1, job->norm->rows));
    return SA_OK;
}

int sa_norm_run(const struct sa_kernels *kernels, const struct sa_norm *n, int num_threads)
{
    struct rows_job job = {.kernels = kernels, .norm = n};
    num_threads = worthwhile_threads(8.0 * (double)n->rows * (double)n->width, num_threads);
    return sa_parallel_for(task_count(n->rows, ROWS_PER_TASK), norm_task, &job, num_threads);
}

static int activate_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t begin = index * NUMBERS_PER_TASK, left = job->rows - begin;
    job->kernels->activate(job->activation, job->y + begin * job->kernels->number_bytes,
                           smaller(left, NUMBERS_PER_TASK));
    return SA_OK;
}

int sa_activate_run(const struct sa_kernels *kernels, enum sa_activation activation, void *x, ptrdiff_t n,
                    int num_threads)
{
    struct rows_job job = {.kernels = kernels, .activation = activation, .y = x, .rows = n};
    num_threads = worthwhile_threads(16.0 * (double)n, num_threads);
    return sa_parallel_for(task_count(n, NUMBERS_PER_TASK), activate_task, &job, num_threads);
}

static int gate_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t row0 = index * ROWS_PER_TASK, left = job->rows - row0;
    ptrdiff_t row_bytes = job->width * job->kernels->number_bytes;
    job->kernels->gate(job->activation, job->gate_up + row0 * 2 * row_bytes, smaller(left, ROWS_PER_TASK), job->width,
                       job->y + row0 * row_bytes);
    return SA_OK;
}

int sa_gate_run(const struct sa_kernels *kernels, enum sa_activation activation, const void *gate_up, ptrdiff_t rows,
                ptrdiff_t width, void *y, int num_threads)
{
    struct rows_job job = {
        .kernels = kernels, .activation = activation, .gate_up = gate_up, .y = y, .rows = rows, .width = width};
    num_threads = worthwhile_threads(16.0 * (double)rows * (double)width, num_threads);
    return sa_parallel_for(task_count(rows, ROWS_PER_TASK), gate_task, &job, num_threads);
}
