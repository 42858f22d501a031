/* SPDX-License-Identifier: Apache-2.0 */
/* rotary.inc.h -- rotary positions: pairs of channels of queries and keys are rotated by the angles of their position.
 *
 *   first' = first * cos - second * sin        second' = second * cos + first * sin
 *
 * A pair is (i, i + pairs), or with `interleaved` (2i, 2i + 1). Products and sums round one by one, as in NumPy. */
#ifndef SELFATTN_POINTWISE_ROTARY_INC_H
#define SELFATTN_POINTWISE_ROTARY_INC_H

#include "vector/convert.inc.h"

/* Pairs (i, i + pairs). x: (2 * pairs,). cosines, sines: (pairs,). */
static void rotate_halves(real *x, const real *cosines, const real *sines, ptrdiff_t pairs)
{
    for (ptrdiff_t i = 0; i < pairs; i += LANES) {
        ptrdiff_t n = smaller(LANES, pairs - i);
        vreal first = vload_first(x + i, n), second = vload_first(x + pairs + i, n);
        vreal cosine = vload_first(cosines + i, n), sine = vload_first(sines + i, n);
        vstore_first(x + i, first * cosine - second * sine, n);
        vstore_first(x + pairs + i, first * sine + second * cosine, n);
    }
}

/* Pairs (2i, 2i + 1). Shapes are as in rotate_halves. */
static void rotate_neighbours(real *x, const real *cosines, const real *sines, ptrdiff_t pairs)
{
    for (ptrdiff_t i = 0; i < pairs; ++i, x += 2) {
        real first = x[0], second = x[1];
        x[0] = first * cosines[i] - second * sines[i];
        x[1] = first * sines[i] + second * cosines[i];
    }
}

/* The rows row0 .. row1 - 1, in place. The heads of a row lie side by side. */
static void rotary(const struct sa_rotary *r, ptrdiff_t row0, ptrdiff_t row1)
{
    for (ptrdiff_t row = row0; row < row1; ++row) {
        const ptrdiff_t angles = (ptrdiff_t)r->positions[row] * r->pairs;
        const real *cosines = (const real *)r->cosines + angles, *sines = (const real *)r->sines + angles;
        real *x = (real *)r->x + row * r->x_stride;
        for (ptrdiff_t head = 0; head < r->num_heads; ++head, x += r->head_dim)
            (r->interleaved ? rotate_neighbours : rotate_halves)(x, cosines, sines, r->pairs);
    }
}

#endif
