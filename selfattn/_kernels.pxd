"""The C kernels as Cython sees them (csrc/kernels.h), and what others borrow from _kernels.pyx.

Only _kernels links csrc: one copy of the pool, one dispatch. _stack and _gradients reach the operators
through the functions below.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from "contracts/kernels.h" nogil:
    enum:
        SA_MAX_LEADING
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

    struct sa_array:
        char *data
        ptrdiff_t leading[16]
        ptrdiff_t head
        ptrdiff_t row
        ptrdiff_t col

    struct sa_side:
        int bounded
        ptrdiff_t size

    struct sa_attention:
        sa_array query, key, value, out, mask, bias, lse, key_scale, value_scale
        sa_array grad_out, grad_query, grad_key, grad_value, grad_bias, grad_sinks, grad_alibi
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
        sa_causal causal
        sa_side left, right
        double scale, softcap, dropout
        uint64_t seed
        int bfloat16
        const double *alibi_slopes
        const double *sinks

    struct sa_linear:
        const void *x
        const void *packed
        const void *bias
        const void *residual
        void *y
        ptrdiff_t x_stride, y_stride, residual_stride, rows, depth, width
        sa_activation activation
        int bfloat16_x, bfloat16_y

    struct sa_norm:
        const void *x
        const void *weight
        const void *bias
        void *y
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

    struct sa_weight_gradient:
        const void *x
        const void *grad_y
        void *grad_weight
        ptrdiff_t rows, d_in, d_out

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

    struct sa_kernels:
        const char *isa
        int lanes
        int number_bytes
        int terms
        ptrdiff_t panel_width
        const sa_kernels *float64
        const sa_kernels *bfloat16
        void (*pack_weights)(const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, ptrdiff_t width,
                             void *packed) noexcept nogil
        double (*peak_loop)(ptrdiff_t iterations) noexcept nogil
        double (*read_loop)(const void *data, ptrdiff_t n) noexcept nogil

cdef extern from "runtime/pool.h" nogil:
    ctypedef int (*sa_task)(void *context, ptrdiff_t index) noexcept nogil

cdef const sa_kernels *active_kernels() noexcept nogil
cdef const sa_kernels *kernels_for(x) except NULL
cdef const sa_kernels *product_kernels(bint bfloat16) noexcept nogil
cdef int run_tasks(ptrdiff_t count, sa_task task, void *context, int threads) noexcept nogil
cdef int slot_of_thread() noexcept nogil
cdef int threads_worth_waking(double multiply_adds, int threads) noexcept nogil
cdef int run_attention(const sa_kernels *kernels, const sa_attention *args, int threads) noexcept nogil
cdef int run_linear(const sa_kernels *kernels, const sa_linear *args, int threads) noexcept nogil
cdef int run_norm(const sa_kernels *kernels, const sa_norm *args, int threads) noexcept nogil
cdef int run_gate(const sa_kernels *kernels, sa_activation activation, const void *gate_up, ptrdiff_t rows,
                  ptrdiff_t width, void *y, int threads) noexcept nogil
cdef int run_activation_backward(const sa_kernels *kernels, const sa_activation_backward *args,
                                 int threads) noexcept nogil
cdef int run_weight_gradient(const sa_kernels *kernels, const sa_weight_gradient *args, int threads) noexcept nogil
cdef int run_norm_backward(const sa_kernels *kernels, const sa_norm_backward *args, int threads) noexcept nogil
cdef int run_sum_rows(const sa_kernels *kernels, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y,
                      int threads) noexcept nogil
cdef int raise_status(int status) except -1
cdef sa_activation activation_code(str name) except *
cdef void *data_of(object array) except? NULL
cdef ptrdiff_t packed_size(const sa_kernels *kernels, object weight)
cdef int pack(const sa_kernels *kernels, object weight, void *packed, int threads=*) except -1
cdef void *aligned(object array) except? NULL
