/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.inc.h -- all kernels, written once. Each stub of this folder includes this file inside its target region. (A
 * template by inclusion, not macros: a debugger steps through it line by line.) */
#ifndef SELFATTN_ISA_KERNELS_INC_H
#define SELFATTN_ISA_KERNELS_INC_H

#include "attention/span_tasks.inc.h"
#include "attention/column_sums.inc.h"
#include "matmul/linear.inc.h"
#ifndef SA_BFLOAT16_KERNELS
#include "attention/backward.inc.h"
#include "pointwise/norm.inc.h"
#include "pointwise/pointwise_backward.inc.h"
#include "pointwise/rotary.inc.h"
#include "matmul/linear_backward.inc.h"
#endif
#include "pointwise/peak.inc.h"

#define SA_TEXT_(name) #name
#define SA_TEXT(name) SA_TEXT_(name)
#define SA_JOIN_(a, b) sa_kernels_##a##b
#define SA_JOIN(a, b) SA_JOIN_(a, b)
#define SA_TABLE(variant) SA_JOIN(SA_ISA, variant)

#ifdef SA_FLOAT64_KERNELS
const struct sa_kernels SA_TABLE(_float64) = {
#elif defined(SA_BFLOAT16_KERNELS)
const struct sa_kernels SA_TABLE(_bfloat16) = {
#else
const struct sa_kernels SA_TABLE() = {
    .float64 = &SA_TABLE(_float64),
#if SA_VECTOR_BYTES == 64
    .formats[SA_FORMAT_BFLOAT16] = &SA_TABLE(_bfloat16),
#endif
#endif
    .isa = SA_TEXT(SA_ISA),
    .lanes = LANES,
    .number_bytes = sizeof(real),
    .format = FORMAT,
    .panel_width = PANEL_LANES,
    .runs_here = runs_here,
    .gathers_keys = gathers_keys,
    .attention_workspace = attention_workspace,
    .attention = attention,
    .key_range = key_range,
    .span_bytes = span_bytes,
    .attention_span = attention_span,
    .merge_spans = merge_spans,
    .attention_weights = attention_weights,
    .row_statistics = row_statistics,
    .column_sums = column_sums,
    .pack_weights = pack_weights,
    .linear_workspace = linear_workspace,
    .linear = linear,
    .activate = activate,
    .gate = gate,
#ifndef SA_BFLOAT16_KERNELS
    .backward_workspace = backward_workspace,
    .attention_backward = attention_backward,
    .linear_backward_workspace = linear_backward_workspace,
    .linear_backward = linear_backward,
    .norm = norm,
    .rotary = rotary,
    .activation_backward = activation_backward,
    .norm_backward = norm_backward,
    .sum_rows = sum_rows,
    .add_sums = add_sums,
#endif
    .peak_loop = peak_loop,
    .read_loop = read_loop,
};

#endif
