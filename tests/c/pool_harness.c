/* SPDX-License-Identifier: Apache-2.0 */
/* Drives csrc/runtime/pool.c without Python. `pool_harness NAME` runs one case: exit status 0, or 1 with the failed
 * line. */
#define _GNU_SOURCE
#include "runtime/pool.h"
#include "runtime/workspace.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);                                   \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

enum { MOST = 20000 };

#ifndef OTHER_THREADS
#define OTHER_THREADS 0 /* that are not of the pool, at most */
#endif

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void work_for(double duration)
{
    for (double end = seconds() + duration; seconds() < end;)
        ;
}

static void sleep_for(double duration)
{
    usleep((useconds_t)(duration * 1e6));
}

static int os_threads(void)
{
    char line[256];
    int threads = -1;
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "Threads: %d", &threads) == 1) break;
    fclose(file);
#ifdef __SANITIZE_THREAD__
    return threads > 1 ? threads - 1 : threads; /* the sanitizer has a thread of its own */
#else
    return threads;
#endif
}

/* ---- a job that can be checked: every slot is written once, from its index ------------------------------------ */

struct squares {
    ptrdiff_t count;
    uint64_t *slots;
};

static int square(void *context, ptrdiff_t index)
{
    struct squares *squares = context;
    unsigned char *scratch = sa_workspace(4096);
    if (!scratch) return SA_NO_MEMORY;
    CHECK((uintptr_t)scratch % 64 == 0);
    memset(scratch, (int)(index & 255), 4096);
    sched_yield();
    CHECK(scratch[0] == (index & 255) && scratch[4095] == (index & 255));
    squares->slots[index] += (uint64_t)(index * index) + 1;
    return SA_OK;
}

static void check_squares(ptrdiff_t count, int threads)
{
    struct squares squares = {count, calloc((size_t)count + 1, sizeof(uint64_t))};
    CHECK(squares.slots);
    CHECK(sa_parallel_for(count, square, &squares, threads) == SA_OK);
    for (ptrdiff_t i = 0; i < count; i++)
        CHECK(squares.slots[i] == (uint64_t)(i * i) + 1);
    CHECK(squares.slots[count] == 0);
    free(squares.slots);
}

static void test_sums(void)
{
    const ptrdiff_t counts[] = {0, 1, 2, 3, 7, 64, 1000, MOST};
    const int threads[] = {-1, 0, 1, 2, 3, 8};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (size_t t = 0; t < sizeof threads / sizeof *threads; t++)
            check_squares(counts[c], threads[t]);
    CHECK(sa_parallel_for(-5, square, NULL, 4) == SA_OK);
    CHECK(os_threads() <= 8 + OTHER_THREADS);
    for (int i = 0; i < 2000; i++)
        check_squares(5, 2 + i % 3);
}

/* Threads of a job have slots of their own, below the number asked for; what is nested keeps that of its task. */
enum { SLOTS = 5 };

static int same_slot(void *context, ptrdiff_t index)
{
    (void)index;
    CHECK(sa_slot() == *(int *)context);
    return SA_OK;
}

static int hold_slot(void *context, ptrdiff_t index)
{
    (void)index;
    atomic_flag *held = context;
    int slot = sa_slot();
    CHECK(0 <= slot && slot < SLOTS);
    CHECK(!atomic_flag_test_and_set(&held[slot]));
    work_for(2e-5);
    CHECK(sa_parallel_for(3, same_slot, &slot, SLOTS) == SA_OK);
    atomic_flag_clear(&held[slot]);
    return SA_OK;
}

static void test_slots(void)
{
    for (int i = 0; i < 200; i++) {
        atomic_flag held[SLOTS] = {0};
        CHECK(sa_parallel_for(1 + i, hold_slot, held, SLOTS) == SA_OK);
    }
}

/* Indices are handed out in order: each thread sees them rise. */
static int rises(void *context, ptrdiff_t index)
{
    static _Thread_local ptrdiff_t last = -1;
    atomic_ptrdiff_t *begun = context;
    CHECK(index > last);
    last = index;
    atomic_fetch_add(begun, 1);
    return SA_OK;
}

static void test_order(void)
{
    atomic_ptrdiff_t begun = 0;
    CHECK(sa_parallel_in_order(MOST, rises, &begun, 8) == SA_OK);
    CHECK(begun == MOST);
}

