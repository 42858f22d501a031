/* SPDX-License-Identifier: Apache-2.0 */
/* library.c -- the table of contracts/library.h. */
#include "contracts/library.h"

const struct sa_library sa_library = {
    .active = sa_active,
    .kernels_of = sa_kernels_of,
    .hold_poll = sa_hold_poll,
    .attention = sa_attention_run,
    .attention_backward = sa_attention_backward_run,
    .packed_bytes = sa_packed_bytes,
    .pack = sa_pack_run,
    .linear = sa_linear_run,
    .linear_backward = sa_linear_backward_run,
    .norm = sa_norm_run,
    .norm_backward = sa_norm_backward_run,
    .activate = sa_activate_run,
    .activation_backward = sa_activation_backward_run,
    .rotary = sa_rotary_run,
    .rotary_angles = sa_rotary_angles,
    .sum_rows = sa_sum_rows_run,
    .encoder_run = sa_encoder_run,
    .attend = sa_micro_batch_attend,
    .for_rows = sa_micro_batch_rows,
    .rows_norm = sa_rows_norm,
    .rows_normed = sa_rows_normed,
    .rows_project = sa_rows_project,
    .rows_output = sa_rows_output,
    .rows_feed_forward = sa_rows_feed_forward,
};
