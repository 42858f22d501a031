/* SPDX-License-Identifier: Apache-2.0 */
/* avx512_float64.c -- the kernels of avx512.c in float64. */
#define SA_FLOAT64_KERNELS
#include "isa/avx512.c"
