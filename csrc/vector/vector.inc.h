/* vector.inc.h -- the only file that knows an instruction set. Everything above it is written with these.
 *
 * A `real` is a float32, or a float64 where SA_FLOAT64_KERNELS is defined; vreal is LANES of them. Where
 * SA_BFLOAT16_KERNELS is defined, the operands of a product are pairs of bfloat16, one pair in the place of a float32,
 * and a sum takes TERMS = 2 products at a time. Every operation works lane by lane, and every instruction set gives the same bits (the baseline, which has no fused multiply-add, excepted): vfma
 * rounds once, vmax(a, b) is a > b ? a : b, so that it returns b when either is NaN. */
#ifndef SELFATTN_VECTOR_VECTOR_INC_H
#define SELFATTN_VECTOR_VECTOR_INC_H

#include "vector/numbers.inc.h"
#include "vector/registers.inc.h"
#include "vector/terms.inc.h"

#endif
