/* SPDX-License-Identifier: Apache-2.0 */
/* canonical.h -- the constants of the canonical order of arithmetic.
 *
 * Change one, and the last bits of results change: every golden value and every promise of equal bits depends on them.
 * tuning.h has the constants that may be changed freely. */
#ifndef SELFATTN_CONTRACTS_CANONICAL_H
#define SELFATTN_CONTRACTS_CANONICAL_H

enum {
    SA_SCORE_CHAIN = 64,             /* products of one chain in a score */
    SA_KEY_BLOCK = 144,              /* keys that share one maximum */
    SA_KEY_SPAN = 12 * SA_KEY_BLOCK, /* keys of one chain of blocks; both depend on the index of a key alone */
    SA_BACKWARD_ROWS = 64,           /* rows (queries x grouped heads) of one chain in the gradient of a key */
    SA_LINEAR_CHAIN =
        384,           /* products of one chain in a linear layer; rows of one chain in the gradient of its weight */
    SA_NORM_SUMS = 16, /* sums of a row in a norm: number i is added to sum i % 16 */
    SA_SUM_ROWS = 64,  /* rows of one chain in the gradients of biases and norms */
};

#endif
