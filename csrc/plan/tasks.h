/* operators.h -- what the operators' tasks have in common. */
#ifndef SELFATTN_OPERATORS_H
#define SELFATTN_OPERATORS_H

#include "contracts/kernels.h"

/* Work below this many multiply-adds (about 10 us) is not worth a second thread. */
static const double WORTH_A_THREAD = 5e5;

/* A task is a few milliseconds at most: between tasks, Ctrl-C is noticed. */
static const double TASK_MULTIPLY_ADDS = 1e8;

enum { NUMBERS_PER_TASK = 16384 }; /* of what takes each number by itself */

static inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static inline ptrdiff_t task_count(ptrdiff_t n, ptrdiff_t per_task)
{
    return (n + per_task - 1) / per_task;
}

static inline int worthwhile_threads(double multiply_adds, int num_threads)
{
    double worth = multiply_adds / WORTH_A_THREAD;
    return worth < num_threads ? (worth < 1.0 ? 1 : (int)worth) : num_threads;
}

#endif
