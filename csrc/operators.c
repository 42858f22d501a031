/* operators.c -- the operators over all their tasks: which piece of the arrays a task computes, and how many threads
 * are worth waking. No arithmetic here. */
#include "kernels.h"
#include "pool.h"

#include <stdlib.h>

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
    ptrdiff_t tiles, spans;      /* of one head of one item */
    const ptrdiff_t *first_task; /* packed: of item i, and the number of tasks in the end; otherwise NULL */
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

/* Packed: there are no leading dimensions, an item is a range of rows. Returns how many keys it has. */
static ptrdiff_t take_rows(const struct sa_attention *a, ptrdiff_t item, struct sa_tile *t)
{
    ptrdiff_t query = (ptrdiff_t)a->cu_seqlens_q[item], key = (ptrdiff_t)a->cu_seqlens_kv[item];
    t->q_len = (ptrdiff_t)a->cu_seqlens_q[item + 1] - query;
    t->query += query * a->query.row;
    if (t->out) t->out += query * a->out.row;
    if (t->lse) t->lse += query * a->lse.row;
    if (t->mask) t->mask += query * a->mask.row;
    if (t->bias) t->bias += query * a->bias.row;
    t->key += key * a->key.row;
    if (t->value) t->value += key * a->value.row;
    return (ptrdiff_t)a->cu_seqlens_kv[item + 1] - key;
}

static struct sa_tile tile_of(const struct sa_attention *a, ptrdiff_t item, ptrdiff_t kv_head, ptrdiff_t tile)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, head = kv_head * group;
    ptrdiff_t rows_of = a->block_table ? 0 : item; /* pages belong to no item */
    struct sa_tile t = {
        .query = item_head(a, &a->query, item, head),
        .key = item_head(a, &a->key, rows_of, kv_head),
        .value = item_head(a, &a->value, rows_of, kv_head),
        .key_scale = item_head(a, &a->key_scale, item, kv_head),
        .value_scale = item_head(a, &a->value_scale, item, kv_head),
        .mask = item_head(a, &a->mask, item, head),
        .bias = item_head(a, &a->bias, item, head),
        .out = item_head(a, &a->out, item, head),
        .lse = item_head(a, &a->lse, item, head),
        .pages = a->block_table ? a->block_table + item * a->table_width : NULL,
        .alibi_slopes = a->alibi_slopes ? a->alibi_slopes + head : NULL,
        .sinks = a->sinks ? a->sinks + head : NULL,
        .q_len = a->q_len,
        .row0 = tile * SA_TASK_ROWS,
    };
    ptrdiff_t kv_len = a->cu_seqlens_q ? take_rows(a, item, &t) : a->kv_len;
    t.valid_keys = a->kv_lengths ? (ptrdiff_t)a->kv_lengths[item / a->items_per_length] : kv_len;
    /* The last query stands at the last key: of all, or of the valid ones where that is asked for by name. */
    if (a->causal == SA_CAUSAL_BOTTOM_RIGHT || a->block_table) kv_len = t.valid_keys;
    t.position0 = a->causal == SA_CAUSAL_TOP_LEFT ? 0 : kv_len - t.q_len;
    t.rows = smaller(t.q_len * group - t.row0, SA_TASK_ROWS);
    return t;
}

