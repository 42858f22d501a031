/* SPDX-License-Identifier: Apache-2.0 */
/* vector.inc.h -- vectors of numbers. The files of this folder are the only ones that know an instruction set.
 *
 * A `real` is a float32, or a float64 where SA_FLOAT64_KERNELS is defined; a vreal is LANES of them. Where
 * SA_BFLOAT16_KERNELS is defined, an operand of a product is a pair of bfloat16 in the place of a float32, and one
 * step of a sum takes TERMS = 2 products.
 *
 * Every operation works lane by lane, and gives the same bits on every instruction set. The baseline on x86-64 is
 * the exception: it has no fused multiply-add. vfma rounds once. vmax(a, b) is a > b ? a : b, so it returns b when
 * either is NaN. */
#ifndef SELFATTN_VECTOR_VECTOR_INC_H
#define SELFATTN_VECTOR_VECTOR_INC_H

#include "vector/numbers.inc.h"
#include "vector/registers.inc.h"
#include "vector/terms.inc.h"

#endif
