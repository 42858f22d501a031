/* SPDX-License-Identifier: Apache-2.0 */
/* workspace.h -- scratch memory, one piece for each thread. */
#ifndef SELFATTN_WORKSPACE_H
#define SELFATTN_WORKSPACE_H

#include <stddef.h>

/* The scratch of this thread for its task: aligned to 64 bytes, of any content, grown on demand, kept for the next
 * task. A thread has one: a second call in a task returns the same memory, moved if it had to grow. NULL: out of
 * memory. */
void *sa_workspace(size_t bytes);

/* Frees every workspace that is not in use. Any thread may call it at any time. */
void sa_trim(void);

/* ---- for the pool ---- */

/* This thread has left its job: its workspace may be freed. */
void sa_release_workspace(void);

/* Puts the workspace of this thread aside, so that a nested job gets another one; and takes it back. */
void *sa_suspend_workspace(void);
void sa_resume_workspace(void *suspended);

#endif
