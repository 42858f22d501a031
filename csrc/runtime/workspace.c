/* SPDX-License-Identifier: Apache-2.0 */
/* workspace.c -- scratch memory, one piece for each thread, kept from task to task.
 *
 * A workspace is busy from a thread's first sa_workspace in a job until that thread leaves the job. Only its owner
 * touches a busy one, so the lock below is taken once per thread and job; sa_trim frees the memory of all others. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "runtime/workspace.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum { CACHE_LINE = 64, PAGE = 4096 };

struct workspace {
    struct workspace *next; /* in registry.first */
    pthread_t owner;
    atomic_bool busy; /* set under the lock, cleared by the owner */
    size_t bytes;
    void *memory;
};

static struct {
    pthread_mutex_t lock;
    struct workspace *first;
    pthread_key_t key; /* its destructor frees a thread's workspaces */
    bool has_key;
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local struct workspace *current;

#ifdef SELFATTN_FAIL_ALLOC /* a test build: the k-th allocation from now on fails; the environment may set k */
extern long selfattn_fail_alloc;
__attribute__((visibility("default"))) long selfattn_fail_alloc;

__attribute__((constructor)) static void read_fail_alloc(void)
{
    const char *k = getenv("SELFATTN_FAIL_ALLOC");
    selfattn_fail_alloc = k ? atol(k) : 0;
}
#endif

static void *allocate(size_t bytes)
{
#ifdef SELFATTN_FAIL_ALLOC
    if (__atomic_load_n(&selfattn_fail_alloc, __ATOMIC_RELAXED) > 0 &&
        __atomic_sub_fetch(&selfattn_fail_alloc, 1, __ATOMIC_RELAXED) == 0)
        return NULL;
#endif
    return bytes > PTRDIFF_MAX - PAGE ? NULL : aligned_alloc(CACHE_LINE, (bytes + PAGE) / PAGE * PAGE);
}

/* Frees the workspaces of this thread, or of all other threads. The caller holds the lock. */
static void free_workspaces(bool own)
{
    for (struct workspace **at = &registry.first; *at;) {
        struct workspace *workspace = *at;
        if ((pthread_equal(workspace->owner, pthread_self()) != 0) != own) {
            at = &workspace->next;
            continue;
        }
        *at = workspace->next;
        free(workspace->memory);
        free(workspace);
    }
}

static void at_thread_exit(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&registry.lock);
    free_workspaces(true);
    pthread_mutex_unlock(&registry.lock);
    current = NULL;
}

/* A workspace of this thread that is not busy, or a new one, or NULL. The caller holds the lock. */
static struct workspace *find_workspace(void)
{
    for (struct workspace *at = registry.first; at; at = at->next)
        if (pthread_equal(at->owner, pthread_self()) && !atomic_load(&at->busy)) return at;
    struct workspace *workspace = registry.has_key ? allocate(sizeof *workspace) : NULL;
    if (!workspace || pthread_setspecific(registry.key, &registry)) {
        free(workspace);
        return NULL;
    }
    *workspace = (struct workspace){.next = registry.first, .owner = pthread_self()};
    registry.first = workspace;
    return workspace;
}

void *sa_workspace(size_t bytes)
{
    if (!current || !atomic_load_explicit(&current->busy, memory_order_relaxed)) {
        pthread_mutex_lock(&registry.lock);
        if (!current) current = find_workspace();
        if (current) atomic_store(&current->busy, true);
        pthread_mutex_unlock(&registry.lock);
    }
    if (!current) return NULL;
    if (bytes > current->bytes || !current->memory) {
        free(current->memory);
        current->memory = allocate(bytes);
        current->bytes = current->memory ? bytes : 0;
    }
    return current->memory;
}

void sa_release_workspace(void)
{
    if (current) atomic_store(&current->busy, false);
}

void *sa_suspend_workspace(void)
{
    void *suspended = current;
    current = NULL;
    return suspended;
}

void sa_resume_workspace(void *suspended)
{
    sa_release_workspace();
    current = suspended;
}

void sa_trim(void)
{
    pthread_mutex_lock(&registry.lock);
    for (struct workspace *at = registry.first; at; at = at->next) {
        if (atomic_load(&at->busy)) continue;
        free(at->memory);
        at->memory = NULL;
        at->bytes = 0;
    }
    pthread_mutex_unlock(&registry.lock);
}

static void before_fork(void)
{
    pthread_mutex_lock(&registry.lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&registry.lock);
}

/* The other threads are not in the child, but their memory is. */
static void after_fork_in_child(void)
{
    free_workspaces(false);
    pthread_mutex_unlock(&registry.lock);
}

__attribute__((constructor)) static void start_registry(void)
{
    registry.has_key = pthread_key_create(&registry.key, at_thread_exit) == 0;
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
