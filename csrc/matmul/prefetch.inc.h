/* SPDX-License-Identifier: Apache-2.0 */
/* prefetch.inc.h -- what is prefetched into the L2 cache while tiles are multiplied. */
#ifndef SELFATTN_MATMUL_PREFETCH_INC_H
#define SELFATTN_MATMUL_PREFETCH_INC_H

#include "vector/vector.inc.h"

/* A run of bytes, prefetched evenly: `bytes` bytes with every step of a tile. It follows B, where B is a weight that
 * few rows read once, from memory. Every cache line is prefetched: the processor's own prefetchers do not fill gaps. */
struct prefetch_stream {
    const char *at; /* the next byte to prefetch */
    ptrdiff_t bytes;
};

/* Rows that are read soon. While a tile multiplies its rows of A, the rows of the same number are prefetched. (A
 * tile reads several short rows at once, which the processor's own prefetchers do not follow.) */
struct prefetch_rows {
    const char *data;
    ptrdiff_t row, bytes;  /* bytes from row to row; bytes of one row, 0 if there is nothing to prefetch */
    ptrdiff_t first;       /* row 0 is row `first` of the array at `data` */
    ptrdiff_t group, head; /* group >= 2: row r is row r / group of head r % group; `head` bytes from head to head */
};

/* The same rows, without the first `row`. */
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
    __asm__ volatile(""); /* keeps GCC from removing a function that only prefetches */
    ptrdiff_t row = first / prefetch->group, head = first % prefetch->group;
    for (int i = 0; i < rows; ++i) {
        prefetch_row(prefetch->data + row * prefetch->row + head * prefetch->head, prefetch->bytes);
        if (++head == prefetch->group) head = 0, ++row;
    }
}

/* Prefetches the rows first .. first + rows - 1. */
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
