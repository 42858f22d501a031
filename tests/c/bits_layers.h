/* SPDX-License-Identifier: Apache-2.0 */
/* bits_layers.h -- hashes of linear layers, norms, activations and their gradients. */
#ifndef SELFATTN_TESTS_BITS_LAYERS_H
#define SELFATTN_TESTS_BITS_LAYERS_H

#include "bits_support.h"

static void linear(ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t width, enum sa_activation activation)
{
    float *x = floats(rows * depth), *weight = floats(depth * width), *bias = floats(width);
    float *residual = floats(rows * width), *y = floats(rows * width);
    float *packed = pack(weight, depth, width);
    struct sa_linear l = {
        .x = x,
        .weight = {packed, depth, width},
        .bias = bias,
        .residual = residual,
        .y = y,
        .x_stride = depth,
        .y_stride = width,
        .residual_stride = width,
        .rows = rows,
        .activation = activation,
    };
    if (sa_linear_run(kernels, &l, 2) != 0) exit(4);
    report("linear", (ptrdiff_t[]){rows, depth, width, activation}, 4, hash(y, rows * width, HASH_START));
    struct sa_linear_backward g = {x, y, weight, rows, depth, width};
    if (sa_linear_backward_run(kernels, &g, 2) != 0) exit(4);
    report("weight_gradient", (ptrdiff_t[]){rows, depth, width, activation}, 4,
           hash(weight, depth * width, HASH_START));
    free(x), free(weight), free(bias), free(residual), free(y), free(packed);
}

static void norm(ptrdiff_t rows, ptrdiff_t width, int rms)
{
    float *x = floats(rows * width), *weight = floats(width), *bias = floats(width), *y = floats(rows * width);
    struct sa_norm n = {
        .x = x,
        .weight = weight,
        .bias = rms ? NULL : bias,
        .y = y,
        .rows = rows,
        .width = width,
        .parts = 1,
        .stride = width,
        .eps = 1e-5,
        .rms = rms,
    };
    if (sa_norm_run(kernels, &n, 2) != 0) exit(4);
    report("norm", (ptrdiff_t[]){rows, width, rms}, 3, hash(y, rows * width, HASH_START));
    free(x), free(weight), free(bias), free(y);
}

/* The gradients of norms, activations and gates, and sums over rows. */
static void layer_gradients(ptrdiff_t rows, ptrdiff_t width)
{
    ptrdiff_t n = rows * width;
    float *x = floats(n), *up = floats(n), *grad_y = floats(n), *weight = floats(width);
    float *grad_x = room(n), *grad_up = room(n), *grad_weight = room(width), *grad_bias = room(width);
    for (int rms = 0; rms < 2; ++rms) {
        struct sa_norm_backward args = {grad_y, x, weight, grad_x, grad_weight, grad_bias, rows, width, 1e-5, rms};
        if (sa_norm_backward_run(kernels, &args, 2) != 0) exit(4);
        report("norm_backward", (ptrdiff_t[]){rows, width, rms}, 3,
               hash(grad_weight, width, hash(grad_bias, width, hash(grad_x, n, HASH_START))));
    }
    for (int activation = SA_GELU; activation <= SA_SILU; ++activation) {
        struct sa_activation_backward args = {grad_y, x, up, grad_x, grad_up, n, (enum sa_activation)activation};
        if (sa_activation_backward_run(kernels, &args, 2) != 0) exit(4);
        report("activation_backward", (ptrdiff_t[]){activation, rows, width}, 3,
               hash(grad_up, n, hash(grad_x, n, HASH_START)));
    }
    if (sa_sum_rows_run(kernels, x, rows, width, grad_weight, 2) != 0) exit(4);
    report("sum_rows", (ptrdiff_t[]){rows, width}, 2, hash(grad_weight, width, HASH_START));
    free(x), free(up), free(grad_y), free(weight), free(grad_x), free(grad_up), free(grad_weight), free(grad_bias);
}

static void elementwise(enum sa_activation activation, ptrdiff_t rows, ptrdiff_t width)
{
    float *x = floats(2 * rows * width), *y = floats(rows * width);
    if (sa_gate_run(kernels, activation, x, rows, width, y, 2) != 0) exit(4);
    if (sa_activate_run(kernels, activation, x, rows * width, 2) != 0) exit(4);
    report("activation", (ptrdiff_t[]){activation, rows, width}, 3,
           hash(x, rows * width, hash(y, rows * width, HASH_START)));
    free(x), free(y);
}

static void all_layers(void)
{
    static const ptrdiff_t sizes[] = {1, 3, 8, 17, 33, 64, 100};
    enum { NUM_SIZES = sizeof sizes / sizeof *sizes };
    for (int r = 0; r < NUM_SIZES; ++r)
        for (int w = 0; w < NUM_SIZES; ++w) {
            for (int activation = SA_IDENTITY; activation <= SA_SILU; ++activation) {
                linear(sizes[r], 1 + sizes[r] * sizes[w] % 400, sizes[w], (enum sa_activation)activation);
                elementwise((enum sa_activation)activation, sizes[r], sizes[w]);
            }
            norm(sizes[r], sizes[w], 0);
            norm(sizes[r], sizes[w], 1);
            layer_gradients(sizes[r], sizes[w]);
        }
    layer_gradients(150, 40); /* more rows than a chunk */
}

#endif
