/* SPDX-License-Identifier: Apache-2.0 */
/* The cases of pool_harness.c between operations of an OpenMP team: before each job, the thread that calls runs one.
 * The exit status is 3 if a case is over without a loan, 5 if one was made within a parallel region (linked with
 * --wrap=sa_openmp_start). */
#include "runtime/pool.h"
#include "openmp/openmp_loan.h"

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

static pid_t first_process;
static atomic_int loans;

int __real_sa_openmp_start(struct sa_openmp_loan *loan);
int __wrap_sa_openmp_start(struct sa_openmp_loan *loan);

int __wrap_sa_openmp_start(struct sa_openmp_loan *loan)
{
    atomic_fetch_add(&loans, 1);
    return __real_sa_openmp_start(loan);
}

__attribute__((constructor)) static void remember_process(void)
{
    first_process = getpid();
}

static int do_nothing(void *context, ptrdiff_t index)
{
    (void)context, (void)index;
    return SA_OK;
}

/* A team has no team, even of one thread. */
static void call_within(int num_threads)
{
#pragma omp parallel
    sched_yield(); /* awake */
#pragma omp parallel num_threads(num_threads)
#pragma omp master
    if (sa_parallel_for(4, do_nothing, NULL, 2) != SA_OK) _exit(4);
}

__attribute__((destructor)) static void check_loans(void)
{
    if (getpid() != first_process) return;
    if (loans == 0) _exit(3);
    int before = loans;
    for (int i = 0; i < 20; i++)
        call_within(1 + i % 2);
    if (loans != before) _exit(5);
}

static void operation(void)
{
    atomic_int threads = 0;
    if (getpid() != first_process) return; /* OpenMP itself hangs in the child of a fork */
    if (omp_get_level() == 0) omp_set_num_threads(omp_get_max_threads()); /* as PyTorch does on each thread */
#pragma omp parallel
    atomic_fetch_add(&threads, 1);
}

#define OTHER_THREADS (9 * omp_get_max_threads()) /* main and eight callers have a team each */
#define sa_parallel_for(...) (operation(), sa_parallel_for(__VA_ARGS__))
#define sa_parallel_in_order(...) (operation(), sa_parallel_in_order(__VA_ARGS__))
#include "pool_harness.c"
