/* SPDX-License-Identifier: Apache-2.0 */
/* avx2_float64.c -- the kernels of avx2.c in float64. */
#define SA_FLOAT64_KERNELS
#include "isa/avx2.c"
