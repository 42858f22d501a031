/* pool.h -- the thread pool, and the clock of interruption. */
#ifndef SELFATTN_POOL_H
#define SELFATTN_POOL_H

#include <stddef.h>

enum { SA_OK = 0, SA_INTERRUPTED = 1, SA_NO_MEMORY = 2 };
enum { SA_MAX_THREADS = 1024 };

/* One piece of a job. Returns SA_OK, or a status that cancels the tasks not yet begun. Tasks begin on any thread: what a
 * task writes may depend on its index and the context, never on its thread. */
typedef int (*sa_task_function)(void *context, ptrdiff_t index);

/* Runs task(context, 0 .. count - 1) on the calling thread and at most num_threads - 1 helpers, each of which begins
 * with neighbours: thread i of n with task i * count / n, or so. Returns when no thread touches the context any more:
 * SA_OK, or the first non-zero status. May be called by several threads at once (they share the workers); inside a task
 * it runs serially on that thread. */
int sa_parallel_for(ptrdiff_t count, sa_task_function task, void *context, int num_threads);

/* The same, but tasks begin in the order of their index. */
int sa_parallel_in_order(ptrdiff_t count, sa_task_function task, void *context, int num_threads);

/* Inside a long task: non-zero means stop early and return it. Polls, if that is due, on the thread that called
 * sa_parallel_for. */
int sa_checkpoint(void);

/* Inside a task: which of its job's threads this is, 0 <= slot < num_threads. */
int sa_slot(void);

/* The poll is called at most every 20 ms and only on the calling thread of a job; non-zero cancels the job with
 * SA_INTERRUPTED. It may do anything, also run jobs of its own. If it forks, and helpers were at work, the child
 * cannot complete the job: there sa_parallel_for returns SA_INTERRUPTED although no poll said so. */
void sa_set_poll(int (*poll)(void));

/* While held, this thread's jobs do not poll: nothing else can run in the middle of one. */
void sa_hold_poll(int held);

/* The default for num_threads. Exported, for tools like threadpoolctl. */
__attribute__((visibility("default"))) int selfattn_get_num_threads(void);
__attribute__((visibility("default"))) void selfattn_set_num_threads(int num_threads);

#endif
