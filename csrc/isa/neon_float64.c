/* SPDX-License-Identifier: Apache-2.0 */
/* neon_float64.c -- the kernels of neon.c in float64. */
#define SA_FLOAT64_KERNELS
#include "isa/neon.c"
