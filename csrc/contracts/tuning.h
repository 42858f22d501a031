/* tuning.h -- the constants that only tune: sizes of tasks, distances of prefetches, sizes of caches.
 *
 * No result depends on them. They were measured on two cores with AVX-512; docs/performance-notes.md has the figures. */
#ifndef SELFATTN_CONTRACTS_TUNING_H
#define SELFATTN_CONTRACTS_TUNING_H

enum {
    /* threads */
    SA_TASKS_PER_THREAD = 4,     /* at least, for threads that are to end together */
    SA_NUMBERS_PER_TASK = 16384, /* of an operator that takes each number by itself */
    SA_ROWS_PER_TASK = 64,       /* of an operator that takes each row by itself */

    /* attention */
    SA_SHARED_PANELS = 4,               /* times as many rows of a task, where its panels share gathered keys */
    SA_CORE_CACHE_BYTES = 4 << 20,      /* of keys and values that one core has room for in the last cache */
    SA_DECODE_CACHE_BYTES = 2 << 20,    /* of keys and values that decode finds in the caches */
    SA_DECODE_PREFETCH_BYTES = 24576,   /* ahead of the row that decode reads */
    SA_DECODE_CHUNK_KEYS = 48,          /* values of long rows that the first cache keeps from pass to pass */
    SA_PREFETCH_NEXT_NUMBERS = 1 << 20, /* of queries and outputs: beyond, those of the next task are fetched */
    SA_PREFETCH_NEXT_QUERIES = 16,      /* of an item, at least, and */
    SA_PREFETCH_NEXT_DIMENSIONS = 16,   /* of a value, at least: a row is fetched with each of them */

    /* linear layers */
    SA_LINEAR_ROWS = 96,                /* of a task */
    SA_LINEAR_SCRATCH_ROWS = 48,        /* whose sums wait in the first cache for bias, activation and residual */
    SA_WEIGHT_PREFETCH_BYTES = 8192,    /* ahead in a weight, where one tile has all rows */
    SA_WEIGHT_GRADIENT_BYTES = 288 * 4, /* of a row of x: what a task of a weight's gradient takes of it at most */
    SA_WEIGHT_GRADIENT_COLUMNS = 48,    /* whole tiles of it, whatever the instruction set */

    /* encoders */
    SA_MICRO_BATCH_TOKENS = 384, /* for each thread; more where one sequence is longer */
    SA_ROW_BLOCK = 96,           /* rows that one thread carries from one attention to the next, at most, ... */
    SA_ROW_BLOCK_MULTIPLE = 6,   /* ... in whole tiles where possible */
    SA_ROW_BLOCK_LEAST = 48,     /* with fewer rows for each thread, threads share the columns of all rows instead */
};

/* Work below this many multiply-adds (about 10 us) is not worth a second thread. */
static const double SA_WORTH_A_THREAD = 5e5;

/* A task is a few milliseconds at most: between tasks, Ctrl-C is noticed. */
static const double SA_TASK_MULTIPLY_ADDS = 1e8;

#endif
