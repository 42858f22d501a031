/* SPDX-License-Identifier: Apache-2.0 */
/* tasks.h -- helpers of all plans: the number of tasks, and the number of threads. */
#ifndef SELFATTN_PLAN_TASKS_H
#define SELFATTN_PLAN_TASKS_H

#include "contracts/operators.h"

static inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static inline ptrdiff_t task_count(ptrdiff_t n, ptrdiff_t per_task)
{
    return (n + per_task - 1) / per_task;
}

/* At most one thread for each SA_WORTH_A_THREAD multiply-adds, at least 1. */
static inline int worthwhile_threads(double multiply_adds, int num_threads)
{
    double worth = multiply_adds / SA_WORTH_A_THREAD;
    return worth < num_threads ? (worth < 1.0 ? 1 : (int)worth) : num_threads;
}

#endif
