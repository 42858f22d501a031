/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c -- a small pool of threads. Three ideas:
 *
 * - A job lives on the stack of its caller. The caller takes tasks from atomic counters like every other thread;
 *   workers only help. A job is `open` while it has places for helpers, and over when its last helper has left.
 * - An idle worker spins for at most 40 us, bounded by the clock, then sleeps. Jobs that follow each other
 *   closely start without a system call; an idle pool uses no CPU.
 * - One lock guards the list of open jobs and the counts. It is held for a few instructions, never over a task, a
 *   poll or a spin, so fork() can take it and the child can begin afresh, without workers. */
#include "runtime/pool.h"
#include "runtime/cores.h"
#include "runtime/task_shares.h"
#include "openmp/openmp_loan.h"
#include "runtime/workspace.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum { WORKER_STACK = 512 << 10, CACHE_LINE = 64 };
static const int64_t SPIN_NS = 40000, POLL_NS = 20000000;

struct job {
    sa_task_function task;
    void *context;
    struct sa_task_shares *tasks;
    struct job *next;   /* in pool.open, under the lock, like open_places */
    int open_places;    /* helpers that may still join */
    int core;           /* of its caller, when the job began */
    int borrowed;       /* helpers from an OpenMP team: slots 1 to borrowed */
    atomic_int helpers; /* helpers inside */
    atomic_int slots;   /* of the workers who have joined */
    atomic_int status;  /* the first non-zero status */
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    struct job *open; /* jobs with open places, oldest first */
    int workers, sleeping, cpus;
    unsigned generation;                         /* the number of forks on the way to this process */
    _Alignas(CACHE_LINE) atomic_int open_places; /* of all open jobs; idle workers watch it */
    atomic_int idle;                             /* workers awake and without a job */
    atomic_int waiting;                          /* callers asleep until their helpers leave */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local struct thread {
    struct job *job; /* the job whose task this thread is in */
    int slot;        /* in that job: its caller has 0 */
    int64_t polled;  /* when it last polled */
} this_thread;

static int (*_Atomic poll_function)(void);
static _Thread_local int poll_is_held;

/* ---- time ---------------------------------------------------------------------------------------------------- */

/* The time at which a thread that starts to spin now has to stop. 0: at once, because all cores have work. */
static int64_t spin_end(void)
{
    return pool.cpus > 1 && atomic_load(&pool.idle) < pool.cpus ? sa_clock_ns() + SPIN_NS : 0;
}

static bool keep_spinning(int64_t end)
{
    if (end == 0) return false;
    sa_pause();
    return sa_clock_ns() < end;
}

/* The lock is held so briefly that a sleep costs more than a wait, unless its holder lost its core. */
static void lock_pool(void)
{
    for (int tries = 0; tries < 100; tries++) {
        if (pthread_mutex_trylock(&pool.lock) == 0) return;
        sa_pause();
    }
    pthread_mutex_lock(&pool.lock);
}

static void unlock_pool(void)
{
    pthread_mutex_unlock(&pool.lock);
}

/* ---- cancellation -------------------------------------------------------------------------------------------- */

static void cancel(struct job *job, int status)
{
    int none = SA_OK;
    atomic_compare_exchange_strong(&job->status, &none, status);
}

/* The poll may run anything: signal handlers, a job, fork(). It finds a thread without a job or a workspace. */
static void poll_if_due(struct job *job)
{
    int64_t now = sa_tick_ns();
    int (*poll)(void) = atomic_load(&poll_function);
    if (!poll || poll_is_held || now - this_thread.polled < POLL_NS) return;
    struct thread saved = this_thread;
    unsigned generation = pool.generation;
    this_thread = (struct thread){.polled = now};
    void *workspace = sa_suspend_workspace();
    int status = poll();
    sa_resume_workspace(workspace);
    this_thread = saved;
    this_thread.polled = sa_clock_ns(); /* no tick is ahead of this clock, so the next poll is at least POLL_NS away */
    if (pool.generation != generation && atomic_exchange(&job->helpers, 0) > 0)
        status = SA_INTERRUPTED; /* a forked child: helpers and their tasks stayed in the parent */
    if (status) cancel(job, SA_INTERRUPTED);
}

int sa_checkpoint(void)
{
    struct job *job = this_thread.job;
    if (!job) return SA_OK;
    if (this_thread.slot == 0) poll_if_due(job);
    return atomic_load(&job->status);
}

int sa_slot(void)
{
    return this_thread.slot;
}

void sa_hold_poll(int held)
{
    poll_is_held = held;
}

void sa_set_poll(int (*poll)(void))
{
    atomic_store(&poll_function, poll);
}

/* ---- workers ------------------------------------------------------------------------------------------------- */

/* Does tasks of the job until none is left to begin, or the job is cancelled. */
static void work_on(struct job *job, int slot)
{
    this_thread.job = job;
    this_thread.slot = slot;
    ptrdiff_t index;
    for (int emptied = 0;
         atomic_load(&job->status) == SA_OK && (index = sa_take_task(job->tasks, slot, &emptied)) >= 0;) {
        int status = job->task(job->context, index);
        if (status) cancel(job, status);
        sa_checkpoint();
    }
    this_thread.job = NULL;
    sa_release_workspace();
}

/* Takes a helper's place in the oldest open job, or returns NULL. The caller holds the lock. */
static struct job *join_oldest(void)
{
    struct job *job = pool.open;
    if (!job) return NULL;
    if (--job->open_places == 0) pool.open = job->next;
    atomic_fetch_sub(&pool.open_places, 1);
    atomic_fetch_sub(&pool.idle, 1);
    atomic_fetch_add(&job->helpers, 1);
    return job;
}

static struct job *next_job(void)
{
    struct job *job = NULL;
    for (int64_t end = spin_end(); !job && keep_spinning(end);) {
        if (atomic_load(&pool.open_places) > 0 && pthread_mutex_trylock(&pool.lock) == 0) {
            job = join_oldest();
            unlock_pool();
        }
    }
    if (job) return job;
    lock_pool();
    while (!(job = join_oldest())) {
        atomic_fetch_sub(&pool.idle, 1);
        pool.sleeping++;
        pthread_cond_wait(&pool.work, &pool.lock);
        pool.sleeping--;
        atomic_fetch_add(&pool.idle, 1);
    }
    unlock_pool();
    return job;
}

/* The job is gone as soon as its last helper has left. */
static void leave(struct job *job)
{
    if (atomic_fetch_sub(&job->helpers, 1) == 1 && atomic_load(&pool.waiting) > 0) {
        lock_pool();
        pthread_cond_broadcast(&pool.done);
        unlock_pool();
    }
}

static void *worker(void *unused)
{
    (void)unused;
    for (;;) {
        struct job *job = next_job();
        /* On the core of its caller, the two threads would share the core until the scheduler notices. */
        if (sa_core() == job->core) sa_leave_core(job->core);
        work_on(job, 1 + job->borrowed + atomic_fetch_add(&job->slots, 1));
        atomic_fetch_add(&pool.idle,
                         1); /* before it leaves, so that the next job of the caller wakes no sleeper in vain */
        leave(job);
    }
    return NULL;
}

/* Starts workers until there are `count`, or the system refuses. The caller holds the lock. Workers take no signal
 * but the signals of their own faults: Ctrl-C belongs to Python's main thread. Detached, they end with the process. */
static void start_workers(int count)
{
    if (pool.workers >= count) return;
    sigset_t signals, saved;
    sigfillset(&signals);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&signals, faults[i]);
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, WORKER_STACK);
    pthread_sigmask(SIG_SETMASK, &signals, &saved);
    pthread_t thread;
    while (pool.workers < count && pthread_create(&thread, &attributes, worker, NULL) == 0) {
        pool.workers++;
        atomic_fetch_add(&pool.idle, 1);
    }
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attributes);
}

