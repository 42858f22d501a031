/* SPDX-License-Identifier: Apache-2.0 */
/* key_block.inc.h -- the key block at hand: its keys, its scores, its masks. */
#ifndef SELFATTN_ATTENTION_KEY_BLOCK_INC_H
#define SELFATTN_ATTENTION_KEY_BLOCK_INC_H

#include "attention/key_source.inc.h"
#include "attention/query_panel.inc.h"

/* What mask and bias do to a block. */
enum biased {
    NOT_BIASED, /* no key is hidden, and nothing is added */
    ALL_MASKED, /* every key is hidden from every lane */
    BIASED      /* see key_block.bias */
};

struct key_block {
    ptrdiff_t first, last; /* the keys first .. last - 1: all that a lane may see */
    real *scores;          /* keys x lanes, `stride` numbers from key to key; then the probabilities */
    real *bias;            /* keys x width */
    ptrdiff_t stride;
    real *capped;                                 /* NULL, or a copy of the capped scores, as scores lie */
    real max[PANEL_LANES];                        /* of the scores of each lane */
    int ranged;                                   /* the range of a lane begins or ends inside the block */
    integer begin[PANEL_LANES], end[PANEL_LANES]; /* the visible keys of each lane, counted from `first` */
    int partly_visible; /* enough hidden keys to leave out vectors of lanes (visible_vectors.inc.h) */
    enum biased biased;
    struct key_source keys, values;
    int prefetch_enabled;              /* keys and values that are read where they lie are prefetched */
    int prefetch_pending;              /* the keys and values of the block are still to be prefetched */
    struct prefetch_rows next_task[2]; /* queries and outputs of the next task, prefetched with the next values */
    ptrdiff_t next_task_rows;          /* rows of next_task that are still to be prefetched */
};

/* The block has the keys first .. last - 1, none of them gathered yet. */
static void begin_block(struct key_block *b, ptrdiff_t first, ptrdiff_t last)
{
    b->keys.first = b->values.first = first / TERMS * TERMS;
    b->keys.last = b->values.last = last;
    b->keys.copied = b->values.copied = 0;
    b->prefetch_pending = b->prefetch_enabled;
}

#endif
