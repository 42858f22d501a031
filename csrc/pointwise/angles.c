/* SPDX-License-Identifier: Apache-2.0 */
/* angles.c -- cosines and sines of rotary positions, in plain double arithmetic: libm may differ between machines. */
#include "contracts/operators.h"

/* sin and cos of |r| <= pi / 4 by Taylor series; the first term left out is below 1e-19. */
static double sine_near_0(double r)
{
    double square = r * r, sum = 0.0;
    for (int n = 18; n >= 2; n -= 2) /* 1 - r^2 / (2 * 3) (1 - r^2 / (4 * 5) (...)) */
        sum = (1.0 - sum) * square / (double)(n * (n + 1));
    return r * (1.0 - sum);
}

static double cosine_near_0(double r)
{
    double square = r * r, sum = 0.0;
    for (int n = 19; n >= 1; n -= 2)
        sum = (1.0 - sum) * square / (double)(n * (n + 1));
    return 1.0 - sum;
}

/* x = k * pi / 2 + r, |r| <= pi / 4. pi / 2 is three numbers; products of the first two with a k of 20 bits are
 * exact. */
static void sine_and_cosine(double x, double *sine, double *cosine)
{
    const double first = 0x1.921fb544p+0, second = 0x1.0b4611a6p-34, third = 0x1.3198a2e037073p-69;
    double k = __builtin_rint(x * 0.63661977236758134308);
    double r = ((x - k * first) - k * second) - k * third;
    double s = sine_near_0(r), c = cosine_near_0(r);
    int quarter = (int)((int64_t)k & 3);
    *sine = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
    *cosine = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
}

void sa_rotary_angles(const double *frequencies, ptrdiff_t pairs, ptrdiff_t positions, double factor, float *cosines,
                      float *sines)
{
    for (ptrdiff_t position = 0; position < positions; ++position)
        for (ptrdiff_t i = 0; i < pairs; ++i) {
            double sine, cosine;
            sine_and_cosine((double)position * frequencies[i], &sine, &cosine);
            cosines[position * pairs + i] = (float)(cosine * factor);
            sines[position * pairs + i] = (float)(sine * factor);
        }
}
