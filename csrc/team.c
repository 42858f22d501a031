/* team.c -- finds the OpenMP runtimes of this process (GCC's, which PyTorch brings) and calls them by name.
 *
 * Nothing here starts OpenMP, or belongs to it: a thread that has no team has none to lend. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "team.h"
#include "cores.h"

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LIBRARIES = 4, MOST_PATH = 1024 };
static const int64_t LOOK_NS = 100000000;

struct sa_library {
    char path[MOST_PATH];
    unsigned long module; /* the number of its thread-local storage, and how many bytes that has */
    size_t bytes;
    void (*start)(void (*work)(void *), void *data, unsigned num_threads);
    void (*end)(void);
    int (*max_threads)(void), (*in_parallel)(void), (*thread_num)(void);
};

/* Libraries are added under the lock, and counted when they are complete. fork() waits for the lock, so that it never
 * finds the dynamic linker's own taken by us. */
static struct {
    pthread_mutex_t lock;
    int found;
    unsigned long long loads; /* of shared objects, when we last looked at them */
    atomic_int count;
    _Atomic int64_t looked;
    atomic_bool closed; /* no loans: the environment says so, or this is a forked child, whose teams stayed behind */
    struct sa_library libraries[MOST_LIBRARIES];
} known = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What this thread has seen of its team in each library. */
static _Thread_local struct acquaintance {
    enum { UNSEEN, SEEN, NOBODY } state;
    clockid_t clock; /* the CPU time of the team's number 1 */
} acquaintances[MOST_LIBRARIES];

/* ---- which libraries there are ------------------------------------------------------------------------------- */

static bool is_new_openmp(const struct dl_phdr_info *object)
{
    const char *name = strrchr(object->dlpi_name, '/');
    if (!name || strncmp(name, "/libgomp", 8) != 0 || strlen(object->dlpi_name) >= MOST_PATH) return false;
    for (int i = 0; i < known.found; i++)
        if (strcmp(known.libraries[i].path, object->dlpi_name) == 0) return false;
    return known.found < MOST_LIBRARIES;
}

static int note(struct dl_phdr_info *object, size_t size, void *loads)
{
    (void)size;
    if (object->dlpi_adds == known.loads) return 1; /* nothing new since */
    *(unsigned long long *)loads = object->dlpi_adds;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        if (object->dlpi_phdr[i].p_type != PT_TLS || !is_new_openmp(object)) continue;
        struct sa_library *library = &known.libraries[known.found++];
        strcpy(library->path, object->dlpi_name);
        library->module = object->dlpi_tls_modid;
        library->bytes = object->dlpi_phdr[i].p_memsz;
    }
    return 0;
}

/* Looks its functions up. It stays loaded from now on; one that lacks a function is never asked. */
static void open_library(struct sa_library *library)
{
    void *handle = dlopen(library->path, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle) return;
    *(void **)&library->end = dlsym(handle, "GOMP_parallel_end");
    *(void **)&library->in_parallel = dlsym(handle, "omp_in_parallel");
    *(void **)&library->max_threads = dlsym(handle, "omp_get_max_threads");
    *(void **)&library->thread_num = dlsym(handle, "omp_get_thread_num");
    if (library->end && library->in_parallel && library->max_threads && library->thread_num)
        *(void **)&library->start = dlsym(handle, "GOMP_parallel_start");
}

/* Under the lock. dlopen takes a lock that others hold while they wait for the one that note() runs under: in turn. */
static void look(void)
{
    unsigned long long loads = known.loads;
    dl_iterate_phdr(note, &loads);
    known.loads = loads;
    for (int i = atomic_load(&known.count); i < known.found; i++) {
        open_library(&known.libraries[i]);
        atomic_store(&known.count, i + 1);
    }
}

static void look_if_due(void)
{
    int64_t now = sa_clock_ns();
    if (now - atomic_load(&known.looked) < LOOK_NS || pthread_mutex_trylock(&known.lock)) return;
    atomic_store(&known.looked, now);
    look();
    pthread_mutex_unlock(&known.lock);
}

/* ---- whether a team can be lent ------------------------------------------------------------------------------ */

/* The library's record of this thread is zero until it has had a team, or has said how large that is to be. */
static bool has_team(const struct sa_library *library)
{
    extern void *__tls_get_addr(unsigned long index[2]);
    const char *record = __tls_get_addr((unsigned long[2]){library->module, 0});
    for (size_t i = 0; i < library->bytes; i++)
        if (record[i]) return true;
    return false;
}

/* A thread that spins uses time between two looks at its clock. Sleepers are left alone: to wake them, and to wait
 * until each has had a core, takes longer than a short job does. */
static bool is_awake(struct acquaintance *team)
{
    if (team->state != SEEN) return team->state == UNSEEN;
    struct timespec first, second;
    if (clock_gettime(team->clock, &first) || clock_gettime(team->clock, &second)) {
        team->state = UNSEEN; /* that thread has ended: another is number 1 now */
        return true;
    }
    return first.tv_nsec != second.tv_nsec || first.tv_sec != second.tv_sec;
}

int sa_team_size(struct sa_loan *loan)
{
    if (atomic_load(&known.closed)) return 0;
    look_if_due();
    for (int i = 0; i < atomic_load(&known.count); i++) {
        const struct sa_library *library = &known.libraries[i];
        if (!library->start || !has_team(library) || library->in_parallel()) continue;
        int others = library->max_threads() - 1;
        if (others < 1 || !is_awake(&acquaintances[i])) continue;
        loan->library = library;
        return others;
    }
    return 0;
}

/* ---- the loan ------------------------------------------------------------------------------------------------ */

static void work_for(void *data)
{
    struct sa_loan *loan = data;
    int number = loan->library->thread_num();
    if (number == 1) loan->clocked = pthread_getcpuclockid(pthread_self(), &loan->clock) == 0;
    loan->work(loan->context, number);
}

/* 0: as many threads as the library itself would take. Another number would end some of them, or make new ones. */
void sa_team_start(struct sa_loan *loan)
{
    loan->library->start(work_for, loan, 0);
}

void sa_team_end(struct sa_loan *loan)
{
    if (atomic_load(&known.closed)) return; /* a child that was forked meanwhile: nobody would come */
    loan->library->end();
    struct acquaintance *team = &acquaintances[loan->library - known.libraries];
    *team = (struct acquaintance){.state = loan->clocked ? SEEN : NOBODY, .clock = loan->clock};
}

/* ---- birth and fork ------------------------------------------------------------------------------------------ */

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
    atomic_store(&known.closed, true);
    pthread_mutex_unlock(&known.lock);
}

__attribute__((constructor)) static void start_looking(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    const char *wish = getenv("SELFATTN_OPENMP");
    look();
    if ((wish && strcmp(wish, "0") == 0) || (known.found > 0 && is_forked())) atomic_store(&known.closed, true);
}

#else /* elsewhere nobody lends */

int sa_team_size(struct sa_loan *loan)
{
    (void)loan;
    return 0;
}

void sa_team_start(struct sa_loan *loan)
{
    (void)loan;
}

void sa_team_end(struct sa_loan *loan)
{
    (void)loan;
}

#endif
