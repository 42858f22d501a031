/* cores.h -- which cores there are, which one this thread is on, and its time. */
#ifndef SELFATTN_CORES_H
#define SELFATTN_CORES_H

#include <stdint.h>

/* Cores that this process may run on; at least 1. */
int sa_core_count(void);

/* The core this thread is on; -1 where the system does not say. */
int sa_core(void);

/* Moves this thread to another core of those it may run on, if there is one. */
void sa_leave_core(int core);

/* A clock that nobody sets; and what it said at the system's last tick, some milliseconds ago: 5 ns, and not 25. */
int64_t sa_clock_ns(void);
int64_t sa_tick_ns(void);

/* What a thread does between two looks at what it waits for. */
void sa_pause(void);

#endif
