/* workspace.h -- what pool.c tells the owners of scratch memory (sa_workspace and sa_trim are in pool.h). */
#ifndef SELFATTN_WORKSPACE_H
#define SELFATTN_WORKSPACE_H

/* This thread is done with its job: its workspace may be trimmed. */
void sa_release_workspace(void);

/* Puts this thread's workspace aside, so that what runs now gets another one; and takes it back. */
void *sa_suspend_workspace(void);
void sa_resume_workspace(void *suspended);

#endif
