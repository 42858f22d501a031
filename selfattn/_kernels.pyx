"""The operators' bindings: take arrays as they lie, release the GIL, call C. No arithmetic and no validation here;
selfattn.attention and selfattn.layers have checked shapes and dtypes."""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_Occurred
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

import sys

import numpy as np

cdef extern from "contracts/kernels.h" nogil:
    const sa_kernels *sa_active()
    const sa_kernels *sa_for_products(const sa_kernels *, int bfloat16)
    const sa_kernels *sa_available(int index)
    int sa_use(const char *isa)
    int sa_attention_run(const sa_kernels *, const sa_attention *, sa_result, int threads)
    int sa_attention_backward_run(const sa_kernels *, const sa_attention *, int threads)
    int sa_linear_run(const sa_kernels *, const sa_linear *, int threads)
    int sa_pack_run(const sa_kernels *, const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth,
                    ptrdiff_t width, void *packed, int threads)
    int sa_norm_run(const sa_kernels *, const sa_norm *, int threads)
    int sa_activate_run(const sa_kernels *, sa_activation, void *x, ptrdiff_t n, int threads)
    int sa_gate_run(const sa_kernels *, sa_activation, const void *, ptrdiff_t, ptrdiff_t, void *, int threads)
    int sa_activation_backward_run(const sa_kernels *, const sa_activation_backward *, int threads)
    int sa_weight_gradient_run(const sa_kernels *, const sa_weight_gradient *, int threads)
    int sa_norm_backward_run(const sa_kernels *, const sa_norm_backward *, int threads)
    int sa_sum_rows_run(const sa_kernels *, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y, int threads)

cdef extern from "plan/tasks.h" nogil:
    int worthwhile_threads(double multiply_adds, int threads)

cdef extern from "runtime/pool.h" nogil:
    int sa_parallel_for(ptrdiff_t count, sa_task task, void *context, int threads)
    int sa_slot()
    void sa_set_poll(int (*poll)() noexcept nogil)
    void sa_trim()
    int selfattn_get_num_threads()
    void selfattn_set_num_threads(int num_threads)

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


cdef extern from *:
    """
    static _Thread_local int poll_held;
    static void hold_poll(int hold) { poll_held = hold; }
    static int poll_is_held(void) { return poll_held; }
    """
    void hold_poll(bint hold) noexcept nogil
    bint poll_is_held() noexcept nogil


cdef int _poll() noexcept with gil:
    """Non-zero, with the exception set, when a signal handler raised (Ctrl-C)."""
    return 0 if poll_is_held() else PyErr_CheckSignals()


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
    return selfattn_get_num_threads()


def set_num_threads(int num_threads):
    selfattn_set_num_threads(num_threads)


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

# ---- what _stack.pyx and _gradients.pyx borrow ----


cdef const sa_kernels *active_kernels() noexcept nogil:
    return sa_active()


cdef const sa_kernels *product_kernels(bint bfloat16) noexcept nogil:
    return sa_for_products(sa_active(), bfloat16)


cdef int run_tasks(ptrdiff_t count, sa_task task, void *context, int threads) noexcept nogil:
    return sa_parallel_for(count, task, context, threads)


cdef int slot_of_thread() noexcept nogil:
    return sa_slot()


cdef int threads_worth_waking(double multiply_adds, int threads) noexcept nogil:
    return worthwhile_threads(multiply_adds, threads)


cdef int run_attention(const sa_kernels *kernels, const sa_attention *args, int threads) noexcept nogil:
    return sa_attention_run(kernels, args, SA_ATTENTION, threads)


cdef int run_linear(const sa_kernels *kernels, const sa_linear *args, int threads) noexcept nogil:
    return sa_linear_run(kernels, args, threads)


cdef int run_norm(const sa_kernels *kernels, const sa_norm *args, int threads) noexcept nogil:
    return sa_norm_run(kernels, args, threads)


