/* key_block.inc.h -- the key block at hand: its keys, its scores, what masks say of it. */
#ifndef SELFATTN_ATTENTION_KEY_BLOCK_INC_H
#define SELFATTN_ATTENTION_KEY_BLOCK_INC_H

#include "attention/key_source.inc.h"
#include "attention/query_panel.inc.h"

/* What mask and bias say of a block. */
enum biased {
    NOT_BIASED, /* every lane sees every key, and nothing is added */
    ALL_MASKED, /* no lane sees any */
    BIASED
};

struct key_block {
    ptrdiff_t first, last; /* the keys of the block that some lane may see */
    real *scores, *bias;   /* keys x width, */
    ptrdiff_t stride;      /* scores: from key to key */
    real *capped;          /* NULL, or where the capped scores are kept */
    real max[PANEL_LANES]; /* of the scores */
    int ranged;            /* some lane's range begins or ends inside the block: */
    integer begin[PANEL_LANES], end[PANEL_LANES];
    int partly_visible; /* so much that it pays to leave out what a vector does not see (seen.inc.h) */
    enum biased biased;
    struct key_source keys, values;
    int prefetch_enabled,
        prefetch_pending; /* where keys and values are not staged: they come from there; the block is still to be prefetched */
    struct prefetch_rows
        next_task[2];         /* queries and outputs of the next square, to be prefetched with the next values: */
    ptrdiff_t next_task_rows; /* so many more of them */
};

static void begin_block(struct key_block *b, ptrdiff_t first, ptrdiff_t last)
{
    b->keys.first = b->values.first = first / TERMS * TERMS;
    b->keys.last = b->values.last = last;
    b->keys.copied = b->values.copied = 0;
    b->prefetch_pending = b->prefetch_enabled;
}

#endif
