/* The same kernels in float64. */
#define SA_FLOAT64_KERNELS
#include "isa/neon.c"
