/* SPDX-License-Identifier: Apache-2.0 */
/* attention_tasks.h -- the tasks of a call of attention. */
#ifndef SELFATTN_PLAN_ATTENTION_TASKS_H
#define SELFATTN_PLAN_ATTENTION_TASKS_H

#include "plan/tasks.h"

/* All tasks of a call, in the order in which they begin. */
struct sa_attention_tasks {
    ptrdiff_t rows;            /* of a task */
    ptrdiff_t count, per_head; /* of all heads; of one head, of the longest sequence if packed */
    ptrdiff_t *first;          /* packed: (items + 1,), the first task of each item, and the count; otherwise NULL */
    double scores;             /* of one head of all items */
};

/* The address of the first row of a head of an item; NULL without an array. */
char *sa_item_head(const struct sa_attention *, const struct sa_array *, ptrdiff_t item, ptrdiff_t head);

/* The index-th task of `rows` rows of an item's key head. */
struct sa_attention_task sa_attention_task_of(const struct sa_attention *, ptrdiff_t item, ptrdiff_t kv_head,
                                              ptrdiff_t index, ptrdiff_t rows);

/* The number of tasks of `rows` rows that q_len queries make. */
ptrdiff_t sa_attention_tasks_of(const struct sa_attention *, ptrdiff_t q_len, ptrdiff_t rows);

/* SA_OK, and the caller frees tasks->first; or SA_NO_MEMORY. */
int sa_plan_attention_tasks(const struct sa_attention *, ptrdiff_t rows, struct sa_attention_tasks *);

/* The task of an index, 0 <= index < count. */
struct sa_attention_task sa_attention_task_at(const struct sa_attention *, const struct sa_attention_tasks *,
                                              ptrdiff_t index);

/* Multiply-adds of a call, without masks. */
double sa_multiply_adds(const struct sa_attention *, const struct sa_attention_tasks *);

#endif
