/* SPDX-License-Identifier: Apache-2.0 */
/* dispatch.c -- the instruction set that computes: the best that runs here, or the one that sa_use names. */
#include "contracts/kernels.h"

const struct sa_format_description sa_formats[SA_FORMATS] = {
    [SA_FORMAT_NUMBERS] = {"float32", SA_FLOAT32, SA_FLOAT32, 1}, /* float64 in the float64 kernels */
    [SA_FORMAT_BFLOAT16] = {"bfloat16", SA_BFLOAT16, SA_FLOAT32, 2},
};

static const struct sa_kernels *const compiled[] = {
/* best first */
#if defined(__x86_64__)
    &sa_kernels_avx512,
    &sa_kernels_avx2,
#endif
#if defined(__aarch64__)
    &sa_kernels_neon,
#endif
    &sa_kernels_baseline,
};
static const struct sa_kernels *active;

const struct sa_kernels *sa_available(int index)
{
    for (size_t i = 0; i < sizeof compiled / sizeof *compiled; ++i)
        if (compiled[i]->runs_here() && index-- == 0) return compiled[i];
    return NULL;
}

int sa_use(const char *isa)
{
    const struct sa_kernels *k;
    for (int i = 0; (k = sa_available(i)); ++i)
        if (strcmp(k->isa, isa) == 0) {
            active = k;
            return 0;
        }
    return -1;
}

const struct sa_kernels *sa_kernels_of(const struct sa_kernels *kernels, enum sa_format format)
{
    const struct sa_kernels *candidate = kernels->formats[format];
    return candidate && candidate->runs_here() ? candidate : kernels;
}

const struct sa_kernels *sa_active(void)
{
    return active ? active : (active = sa_available(0));
}
