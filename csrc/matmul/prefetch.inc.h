/* prefetch.inc.h -- what is prefetched into the second cache while tiles are multiplied. */
#ifndef SELFATTN_MATMUL_PREFETCH_INC_H
#define SELFATTN_MATMUL_PREFETCH_INC_H

#include "vector/vector.inc.h"

/* What comes after B, where B is weights, which a few rows read but once, from memory: with every step of the tiles so
 * many bytes of it are prefetched into the second cache. Evenly, and every line: the processor drops what it cannot take,
 * and where some lines are missing its own prefetchers are no help. */
struct prefetch_stream {
    const char *at;
    ptrdiff_t bytes;
};

/* Rows that will be wanted soon: while tiles of A are multiplied, the same rows of these are prefetched into the cache.
 * (The broadcasts walk several short rows at once, which the hardware's prefetchers do not follow.) */
struct prefetch_rows {
    const char *data;
    ptrdiff_t row, bytes;  /* from row to row; of one row, 0 if there is nothing to fetch */
    ptrdiff_t first;       /* row 0 of these is row `first` there; */
    ptrdiff_t group, head; /* with a group of 2 and more row r is row r / group of head r % group, heads so far apart */
};

/* From a row on; nothing stays nothing. */
static struct prefetch_rows prefetch_from(struct prefetch_rows prefetch, ptrdiff_t row)
{
    prefetch.first += row;
    return prefetch;
}

INLINE void prefetch_row(const char *row, ptrdiff_t bytes)
{
    for (ptrdiff_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(row + at, 0, 2);
}

static __attribute__((noinline)) void prefetch_grouped(const struct prefetch_rows *prefetch, ptrdiff_t first, int rows)
{
    __asm__ volatile(""); /* GCC takes a function that does nothing but prefetch for one that does nothing */
    ptrdiff_t row = first / prefetch->group, head = first % prefetch->group;
    for (int i = 0; i < rows; ++i) {
        prefetch_row(prefetch->data + row * prefetch->row + head * prefetch->head, prefetch->bytes);
        if (++head == prefetch->group) head = 0, ++row;
    }
}

INLINE void issue_prefetch(const struct prefetch_rows *prefetch, ptrdiff_t first, int rows)
{
    if (prefetch->bytes == 0) return;
    first += prefetch->first;
    if (prefetch->group > 1) {
        prefetch_grouped(prefetch, first, rows);
        return;
    }
    for (int i = 0; i < rows; ++i)
        prefetch_row(prefetch->data + (first + i) * prefetch->row, prefetch->bytes);
}

#endif
