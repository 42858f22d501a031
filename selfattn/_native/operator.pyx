# SPDX-License-Identifier: Apache-2.0
"""The attention operator's bindings: arrays as they lie, options into C's record, and the call, without the GIL.

No arithmetic and no validation here; selfattn.attention has checked shapes, dtypes and options.
"""

from cpython.buffer cimport (
    PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.math cimport sqrt
from libc.stdint cimport int64_t
from libc.string cimport memset

import numpy as np

from selfattn._native.runtime cimport (
    SA_ATTENTION, SA_CAUSAL_BOTTOM_RIGHT, SA_CAUSAL_TOP_LEFT, SA_COLUMN_SUMS, SA_MAX_LEADING, SA_NOT_CAUSAL,
    SA_NO_MEMORY, SA_OK, SA_ROW_STATISTICS, SA_WEIGHTS, data_of, dtype_of, format_of, library, raise_status,
    sa_array, sa_attention, sa_attention_options, sa_result, sa_side,
)

MAX_LEADING = SA_MAX_LEADING

cdef dict CAUSAL = {
    None: SA_NOT_CAUSAL, "top_left": SA_CAUSAL_TOP_LEFT, "bottom_right": SA_CAUSAL_BOTTOM_RIGHT,
}
cdef dict RESULTS = {
    "attention": SA_ATTENTION, "weights": SA_WEIGHTS,
    "row_statistics": SA_ROW_STATISTICS, "column_sums": SA_COLUMN_SUMS,
}
cdef object NDARRAY = np.ndarray
cdef object FLOAT32 = np.dtype(np.float32)
cdef frozenset PLAIN_DTYPES = frozenset(np.dtype(name) for name in ("float64", "float16"))


def plain_sizes(query, key, value):
    """(leading, sizes) as attention() takes them, of NumPy arrays of one dtype and leading shape that fit together;
    None where any of that is not so, and selfattn.attention.arrays has to look closer."""
    if type(query) is not NDARRAY or type(key) is not NDARRAY or type(value) is not NDARRAY:
        return None
    dtype = query.dtype
    if key.dtype is not dtype or value.dtype is not dtype:
        return None
    if dtype is not FLOAT32 and dtype not in PLAIN_DTYPES:
        return None
    cdef tuple q = query.shape, k = key.shape, v = value.shape
    cdef Py_ssize_t rank = len(q), axis
    if rank < 3 or rank - 3 > SA_MAX_LEADING or len(k) != rank or len(v) != rank:
        return None
    for axis in range(rank - 3):
        if q[axis] != k[axis] or q[axis] != v[axis]:
            return None
    cdef Py_ssize_t num_heads = q[rank - 3], num_kv_heads = k[rank - 3], head_dim = q[rank - 1], kv_len = k[rank - 2]
    if v[rank - 3] != num_kv_heads or v[rank - 2] != kv_len or k[rank - 1] != head_dim or head_dim == 0:
        return None
    if num_heads == 0 or num_kv_heads == 0 or num_heads % num_kv_heads:
        return None
    return q[:rank - 3], (num_heads, num_kv_heads, q[rank - 2], kv_len, head_dim, v[rank - 1])

# ---- arrays ----


cdef enum:
    MAX_VIEWS = 16  # arrays of a call


cdef struct Views:
    Py_buffer held[MAX_VIEWS]
    int used


cdef void lay_out(sa_array *array, const Py_buffer *view, int columns, int num_leading) noexcept:
    """Strides of (leading..., head, row[, column]) from the right; what is missing or of size 1 is broadcast:
    its stride is 0, as the whole array was before."""
    cdef int dim, axis
    cdef ptrdiff_t stride
    array.data = <char *>view.buf
    for axis in range(view.ndim):
        dim = view.ndim - 1 - axis  # counted from the right
        stride = 0 if view.shape[axis] == 1 else view.strides[axis]
        if dim < columns:
            array.col = stride
        elif dim == columns:
            array.row = stride
        elif dim == columns + 1:
            array.head = stride
        else:
            array.leading[num_leading - 1 - (dim - columns - 2)] = stride


cdef int take(Views *views, sa_array *target, array, int columns, int num_leading, bint writable=False) except -1:
    """Lays out an array that stays as it is until release(); None is no array."""
    if array is None:
        return 0
    if views.used == MAX_VIEWS:
        raise RuntimeError(f"a call has more than {MAX_VIEWS} arrays: raise MAX_VIEWS")
    PyObject_GetBuffer(array, &views.held[views.used], PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    views.used += 1
    lay_out(target, &views.held[views.used - 1], columns, num_leading)
    return 0


cdef void release(Views *views) noexcept:
    while views.used:
        views.used -= 1
        PyBuffer_Release(&views.held[views.used])


cdef struct Extent:
    char *begin
    char *end
    bint plain  # writable and in C order


cdef Extent extent_of(array) except *:
    cdef Extent extent
    cdef Py_buffer view
    cdef ptrdiff_t reach
    cdef int axis
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    extent.plain = not view.readonly and PyBuffer_IsContiguous(&view, b"C")
    extent.begin = <char *>view.buf
    extent.end = extent.begin + view.itemsize
    for axis in range(view.ndim if view.len else 0):
        reach = view.strides[axis] * (view.shape[axis] - 1)
        if reach < 0:
            extent.begin += reach
        else:
            extent.end += reach
    PyBuffer_Release(&view)
    return extent


def lies_apart(out not None, tuple inputs not None):
    """Is `out` writable, in C order, and where no input is?"""
    cdef Extent target = extent_of(out), other
    if not target.plain:
        return False
    for array in inputs:
        if array is not None:
            other = extent_of(array)
            if target.begin < other.end and other.begin < target.end:
                return False
    return True

# ---- options and sizes ----


cdef sa_side side_of(size) except *:
    cdef sa_side side
    side.bounded, side.size = size is not None, 0 if size is None else size
    return side


cdef int set_options(sa_attention_options *args, options, ptrdiff_t head_dim) except -1:
    """An AttentionOptions as C's record, whose arrays the caller keeps alive. Instead of one: the name of the diagonal,
    or None, where nothing else is asked for."""
    memset(args, 0, sizeof(sa_attention_options))
    if options is None or type(options) is str:
        args.causal, args.scale = CAUSAL[options], 1.0 / sqrt(<double>head_dim)
        return 0
    args.causal = CAUSAL[options.causal]
    args.scale, args.softcap = options.scale, options.softcap or 0.0
    if options.window is not None:
        args.left, args.right = side_of(options.window[0]), side_of(options.window[1])
    args.dropout, args.seed = options.dropout, options.seed
    args.format = format_of(options.precision)
    args.alibi_slopes = <const double *>data_of(options.alibi_slopes)
    args.sinks = <const double *>data_of(options.sinks)
    if options.relative_bias is not None:
        args.relative_bias = <const double *>data_of(options.relative_bias)
        args.relative_reach = options.relative_bias.shape[1] // 2
    return 0


cdef int set_call(sa_attention *args, query, key, tuple leading, tuple sizes, options, cu_seqlens_q,
                  cu_seqlens_kv) except -1:
    """All of a call but its arrays; the caller keeps alive what is passed."""
    cdef int axis
    memset(args, 0, sizeof(sa_attention))
    args.num_leading = len(leading)
    args.items = 1
    for axis in range(args.num_leading):
        args.leading_shape[axis] = leading[axis]
        args.items *= args.leading_shape[axis]
    args.num_heads, args.num_kv_heads, args.q_len, args.kv_len, args.head_dim, args.value_dim = sizes
    args.dtype, args.kv_dtype = dtype_of(query), dtype_of(key)
    set_options(&args.options, options, args.head_dim)
    if cu_seqlens_q is not None:
        args.cu_seqlens_q = <const int64_t *>data_of(cu_seqlens_q)
        args.cu_seqlens_kv = <const int64_t *>data_of(cu_seqlens_kv)
        args.items = len(cu_seqlens_q) - 1
    return 0


cdef int take_masks(sa_attention *args, Views *views, options, int axes) except -1:
    """The options that are arrays of the call."""
    if options is None or type(options) is str:
        return 0
    take(views, &args.mask, options.mask, 1, axes)
    take(views, &args.bias, options.bias, 1, axes)
    if options.bias is not None:
        args.bias_dtype = dtype_of(options.bias)
    if options.kv_lengths is not None:
        args.kv_lengths = <const int64_t *>data_of(options.kv_lengths)
        args.items_per_length = max(1, args.items // max(1, len(options.kv_lengths)))
    return 0

# ---- the calls ----


cdef bint is_below_handover(const sa_attention *a) noexcept:
    """Is the call over in some 20 us, sooner than the GIL is handed over and back? Counted in multiply-adds: a score's
    softmax costs as much as 32, and fewer than 8 rows as much as 8, for the keys are read once."""
    cdef ptrdiff_t rows = max(8, a.q_len * (a.num_heads // a.num_kv_heads))
    cdef double scores = <double>a.items * a.num_kv_heads * rows * (a.kv_len + 1)
    return a.options.dropout == 0.0 and scores * (a.head_dim + a.value_dim + 32) < 8e5


cdef int run_uninterrupted(const sa_attention *args, sa_result result, int num_threads) noexcept nogil:
    library.hold_poll(True)
    cdef int status = library.attention(library.active(), args, result, num_threads)
    if status == SA_NO_MEMORY and num_threads > 1:
        status = library.attention(library.active(), args, result, 1)
    library.hold_poll(False)
    return status


def attention(query not None, key not None, value, out, lse, tuple leading, tuple sizes, options, int num_threads, *,
              str what="attention", positions=None, cu_seqlens_q=None, cu_seqlens_kv=None, block_tables=None,
              key_scale=None, value_scale=None, bint uninterrupted=False):
    """One call of the operator on native arrays of any strides; selfattn.attention says what the arguments mean.

    sizes = (num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim). `options` is an AttentionOptions, or the name
    of the diagonal. `what` is "attention", "weights" (out is (..., num_heads, q_len, kv_len)) or "column_sums" (out is
    float64 (..., num_heads, kv_len) and zero, lse is what "row_statistics" wrote there, (..., num_heads, q_len, 2);
    both C-contiguous). Packed arrays are (heads, tokens, dim); pages are (num_pages, heads, page_size, dim).
    Positions, cu_seqlens and block_tables are int64 and C-contiguous. An uninterrupted call does not listen for Ctrl-C.
    Where its helpers find no memory, it goes on with one thread: it fails before it writes, or not at all.
    """
    cdef sa_attention args
    cdef Views views
    cdef int status = SA_OK, axes = len(leading)
    cdef sa_result result = RESULTS[what]
    set_call(&args, query, key, leading, sizes, options, cu_seqlens_q, cu_seqlens_kv)
    args.positions = <const int64_t *>data_of(positions)
    if block_tables is not None:
        args.block_table = <const int64_t *>data_of(block_tables)
        args.table_width, args.page_size = block_tables.shape[1], key.shape[2]
        axes = 1
    views.used = 0
    try:
        take(&views, &args.query, query, 1, axes)
        take(&views, &args.key, key, 1, axes)
        take(&views, &args.value, value, 1, axes)
        take(&views, &args.out, out, 0 if result == SA_COLUMN_SUMS else 1, axes, True)
        take(&views, &args.lse, lse, 1 if result >= SA_ROW_STATISTICS else 0, axes, True)
        take(&views, &args.key_scale, key_scale, 0, axes)
        take(&views, &args.value_scale, value_scale, 0, axes)
        take_masks(&args, &views, options, axes)
        if is_below_handover(&args):  # with one thread: nobody waits for others and holds the GIL
            status = run_uninterrupted(&args, result, 1)
        else:
            with nogil:
                status = run_uninterrupted(&args, result, num_threads) if uninterrupted else library.attention(
                    library.active(), &args, result, num_threads)
    finally:
        release(&views)
    raise_status(status)


def attention_backward(tuple arrays not None, dict grads not None, tuple leading, tuple sizes, options,
                       int num_threads, *, cu_seqlens_q=None, cu_seqlens_kv=None):
    """The gradients whose arrays are given, by the names of what they are the gradients of.

    `arrays` are grad_out, query, key, value, out and lse; all but the first as for attention(), of which out and lse
    are the results. grads["query"] has the query's dtype. The kernels add to four others, which begin as zeros: "key"
    and "value", in the arithmetic's dtype and (*leading, num_kv_heads, kv_len, dim) with contiguous rows; "bias",
    float64 and of the bias' shape; "relative_bias", float64 and C-contiguous. "sinks" and "alibi_slopes" are
    (*leading, num_heads, q_len), to be summed. The arithmetic is that of the dtype, whatever the precision.
    """
    grad_out, query, key, value, out, lse = arrays
    cdef sa_attention args
    cdef Views views
    cdef int status = SA_OK, axes = len(leading)
    set_call(&args, query, key, leading, sizes, options, cu_seqlens_q, cu_seqlens_kv)
    args.grad_relative_bias = <double *>data_of(grads.get("relative_bias"))
    views.used = 0
    try:
        take(&views, &args.grad_out, grad_out, 1, axes)
        take(&views, &args.query, query, 1, axes)
        take(&views, &args.key, key, 1, axes)
        take(&views, &args.value, value, 1, axes)
        take(&views, &args.out, out, 1, axes)
        take(&views, &args.lse, lse, 0, axes)
        take(&views, &args.grad_query, grads.get("query"), 1, axes, True)
        take(&views, &args.grad_key, grads.get("key"), 1, axes, True)
        take(&views, &args.grad_value, grads.get("value"), 1, axes, True)
        take(&views, &args.grad_bias, grads.get("bias"), 1, axes, True)
        take(&views, &args.grad_sinks, grads.get("sinks"), 0, axes, True)
        take(&views, &args.grad_alibi, grads.get("alibi_slopes"), 0, axes, True)
        take_masks(&args, &views, options, axes)
        with nogil:
            status = library.attention_backward(library.active(), &args, num_threads)
    finally:
        release(&views)
    raise_status(status)