/* ---- jobs ---------------------------------------------------------------------------------------------------- */

/* Opens the job to helpers, and wakes as many sleepers as the idle ones don't cover. */
static void open_job(struct job *job, int helpers)
{
    lock_pool();
    start_workers(helpers);
    job->open_places = helpers < pool.workers ? helpers : pool.workers;
    if (job->open_places > 0) {
        struct job **at = &pool.open;
        while (*at)
            at = &(*at)->next;
        *at = job;
    }
    int lacking = atomic_fetch_add(&pool.open_places, job->open_places) + job->open_places - atomic_load(&pool.idle);
    int wake = lacking < pool.sleeping ? lacking : pool.sleeping;
    unlock_pool();
    for (; wake > 0; wake--)
        pthread_cond_signal(&pool.work);
}

static void close_job(struct job *job)
{
    lock_pool();
    for (struct job **at = &pool.open; *at; at = &(*at)->next) {
        if (*at == job) {
            *at = job->next;
            atomic_fetch_sub(&pool.open_places, job->open_places);
            break;
        }
    }
    unlock_pool();
}

/* Sleeps until a helper leaves its job as the last one, at most for the time between two polls. */
static void sleep_while_helped(struct job *job)
{
    int64_t end = sa_clock_ns() + POLL_NS;
    struct timespec until = {.tv_sec = (time_t)(end / 1000000000), .tv_nsec = (long)(end % 1000000000)};
    lock_pool();
    atomic_fetch_add(&pool.waiting, 1); /* before the look at helpers, as leave() looks in the other order */
    if (atomic_load(&job->helpers) > 0) pthread_cond_timedwait(&pool.done, &pool.lock, &until);
    atomic_fetch_sub(&pool.waiting, 1);
    unlock_pool();
}

