# SPDX-License-Identifier: Apache-2.0
"""The C library as Cython sees it (csrc/contracts), and what the compiled modules have in common.

Only `runtime` links csrc: one pool, one choice of instruction set. The others call C through its table, `library`.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from "contracts/library.h" nogil:
    enum:
        SA_MAX_LEADING
        SA_FORMATS
        SA_OK
        SA_INTERRUPTED
        SA_NO_MEMORY

    enum sa_causal:
        SA_NOT_CAUSAL
        SA_CAUSAL_TOP_LEFT
        SA_CAUSAL_BOTTOM_RIGHT

    enum sa_dtype:
        SA_FLOAT32
        SA_FLOAT64
        SA_FLOAT16
        SA_BFLOAT16
        SA_INT8

    enum sa_format:
        SA_FORMAT_NUMBERS

    enum sa_result:
        SA_ATTENTION
        SA_WEIGHTS
        SA_ROW_STATISTICS
        SA_COLUMN_SUMS

    enum sa_activation:
        SA_IDENTITY
        SA_GELU
        SA_GELU_TANH
        SA_RELU
        SA_SILU

    struct sa_format_description:
        const char *name
        sa_dtype operand

    const sa_format_description sa_formats[2]

    struct sa_array:
        char *data
        ptrdiff_t leading[16]
        ptrdiff_t head
        ptrdiff_t row
        ptrdiff_t col

    struct sa_side:
        int bounded
        ptrdiff_t size

    struct sa_attention_options:
        sa_causal causal
        sa_side left, right
        double scale, softcap, dropout
        uint64_t seed
        sa_format format
        const double *alibi_slopes
        const double *sinks
        const double *relative_bias
        ptrdiff_t relative_reach

    struct sa_attention:
        sa_array query, key, value, out, mask, bias, lse, key_scale, value_scale
        sa_array grad_out, grad_query, grad_key, grad_value, grad_bias, grad_sinks, grad_alibi
        double *grad_relative_bias
        sa_dtype dtype, kv_dtype, bias_dtype
        int num_leading
        ptrdiff_t leading_shape[16]
        ptrdiff_t items, num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim
        const int64_t *cu_seqlens_q
        const int64_t *cu_seqlens_kv
        const int64_t *block_table
        ptrdiff_t table_width, page_size
        const int64_t *kv_lengths
        ptrdiff_t items_per_length
        const int64_t *positions
        sa_attention_options options

    struct sa_packed_weight:
        const void *data
        ptrdiff_t depth, width

    struct sa_linear:
        const void *x
        const void *bias
        const void *residual
        sa_packed_weight weight
        void *y
        ptrdiff_t x_stride, y_stride, residual_stride, rows
        sa_activation activation
        sa_dtype x_dtype, y_dtype

    struct sa_linear_backward:
        const void *x
        const void *grad_y
        void *grad_weight
        ptrdiff_t rows, d_in, d_out

    struct sa_norm:
        const void *x
        const void *weight
        const void *bias
        const void *residual
        void *y
        ptrdiff_t rows, width, parts, stride
        double eps
        int rms

    struct sa_norm_backward:
        const void *grad_y
        const void *x
        const void *weight
        void *grad_x
        void *grad_weight
        void *grad_bias
        ptrdiff_t rows, width
        double eps
        int rms

    struct sa_activation_backward:
        const void *grad_y
        const void *x
        const void *up
        void *grad_x
        void *grad_up
        ptrdiff_t n
        sa_activation activation

    struct sa_rotary:
        void *x
        const void *cosines
        const void *sines
        const int32_t *positions
        ptrdiff_t x_stride, rows, num_heads, head_dim, pairs
        int interleaved

    struct sa_dense:
        sa_packed_weight weight
        const float *bias

    struct sa_norm_weights:
        const float *weight
        const float *bias
        double eps
        int rms
        ptrdiff_t width

    struct sa_rotary_table:
        const float *cosines
        const float *sines

    struct sa_layer:
        ptrdiff_t num_heads, num_kv_heads, head_dim, value_dim
        sa_attention_options attention
        sa_dense qkv, output, up, down
        sa_norm_weights query_norm, key_norm
        sa_norm_weights attention_norm, attention_post_norm, feed_forward_norm, feed_forward_post_norm
        ptrdiff_t rotary_table, rotary_pairs
        int rotary_interleaved, norm_first, gated
        sa_activation activation

    struct sa_kernels:
        const char *isa
        int lanes
        double (*peak_loop)(ptrdiff_t iterations) noexcept nogil
        double (*read_loop)(const void *data, ptrdiff_t n) noexcept nogil
        const sa_kernels *float64

    struct sa_encoder:
        const sa_kernels *kernels
        const sa_kernels *products
        sa_layer *layers
        ptrdiff_t num_layers, d_model

    struct sa_micro_batch:
        const sa_encoder *encoder

    struct sa_rows:
        float *x
        float *spare

    ctypedef int (*sa_layer_loop)(const sa_micro_batch *, ptrdiff_t first_layer, ptrdiff_t end_layer) noexcept nogil
    ctypedef void (*sa_between_attentions)(sa_rows *, const sa_layer *done, const sa_layer *next) noexcept nogil

    struct sa_library:
        const sa_kernels *(*active)() noexcept nogil
        const sa_kernels *(*kernels_of)(const sa_kernels *, sa_format) noexcept nogil
        void (*hold_poll)(int held) noexcept nogil
        int (*attention)(const sa_kernels *, const sa_attention *, sa_result, int threads) noexcept nogil
        int (*attention_backward)(const sa_kernels *, const sa_attention *, int threads) noexcept nogil
        size_t (*packed_bytes)(const sa_kernels *, ptrdiff_t depth, ptrdiff_t width) noexcept nogil
        int (*pack)(const sa_kernels *, const sa_array *, ptrdiff_t depth, ptrdiff_t width, void *packed,
                    int threads) noexcept nogil
        int (*linear)(const sa_kernels *, const sa_linear *, int threads) noexcept nogil
        int (*linear_backward)(const sa_kernels *, const sa_linear_backward *, int threads) noexcept nogil
        int (*norm)(const sa_kernels *, const sa_norm *, int threads) noexcept nogil
        int (*norm_backward)(const sa_kernels *, const sa_norm_backward *, int threads) noexcept nogil
        int (*activate)(const sa_kernels *, sa_activation, void *x, ptrdiff_t n, int threads) noexcept nogil
        int (*activation_backward)(const sa_kernels *, const sa_activation_backward *, int threads) noexcept nogil
        int (*rotary)(const sa_kernels *, const sa_rotary *, int threads) noexcept nogil
        void (*rotary_angles)(const double *frequencies, ptrdiff_t pairs, ptrdiff_t positions, double factor,
                              float *cosines, float *sines) noexcept nogil
        int (*sum_rows)(const sa_kernels *, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y,
                        int threads) noexcept nogil
        int (*encoder_run)(const sa_encoder *, float *x, const int64_t *cu_seqlens, ptrdiff_t sequences,
                           const sa_rotary_table *, sa_layer_loop, ptrdiff_t first, ptrdiff_t end,
                           int threads) noexcept nogil
        int (*attend)(const sa_micro_batch *, const sa_layer *) noexcept nogil
        int (*for_rows)(const sa_micro_batch *, const sa_layer *done, const sa_layer *next,
                        sa_between_attentions) noexcept nogil
        void (*rows_norm)(sa_rows *, const sa_norm_weights *, const float *x, const float *residual,
                          float *y) noexcept nogil
        const float *(*rows_normed)(sa_rows *, const sa_norm_weights *, const float *x) noexcept nogil
        void (*rows_project)(sa_rows *, const sa_layer *, const float *x) noexcept nogil
        void (*rows_output)(sa_rows *, const sa_layer *, const float *residual, float *y) noexcept nogil
        void (*rows_feed_forward)(sa_rows *, const sa_layer *, const float *x, const float *residual,
                                  float *y) noexcept nogil

cdef const sa_library *library

cdef int raise_status(int status) except -1
cdef sa_dtype dtype_of(array) except *
cdef sa_format format_of(str precision) except *
cdef sa_activation activation_of(str name) except *
cdef const sa_kernels *kernels_for(x) except NULL
cdef void *data_of(object array) except? NULL
cdef void *aligned(object array) except? NULL
cdef int pack(const sa_kernels *kernels, object weight, void *packed, int threads) except -1