cdef int run_gate(const sa_kernels *kernels, sa_activation activation, const void *gate_up, ptrdiff_t rows,
                  ptrdiff_t width, void *y, int threads) noexcept nogil:
    return sa_gate_run(kernels, activation, gate_up, rows, width, y, threads)


cdef int run_activation_backward(const sa_kernels *kernels, const sa_activation_backward *args,
                                 int threads) noexcept nogil:
    return sa_activation_backward_run(kernels, args, threads)


cdef int run_weight_gradient(const sa_kernels *kernels, const sa_weight_gradient *args, int threads) noexcept nogil:
    return sa_weight_gradient_run(kernels, args, threads)


cdef int run_norm_backward(const sa_kernels *kernels, const sa_norm_backward *args, int threads) noexcept nogil:
    return sa_norm_backward_run(kernels, args, threads)


cdef int run_sum_rows(const sa_kernels *kernels, const void *x, ptrdiff_t rows, ptrdiff_t width, void *y,
                      int threads) noexcept nogil:
    return sa_sum_rows_run(kernels, x, rows, width, y, threads)


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
    """The memory, in numbers, of the panels of a (depth, width) weight: whole vectors, in whole cache lines."""
    cdef ptrdiff_t depth = weight.shape[0], width = weight.shape[1], lanes = kernels.lanes
    return ((depth + kernels.terms - 1) // kernels.terms * ((width + lanes - 1) // lanes * lanes) + 15) // 16 * 16


cdef int pack(const sa_kernels *kernels, object weight, void *packed, int threads=1) except -1:
    """Writes a (depth, width) weight of any strides as panels."""
    cdef Py_buffer view
    cdef ptrdiff_t depth = weight.shape[0], width = weight.shape[1]
    cdef int status
    PyObject_GetBuffer(weight, &view, PyBUF_STRIDES)
    with nogil:
        status = sa_pack_run(kernels, <const char *>view.buf, view.strides[0], view.strides[1], depth, width, packed,
                             threads)
    PyBuffer_Release(&view)
    return raise_status(status)


cdef void *aligned(object array) except? NULL:
    """The first whole cache line of an array that has 16 numbers to spare: loads that straddle two cost double."""
    return <void *>((<size_t>data_of(array) + 63) // 64 * 64)

include "_attention.pxi"

# ---- linear layers, norms, activations ----


cdef const sa_kernels *kernels_for(x) except NULL:
    """The kernels for the dtype of x, float32 or float64."""
    return sa_active().float64 if dtype_of(x) == SA_FLOAT64 else sa_active()


def linear(x not None, weight not None, bias, str activation, int num_threads, bint bfloat16=False):
    """act(x @ weight + bias): x (..., depth); weight (depth, width) of any strides, packed here and now."""
    cdef const sa_kernels *kernels = product_kernels(True) if bfloat16 else kernels_for(x)
    cdef sa_linear args
    cdef int status
    x = np.ascontiguousarray(x)
    bias = None if bias is None else np.ascontiguousarray(bias)
    y = np.empty((*x.shape[:x.ndim - 1], weight.shape[1]), x.dtype)
    memory = np.empty(packed_size(kernels, weight) + 16, x.dtype)
    pack(kernels, weight, aligned(memory), num_threads)
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


def multiply_add(bint bfloat16=False, ptrdiff_t iterations=1000000):
    """Multiply-adds on registers alone, with the active instruction set, for some milliseconds on this thread.

    With `bfloat16`, products of bfloat16, if this processor has them. Returns the floating-point operations done.
    """
    cdef const sa_kernels *kernels = product_kernels(bfloat16)
    cdef double flops
    with nogil:
        flops = kernels.peak_loop(iterations)
    return flops


def read_all(numbers not None):
    """Reads a contiguous array of float32 on this thread; returns its bytes."""
    cdef const sa_kernels *kernels = sa_active()
    cdef const void *begin = data_of(numbers)
    cdef ptrdiff_t n = numbers.size
    with nogil:
        kernels.read_loop(begin, n)
    return 4.0 * n
