/* SPDX-License-Identifier: Apache-2.0 */
/* cores.h -- the cores of this process, the core of this thread, and clocks. */
#ifndef SELFATTN_CORES_H
#define SELFATTN_CORES_H

#include <stdint.h>

/* The number of cores that this process may run on; at least 1. */
int sa_core_count(void);

/* The core that this thread runs on; -1 where the system does not tell. */
int sa_core(void);

/* Moves this thread to another core that it may run on, if there is one. */
void sa_leave_core(int core);

/* A monotonic clock, in ns: a call takes 25 ns. And its value at the last tick of the system, at most 10 ms ago: a call
 * takes 5 ns. */
int64_t sa_clock_ns(void);
int64_t sa_tick_ns(void);

/* A short pause in a loop that waits. */
void sa_pause(void);

#endif
