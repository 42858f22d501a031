/* SPDX-License-Identifier: Apache-2.0 */
/* operators.h -- the operators, over all their tasks, on the threads of the pool. Each returns SA_OK or a status of the
 * pool. */
#ifndef SELFATTN_CONTRACTS_OPERATORS_H
#define SELFATTN_CONTRACTS_OPERATORS_H

#include "contracts/kernels.h"

int sa_attention_run(const struct sa_kernels *, const struct sa_attention *, enum sa_result, int num_threads);

/* From out, lse and grad_out, the gradients whose arrays are given. grad_key and grad_value (float32 or float64,
 * contiguous rows), grad_bias and grad_relative_bias (float64) are added to. grad_sinks and grad_alibi are one
 * number for each row, written. */
int sa_attention_backward_run(const struct sa_kernels *, const struct sa_attention *, int num_threads);

/* The bytes of a packed weight, whole cache lines; and the packing. `weight` has any strides. */
size_t sa_packed_bytes(const struct sa_kernels *, ptrdiff_t depth, ptrdiff_t width);
int sa_pack_run(const struct sa_kernels *, const struct sa_array *weight, ptrdiff_t depth, ptrdiff_t width,
                void *packed, int num_threads);

int sa_linear_run(const struct sa_kernels *, const struct sa_linear *, int num_threads);
int sa_linear_backward_run(const struct sa_kernels *, const struct sa_linear_backward *, int num_threads);

int sa_norm_run(const struct sa_kernels *, const struct sa_norm *, int num_threads);
int sa_norm_backward_run(const struct sa_kernels *, const struct sa_norm_backward *, int num_threads);

int sa_activate_run(const struct sa_kernels *, enum sa_activation, void *x, ptrdiff_t n, int num_threads);
int sa_activation_backward_run(const struct sa_kernels *, const struct sa_activation_backward *, int num_threads);
int sa_gate_run(const struct sa_kernels *, enum sa_activation, const void *gate_up, ptrdiff_t rows, ptrdiff_t width,
                void *y, int num_threads);

int sa_rotary_run(const struct sa_kernels *, const struct sa_rotary *, int num_threads);
/* cosines, sines: (positions, pairs) of position * frequencies[pair], times a factor. position * frequencies[pair]
 * below 2^20 quarter turns. */
void sa_rotary_angles(const double *frequencies, ptrdiff_t pairs, ptrdiff_t positions, double factor, float *cosines,
                      float *sines);

int sa_sum_rows_run(const struct sa_kernels *, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y,
                    int num_threads);

#endif