/* Each thread has a share: it begins with the first task of it and goes on to the next, unless another was faster. */
struct shares {
    ptrdiff_t count;
    atomic_int arrived;
    ptrdiff_t begun[SLOTS];
};

static int begins_its_own(void *context, ptrdiff_t index)
{
    struct shares *shares = context;
    int slot = sa_slot();
    if (shares->begun[slot]++ > 0) return SA_OK;
    ptrdiff_t each = shares->count / SLOTS, more = shares->count % SLOTS;
    CHECK(index == slot * each + (slot < more ? slot : more));
    atomic_fetch_add(&shares->arrived, 1); /* nobody has emptied a share before everybody has come */
    for (double end = seconds() + 10; atomic_load(&shares->arrived) < SLOTS;)
        CHECK(seconds() < end);
    return SA_OK;
}

static void test_shares(void)
{
    for (ptrdiff_t count = SLOTS; count < 4 * SLOTS; count++) {
        struct shares shares = {.count = count};
        CHECK(sa_parallel_for(count, begins_its_own, &shares, SLOTS) == SA_OK);
        for (int slot = 0; slot < SLOTS; slot++)
            count -= shares.begun[slot];
        CHECK(count == 0);
        count = shares.count;
    }
}

/* A share whose thread is held up is done by the others. */
static int first_waits(void *context, ptrdiff_t index)
{
    atomic_ptrdiff_t *begun = context;
    atomic_fetch_add(begun, 1);
    for (double end = seconds() + 10; index == 0 && atomic_load(begun) < MOST;)
        CHECK(seconds() < end);
    return SA_OK;
}

static void test_late(void)
{
    atomic_ptrdiff_t begun = 0;
    CHECK(sa_parallel_for(MOST, first_waits, &begun, 3) == SA_OK);
    CHECK(begun == MOST);
}

/* ---- helpers help, with two threads at once -------------------------------------------------------------------- */

static int meet(void *context, ptrdiff_t index)
{
    (void)index;
    atomic_int *arrived = context;
    atomic_fetch_add(arrived, 1);
    for (double end = seconds() + 10; atomic_load(arrived) < 4;) {
        CHECK(seconds() < end);
        usleep(100);
    }
    return SA_OK;
}

static void test_together(void)
{
    atomic_int arrived = 0;
    CHECK(sa_parallel_for(4, meet, &arrived, 4) == SA_OK);
    CHECK(os_threads() == 4);
}

static int nest(void *context, ptrdiff_t index)
{
    struct squares *outer = context;
    uint64_t slots[50] = {0};
    struct squares inner = {50, slots};
    CHECK(sa_parallel_for(50, square, &inner, 8) == SA_OK);
    for (int i = 0; i < 50; i++)
        CHECK(slots[i] == (uint64_t)(i * i) + 1);
    outer->slots[index]++;
    return SA_OK;
}

static void test_nested(void)
{
    uint64_t slots[200] = {0};
    struct squares outer = {200, slots};
    CHECK(sa_parallel_for(200, nest, &outer, 2) == SA_OK);
    for (int i = 0; i < 200; i++)
        CHECK(slots[i] == 1);
    CHECK(os_threads() == 2);
}

/* ---- several callers ------------------------------------------------------------------------------------------- */

static atomic_int most_threads;

static void *call_often(void *unused)
{
    (void)unused;
    for (int i = 0; i < 300; i++) {
        check_squares(1 + i % 40, 3);
        if (i % 20 == 0) {
            int now = os_threads();
            for (int most = most_threads; now > most && !atomic_compare_exchange_weak(&most_threads, &most, now);)
                ;
            sa_trim();
        }
    }
    return NULL;
}

static void test_callers(void)
{
    enum { CALLERS = 8 };
    pthread_t callers[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_create(&callers[i], NULL, call_often, NULL) == 0);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(callers[i], NULL);
    CHECK(most_threads <= 1 + CALLERS + 2 + OTHER_THREADS); /* main, the callers, two workers for num_threads=3 */
}

/* ---- cancellation and the poll --------------------------------------------------------------------------------- */

struct cancelled {
    atomic_int begun, inside;
    int status;
};

