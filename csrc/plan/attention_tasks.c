/* SPDX-License-Identifier: Apache-2.0 */
/* attention_tasks.c -- the tasks of a call of attention, and the pieces of its arrays that belong to each. */
#include "plan/attention_tasks.h"

#include <stdlib.h>

/* Bytes from the first item to an item of a dense array. */
static ptrdiff_t leading_offset(const struct sa_attention *a, const struct sa_array *array, ptrdiff_t item)
{
    ptrdiff_t offset = 0;
    for (int d = a->num_leading - 1; d > 0; --d) {
        offset += item % a->leading_shape[d] * array->leading[d];
        item /= a->leading_shape[d];
    }
    return a->num_leading > 0 ? offset + item * array->leading[0] : offset;
}

char *sa_item_head(const struct sa_attention *a, const struct sa_array *array, ptrdiff_t item, ptrdiff_t head)
{
    return array->data ? array->data + leading_offset(a, array, item) + head * array->head : NULL;
}

static void move_rows(char **data, const struct sa_array *array, ptrdiff_t rows)
{
    if (*data) *data += rows * array->row;
}

/* Packed: there are no leading dimensions, an item is a range of rows. Returns the number of its keys. */
static ptrdiff_t take_rows(const struct sa_attention *a, ptrdiff_t item, struct sa_attention_task *t)
{
    ptrdiff_t query = (ptrdiff_t)a->cu_seqlens_q[item], key = (ptrdiff_t)a->cu_seqlens_kv[item];
    t->q_len = (ptrdiff_t)a->cu_seqlens_q[item + 1] - query;
    t->query += query * a->query.row;
    t->key += key * a->key.row;
    if (t->value) t->value += key * a->value.row;
    if (t->mask) t->mask += query * a->mask.row;
    if (t->bias) t->bias += query * a->bias.row;
    if (t->grad_out) t->grad_out += query * a->grad_out.row;
    move_rows(&t->out, &a->out, query);
    move_rows(&t->lse, &a->lse, query);
    move_rows(&t->grad_query, &a->grad_query, query);
    move_rows(&t->grad_sinks, &a->grad_sinks, query);
    move_rows(&t->grad_alibi, &a->grad_alibi, query);
    move_rows(&t->grad_key, &a->grad_key, key);
    move_rows(&t->grad_value, &a->grad_value, key);
    return (ptrdiff_t)a->cu_seqlens_kv[item + 1] - key;
}

struct sa_attention_task sa_attention_task_of(const struct sa_attention *a, ptrdiff_t item, ptrdiff_t kv_head,
                                              ptrdiff_t index, ptrdiff_t rows)
{
    ptrdiff_t group = sa_group(a), head = kv_head * group;
    ptrdiff_t rows_of = a->block_table ? 0 : item; /* pages belong to no item */
    struct sa_attention_task t = {
        .query = sa_item_head(a, &a->query, item, head),
        .key = sa_item_head(a, &a->key, rows_of, kv_head),
        .value = sa_item_head(a, &a->value, rows_of, kv_head),
        .key_scale = sa_item_head(a, &a->key_scale, item, kv_head),
        .value_scale = sa_item_head(a, &a->value_scale, item, kv_head),
        .mask = sa_item_head(a, &a->mask, item, head),
        .bias = sa_item_head(a, &a->bias, item, head),
        .out = sa_item_head(a, &a->out, item, head),
        .lse = sa_item_head(a, &a->lse, item, head),
        .grad_out = sa_item_head(a, &a->grad_out, item, head),
        .grad_query = sa_item_head(a, &a->grad_query, item, head),
        .grad_key = sa_item_head(a, &a->grad_key, item, kv_head),
        .grad_value = sa_item_head(a, &a->grad_value, item, kv_head),
        .grad_sinks = sa_item_head(a, &a->grad_sinks, item, head),
        .grad_alibi = sa_item_head(a, &a->grad_alibi, item, head),
        .item = item,
        .head = head,
        .pages = a->block_table ? a->block_table + item * a->table_width : NULL,
        .alibi_slopes = a->options.alibi_slopes ? a->options.alibi_slopes + head : NULL,
        .sinks = a->options.sinks ? a->options.sinks + head : NULL,
        .relative_bias =
            a->options.relative_bias ? a->options.relative_bias + head * sa_relative_width(&a->options) : NULL,
        .q_len = a->q_len,
        .row0 = index * rows,
    };
    ptrdiff_t kv_len = a->cu_seqlens_q ? take_rows(a, item, &t) : a->kv_len;
    t.valid_keys = a->kv_lengths ? (ptrdiff_t)a->kv_lengths[item / a->items_per_length] : kv_len;
    /* The last query has the position of the last key; with SA_CAUSAL_BOTTOM_RIGHT or pages, of the last valid key. */
    if (a->options.causal == SA_CAUSAL_BOTTOM_RIGHT || a->block_table) kv_len = t.valid_keys;
    t.position0 = a->options.causal == SA_CAUSAL_TOP_LEFT ? 0 : kv_len - t.q_len;
    t.rows = smaller(t.q_len * group - t.row0, rows);
    return t;
}