static void wait_for_helpers(struct job *job)
{
    for (int64_t end = spin_end(); atomic_load(&job->helpers) > 0 && keep_spinning(end);)
        ;
    while (atomic_load(&job->helpers) > 0) {
        sleep_while_helped(job);
        poll_if_due(job);
    }
}

static int run_serially(ptrdiff_t count, sa_task_function task, void *context)
{
    for (ptrdiff_t index = 0; index < count; index++) {
        int status = sa_checkpoint();
        if (!status) status = task(context, index);
        if (status) return status;
    }
    return SA_OK;
}

/* The work of a thread of an OpenMP team for a job. */
static void run_borrowed(void *context, int number)
{
    struct job *job = context;
    atomic_fetch_add(&job->helpers, 1);
    work_on(job, number);
    leave(job);
}

/* Helpers are first the threads that an OpenMP library keeps awake, then workers. */
static void work_with(struct job *job, int helpers)
{
    struct sa_openmp_loan loan = {.work = run_borrowed, .context = job};
    bool has_loan = sa_openmp_can_help(&loan, helpers);
    if (has_loan) job->borrowed = sa_openmp_start(&loan);
    int workers = helpers - job->borrowed;
    if (workers > 0) open_job(job, workers);
    work_on(job, 0);
    if (workers > 0) close_job(job);
    wait_for_helpers(job);
    if (has_loan) sa_openmp_end(&loan);
}

static int run(ptrdiff_t count, sa_task_function task, void *context, int threads, bool in_order)
{
    if (this_thread.job || count <= 0) return run_serially(count, task, context);
    int limit = threads < SA_MAX_THREADS ? threads : SA_MAX_THREADS;
    int helpers = (count < limit ? (int)count : limit) - 1;
    struct sa_task_shares tasks;
    sa_deal_tasks(&tasks, count, in_order || helpers < 1 ? 1 : 1 + helpers);
    struct job job = {.task = task, .context = context, .tasks = &tasks, .core = sa_core()};
    int64_t now = sa_tick_ns();
    if (now - this_thread.polled > POLL_NS) this_thread.polled = now; /* a call of less than POLL_NS needs no poll */
    if (helpers > 0)
        work_with(&job, helpers);
    else
        work_on(&job, 0);
    return atomic_load(&job.status);
}

int sa_parallel_for(ptrdiff_t count, sa_task_function task, void *context, int num_threads)
{
    return run(count, task, context, num_threads, false);
}

int sa_parallel_in_order(ptrdiff_t count, sa_task_function task, void *context, int num_threads)
{
    return run(count, task, context, num_threads, true);
}

/* ---- start and fork ------------------------------------------------------------------------------------------ */

static void init_conditions(void)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.done, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* With the lock held, no other thread can be half-way through a change when the process is copied. */
static void before_fork(void)
{
    lock_pool();
}

static void after_fork_in_parent(void)
{
    unlock_pool();
}

/* The child has one thread, which holds the lock: no workers, no jobs of others. */
static void after_fork_in_child(void)
{
    init_conditions();
    pool.open = NULL;
    pool.workers = pool.sleeping = 0;
    pool.generation++;
    atomic_store(&pool.open_places, 0);
    atomic_store(&pool.idle, 0);
    atomic_store(&pool.waiting, 0);
    unlock_pool();
}

__attribute__((constructor)) static void start_pool(void)
{
    pool.cpus = sa_core_count();
    init_conditions();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
