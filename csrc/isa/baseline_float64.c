/* SPDX-License-Identifier: Apache-2.0 */
/* baseline_float64.c -- the kernels of baseline.c in float64. */
#define SA_FLOAT64_KERNELS
#include "isa/baseline.c"
