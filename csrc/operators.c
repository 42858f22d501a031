/* operators.c -- the operators over all their tasks: which piece of the arrays a task computes, and how many threads
 * are worth waking. No arithmetic here. */
#include "kernels.h"
#include "pool.h"

/* Work below this many multiply-adds (about 10 us) is not worth a second thread. */
static const double WORTH_A_THREAD = 5e5;

/* A task is a few milliseconds at most: between tasks, Ctrl-C is noticed. */
static const double TASK_MULTIPLY_ADDS = 1e8;

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static ptrdiff_t task_count(ptrdiff_t n, ptrdiff_t per_task)
{
    return (n + per_task - 1) / per_task;
}

static int worthwhile_threads(double multiply_adds, int num_threads)
{
    double worth = multiply_adds / WORTH_A_THREAD;
    return worth < num_threads ? (worth < 1.0 ? 1 : (int)worth) : num_threads;
}

/* ---- attention ---- */

struct attention_job {
    const struct sa_kernels *kernels;
    const struct sa_attention *args;
    ptrdiff_t tiles; /* of one head of one item */
    size_t workspace;
    int (*compute)(const struct sa_attention *, const struct sa_tile *, void *);
};

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

static struct sa_tile tile_of(const struct sa_attention *a, ptrdiff_t item, ptrdiff_t kv_head, ptrdiff_t tile)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, head = kv_head * group;
    struct sa_tile t = {
        .query = item_head(a, &a->query, item, head),
        .key = item_head(a, &a->key, item, kv_head),
        .value = item_head(a, &a->value, item, kv_head),
        .mask = item_head(a, &a->mask, item, head),
        .bias = item_head(a, &a->bias, item, head),
        .out = item_head(a, &a->out, item, head),
        .lse = item_head(a, &a->lse, item, head),
        .q_len = a->q_len,
        .kv_len = a->kv_len,
        .row0 = tile * SA_TASK_ROWS,
    };
    if (a->cu_seqlens_q) { /* packed: there are no leading dimensions, an item is a range of rows */
        t.q_len = (ptrdiff_t)(a->cu_seqlens_q[item + 1] - a->cu_seqlens_q[item]);
        t.kv_len = (ptrdiff_t)(a->cu_seqlens_kv[item + 1] - a->cu_seqlens_kv[item]);
        t.query += a->cu_seqlens_q[item] * a->query.row;
        t.out += a->cu_seqlens_q[item] * a->out.row;
        t.lse += t.lse ? a->cu_seqlens_q[item] * a->lse.row : 0;
        t.key += a->cu_seqlens_kv[item] * a->key.row;
        t.value += a->cu_seqlens_kv[item] * a->value.row;
    }
    t.valid_keys = a->kv_lengths ? (ptrdiff_t)a->kv_lengths[item / a->items_per_length] : t.kv_len;
    ptrdiff_t rows = t.q_len * group - t.row0;
    t.rows = smaller(rows, SA_TASK_ROWS);
    return t;
}

/* Tasks go head by head, so that keys and values stay in the cache, and begin with a head's last tile: under a causal
 * mask that is the one with the most keys, and what remains at the very end is short. */
static int attention_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct sa_attention *a = job->args;
    ptrdiff_t head = index / job->tiles, tile = job->tiles - 1 - index % job->tiles;
    struct sa_tile t = tile_of(a, head / a->num_kv_heads, head % a->num_kv_heads, tile);
    if (t.rows <= 0) /* a packed sequence shorter than the longest */
        return SA_OK;
    void *workspace = sa_workspace(job->workspace);
    return workspace ? job->compute(a, &t, workspace) : SA_NO_MEMORY;
}

static ptrdiff_t longest(const int64_t *cu_seqlens, ptrdiff_t items)
{
    ptrdiff_t most = 0;
    for (ptrdiff_t i = 0; i < items; ++i)
        if (cu_seqlens[i + 1] - cu_seqlens[i] > most) most = (ptrdiff_t)(cu_seqlens[i + 1] - cu_seqlens[i]);
    return most;
}

