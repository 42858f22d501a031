/* SPDX-License-Identifier: Apache-2.0 */
/* cores.c -- cores and clocks. On Linux the core of a thread can be read and changed; elsewhere the scheduler
 * decides. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "runtime/cores.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

int sa_core_count(void)
{
#ifdef __linux__
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) return CPU_COUNT(&mask);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

int sa_core(void)
{
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

void sa_leave_core(int core)
{
#ifdef __linux__
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) > 0 &&
        sched_setaffinity(0, sizeof others, &others) == 0) /* the kernel moves the thread at once */
        sched_setaffinity(0, sizeof allowed, &allowed);
#else
    (void)core;
#endif
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t sa_clock_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

int64_t sa_tick_ns(void)
{
#ifdef CLOCK_MONOTONIC_COARSE
    return clock_ns(CLOCK_MONOTONIC_COARSE);
#else
    return sa_clock_ns();
#endif
}

void sa_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` does nothing on most cores */
#endif
}