static int fail_at_ten(void *context, ptrdiff_t index)
{
    struct cancelled *state = context;
    atomic_fetch_add(&state->begun, 1);
    atomic_fetch_add(&state->inside, 1);
    if (index != 10) work_for(1e-4);
    atomic_fetch_sub(&state->inside, 1);
    return index == 10 ? state->status : SA_OK;
}

static void test_cancel(void)
{
    for (int threads = 1; threads <= 4; threads++) {
        struct cancelled state = {.status = 41 + threads};
        CHECK(sa_parallel_for(MOST, fail_at_ten, &state, threads) == 41 + threads);
        CHECK(state.inside == 0 && state.begun >= 11 && state.begun < 2000);
        check_squares(100, threads);
    }
}

static pthread_t poll_thread;
static atomic_int polls, polls_to_interrupt;
static double last_poll, shortest_gap = 1e9;

static int count_polls(void)
{
    CHECK(pthread_equal(pthread_self(), poll_thread));
    double now = seconds();
    if (now - last_poll < shortest_gap) shortest_gap = now - last_poll;
    last_poll = now;
    return atomic_fetch_add(&polls, 1) + 1 >= polls_to_interrupt;
}

static void watch_polls(int until_interrupt)
{
    poll_thread = pthread_self();
    polls = 0;
    polls_to_interrupt = until_interrupt;
    sa_set_poll(count_polls);
}

static int short_task(void *context, ptrdiff_t index)
{
    (void)context, (void)index;
    work_for(1e-3);
    return SA_OK;
}

static int long_task(void *context, ptrdiff_t index) /* 20 s, unless a checkpoint ends it */
{
    (void)context, (void)index;
    for (int i = 0; i < 20000; i++) {
        int status = sa_checkpoint();
        if (status) return status;
        work_for(1e-3);
    }
    return SA_OK;
}

/* The caller's task is the first and short; its helper has the long one, and no checkpoint of its own to poll. */
static int straggle(void *context, ptrdiff_t index)
{
    return index == 0 ? SA_OK : long_task(context, index);
}

static void test_poll(void)
{
    for (int threads = 1; threads <= 3; threads++) {
        watch_polls(1000000);
        CHECK(sa_parallel_for(200 * threads, short_task, NULL, threads) == SA_OK);
        CHECK(polls >= 2 && polls <= 10 + 200 * threads / 20);
        CHECK(shortest_gap > 0.018);
        watch_polls(3);
        double start = seconds();
        CHECK(sa_parallel_for(20000, short_task, NULL, threads) == SA_INTERRUPTED);
        CHECK(seconds() - start < 1.0);
        watch_polls(3);
        start = seconds();
        CHECK(sa_parallel_for(threads, long_task, NULL, threads) == SA_INTERRUPTED);
        CHECK(seconds() - start < 1.0);
    }
    watch_polls(3);
    double start = seconds();
    CHECK(sa_parallel_for(2, straggle, NULL, 2) == SA_INTERRUPTED);
    CHECK(seconds() - start < 1.0);
    CHECK(sa_checkpoint() == SA_OK);
    sa_set_poll(NULL);
    check_squares(1000, 3);
}

/* A poll that does what a Python signal handler may do: call the library in the middle of a task with scratch. */
static int poll_with_job(void)
{
    atomic_fetch_add(&polls, 1);
    check_squares(50, 2);
    return 0;
}

static int guard_scratch(void *context, ptrdiff_t index)
{
    (void)context;
    unsigned char *scratch = sa_workspace(4096);
    CHECK(scratch);
    memset(scratch, 0xA0 + (int)index, 4096);
    for (int i = 0; i < 60; i++) {
        work_for(1e-3);
        CHECK(sa_checkpoint() == SA_OK);
    }
    for (int i = 0; i < 4096; i++)
        CHECK(scratch[i] == 0xA0 + (int)index);
    CHECK(sa_workspace(4096) == scratch);
    return SA_OK;
}

static void test_poll_reenters(void)
{
    sa_set_poll(poll_with_job);
    CHECK(sa_parallel_for(4, guard_scratch, NULL, 2) == SA_OK);
    CHECK(polls >= 2);
}

/* ---- fork ------------------------------------------------------------------------------------------------------ */

