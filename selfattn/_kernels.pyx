"""The operators' bindings: take arrays as they lie, release the GIL, call C. No arithmetic and no validation here;
selfattn.attention and selfattn.layers have checked shapes and dtypes."""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_Occurred
from libc.string cimport memset

import sys

import numpy as np

cdef extern from "kernels.h" nogil:
    const sa_kernels *sa_active()
    const sa_kernels *sa_available(int index)
    int sa_use(const char *isa)
    int sa_attention_run(const sa_kernels *, const sa_attention *, sa_result, int threads)
    int sa_linear_run(const sa_kernels *, const sa_linear *, int threads)
    int sa_norm_run(const sa_kernels *, const sa_norm *, int threads)
    int sa_activate_run(const sa_kernels *, sa_activation, void *x, ptrdiff_t n, int threads)
    int sa_gate_run(const sa_kernels *, sa_activation, const void *, ptrdiff_t, ptrdiff_t, void *, int threads)

cdef extern from "pool.h" nogil:
    void sa_set_poll(int (*poll)() noexcept nogil)
    void sa_trim()
    int sa_get_num_threads()
    void sa_set_num_threads(int num_threads)

cdef extern from "Python.h":
    int PyErr_CheckSignals()

cdef extern from *:
    """
    #ifdef __clang__
    #define SA_COMPILER "clang " __clang_version__
    #else
    #define SA_COMPILER "gcc " __VERSION__
    #endif
    """
    const char *SA_COMPILER

MAX_LEADING = SA_MAX_LEADING

# ---- the runtime ----


cdef int _poll() noexcept with gil:
    """Non-zero, with the exception set, when a signal handler raised (Ctrl-C)."""
    return PyErr_CheckSignals()


sa_set_poll(<int (*)() noexcept nogil>_poll)


cdef int raise_status(int status) except -1:
    if status == SA_OK:
        return 0
    if status == SA_NO_MEMORY:
        raise MemoryError("selfattn: no memory for a thread's workspace")
    if PyErr_Occurred() == NULL:
        raise KeyboardInterrupt
    return -1


def active_isa():
    return sa_active().isa.decode()


def available_isas():
    names = []
    while sa_available(len(names)) != NULL:
        names.append(sa_available(len(names)).isa.decode())
    return names


def use_isa(str name not None):
    if sa_use(name.encode()) != 0:
        raise ValueError(f"instruction set {name!r} is not available here; available: {', '.join(available_isas())}")


use_isa(available_isas()[0])  # now, so that nothing writes it later while other threads read


def get_num_threads():
    return sa_get_num_threads()


def set_num_threads(int num_threads):
    sa_set_num_threads(num_threads)


def trim():
    sa_trim()


def build_info():
    return {
        "compiler": SA_COMPILER.decode(),
        "instruction_set": active_isa(),
        "lanes": str(sa_active().lanes),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
    }

# ---- what _stack.pyx borrows ----


cdef const sa_kernels *active_kernels() noexcept nogil:
    return sa_active()


cdef int run_attention(const sa_kernels *kernels, const sa_attention *args, int threads) noexcept nogil:
    return sa_attention_run(kernels, args, SA_ATTENTION, threads)


cdef int run_linear(const sa_kernels *kernels, const sa_linear *args, int threads) noexcept nogil:
    return sa_linear_run(kernels, args, threads)


cdef int run_norm(const sa_kernels *kernels, const sa_norm *args, int threads) noexcept nogil:
    return sa_norm_run(kernels, args, threads)


cdef int run_gate(const sa_kernels *kernels, sa_activation activation, const void *gate_up, ptrdiff_t rows,
                  ptrdiff_t width, void *y, int threads) noexcept nogil:
    return sa_gate_run(kernels, activation, gate_up, rows, width, y, threads)


cdef dict ACTIVATIONS = {
    None: SA_IDENTITY, "gelu": SA_GELU, "gelu_tanh": SA_GELU_TANH, "relu": SA_RELU, "silu": SA_SILU,
}


cdef sa_activation activation_code(str name) except *:
    return ACTIVATIONS[name]


cdef void *data_of(object array) except? NULL:
    """Address of a C-contiguous array; the caller keeps the array alive."""
    cdef Py_buffer view
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data


