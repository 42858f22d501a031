# SPDX-License-Identifier: Apache-2.0
"""The module that links the C sources: instruction sets, threads, interruption, and what the others share.

No arithmetic and no validation here; the Python modules have checked shapes and dtypes.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_Occurred
from libc.string cimport memset

import sys

import numpy as np

cdef extern from "contracts/library.h" nogil:
    const sa_library sa_library_table "sa_library"
    const sa_kernels *sa_active()
    const sa_kernels *sa_available(int index)
    const sa_kernels *sa_kernels_of(const sa_kernels *, sa_format)
    int sa_use(const char *isa)
    void sa_set_poll(int (*poll)() noexcept nogil)
    void sa_trim()
    int selfattn_get_num_threads()
    void selfattn_set_num_threads(int num_threads)

cdef extern from "openmp/openmp_loan.h" nogil:
    bint sa_openmp_allow(bint allow)

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

library = &sa_library_table

# ---- interruption ----


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

# ---- instruction sets and threads ----


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


def use_openmp_threads(bint allow):
    return sa_openmp_allow(allow)


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

# ---- names and codes ----


cdef object FLOAT32 = np.dtype(np.float32)
cdef dict DTYPES = {
    "float32": SA_FLOAT32, "float64": SA_FLOAT64, "float16": SA_FLOAT16, "bfloat16": SA_BFLOAT16, "int8": SA_INT8,
}
cdef dict CODES = {np.dtype(name): DTYPES[name] for name in ("float32", "float64", "float16", "int8")}
cdef dict ACTIVATIONS = {
    None: SA_IDENTITY, "gelu": SA_GELU, "gelu_tanh": SA_GELU_TANH, "relu": SA_RELU, "silu": SA_SILU,
}
cdef dict FORMATS = {sa_formats[i].name.decode(): i for i in range(SA_FORMATS)}


cdef sa_dtype dtype_of(array) except *:
    dtype = array.dtype
    if dtype is FLOAT32:
        return SA_FLOAT32
    code = CODES.get(dtype)
    if code is None:  # bfloat16, not NumPy's own; to ask a dtype for its name takes two microseconds
        code = DTYPES[dtype.name]
        if dtype.isnative:
            CODES[dtype] = code
    return code


cdef sa_format format_of(str precision) except *:
    """What the operands of products are: a name of `sa_formats`, or None for the numbers as they are."""
    return SA_FORMAT_NUMBERS if precision is None else FORMATS[precision]


cdef sa_activation activation_of(str name) except *:
    return ACTIVATIONS[name]

# ---- arrays ----


cdef const sa_kernels *kernels_for(x) except NULL:
    """The kernels for the dtype of x, float32 or float64."""
    return sa_active().float64 if dtype_of(x) == SA_FLOAT64 else sa_active()


cdef void *data_of(object array) except? NULL:
    """Address of a C-contiguous array; the caller keeps the array alive."""
    cdef Py_buffer view
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data


cdef void *aligned(object array) except? NULL:
    """The first whole cache line of an array that has 64 bytes to spare: loads that straddle two cost double."""
    return <void *>((<size_t>data_of(array) + 63) // 64 * 64)


cdef int pack(const sa_kernels *kernels, object weight, void *packed, int threads) except -1:
    """Writes a (depth, width) weight of any strides as panels."""
    cdef Py_buffer view
    cdef sa_array array
    cdef ptrdiff_t depth = weight.shape[0], width = weight.shape[1]
    cdef int status
    memset(&array, 0, sizeof(array))
    PyObject_GetBuffer(weight, &view, PyBUF_STRIDES)
    array.data, array.row, array.col = <char *>view.buf, view.strides[0], view.strides[1]
    with nogil:
        status = library.pack(kernels, &array, depth, width, packed, threads)
    PyBuffer_Release(&view)
    return raise_status(status)

# ---- yardsticks ----


def multiply_add(str precision=None, ptrdiff_t iterations=1000000):
    """Multiply-adds on registers alone, with the active instruction set, for some milliseconds on this thread.

    With a `precision`, products of that format, if this processor has them. Returns the floating-point operations done.
    """
    cdef const sa_kernels *kernels = sa_kernels_of(sa_active(), format_of(precision))
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