int sa_attention_run(const struct sa_kernels *kernels, const struct sa_attention *a, int weights, int num_threads)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    ptrdiff_t q_len = a->cu_seqlens_q ? longest(a->cu_seqlens_q, a->items) : a->q_len;
    ptrdiff_t kv_len = a->cu_seqlens_q ? longest(a->cu_seqlens_kv, a->items) : a->kv_len;
    struct attention_job job = {kernels, a, (q_len * group + SA_TASK_ROWS - 1) / SA_TASK_ROWS,
                                kernels->attention_workspace(a),
                                weights ? kernels->attention_weights : kernels->attention};
    double multiply_adds =
        (double)a->items * (double)a->num_heads * (double)q_len * (double)kv_len * (double)(a->head_dim + a->value_dim);
    return sa_parallel_for(job.tiles * a->items * a->num_kv_heads, attention_task, &job,
                           worthwhile_threads(multiply_adds, num_threads));
}

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
    job->kernels->linear(job->args, row0, smaller(row1, job->args->rows), panel0, smaller(panel1, job->panels));
    return SA_OK;
}

int sa_linear_run(const struct sa_kernels *kernels, const struct sa_linear *l, int num_threads)
{
    ptrdiff_t blocks = task_count(l->rows, LINEAR_ROWS);
    ptrdiff_t panels = task_count(l->width, kernels->panel_width);
    if (blocks == 0 || panels == 0) return SA_OK;
    num_threads = worthwhile_threads((double)l->rows * (double)l->depth * (double)l->width, num_threads);
    double panel = (double)LINEAR_ROWS * (double)kernels->panel_width * (double)(l->depth + 1);
    ptrdiff_t wanted = task_count(16 * num_threads, blocks); /* tasks a block: many, so that the threads end together */
    ptrdiff_t per_task = smaller(task_count(panels, wanted), 1 + (ptrdiff_t)(TASK_MULTIPLY_ADDS / panel));
    struct linear_job job = {kernels, l, panels, per_task, task_count(panels, per_task)};
    return sa_parallel_for(blocks * job.tasks_per_block, linear_task, &job, num_threads);
}

/* ---- row by row ---- */

enum { ROWS_PER_TASK = 64, FLOATS_PER_TASK = 16384 };

struct rows_job {
    const struct sa_kernels *kernels;
    const struct sa_norm *norm;
    enum sa_activation activation;
    const float *gate_up;
    float *y;
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
    ptrdiff_t begin = index * FLOATS_PER_TASK, left = job->rows - begin;
    job->kernels->activate(job->activation, job->y + begin, smaller(left, FLOATS_PER_TASK));
    return SA_OK;
}

int sa_activate_run(const struct sa_kernels *kernels, enum sa_activation activation, float *x, ptrdiff_t n,
                    int num_threads)
{
    struct rows_job job = {.kernels = kernels, .activation = activation, .y = x, .rows = n};
    num_threads = worthwhile_threads(16.0 * (double)n, num_threads);
    return sa_parallel_for(task_count(n, FLOATS_PER_TASK), activate_task, &job, num_threads);
}

static int gate_task(void *context, ptrdiff_t index)
{
    const struct rows_job *job = context;
    ptrdiff_t row0 = index * ROWS_PER_TASK, left = job->rows - row0;
    job->kernels->gate(job->activation, job->gate_up + row0 * 2 * job->width, smaller(left, ROWS_PER_TASK), job->width,
                       job->y + row0 * job->width);
    return SA_OK;
}

int sa_gate_run(const struct sa_kernels *kernels, enum sa_activation activation, const float *gate_up, ptrdiff_t rows,
                ptrdiff_t width, float *y, int num_threads)
{
    struct rows_job job = {
        .kernels = kernels, .activation = activation, .gate_up = gate_up, .y = y, .rows = rows, .width = width};
    num_threads = worthwhile_threads(16.0 * (double)rows * (double)width, num_threads);
    return sa_parallel_for(task_count(rows, ROWS_PER_TASK), gate_task, &job, num_threads);
}
