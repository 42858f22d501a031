/* SPDX-License-Identifier: Apache-2.0 */
/* default_threads.c -- how many threads a call uses that does not say: one number for the whole process. */
#include "runtime/pool.h"

#include <stdatomic.h>

static atomic_int default_threads = 1;

int selfattn_get_num_threads(void)
{
    return atomic_load(&default_threads);
}

void selfattn_set_num_threads(int num_threads)
{
    int limit = num_threads < SA_MAX_THREADS ? num_threads : SA_MAX_THREADS;
    atomic_store(&default_threads, limit > 1 ? limit : 1);
}
