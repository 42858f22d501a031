/* SPDX-License-Identifier: Apache-2.0 */
/* openmp_loan.c -- finds the OpenMP runtimes of this process (GCC's libgomp, which PyTorch brings) and calls them by
 * name. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "openmp/openmp_loan.h"
#include "runtime/cores.h"

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LIBRARIES = 4, MAX_PATH_BYTES = 1024 };
static const int64_t SEARCH_NS = 100000000;

struct sa_openmp_library {
    char path[MAX_PATH_BYTES];
    unsigned long module; /* the number of its thread-local storage, and how many words that has */
    size_t words;
    void (*start)(void (*work)(void *), void *data, unsigned num_threads);
    void (*end)(void);
    int (*max_threads)(void), (*num_threads)(void), (*thread_num)(void), (*level)(void);
    atomic_bool ready;
};

/* Libraries are found under the lock. fork() waits for it, so that it never finds the dynamic linker's own taken by us:
 * a child would wait for that forever. */
static struct {
    pthread_mutex_t lock;
    int found;
    unsigned long long loads; /* of shared objects, when we last looked at them */
    _Atomic int64_t searched;
    atomic_bool open;     /* loans were asked for */
    atomic_bool orphaned; /* a forked child: the teams stayed behind in the parent */
    struct sa_openmp_library libraries[MAX_LIBRARIES];
} known = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The CPU clock of thread number 1 of this thread's team in each library, once it is known. */
static _Thread_local struct team_clock {
    bool known;
    clockid_t clock;
} team_clocks[MAX_LIBRARIES];

/* ---- which libraries there are ------------------------------------------------------------------------------- */

static bool is_new_openmp(const struct dl_phdr_info *object)
{
    const char *name = strrchr(object->dlpi_name, '/');
    if (!name || strncmp(name, "/libgomp", 8) != 0 || strlen(object->dlpi_name) >= MAX_PATH_BYTES) return false;
    for (int i = 0; i < known.found; i++)
        if (strcmp(known.libraries[i].path, object->dlpi_name) == 0) return false;
    return known.found < MAX_LIBRARIES;
}

static int add_library(struct dl_phdr_info *object, size_t size, void *loads)
{
    (void)size;
    if (object->dlpi_adds == known.loads) return 1; /* nothing was loaded since */
    *(unsigned long long *)loads = object->dlpi_adds;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        if (object->dlpi_phdr[i].p_type != PT_TLS || !is_new_openmp(object)) continue;
        struct sa_openmp_library *library = &known.libraries[known.found++];
        strcpy(library->path, object->dlpi_name);
        library->module = object->dlpi_tls_modid;
        library->words = object->dlpi_phdr[i].p_memsz / sizeof(uintptr_t);
    }
    return 0;
}

/* Looks up the functions of a library. It stays loaded; a library that lacks a function is never ready. */
static void open_library(struct sa_openmp_library *library)
{
    void *handle = dlopen(library->path, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle) return;
    *(void **)&library->start = dlsym(handle, "GOMP_parallel_start");
    *(void **)&library->end = dlsym(handle, "GOMP_parallel_end");
    *(void **)&library->max_threads = dlsym(handle, "omp_get_max_threads");
    *(void **)&library->num_threads = dlsym(handle, "omp_get_num_threads");
    *(void **)&library->thread_num = dlsym(handle, "omp_get_thread_num");
    *(void **)&library->level = dlsym(handle, "omp_get_level");
    atomic_store(&library->ready, library->start && library->end && library->max_threads && library->num_threads &&
                                      library->thread_num && library->level);
}

/* dlopen is called without the lock: it waits for other threads that load a library, and such a thread may fork. */
static void search(void)
{
    if (pthread_mutex_trylock(&known.lock)) return; /* another thread searches */
    unsigned long long loads = known.loads;
    int first = known.found;
    dl_iterate_phdr(add_library, &loads);
    known.loads = loads;
    int last = known.found;
    pthread_mutex_unlock(&known.lock);
    for (int i = first; i < last; i++)
        open_library(&known.libraries[i]);
}

static void search_if_due(void)
{
    int64_t now = sa_tick_ns();
    if (now - atomic_load(&known.searched) < SEARCH_NS) return;
    atomic_store(&known.searched, now);
    search();
}

/* ---- can a team be lent? ------------------------------------------------------------------------------ */

/* The library's record of this thread has a word for the threads that it keeps, and a word for their number. PyTorch
 * sets the number on each thread before its first operation. With one word alone there may be no team yet, and we
 * start none. (LLVM's libomp, under this name, never has two words.) */