cdef ptrdiff_t packed_size(const sa_kernels *kernels, object weight):
    """How many numbers the panels of a (depth, width) weight take: whole vectors, in whole cache lines."""
    cdef ptrdiff_t depth = weight.shape[0], width = weight.shape[1], lanes = kernels.lanes
    return (depth * ((width + lanes - 1) // lanes * lanes) + 15) // 16 * 16


cdef int pack(const sa_kernels *kernels, object weight, void *packed) except -1:
    """Writes a (depth, width) weight of any strides as panels."""
    cdef Py_buffer view
    cdef ptrdiff_t depth = weight.shape[0], width = weight.shape[1]
    PyObject_GetBuffer(weight, &view, PyBUF_STRIDES)
    with nogil:
        kernels.pack_weights(<const char *>view.buf, view.strides[0], view.strides[1], depth, width, packed)
    PyBuffer_Release(&view)
    return 0


cdef void *aligned(object array) except? NULL:
    """The first whole cache line of an array that has 16 numbers to spare: loads that straddle two cost double."""
    return <void *>((<size_t>data_of(array) + 63) // 64 * 64)

# ---- attention ----

cdef dict CAUSAL = {
    None: SA_NOT_CAUSAL, "top_left": SA_CAUSAL_TOP_LEFT, "bottom_right": SA_CAUSAL_BOTTOM_RIGHT,
}
cdef dict RESULTS = {
    "attention": SA_ATTENTION, "weights": SA_WEIGHTS,
    "row_statistics": SA_ROW_STATISTICS, "column_sums": SA_COLUMN_SUMS,
}
cdef dict DTYPES = {
    "float32": SA_FLOAT32, "float64": SA_FLOAT64, "float16": SA_FLOAT16, "bfloat16": SA_BFLOAT16, "int8": SA_INT8,
}
cdef object FLOAT32 = np.dtype(np.float32)


cdef sa_dtype dtype_of(array) except *:
    dtype = array.dtype
    return SA_FLOAT32 if dtype is FLOAT32 else DTYPES[dtype.name]


cdef void lay_out(sa_array *array, const Py_buffer *view, int columns, int num_leading) noexcept:
    """Strides of (leading..., head, row[, column]) from the right; what is missing or of size 1 is broadcast."""
    cdef int dim, axis
    cdef ptrdiff_t stride
    memset(array, 0, sizeof(sa_array))
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


cdef sa_side side_of(size) except *:
    cdef sa_side side
    side.bounded, side.size = size is not None, 0 if size is None else size
    return side


def attention(query not None, key not None, value, out, lse, mask, bias, tuple leading, tuple sizes, double scale,
              str causal, int num_threads, *, str what="attention", window=None, double softcap=0.0, alibi_slopes=None,
              sinks=None, kv_lengths=None, positions=None, cu_seqlens_q=None, cu_seqlens_kv=None, block_tables=None,
              key_scale=None, value_scale=None, bint bfloat16=False):
    """One call of the operator on native arrays of any strides; selfattn.attention says what the arguments mean.

    sizes = (num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim). `what` is "attention", "weights" (out is
    (..., num_heads, q_len, kv_len)) or "column_sums" (out is float64 (..., num_heads, kv_len) and zero, lse is what
    "row_statistics" wrote there, (..., num_heads, q_len, 2); both C-contiguous). Packed arrays are
    (heads, tokens, dim); pages are (num_pages, heads, page_size, dim). Lengths, positions, cu_seqlens and
    block_tables are int64, slopes and sinks float64, all C-contiguous.
    """
    cdef sa_attention args
    cdef Py_buffer views[9]
    cdef int used = 0, status = SA_OK, axis, columns
    cdef sa_result result = RESULTS[what]
    memset(&args, 0, sizeof(args))
    args.num_leading = len(leading)
    args.items = 1
    for axis in range(args.num_leading):
        args.leading_shape[axis] = leading[axis]
        args.items *= args.leading_shape[axis]
    args.num_heads, args.num_kv_heads, args.q_len, args.kv_len, args.head_dim, args.value_dim = sizes
    args.dtype, args.kv_dtype = dtype_of(query), dtype_of(key)
    args.scale, args.softcap, args.causal, args.bfloat16 = scale, softcap, CAUSAL[causal], bfloat16
    if bias is not None:
        args.bias_dtype = dtype_of(bias)
    if window is not None:
        args.left, args.right = side_of(window[0]), side_of(window[1])
    args.alibi_slopes, args.sinks = <const double *>data_of(alibi_slopes), <const double *>data_of(sinks)
    args.positions, args.kv_lengths = <const int64_t *>data_of(positions), <const int64_t *>data_of(kv_lengths)
    if cu_seqlens_q is not None:
        args.cu_seqlens_q = <const int64_t *>data_of(cu_seqlens_q)
        args.cu_seqlens_kv = <const int64_t *>data_of(cu_seqlens_kv)
        args.items = len(cu_seqlens_q) - 1
    if block_tables is not None:
        args.block_table = <const int64_t *>data_of(block_tables)
        args.table_width, args.page_size = block_tables.shape[1], key.shape[2]
    if kv_lengths is not None:
        args.items_per_length = max(1, args.items // max(1, len(kv_lengths)))
    cdef sa_array *arrays[9]
    arrays[:] = [&args.query, &args.key, &args.value, &args.out, &args.lse, &args.mask, &args.bias, &args.key_scale,
                 &args.value_scale]
    try:
        for axis, array in enumerate((query, key, value, out, lse, mask, bias, key_scale, value_scale)):
            if array is None:
                continue
            PyObject_GetBuffer(array, &views[used], PyBUF_STRIDES | (PyBUF_WRITABLE if axis == 3 or axis == 4 else 0))
            used += 1
            columns = 0 if axis > 6 else 1
            if axis == 3 and result == SA_COLUMN_SUMS or axis == 4 and result < SA_ROW_STATISTICS:
                columns = 0
            lay_out(arrays[axis], &views[used - 1], columns, 1 if block_tables is not None else args.num_leading)
        with nogil:
            status = sa_attention_run(sa_active(), &args, result, num_threads)
    finally:
        while used:
            used -= 1
            PyBuffer_Release(&views[used])
    raise_status(status)

# ---- linear layers, norms, activations ----


cdef const sa_kernels *kernels_for(x) except NULL:
    """The kernels for the dtype of x, float32 or float64."""
    return sa_active().float64 if dtype_of(x) == SA_FLOAT64 else sa_active()


def linear(x not None, weight not None, bias, str activation, int num_threads):
    """act(x @ weight + bias): x (..., depth), weight (depth, width) of any strides, packed here and now."""
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_linear args
    cdef int status
    x = np.ascontiguousarray(x)
    bias = None if bias is None else np.ascontiguousarray(bias)
    y = np.empty((*x.shape[:x.ndim - 1], weight.shape[1]), x.dtype)
    memory = np.empty(packed_size(kernels, weight) + 16, x.dtype)
    pack(kernels, weight, aligned(memory))
    memset(&args, 0, sizeof(args))
    args.x, args.packed, args.bias, args.y = data_of(x), aligned(memory), data_of(bias), data_of(y)
    args.depth, args.width = weight.shape[0], weight.shape[1]
    args.rows = y.size // args.width if args.width else 0
    args.x_stride, args.y_stride = args.depth, args.width
    args.activation = activation_code(activation)
    with nogil:
        status = sa_linear_run(kernels, &args, num_threads)
    raise_status(status)
    return y


cdef object normalize(x, weight, bias, double eps, int rms, int num_threads):
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_norm args
    cdef int status
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    bias = None if bias is None else np.ascontiguousarray(bias)
    y = np.empty_like(x)
    args.x, args.weight, args.bias, args.y = data_of(x), data_of(weight), data_of(bias), data_of(y)
    args.width = x.shape[x.ndim - 1]
    args.rows = x.size // args.width if args.width else 0
    args.eps, args.rms = eps, rms
    with nogil:
        status = sa_norm_run(kernels, &args, num_threads)
    raise_status(status)
    return y


def layer_norm(x not None, weight not None, bias, double eps, int num_threads):
    return normalize(x, weight, bias, eps, 0, num_threads)


def rms_norm(x not None, weight not None, double eps, int num_threads):
    return normalize(x, weight, None, eps, 1, num_threads)


cdef object activate(x, sa_activation activation, int num_threads):
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef int status
    y = np.array(x, order="C")
    cdef void *data = data_of(y)
    cdef ptrdiff_t n = y.size
    with nogil:
        status = sa_activate_run(kernels, activation, data, n, num_threads)
    raise_status(status)
    return y


def gelu(x not None, int num_threads=1):
    return activate(x, SA_GELU, num_threads)


def gelu_tanh(x not None, int num_threads=1):
    return activate(x, SA_GELU_TANH, num_threads)


def relu(x not None, int num_threads=1):
    return activate(x, SA_RELU, num_threads)


def silu(x not None, int num_threads=1):
    return activate(x, SA_SILU, num_threads)

# ---- yardsticks ----


def measure_peak(double seconds=0.2):
    """GFLOP/s of multiply-adds on one thread, with the active instruction set: the best of rounds within `seconds`."""
    import time
    cdef const sa_kernels *kernels = sa_active()
    cdef double best = 0.0, flops
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        with nogil:
            flops = kernels.peak_loop(1000000)
        best = max(best, flops / (time.perf_counter() - begin) * 1e-9)
    return best


def measure_read_bandwidth(ptrdiff_t nbytes=1 << 28, int rounds=5):
    """GB/s of reading `nbytes` of memory on one thread: the best of `rounds`."""
    import time
    cdef const sa_kernels *kernels = sa_active()
    cdef double best = 0.0
    cdef ptrdiff_t n = nbytes // 4
    data = np.ones(n, np.float32)
    cdef void *begin_of = data_of(data)
    for _ in range(rounds):
        begin = time.perf_counter()
        with nogil:
            kernels.read_loop(begin_of, n)
        best = max(best, n * 4 / (time.perf_counter() - begin) * 1e-9)
    return best
