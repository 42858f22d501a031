/* The cases of pool_harness.c between operations of an OpenMP team: before each job, the thread that calls runs one. */
#include "pool.h"

#include <omp.h>
#include <stdatomic.h>
#include <unistd.h>

static pid_t first_process;

__attribute__((constructor)) static void remember_process(void)
{
    first_process = getpid();
}

static int after_an_operation(ptrdiff_t count, sa_task task, void *context, int num_threads)
{
    atomic_int threads = 0;
    if (getpid() == first_process) { /* OpenMP itself hangs in the child of a fork */
#pragma omp parallel
        atomic_fetch_add(&threads, 1);
    }
    return sa_parallel_for(count, task, context, num_threads);
}

#define OTHER_THREADS (9 * omp_get_max_threads()) /* main and eight callers have a team each */
#define sa_parallel_for after_an_operation
#include "pool_harness.c"