static bool has_team(const struct sa_openmp_library *library)
{
    extern void *__tls_get_addr(unsigned long index[2]);
    const uintptr_t *record = __tls_get_addr((unsigned long[2]){library->module, 0});
    int used = 0;
    for (size_t i = 0; i < library->words; i++)
        used += record[i] != 0;
    return used >= 2;
}

/* A thread that spins uses CPU time between two readings of its clock. A team that sleeps is left alone: to wake its
 * threads, and to wait until each has had a core, takes longer than a short job. An unknown team counts as awake,
 * once. */
static bool is_awake(struct team_clock *team)
{
    if (!team->known) return true;
    struct timespec first, second;
    if (clock_gettime(team->clock, &first) || clock_gettime(team->clock, &second)) {
        team->known = false; /* that thread has ended: another is number 1 now */
        return true;
    }
    return first.tv_nsec != second.tv_nsec || first.tv_sec != second.tv_sec;
}

bool sa_openmp_can_help(struct sa_openmp_loan *loan, int helpers)
{
    if (!atomic_load(&known.open)) return false;
    search_if_due();
    for (int i = 0; i < MAX_LIBRARIES; i++) {
        const struct sa_openmp_library *library = &known.libraries[i];
        if (!atomic_load(&library->ready) || !has_team(library) || library->level() > 0) continue;
        int others = library->max_threads() - 1;
        if (others < 1 || others > helpers || !is_awake(&team_clocks[i])) continue;
        loan->library = library;
        return true;
    }
    return false;
}

/* ---- the loan ------------------------------------------------------------------------------------------------ */

static void work_for(void *data)
{
    struct sa_openmp_loan *loan = data;
    int number = loan->library->thread_num();
    if (number == 1) loan->clock_known = pthread_getcpuclockid(pthread_self(), &loan->clock) == 0;
    loan->work(loan->context, number);
}

/* 0: as many threads as the operations of the library use; they exist already. */
int sa_openmp_start(struct sa_openmp_loan *loan)
{
    loan->library->start(work_for, loan, 0);
    return loan->library->num_threads() - 1;
}

void sa_openmp_end(struct sa_openmp_loan *loan)
{
    if (atomic_load(&known.orphaned)) return; /* after a fork, no thread of the team is here */
    loan->library->end();
    if (loan->clock_known)
        team_clocks[loan->library - known.libraries] = (struct team_clock){.known = true, .clock = loan->clock};
}

/* ---- start and fork ------------------------------------------------------------------------------------------ */

/* Whether this process is the child of a fork() without an exec: then a library that is here already may have had its
 * team in the parent. True where the system does not say. */
static bool is_forked(void)
{
    enum { FORKED_WITHOUT_EXEC = 0x40 }; /* PF_FORKNOEXEC */
    char line[512] = "";
    FILE *file = fopen("/proc/self/stat", "r");
    if (!file) return true;
    if (!fgets(line, sizeof line, file)) line[0] = 0;
    fclose(file);
    unsigned flags = 0; /* the seventh field after the name, which ends with the last parenthesis */
    const char *name_end = strrchr(line, ')');
    if (name_end) sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags);
    return flags == 0 || (flags & FORKED_WITHOUT_EXEC);
}

bool sa_openmp_allow(bool allow)
{
    if (allow) search();
    atomic_store(&known.open, allow && !atomic_load(&known.orphaned) && !(known.found > 0 && is_forked()));
    return atomic_load(&known.open);
}

static void before_fork(void)
{
    pthread_mutex_lock(&known.lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&known.lock);
}

static void after_fork_in_child(void)
{
    atomic_store(&known.orphaned, true);
    atomic_store(&known.open, false);
    pthread_mutex_unlock(&known.lock);
}

__attribute__((constructor)) static void read_environment(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    const char *asked = getenv("SELFATTN_OPENMP");
    if (asked && strcmp(asked, "1") == 0) sa_openmp_allow(true);
}

#else /* elsewhere there are no loans */

bool sa_openmp_allow(bool allow)
{
    (void)allow;
    return false;
}

bool sa_openmp_can_help(struct sa_openmp_loan *loan, int helpers)
{
    (void)loan;
    (void)helpers;
    return false;
}

int sa_openmp_start(struct sa_openmp_loan *loan)
{
    (void)loan;
    return 0;
}

void sa_openmp_end(struct sa_openmp_loan *loan)
{
    (void)loan;
}

#endif
