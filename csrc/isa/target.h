/* SPDX-License-Identifier: Apache-2.0 */
/* target.h -- SA_TARGET_BEGIN("avx2,fma") ... SA_TARGET_END compile a region for one instruction set, without build
 * flags. All code that touches vectors must stand inside the region. A helper before it would be compiled for the
 * baseline (gcc warns, clang refuses). */
#ifndef SELFATTN_TARGET_H
#define SELFATTN_TARGET_H

#define SA_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SA_TARGET_BEGIN(isa) SA_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define SA_TARGET_END SA_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define SA_TARGET_BEGIN(isa) SA_PRAGMA(GCC push_options) SA_PRAGMA(GCC target(isa))
#define SA_TARGET_END SA_PRAGMA(GCC pop_options)
#else
#error "selfattn needs gcc or clang (clang-cl on Windows): MSVC has no vector types"
#endif

#if defined(__x86_64__)
#include <cpuid.h>

/* Not every compiler knows f16c by name. Where AVX2 is usable, the bit of CPUID can be trusted. */
static inline int cpu_has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#endif
