/* SPDX-License-Identifier: Apache-2.0 */
/* openmp_loan.h -- the OpenMP threads of another library in this process, on loan.
 *
 * A thread that runs operations of PyTorch has a team of OpenMP threads. After each operation they spin for
 * milliseconds on the cores that our workers would need, and the system divides those cores between the two. So a
 * job on such a thread takes the team as its helpers, as long as it is awake. Until sa_openmp_end the thread is then
 * inside a parallel region, as OpenMP sees it: what a poll does there with OpenMP runs on this thread alone. */
#ifndef SELFATTN_OPENMP_LOAN_H
#define SELFATTN_OPENMP_LOAN_H

#include <stdbool.h>
#include <time.h>

struct sa_openmp_library;

/* Loans are off until this function or SELFATTN_OPENMP=1 in the environment turns them on: they read memory that
 * belongs to the other library. Returns whether loans are possible now. They are on Linux, but not in a child that
 * was forked beside an OpenMP library. */
bool sa_openmp_allow(bool allow);

/* Lives on the borrower's stack from sa_openmp_can_help to sa_openmp_end. */
struct sa_openmp_loan {
    void (*work)(void *context, int number); /* what each thread of the team does, number > 0 */
    void *context;
    const struct sa_openmp_library *library; /* whose threads they are */
    bool clock_known;                        /* thread number 1 has told its clock */
    clockid_t clock;
};

/* Does this thread have a team of its own, awake, with at most `helpers` threads beside this one? The job waits for the
 * whole team. The loan receives the library. */
bool sa_openmp_can_help(struct sa_openmp_loan *loan, int helpers);

/* Sets the whole team to work; returns how many there are beside this thread. */
int sa_openmp_start(struct sa_openmp_loan *loan);

/* Waits until the whole team has returned from its work. */
void sa_openmp_end(struct sa_openmp_loan *loan);

#endif
