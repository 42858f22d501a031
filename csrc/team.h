/* team.h -- the OpenMP threads of a library beside us, on loan.
 *
 * A thread that runs operations of PyTorch has a team of OpenMP threads. After each operation they spin for
 * milliseconds on the cores that our workers would need, and the system divides those cores between the two. So a job
 * on such a thread takes the team as its helpers, as long as it is awake. */
#ifndef SELFATTN_TEAM_H
#define SELFATTN_TEAM_H

#include <stdbool.h>
#include <time.h>

struct sa_library;

/* Lives on the borrower's stack from sa_team_size to sa_team_end. */
struct sa_loan {
    void (*work)(void *context, int number); /* what each thread of the team does, 1 <= number <= the team's size */
    void *context;
    const struct sa_library *library; /* whose threads they are */
    bool clocked;                     /* number 1 has told its clock */
    clockid_t clock;
};

/* The size of this thread's team without itself: 0 where it has none, or where that sleeps. Says in the loan whose. */
int sa_team_size(struct sa_loan *loan);

/* Sets the whole team to work, and returns. */
void sa_team_start(struct sa_loan *loan);

/* Waits until the whole team has returned from its work. */
void sa_team_end(struct sa_loan *loan);

#endif
