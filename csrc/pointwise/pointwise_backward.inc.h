/* SPDX-License-Identifier: Apache-2.0 */
/* pointwise_backward.inc.h -- gradients of activations and norms, and sums over rows.
 *
 * Canonical order of a sum over rows, all in double: chunks of rows, each a chain from 0 on, row by row; the chunks are
 * added in order; one rounding at the end. */
#ifndef SELFATTN_POINTWISE_POINTWISE_BACKWARD_INC_H
#define SELFATTN_POINTWISE_POINTWISE_BACKWARD_INC_H

#include "pointwise/activation.inc.h"
#include "pointwise/norm.inc.h"

/* The slope of x sigmoid(z(x)): sigmoid * (1 + x z' (1 - sigmoid)). 1 - sigmoid is computed without cancellation. */
INLINE vreal sigmoid_slope(vreal x, vreal z, vreal z_slope)
{
    vreal e, sigmoid = sigmoid_and_exponential(z, &e);
    return sigmoid * vfma(x * z_slope, e * sigmoid, vsplat(1.0f));
}

/* act'(x); NaN gives NaN. */
INLINE vreal slope_vector(const enum sa_activation kind, vreal x)
{
    const vreal zero = vsplat(0.0f), one = vsplat(1.0f);
    /* Beyond +-1024 the sigmoid is 0 or 1. The other factors stay finite, so that their products are not NaN. */
    vreal near = vmax(vsplat(-1024.0f), -vmax(vsplat(-1024.0f), -x));
    switch (kind) {
    case SA_GELU: { /* slope(x) = 1 - slope(-x) */
        vreal tail = gelu_tail_slope(vmax(vsplat(GELU_IS_0), minus_size(x)));
        return vselect(x < zero, tail, one - tail);
    }
    case SA_GELU_TANH: {
        vreal z = x * vfma(x * x, vsplat(TANH_CUBIC), vsplat(TANH_LINEAR));
        return sigmoid_slope(near, z, vfma(near * near, vsplat(3 * TANH_CUBIC), vsplat(TANH_LINEAR)));
    }
    case SA_RELU:
        return vselect(x > zero, one, vmax(zero, x));
    case SA_SILU:
        return sigmoid_slope(near, x, one);
    default:
        return one;
    }
}

INLINE vreal load_lanes(const void *from, ptrdiff_t i, ptrdiff_t lanes)
{
    const real *p = (const real *)from + i;
    return lanes == LANES ? vload(p) : vload_first(p, lanes);
}

INLINE void store_lanes(void *to, ptrdiff_t i, vreal v, ptrdiff_t lanes)
{
    real *p = (real *)to + i;
    if (lanes == LANES)
        vstore(p, v);
    else
        vstore_first(p, v, lanes);
}

INLINE void activation_numbers_backward(const enum sa_activation kind, const struct sa_activation_backward *a,
                                        ptrdiff_t begin, ptrdiff_t end)
{
    for (ptrdiff_t i = begin; i < end; i += LANES) {
        ptrdiff_t lanes = smaller(LANES, end - i);
        vreal grad = load_lanes(a->grad_y, i, lanes), x = load_lanes(a->x, i, lanes);
        vreal slope = slope_vector(kind, x);
        if (a->up) {
            vreal up = load_lanes(a->up, i, lanes);
            store_lanes(a->grad_up, i, grad * activate_vector(kind, x), lanes);
            grad *= up;
        }
        store_lanes(a->grad_x, i, grad * slope, lanes);
    }
}

static void activation_backward(const struct sa_activation_backward *a, ptrdiff_t begin, ptrdiff_t end)
{
    switch (a->activation) { /* outside the loops */
    case SA_GELU:
        activation_numbers_backward(SA_GELU, a, begin, end);
        break;
    case SA_GELU_TANH:
        activation_numbers_backward(SA_GELU_TANH, a, begin, end);
        break;
    case SA_RELU:
        activation_numbers_backward(SA_RELU, a, begin, end);
        break;
    case SA_SILU:
        activation_numbers_backward(SA_SILU, a, begin, end);
        break;
    default:
        activation_numbers_backward(SA_IDENTITY, a, begin, end);
    }
}

/* A row as its norm left it: (x - mean) * scale. */
struct normed_row {
    const real *x;
    double mean, scale;
};

INLINE vdouble normed_vector(const struct normed_row *row, ptrdiff_t i)
{
    return (widen(row->x + i) - row->mean) * row->scale;
}

INLINE double normed_number(const struct normed_row *row, ptrdiff_t i)
{
    return ((double)row->x[i] - row->mean) * row->scale;
}

/* The sums over a row of grad = grad_y * weight, and of grad * normed, in the order of row_sum. grad_y, weight:
 * (n,). */
