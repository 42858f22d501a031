/* SPDX-License-Identifier: Apache-2.0 */
/* library.h -- all functions that a compiled module calls, as one table. The module that links the sources passes it
 * to the others. So a process has one pool and one choice of instruction set. */
#ifndef SELFATTN_CONTRACTS_LIBRARY_H
#define SELFATTN_CONTRACTS_LIBRARY_H

#include "plan/encoder.h"

struct sa_library {
    const struct sa_kernels *(*active)(void);
    const struct sa_kernels *(*kernels_of)(const struct sa_kernels *, enum sa_format);
    void (*hold_poll)(int held);

    int (*attention)(const struct sa_kernels *, const struct sa_attention *, enum sa_result, int num_threads);
    int (*attention_backward)(const struct sa_kernels *, const struct sa_attention *, int num_threads);
    size_t (*packed_bytes)(const struct sa_kernels *, ptrdiff_t depth, ptrdiff_t width);
    int (*pack)(const struct sa_kernels *, const struct sa_array *weight, ptrdiff_t depth, ptrdiff_t width,
                void *packed, int num_threads);
    int (*linear)(const struct sa_kernels *, const struct sa_linear *, int num_threads);
    int (*linear_backward)(const struct sa_kernels *, const struct sa_linear_backward *, int num_threads);
    int (*norm)(const struct sa_kernels *, const struct sa_norm *, int num_threads);
    int (*norm_backward)(const struct sa_kernels *, const struct sa_norm_backward *, int num_threads);
    int (*activate)(const struct sa_kernels *, enum sa_activation, void *x, ptrdiff_t n, int num_threads);
    int (*activation_backward)(const struct sa_kernels *, const struct sa_activation_backward *, int num_threads);
    int (*rotary)(const struct sa_kernels *, const struct sa_rotary *, int num_threads);
    void (*rotary_angles)(const double *frequencies, ptrdiff_t pairs, ptrdiff_t positions, double factor,
                          float *cosines, float *sines);
    int (*sum_rows)(const struct sa_kernels *, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y,
                    int num_threads);

    int (*encoder_run)(const struct sa_encoder *, float *x, const int64_t *cu_seqlens, ptrdiff_t sequences,
                       const struct sa_rotary_table *, sa_layer_loop, ptrdiff_t first_layer, ptrdiff_t end_layer,
                       int num_threads);
    int (*attend)(const struct sa_micro_batch *, const struct sa_layer *);
    int (*for_rows)(const struct sa_micro_batch *, const struct sa_layer *done, const struct sa_layer *next,
                    sa_between_attentions);
    void (*rows_norm)(struct sa_rows *, const struct sa_norm_weights *, const float *x, const float *residual,
                      float *y);
    const float *(*rows_normed)(struct sa_rows *, const struct sa_norm_weights *, const float *x);
    void (*rows_project)(struct sa_rows *, const struct sa_layer *, const float *x);
    void (*rows_output)(struct sa_rows *, const struct sa_layer *, const float *residual, float *y);
    void (*rows_feed_forward)(struct sa_rows *, const struct sa_layer *, const float *x, const float *residual,
                              float *y);
};

extern const struct sa_library sa_library;

#endif
