/* SPDX-License-Identifier: Apache-2.0 */
/* registers.inc.h -- how many vectors and rows a tile has, by the number of registers. */
#ifndef SELFATTN_VECTOR_REGISTERS_INC_H
#define SELFATTN_VECTOR_REGISTERS_INC_H

#include "vector/numbers.inc.h"

/* A tile has at most 8 rows: more rows, 4096 bytes apart, would not fit into one set of an 8-way L1 cache. */
#if SA_VECTOR_BYTES == 64 || defined(__aarch64__) /* 32 registers: 24 sums + 4 of B + 1 of A */
enum { MAX_NV = 4 };
#define TILE_ROWS(nv) ((nv) == 4 ? 6 : 8)
#elif SA_FMA /* 16 registers: 12 sums + 2 of B + 1 of A */
enum { MAX_NV = 2 };
#define TILE_ROWS(nv) ((nv) == 2 ? 6 : 8)
#else /* a product needs a register of its own */
enum { MAX_NV = 2 };
#define TILE_ROWS(nv) 4
#endif
enum {
    MAX_TILE_ROWS = 8,
    PANEL_LANES = MAX_NV * LANES,
    WIDE_VECTORS =
            SA_VECTOR_BYTES == 64, /* panels of many lanes: outputs by rows and partly visible blocks are worth while */
    SHORT_PANELS =
            SA_VECTOR_BYTES == 32, /* panels of 16 queries: keys are read four times as often as with panels of 64 */
};

_Static_assert((int)SA_TASK_ROWS % (int)PANEL_LANES == 0, "a task is whole panels");
_Static_assert(SA_KEY_BLOCK % LANES == 0, "the scores of a key block are whole vectors");
_Static_assert(SA_KEY_BLOCK % 2 == 0 && SA_SCORE_CHAIN % 2 == 0 && SA_LINEAR_CHAIN % 2 == 0,
               "pairs never cross a chain");
_Static_assert((int)MAX_TILE_ROWS >= TILE_ROWS(1) && (int)MAX_TILE_ROWS >= TILE_ROWS(MAX_NV), "a tile fits its sums");
_Static_assert(SA_LINEAR_ROWS % SA_LINEAR_SCRATCH_ROWS == 0, "a task of a linear layer is whole scratches");
_Static_assert(SA_SCORE_CHAIN % LANES == 0, "decode ends a chain with a whole vector of dimensions");

#endif