INLINE void norm_gradient_sums(const struct normed_row *row, const real *grad_y, const real *weight, ptrdiff_t n,
                               double *grad_sum, double *product_sum)
{
    vdouble grads[SUM_VECTORS], products[SUM_VECTORS];
    double tail[2][SA_NORM_SUMS] = {{0}};
    ptrdiff_t i = 0, whole = n / SA_NORM_SUMS * SA_NORM_SUMS;
    for (int j = 0; j < SUM_VECTORS; ++j)
        grads[j] = products[j] = (vdouble){0};
    for (; i < whole; i += SA_NORM_SUMS)
        for (int j = 0; j < SUM_VECTORS; ++j) {
            ptrdiff_t at = i + j * DOUBLES;
            vdouble grad = widen(grad_y + at) * widen(weight + at);
            grads[j] += grad;
            products[j] += grad * normed_vector(row, at);
        }
    for (; i < n; ++i) {
        double grad = (double)grad_y[i] * (double)weight[i];
        tail[0][i - whole] = grad;
        tail[1][i - whole] = grad * normed_number(row, i);
    }
    for (int j = 0; j < SUM_VECTORS; ++j) {
        vdouble t[2];
        memcpy(&t[0], tail[0] + j * DOUBLES, sizeof t[0]);
        memcpy(&t[1], tail[1] + j * DOUBLES, sizeof t[1]);
        grads[j] += t[0];
        products[j] += t[1];
    }
    *grad_sum = tree(grads);
    *product_sum = tree(products);
}

/* grad_x = scale * (grad - mean(grad) - normed * mean(grad * normed)), without mean(grad) for an RMSNorm.
 * weight_sums += grad_y * normed, bias_sums += grad_y. All are (width,); the row begins at number `at`. */
INLINE void norm_row_backward(const struct sa_norm_backward *l, ptrdiff_t at, double *weight_sums, double *bias_sums)
{
    const real *grad_y = (const real *)l->grad_y + at, *weight = l->weight;
    real *grad_x = (real *)l->grad_x + at;
    struct normed_row row = {.x = (const real *)l->x + at};
    double grad_mean, product_mean;
    row.scale = row_scale(row.x, l->width, l->eps, l->rms, &row.mean);
    norm_gradient_sums(&row, grad_y, weight, l->width, &grad_mean, &product_mean);
    grad_mean = l->rms ? 0.0 : grad_mean / (double)l->width;
    product_mean /= (double)l->width;
    ptrdiff_t i = 0;
    for (; i + DOUBLES <= l->width; i += DOUBLES) {
        vdouble grad = widen(grad_y + i), normed = normed_vector(&row, i);
        *(vdouble *)(weight_sums + i) += grad * normed;
        *(vdouble *)(bias_sums + i) += grad;
        grad = (grad * widen(weight + i) - grad_mean - normed * product_mean) * row.scale;
        *(vdoubles *)(grad_x + i) = __builtin_convertvector(grad, vdoubles);
    }
    for (; i < l->width; ++i) {
        double grad = (double)grad_y[i], normed = normed_number(&row, i);
        weight_sums[i] += grad * normed;
        bias_sums[i] += grad;
        grad_x[i] = (real)((grad * (double)weight[i] - grad_mean - normed * product_mean) * row.scale);
    }
}

/* One chunk: the rows row0 .. row1 - 1. sums: 2 x width, of weight and bias. */
static void norm_backward(const struct sa_norm_backward *l, ptrdiff_t row0, ptrdiff_t row1, double *sums)
{
    memset(sums, 0, 2 * (size_t)l->width * sizeof *sums);
    for (ptrdiff_t row = row0; row < row1; ++row)
        norm_row_backward(l, row * l->width, sums, sums + l->width);
}

/* sums: (width,) = the sums over the rows of a chunk, rows x width. */
static void sum_rows(const void *data, ptrdiff_t rows, ptrdiff_t width, double *sums)
{
    const real *x = data;
    memset(sums, 0, (size_t)width * sizeof *sums);
    for (ptrdiff_t row = 0; row < rows; ++row, x += width) {
        ptrdiff_t i = 0;
        for (; i + DOUBLES <= width; i += DOUBLES)
            *(vdouble *)(sums + i) += widen(x + i);
        for (; i < width; ++i)
            sums[i] += (double)x[i];
    }
}

/* The sums of all chunks are added to the sums of the first, in order, and rounded into result: (width,). stride:
 * numbers from chunk to chunk. */
static void add_sums(double *sums, ptrdiff_t chunks, ptrdiff_t stride, ptrdiff_t width, void *result)
{
    real *y = result;
    for (ptrdiff_t chunk = 1; chunk < chunks; ++chunk)
        for (ptrdiff_t i = 0; i < width; ++i)
            sums[i] += sums[chunk * stride + i];
    for (ptrdiff_t i = 0; i < width; ++i)
        y[i] = (real)sums[i];
}

#endif