ptrdiff_t sa_attention_tasks_of(const struct sa_attention *a, ptrdiff_t q_len, ptrdiff_t rows)
{
    return task_count(q_len * sa_group(a), rows);
}

int sa_plan_attention_tasks(const struct sa_attention *a, ptrdiff_t rows, struct sa_attention_tasks *tasks)
{
    ptrdiff_t per_head = sa_attention_tasks_of(a, a->q_len, rows);
    *tasks = (struct sa_attention_tasks){rows, per_head * a->items * a->num_kv_heads, per_head, NULL,
                                         (double)a->items * (double)a->q_len * (double)a->kv_len};
    if (!a->cu_seqlens_q) return SA_OK;
    tasks->count = 0, tasks->scores = 0.0; /* sequences of different length have different numbers of tasks */
    tasks->first = malloc((size_t)(a->items + 1) * sizeof *tasks->first);
    if (!tasks->first) return SA_NO_MEMORY;
    for (ptrdiff_t i = 0; i < a->items; ++i) {
        ptrdiff_t q_len = (ptrdiff_t)(a->cu_seqlens_q[i + 1] - a->cu_seqlens_q[i]);
        tasks->first[i] = tasks->count;
        tasks->count += sa_attention_tasks_of(a, q_len, rows) * a->num_kv_heads;
        tasks->scores += (double)q_len * (double)(a->cu_seqlens_kv[i + 1] - a->cu_seqlens_kv[i]);
    }
    tasks->first[a->items] = tasks->count;
    return SA_OK;
}

/* The item that a task of a packed batch belongs to. */
static ptrdiff_t packed_item(const struct sa_attention *a, const struct sa_attention_tasks *tasks, ptrdiff_t index)
{
    ptrdiff_t low = 0, high = a->items; /* first[low] <= index < first[high] */
    while (high - low > 1) {
        ptrdiff_t middle = low + (high - low) / 2;
        if (tasks->first[middle] <= index)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Tasks go head by head, so that keys and values stay in the cache. A head begins with its last task: under a causal
 * mask that is the one with the most keys, and the tasks at the very end are short. */
struct sa_attention_task sa_attention_task_at(const struct sa_attention *a, const struct sa_attention_tasks *tasks,
                                              ptrdiff_t index)
{
    ptrdiff_t item, remainder, per_head = tasks->per_head;
    if (tasks->first) {
        item = packed_item(a, tasks, index);
        remainder = index - tasks->first[item];
        per_head = (tasks->first[item + 1] - tasks->first[item]) / a->num_kv_heads;
    } else {
        item = index / (per_head * a->num_kv_heads);
        remainder = index % (per_head * a->num_kv_heads);
    }
    ptrdiff_t position = remainder % per_head; /* among the tasks of the head */
    struct sa_attention_task t =
        sa_attention_task_of(a, item, remainder / per_head, per_head - 1 - position, tasks->rows);
    t.first = position == 0;
    return t;
}

double sa_multiply_adds(const struct sa_attention *a, const struct sa_attention_tasks *tasks)
{
    return tasks->scores * (double)a->num_heads * (double)(a->head_dim + a->value_dim);
}
