/* SPDX-License-Identifier: Apache-2.0 */
/* bits_support.h -- numbers that are the same on every machine, and hashes of results. */
#ifndef SELFATTN_TESTS_BITS_SUPPORT_H
#define SELFATTN_TESTS_BITS_SUPPORT_H

#include "contracts/operators.h"

#include <stdio.h>
#include <stdlib.h>

static const struct sa_kernels *kernels;
static uint64_t random_state;

/* Multiples of 2^-21 in [-4, 4): exact, and the same on every machine. */
static float random_float(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)((int64_t)(random_state >> 40) - (1 << 23)) * 0x1p-21f;
}

static float *room(ptrdiff_t n)
{
    float *x = aligned_alloc(64, ((size_t)n * sizeof *x + 127) / 64 * 64);
    if (!x) exit(3);
    return x;
}

static float *floats(ptrdiff_t n)
{
    float *x = room(n);
    for (ptrdiff_t i = 0; i < n; ++i)
        x[i] = random_float();
    return x;
}

static const size_t SIZES[] = {[SA_FLOAT32] = 4, [SA_FLOAT64] = 8, [SA_FLOAT16] = 2, [SA_BFLOAT16] = 2, [SA_INT8] = 1};

/* Numbers of any dtype, finite and of moderate size. */
static void *numbers(enum sa_dtype dtype, ptrdiff_t n)
{
    char *data = (char *)room(2 * n), *at = data;
    for (ptrdiff_t i = 0; i < n; ++i, at += SIZES[dtype]) {
        float x = random_float();
        double wide = (double)x * 1.0000001;
        unsigned r = (unsigned)(random_state >> 33);
        uint16_t float16 = (uint16_t)((r & 0x83ff) | (10 + r / 1024 % 8) << 10);
        uint16_t bfloat16 = (uint16_t)((r & 0x807f) | (120 + r / 128 % 9) << 7);
        const void *source[] = {&x, &wide, &float16, &bfloat16, &r};
        memcpy(at, source[dtype], SIZES[dtype]);
    }
    return data;
}

/* FNV-1a over the bytes. */
static uint64_t hash_bytes(const void *x, size_t n, uint64_t h)
{
    const unsigned char *bytes = x;
    for (size_t i = 0; i < n; ++i)
        h = (h ^ bytes[i]) * 1099511628211u;
    return h;
}

static uint64_t hash(const float *x, ptrdiff_t n, uint64_t h)
{
    return hash_bytes(x, (size_t)n * sizeof *x, h);
}

static const uint64_t HASH_START = 14695981039346656037u;

static void report(const char *kernel, const ptrdiff_t *shape, int rank, uint64_t h)
{
    printf("%s", kernel);
    for (int i = 0; i < rank; ++i)
        printf(" %td", shape[i]);
    printf(" %016llx\n", (unsigned long long)h);
}

/* A contiguous array of (items, heads, rows, cols). */
static struct sa_array array(void *data, size_t size, ptrdiff_t heads, ptrdiff_t rows, ptrdiff_t cols)
{
    ptrdiff_t col = (ptrdiff_t)size, row = cols * col, head = rows * row;
    return (struct sa_array){.data = data, .leading = {heads * head}, .head = head, .row = row, .col = col};
}

/* The panels of a contiguous weight (depth, width). */
static float *pack(float *weight, ptrdiff_t depth, ptrdiff_t width)
{
    const struct sa_array array = {
        .data = (char *)weight, .row = width * (ptrdiff_t)sizeof *weight, .col = sizeof *weight};
    float *packed = room((ptrdiff_t)(sa_packed_bytes(kernels, depth, width) / sizeof *packed));
    if (sa_pack_run(kernels, &array, depth, width, packed, 2) != 0) exit(4);
    return packed;
}

#endif
