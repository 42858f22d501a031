/* workspace.h -- scratch memory, one piece per thread. */
#ifndef SELFATTN_WORKSPACE_H
#define SELFATTN_WORKSPACE_H

#include <stddef.h>

/* This thread's scratch for the task at hand: 64-byte aligned, with any content, grown on demand and kept for the
 * next task. There is one per thread: a second call in a task returns the same memory, moved if it had to grow.
 * NULL when out of memory. */
void *sa_workspace(size_t bytes);

/* Gives back every workspace not in use. Any thread, any time. */
void sa_trim(void);

/* ---- for the pool ---- */

/* This thread is done with its job: its workspace may be trimmed. */
void sa_release_workspace(void);

/* Puts this thread's workspace aside, so that what runs now gets another one; and takes it back. */
void *sa_suspend_workspace(void);
void sa_resume_workspace(void *suspended);

#endif
