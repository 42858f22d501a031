/* SPDX-License-Identifier: Apache-2.0 */
/* scores.inc.h -- pass 1: the scores of a key block, S^T[key, lane] = sum over head_dim of key * query. */
#ifndef SELFATTN_ATTENTION_SCORES_INC_H
#define SELFATTN_ATTENTION_SCORES_INC_H

#include "attention/decode_scores.inc.h"
#include "attention/mask.inc.h"
#include "attention/visible_vectors.inc.h"

/* b->max of a panel of one vector, from b->scores: keys x LANES. */
static void find_max(struct key_block *b)
{
    vreal max = vsplat(-INFINITY);
    for (ptrdiff_t k = 0; k < b->last - b->first; ++k)
        max = vmax(vload(b->scores + k * b->stride), max);
    vstore(b->max, max);
}

/* The visible keys of the block that begins at key0, with mask and bias. Returns 0 if all keys are hidden. */
static int find_keys(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                     ptrdiff_t key0, struct key_block *b)
{
    /* A step always has the same keys. So the range may include a key that is hidden from all lanes. */
    b->first = larger(key0, p->min_first / TERMS * TERMS);
    b->last = smaller(b->keys.last, steps(p->max_last) * TERMS);
    b->biased = load_bias(a, t, p, &b->first, &b->last, b->bias);
    b->ranged = b->first < p->max_first || b->last > p->min_last;
    b->partly_visible = partly_visible(p, b);
    return b->first < b->last && b->biased != ALL_MASKED;
}

/* Do the products need no further step? Without masks, biases and options they are the scores. */
static int unmasked(const struct key_block *b, struct score_scale scaling)
{
    return !is_masked(b) && !scaling.logits;
}

/* b->scores: keys x lanes, b->stride numbers from key to key; and b->max. Returns 0 if all keys of the block that
 * begins at key0 are hidden. */
static int score_block(const struct sa_attention *a, const struct sa_attention_task *t, const struct query_panel *p,
                       struct score_scale scaling, ptrdiff_t key0, struct key_block *b)
{
    if (!find_keys(a, t, p, key0, b)) return 0;
    struct lane_rows scores = {b->scores, b->stride};
    int is_final = unmasked(b, scaling);
    if (is_decode(a, p)) {
        struct decode_rows f;
        score_decode(a, t, p, b, &f);
        decode_to_panel(&f, p->rows, scores);
        if (is_final) find_max(b);
    } else {
        struct operand keys = gathered_rows(a, t, &b->keys, b->first, b->last);
        int gathered = gathers_keys(a), is_due = gathered ? !b->values.copied : b->prefetch_pending;
        b->prefetch_pending = 0;
        ptrdiff_t next = b->first + (gathered ? SA_KEY_BLOCK : 2 * MAX_TILE_ROWS);
        struct prefetch_rows prefetch[2] = {prefetch_key_rows(a, &b->keys, next, is_due),
                                            prefetch_key_rows(a, &b->values, b->first, is_due)};
        multiply_keys(p, b, steps(a->head_dim), SA_SCORE_CHAIN / TERMS, keys, p->query, scores,
                      is_final ? b->max : NULL, prefetch);
    }
    if (!is_final) finish_scores(a, t, p, scaling, b);
    return 1;
}

#endif
