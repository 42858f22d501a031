/* team.h -- the OpenMP threads of a library beside us, on loan.
 *
 * A thread that runs operations of PyTorch has a team of OpenMP threads. After each operation they spin for
 * milliseconds on the cores that our workers would need, and the system divides those cores between the two. So a job
 * on such a thread takes the team as its helpers, as long as it is awake. Until sa_team_end the thread is then inside a
 * parallel region, as OpenMP sees it: what a poll does there with OpenMP runs on this thread alone. */
#ifndef SELFATTN_TEAM_H
#define SELFATTN_TEAM_H

#include <stdbool.h>
#include <time.h>

struct sa_library;

/* Lives on the borrower's stack from sa_team_helps to sa_team_end. */
struct sa_loan {
    void (*work)(void *context, int number); /* what each thread of the team does, number > 0 */
    void *context;
    const struct sa_library *library; /* whose threads they are */
    bool met;                         /* number 1 has told its clock */
    clockid_t clock;
};

/* Whether this thread has a team of its own, awake, with at most so many threads beside it: a whole team has to be
 * waited for. Says in the loan whose. */
bool sa_team_helps(struct sa_loan *loan, int helpers);

/* Sets the whole team to work; returns how many there are beside this thread. */
int sa_team_start(struct sa_loan *loan);

/* Waits until the whole team has returned from its work. */
void sa_team_end(struct sa_loan *loan);

#endif
