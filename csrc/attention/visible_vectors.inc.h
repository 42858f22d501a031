/* SPDX-License-Identifier: Apache-2.0 */
/* visible_vectors.inc.h -- key blocks whose keys are hidden from many lanes (the diagonal of a causal mask, the ends
 * of a window): only vectors of lanes that see a key are multiplied.
 *
 * A score that is left out keeps old content, and later becomes -inf, like that of any hidden key. A value that is
 * left out has a weight of 0, which changes no sum. So the bits are the same. (1.13 to 1.25 times as fast on causal
 * masks.) */
#ifndef SELFATTN_ATTENTION_VISIBLE_VECTORS_INC_H
#define SELFATTN_ATTENTION_VISIBLE_VECTORS_INC_H

#include "attention/key_block.inc.h"
#include "matmul/product.inc.h"

/* The keys *first .. *last - 1 of a block that a lane of the v-th vector may see; *first begins a step. */
static void visible_keys(const struct query_panel *p, const struct key_block *b, int v, ptrdiff_t *first,
                         ptrdiff_t *last)
{
    *first = smaller(b->last, larger(b->first, p->visible_first[v] / TERMS * TERMS));
    *last = larger(*first, smaller(b->last, p->visible_last[v]));
}

/* The end of the keys, from `key` on, that the same vectors of lanes see. The vectors are *from .. *to - 1. */
static ptrdiff_t same_visible_vectors(const struct query_panel *p, const struct key_block *b, ptrdiff_t key, int *from,
                                      int *to)
{
    ptrdiff_t end = b->last, first, last;
    *from = p->nv;
    *to = 0;
    for (int v = 0; v < p->nv; ++v) {
        visible_keys(p, b, v, &first, &last);
        if (first > key) end = smaller(end, first);
        if (last > key) end = smaller(end, last);
        if (first > key || last <= key) continue;
        *from = smaller(*from, v);
        *to = v + 1;
    }
    return end;
}

/* out[key, lane] = sum over depth of rows[key, :] * panel[:, lane], for the keys of a block. rows: keys x depth. panel:
 * depth x width. `max`, if not NULL, is raised to the maximum of each lane; all keys must be visible then. */
static void multiply_keys(const struct query_panel *p, const struct key_block *b, ptrdiff_t depth, ptrdiff_t chain,
                          struct operand rows, const real *panel, struct lane_rows out, real *max,
                          const struct prefetch_rows prefetch[2])
{
    if (!b->partly_visible) {
        multiply_long(p->nv, 0, b->last - b->first, depth, chain, rows, panel, p->width, out, max, prefetch);
        return;
    }
    int from, to;
    for (ptrdiff_t key = b->first, end; key < b->last; key = end) {
        ptrdiff_t row = key - b->first;
        struct operand part = {rows.data + row * rows.row, rows.row, rows.col};
        struct prefetch_rows prefetch_part[2] = {{0}, {0}};
        for (int i = 0; prefetch && i < 2; ++i)
            prefetch_part[i] = prefetch_from(prefetch[i], row);
        end = same_visible_vectors(p, b, key, &from, &to);
        if (from < to)
            multiply_long(to - from, 0, end - key, depth, chain, part, panel + from * LANES, p->width,
                          (struct lane_rows){out.data + row * out.stride + from * LANES, out.stride}, NULL,
                          prefetch_part);
    }
}

/* Is it worth while: are at least LANES keys, summed over the vectors, hidden from whole vectors? (Not in panels of
 * vectors below 64 bytes, whose lanes see almost the same keys.) */
static int partly_visible(const struct query_panel *p, const struct key_block *b)
{
    ptrdiff_t first, last, hidden = 0;
    if (!WIDE_VECTORS || !b->ranged || p->nv == 1) return 0;
    for (int v = 0; v < p->nv; ++v) {
        visible_keys(p, b, v, &first, &last);
        hidden += b->last - b->first - (last - first);
    }
    return hidden >= LANES;
}

#endif