static void wait_for_child(pid_t child)
{
    int status = -1;
    for (double end = seconds() + 20; waitpid(child, &status, WNOHANG) == 0; usleep(1000))
        CHECK(seconds() < end);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void check_in_child(int threads, int depth)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(os_threads() == 1);
        check_squares(1000, threads);
        if (threads > 1) {
            atomic_int arrived = 0;
            CHECK(sa_parallel_for(4, meet, &arrived, 4) == SA_OK); /* it has workers of its own */
        }
        if (depth > 0) check_in_child(threads, depth - 1);
        check_squares(1000, 1);
        _exit(0);
    }
    wait_for_child(child);
    check_squares(1000, threads);
}

static atomic_bool stop;

static void *compute(void *unused)
{
    (void)unused;
    while (!stop)
        check_squares(2000, 3);
    return NULL;
}

static void test_fork(void)
{
    check_in_child(3, 0); /* before first use */
    check_squares(100, 3);
    check_in_child(1, 1);
    check_in_child(3, 2);
    sleep_for(0.05); /* with the workers asleep */
    check_in_child(3, 2);
    pthread_t others[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&others[i], NULL, compute, NULL) == 0);
    for (int i = 0; i < 30; i++)
        check_in_child(1 + i % 3, i % 2);
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(others[i], NULL);
}

static atomic_int helped; /* tasks begun by a helper */

static int wait_60_ms(void *context, ptrdiff_t index)
{
    (void)context, (void)index;
    if (sa_slot() > 0) atomic_fetch_add(&helped, 1);
    for (int i = 0; i < 60 && sa_checkpoint() == SA_OK; i++)
        work_for(1e-3);
    return sa_checkpoint();
}

static pid_t forked_in_poll = -1;

static int fork_once(void)
{
    if (forked_in_poll == -1 && helped > 0) forked_in_poll = fork();
    return 0;
}

/* The helper stays behind in the parent: the child reports that, the parent completes. */
static void test_fork_in_poll(void)
{
    atomic_int arrived = 0;
    CHECK(sa_parallel_for(4, meet, &arrived, 4) == SA_OK);
    sa_set_poll(fork_once);
    int status = sa_parallel_for(8, wait_60_ms, NULL, 2);
    CHECK(forked_in_poll != -1);
    if (forked_in_poll == 0) {
        CHECK(status == SA_INTERRUPTED);
        check_squares(1000, 3);
        _exit(0);
    }
    CHECK(status == SA_OK);
    wait_for_child(forked_in_poll);
}

/* ---- faults: threads and memory that are refused (linked with --wrap=pthread_create) --------------------------- */

static atomic_int threads_allowed = 1000000;

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    if (atomic_fetch_sub(&threads_allowed, 1) <= 0) return EAGAIN;
    return __real_pthread_create(thread, attributes, start, argument);
}

static void test_no_threads(void)
{
    for (int allowed = 0; allowed < 3; allowed++) {
        threads_allowed = allowed > 0;
        check_squares(1000, 8);
        CHECK(os_threads() == 1 + allowed);
        check_squares(1, 8);
    }
}

extern long selfattn_fail_alloc;

static int grow(void *context, ptrdiff_t index)
{
    (void)context;
    return sa_workspace((size_t)index * 100000) ? SA_OK : SA_NO_MEMORY;
}

static void test_no_memory(void)
{
    CHECK(sa_workspace(SIZE_MAX) == NULL && sa_workspace(PTRDIFF_MAX) == NULL);
    CHECK(sa_workspace(0) != NULL);
    int failures = 0;
    for (int k = 1; k <= 40; k++) {
        sa_trim();
        selfattn_fail_alloc = k;
        int status = sa_parallel_for(20, grow, NULL, 2);
        CHECK(status == SA_OK || status == SA_NO_MEMORY);
        failures += status == SA_NO_MEMORY;
        selfattn_fail_alloc = 0;
        CHECK(sa_parallel_for(20, grow, NULL, 2) == SA_OK);
    }
    CHECK(failures >= 10);
}

/* ---- memory goes back ------------------------------------------------------------------------------------------ */

