/* SPDX-License-Identifier: Apache-2.0 */
/* task_shares.h -- the tasks of a job, dealt out to its threads.
 *
 * A thread begins with its own share of neighbouring tasks. Their data stay in the caches of its core from task to
 * task. They stay from call to call too, because the same thread gets the same share again. When its share is empty,
 * a thread takes tasks from other shares, so that all threads end together. With one share, tasks begin in the order
 * of their index. */
#ifndef SELFATTN_SHARES_H
#define SELFATTN_SHARES_H

#include <stdatomic.h>
#include <stddef.h>

enum { SA_MAX_SHARES = 16, SA_SHARE_ALIGNMENT = 64 }; /* bytes: one cache line, so that threads do not share lines */

struct sa_task_shares {
    int count;
    struct sa_task_share {
        _Alignas(SA_SHARE_ALIGNMENT) atomic_ptrdiff_t next;
        ptrdiff_t end;
    } share[SA_MAX_SHARES]; /* on the stack: 64 shares would make a call of 3 us 2 % longer */
};

_Static_assert(sizeof(struct sa_task_share) == SA_SHARE_ALIGNMENT, "a share fills one cache line");

static inline void sa_deal_tasks(struct sa_task_shares *shares, ptrdiff_t tasks, int threads)
{
    int count = threads < SA_MAX_SHARES ? threads : SA_MAX_SHARES;
    ptrdiff_t each = count == 1 ? tasks : tasks / count, remainder = tasks - each * count, next = 0;
    shares->count = count;
    for (int i = 0; i < count; i++) {
        shares->share[i].end = next + each + (i < remainder);
        atomic_init(&shares->share[i].next, next);
        next = shares->share[i].end;
    }
}

/* The next task of this thread, -1 after the last. `emptied`: the number of shares that it has found empty, 0 at
 * first. */
static inline ptrdiff_t sa_take_task(struct sa_task_shares *shares, int slot, int *emptied)
{
    for (; *emptied < shares->count; ++*emptied) {
        struct sa_task_share *share = &shares->share[(slot + *emptied) % shares->count];
        if (atomic_load(&share->next) >= share->end) continue;
        ptrdiff_t index = atomic_fetch_add(&share->next, 1);
        if (index < share->end) return index;
    }
    return -1;
}

#endif
