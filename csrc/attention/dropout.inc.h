/* SPDX-License-Identifier: Apache-2.0 */
/* dropout.inc.h -- which attention weights are dropped: one random number for each (seed, item, head, query, key).
 * So any part of the weights, in any order, and the backward pass drop the same weights.
 *
 * Philox4x64-10 of "Parallel random numbers: as easy as 1, 2, 3" (Salmon et al., 2011): key (seed, 0), counter (key
 * / 8, query, head, item). Its four results are the numbers of eight keys, 32 bits each, the low half first. */
#ifndef SELFATTN_ATTENTION_DROPOUT_INC_H
#define SELFATTN_ATTENTION_DROPOUT_INC_H

#include "attention/query_panel.inc.h"

/* out: 4 random numbers of 64 bits. */
static void philox(const uint64_t counter[4], uint64_t seed, uint64_t out[4])
{
    uint64_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, key[2] = {seed, 0};
    for (int round = 0; round < 10; ++round) {
        unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93u * c[0];
        unsigned __int128 b = (unsigned __int128)0xCA5A826395121157u * c[2];
        uint64_t next[4] = {(uint64_t)(b >> 64) ^ c[1] ^ key[0], (uint64_t)b, (uint64_t)(a >> 64) ^ c[3] ^ key[1],
                            (uint64_t)a};
        memcpy(c, next, sizeof c);
        key[0] += 0x9E3779B97F4A7C15u;
        key[1] += 0xBB67AE8584CAA73Bu;
    }
    memcpy(out, c, sizeof c);
}

/* numbers, keys x lanes with `stride` numbers from key to key: times 0 where the weight of key first + k is dropped,
 * times 1 / (1 - dropout) elsewhere. */
static void drop(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                 ptrdiff_t first, ptrdiff_t last, real *numbers, ptrdiff_t stride)
{
    ptrdiff_t group = sa_group(a);
    const uint64_t threshold = (uint64_t)__builtin_rint(a->options.dropout * 4294967296.0);
    const real kept = (real)(1.0 / (1.0 - a->options.dropout));
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        uint64_t query = (uint64_t)((p->row0 + i) / group), head = (uint64_t)(t->head + (p->row0 + i) % group);
        for (ptrdiff_t eight = first / 8; eight * 8 < last; ++eight) {
            uint64_t random[4];
            philox((const uint64_t[]){(uint64_t)eight, query, head, (uint64_t)t->item}, a->options.seed, random);
            for (ptrdiff_t key = larger(first, eight * 8); key < smaller(last, eight * 8 + 8); ++key) {
                uint64_t number = random[key % 8 / 2] >> key % 2 * 32 & 0xffffffff;
                numbers[(key - first) * stride + i] *= number < threshold ? (real)0.0 : kept;
            }
        }
    }
}

#endif
