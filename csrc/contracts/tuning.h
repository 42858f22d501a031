/* SPDX-License-Identifier: Apache-2.0 */
/* tuning.h -- the constants that only tune: sizes of tasks, distances of prefetches, sizes of caches.
 *
 * No result depends on them. They were measured on two cores with AVX-512; docs/performance-notes.md has the
 * figures. */
#ifndef SELFATTN_CONTRACTS_TUNING_H
#define SELFATTN_CONTRACTS_TUNING_H

enum {
    /* threads */
    SA_TASKS_PER_THREAD = 4,     /* at least, so that the threads end together */
    SA_NUMBERS_PER_TASK = 16384, /* numbers, of an operator on single numbers */
    SA_ROWS_PER_TASK = 64,       /* rows, of an operator on single rows */

    /* attention */
    SA_SHARED_PANELS = 4,               /* a task is up to 4 times as many rows, where its panels share gathered keys */
    SA_CORE_CACHE_BYTES = 4 << 20,      /* bytes of keys and values that stay in one core's part of the last cache */
    SA_DECODE_CACHE_BYTES = 2 << 20,    /* bytes of keys and values that decode finds in the caches */
    SA_DECODE_PREFETCH_BYTES = 24576,   /* bytes ahead of the row that decode reads */
    SA_DECODE_CHUNK_KEYS = 48,          /* keys whose values stay in the L1 cache from pass to pass */
    SA_PREFETCH_NEXT_NUMBERS = 1 << 20, /* numbers of queries and outputs; beyond, the next task is prefetched, */
    SA_PREFETCH_NEXT_QUERIES = 16,      /* if an item has at least 16 queries */
    SA_PREFETCH_NEXT_DIMENSIONS = 16,   /* and value_dim is at least 16: a row is prefetched with each dimension */

    /* linear layers */
    SA_LINEAR_ROWS = 96,                /* rows of a task */
    SA_LINEAR_SCRATCH_ROWS = 48,        /* rows whose sums wait in the L1 cache for bias, activation and residual */
    SA_WEIGHT_PREFETCH_BYTES = 8192,    /* bytes ahead in a weight, where one tile has all rows */
    SA_WEIGHT_GRADIENT_BYTES = 288 * 4, /* bytes of a row of x in a task of a weight's gradient, at most */
    SA_WEIGHT_GRADIENT_COLUMNS = 48,    /* columns of x: whole tiles on every instruction set */

    /* encoders */
    SA_MICRO_BATCH_TOKENS = 384, /* tokens for each thread; more where one sequence is longer */
    SA_ROW_BLOCK = 96,           /* rows that one thread carries from one attention to the next, at most; */
    SA_ROW_BLOCK_MULTIPLE = 6,   /* a multiple of 6 where possible: whole tiles; */
    SA_ROW_BLOCK_LEAST = 48,     /* below 48 rows for each thread, threads share the columns of all rows */
};

/* Work below this many multiply-adds (about 10 us) is not worth a second thread. */
static const double SA_WORTH_A_THREAD = 5e5;

/* A task is a few milliseconds at most: between tasks, Ctrl-C is noticed. */
static const double SA_TASK_MULTIPLY_ADDS = 1e8;

#endif
