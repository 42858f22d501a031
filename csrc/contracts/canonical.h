/* canonical.h -- the constants of the canonical order of arithmetic.
 *
 * Change one, and results change in their last bits: every golden value and every promise of equal bits hangs on them.
 * What may be changed freely is in tuning.h. */
#ifndef SELFATTN_CONTRACTS_CANONICAL_H
#define SELFATTN_CONTRACTS_CANONICAL_H

enum {
    SA_SCORE_CHAIN = 64,             /* products of a query and a key that are one chain of additions */
    SA_KEY_BLOCK = 144,              /* keys that share one maximum, ... */
    SA_KEY_SPAN = 12 * SA_KEY_BLOCK, /* ... and keys of one chain of blocks: functions of nothing but the key's index */
    SA_BACKWARD_ROWS = 64,           /* rows of the scores that are one chain in the gradient of a key */
    SA_LINEAR_CHAIN = 384, /* products of a linear layer, or rows of its weight's gradient, that are one chain */
    SA_NORM_SUMS = 16,     /* sums of a row in a norm: number i is added to sum i % 16 */
    SA_SUM_ROWS = 64,      /* rows that are one chain in the gradients of biases and norms */
};

#endif