/* The item whose tasks `index` is among. */
static ptrdiff_t packed_item(const struct attention_job *job, ptrdiff_t index)
{
    ptrdiff_t low = 0, high = job->args->items; /* first_task[low] <= index < first_task[high] */
    while (high - low > 1) {
        ptrdiff_t middle = low + (high - low) / 2;
        if (job->first_task[middle] <= index)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Tasks go head by head, so that keys and values stay in the cache, and begin with a head's last tile: under a causal
 * mask that is the one with the most keys, and what remains at the very end is short. */
static int attention_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct sa_attention *a = job->args;
    ptrdiff_t tiles = job->tiles, item = index / (tiles * a->num_kv_heads), rest = index % (tiles * a->num_kv_heads);
    if (job->first_task) {
        item = packed_item(job, index);
        rest = index - job->first_task[item];
        tiles = (job->first_task[item + 1] - job->first_task[item]) / a->num_kv_heads;
    }
    struct sa_tile t = tile_of(a, item, rest / tiles, tiles - 1 - rest % tiles);
    void *workspace = sa_workspace(job->workspace);
    return workspace ? job->compute(a, &t, workspace) : SA_NO_MEMORY;
}

/* The columns of one span of keys: all the queries' rows, one tile after the other. */
static int column_sums_task(void *context, ptrdiff_t index)
{
    const struct attention_job *job = context;
    const struct sa_attention *a = job->args;
    ptrdiff_t head = index / job->spans, span = index % job->spans;
    void *workspace = sa_workspace(job->workspace);
    int status = workspace ? SA_OK : SA_NO_MEMORY;
    for (ptrdiff_t tile = 0; tile < job->tiles && !status; ++tile) {
        struct sa_tile t = tile_of(a, head / a->num_kv_heads, head % a->num_kv_heads, tile);
        status = job->kernels->column_sums(a, &t, span * SA_KEY_SPAN, workspace);
    }
    return status;
}

/* Sequences differ in length, and so in the number of their tasks. `first_task` has room for items + 1. */
static double plan_packed(const struct sa_attention *a, ptrdiff_t *first_task)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    double scores = 0.0;
    first_task[0] = 0;
    for (ptrdiff_t i = 0; i < a->items; ++i) {
        ptrdiff_t q_len = (ptrdiff_t)(a->cu_seqlens_q[i + 1] - a->cu_seqlens_q[i]);
        first_task[i + 1] = first_task[i] + task_count(q_len * group, SA_TASK_ROWS) * a->num_kv_heads;
        scores += (double)q_len * (double)(a->cu_seqlens_kv[i + 1] - a->cu_seqlens_kv[i]);
    }
    return scores;
}

int sa_attention_run(const struct sa_kernels *kernels, const struct sa_attention *a, enum sa_result result,
                     int num_threads)
{
    if (a->dtype == SA_FLOAT64) kernels = kernels->float64;
    if (a->bfloat16 && kernels->bfloat16 && kernels->bfloat16->runs_here()) kernels = kernels->bfloat16;
    ptrdiff_t *first_task = a->cu_seqlens_q ? malloc((size_t)(a->items + 1) * sizeof *first_task) : NULL;
    if (a->cu_seqlens_q && !first_task) return SA_NO_MEMORY;
    struct attention_job job = {
        .kernels = kernels,
        .args = a,
        .tiles = task_count(a->q_len * (a->num_heads / a->num_kv_heads), SA_TASK_ROWS),
        .spans = task_count(a->kv_len, SA_KEY_SPAN),
        .first_task = first_task,
        .workspace = kernels->attention_workspace(a),
        .compute = result == SA_WEIGHTS          ? kernels->attention_weights
                   : result == SA_ROW_STATISTICS ? kernels->row_statistics
                                                 : kernels->attention,
    };
    sa_task task = result == SA_COLUMN_SUMS ? column_sums_task : attention_task;
    double scores = (double)a->items * (double)a->q_len * (double)a->kv_len; /* of one head */
    if (first_task) scores = plan_packed(a, first_task);
    ptrdiff_t tasks = (result == SA_COLUMN_SUMS ? job.spans : job.tiles) * a->items * a->num_kv_heads;
    if (first_task) tasks = first_task[a->items];
    double multiply_adds = scores * (double)a->num_heads * (double)(a->head_dim + a->value_dim);
    int status = sa_parallel_for(tasks, task, &job, worthwhile_threads(multiply_adds, num_threads));
    free(first_task);
    return status;
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

enum { ROWS_PER_TASK = 64, NUMBERS_PER_TASK = 16384 };

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
