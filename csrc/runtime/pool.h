/* SPDX-License-Identifier: Apache-2.0 */
/* pool.h -- the thread pool, and the interruption of jobs. */
#ifndef SELFATTN_POOL_H
#define SELFATTN_POOL_H

#include <stddef.h>

enum { SA_OK = 0, SA_INTERRUPTED = 1, SA_NO_MEMORY = 2 };
enum { SA_MAX_THREADS = 1024 };

/* One task of a job. Returns SA_OK, or a status that cancels the tasks that have not begun. Any thread may run a
 * task: its result may depend on its index and the context, never on the thread. */
typedef int (*sa_task_function)(void *context, ptrdiff_t index);

/* Runs task(context, 0 .. count - 1) on the calling thread and at most num_threads - 1 helpers. Thread i of n begins
 * near task i * count / n, and goes on to its neighbours. Returns when no thread touches the context any more:
 * SA_OK, or the first non-zero status. Several threads may call it at once; they share the workers. Inside a task it
 * runs serially, on the thread of the task. */
int sa_parallel_for(ptrdiff_t count, sa_task_function task, void *context, int num_threads);

/* The same, but tasks begin in the order of their index. */
int sa_parallel_in_order(ptrdiff_t count, sa_task_function task, void *context, int num_threads);

/* Inside a long task: a non-zero result means to stop early and return it. On the thread that called sa_parallel_for it
 * polls, if a poll is due. */
int sa_checkpoint(void);

/* Inside a task: the number of this thread among the threads of its job, 0 <= slot < num_threads. */
int sa_slot(void);

/* The poll is called at most every 20 ms, and only on the calling thread of a job. A non-zero result cancels the job
 * with SA_INTERRUPTED. The poll may do anything, also run jobs of its own. If it forks while helpers are at work,
 * the child cannot complete the job: there sa_parallel_for returns SA_INTERRUPTED. */
void sa_set_poll(int (*poll)(void));

/* While held, the jobs of this thread do not poll: no other code can run in the middle of a job. */
void sa_hold_poll(int held);

/* The default for num_threads. Exported, for tools like threadpoolctl. */
__attribute__((visibility("default"))) int selfattn_get_num_threads(void);
__attribute__((visibility("default"))) void selfattn_set_num_threads(int num_threads);

#endif