static long resident_kib(void)
{
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%ld %ld", &pages, &resident) == 2);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int fill_32_mib(void *context, ptrdiff_t index)
{
    void *scratch = sa_workspace(32 << 20);
    CHECK(scratch);
    memset(scratch, (int)index, 32 << 20);
    return context ? meet(context, index) : SA_OK;
}

static void *fill_and_exit(void *unused)
{
    (void)unused;
    CHECK(sa_parallel_for(1, fill_32_mib, NULL, 1) == SA_OK);
    return NULL;
}

static int trim_inside(void *context, ptrdiff_t index)
{
    (void)context;
    unsigned char *scratch = sa_workspace(4096);
    CHECK(scratch);
    memset(scratch, (int)index, 4096);
    sa_trim();
    CHECK(scratch[17] == index && sa_workspace(4096) == scratch);
    return SA_OK;
}

static void test_trim(void)
{
    atomic_int arrived = 0;
    long before = resident_kib();
    CHECK(sa_parallel_for(4, fill_32_mib, &arrived, 4) == SA_OK);
    CHECK(resident_kib() - before > 120 << 10);
    sa_trim();
    CHECK(resident_kib() - before < 8 << 10);
    for (int i = 0; i < 8; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, fill_and_exit, NULL) == 0);
        pthread_join(thread, NULL);
    }
    CHECK(resident_kib() - before < 8 << 10); /* a thread's exit frees its workspace */
    CHECK(sa_parallel_for(100, trim_inside, NULL, 4) == SA_OK);
    check_squares(100, 4);
}

/* ---- an idle pool uses no CPU, and signals don't reach the workers --------------------------------------------- */

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void test_idle(void)
{
    check_squares(1000, 8);
    sleep_for(0.05);
    double before = cpu_seconds();
    sleep_for(0.5);
    CHECK(cpu_seconds() - before < 0.005);
}

static int has_signals_blocked(void *context, ptrdiff_t index)
{
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    int is_caller = pthread_equal(pthread_self(), poll_thread);
    CHECK(sigismember(&blocked, SIGINT) == !is_caller && sigismember(&blocked, SIGALRM) == !is_caller);
    CHECK(!sigismember(&blocked, SIGSEGV));
    return meet(context, index);
}

static void test_signals(void)
{
    atomic_int arrived = 0;
    poll_thread = pthread_self();
    CHECK(sa_parallel_for(4, has_signals_blocked, &arrived, 4) == SA_OK);
}

static int nothing(void *context, ptrdiff_t index)
{
    (void)context, (void)index;
    return SA_OK;
}

static int meet_spinning(void *context, ptrdiff_t index)
{
    (void)index;
    atomic_int *arrived = context;
    int mine = atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < mine / 2 * 2 + 2)
        ;
    return SA_OK;
}

/* For a look at the cost; it decides nothing. */
static void test_cost(void)
{
    enum { JOBS = 20000 };
    for (int threads = 1; threads <= 2; threads++) {
        double start = seconds();
        for (int i = 0; i < JOBS; i++)
            CHECK(sa_parallel_for(2, nothing, NULL, threads) == SA_OK);
        printf("%d threads: %.2f us per empty job\n", threads, (seconds() - start) / JOBS * 1e6);
    }
    atomic_int arrived = 0;
    double start = seconds();
    for (int i = 0; i < JOBS; i++)
        CHECK(sa_parallel_for(2, meet_spinning, &arrived, 2) == SA_OK);
    printf("%.2f us per job in which two threads must meet\n", (seconds() - start) / JOBS * 1e6);
}

static void test_num_threads(void)
{
    CHECK(selfattn_get_num_threads() == 1);
    selfattn_set_num_threads(3);
    CHECK(selfattn_get_num_threads() == 3);
    selfattn_set_num_threads(-7);
    CHECK(selfattn_get_num_threads() == 1);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"sums", test_sums},
    {"order", test_order},
    {"shares", test_shares},
    {"late", test_late},
    {"slots", test_slots},
    {"together", test_together},
    {"nested", test_nested},
    {"callers", test_callers},
    {"cancel", test_cancel},
    {"poll", test_poll},
    {"poll_reenters", test_poll_reenters},
    {"fork", test_fork},
    {"fork_in_poll", test_fork_in_poll},
    {"no_threads", test_no_threads},
    {"no_memory", test_no_memory},
    {"trim", test_trim},
    {"idle", test_idle},
    {"signals", test_signals},
    {"num_threads", test_num_threads},
    {"cost", test_cost},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (argc == 2 && strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    fprintf(stderr, "no such case\n");
    return 2;
}
