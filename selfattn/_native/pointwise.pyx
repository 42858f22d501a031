# SPDX-License-Identifier: Apache-2.0
"""The bindings of linear layers, norms and activations, and of their gradients.

The gradient of a linear layer's x is a product with the weight turned, and linear() computes it. No arithmetic and no
validation here.

Arrays are float32 or float64, all of one dtype, native and aligned. All results are new.
"""

from libc.string cimport memset

import numpy as np

from selfattn._native.runtime cimport (
    SA_FORMAT_NUMBERS, SA_GELU, SA_GELU_TANH, SA_RELU, SA_SILU, aligned, activation_of, data_of, dtype_of, format_of,
    kernels_for, library, pack, raise_status, sa_activation, sa_activation_backward, sa_format, sa_kernels, sa_linear,
    sa_linear_backward, sa_norm, sa_norm_backward,
)

# ---- linear layers ----


def linear(x not None, weight not None, bias, str activation, int num_threads, str precision=None):
    """act(x @ weight + bias): x (..., depth); weight (depth, width) of any strides, packed here and now."""
    cdef sa_format format = format_of(precision)
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_linear args
    cdef int status
    if format != SA_FORMAT_NUMBERS:
        kernels = library.kernels_of(library.active(), format)
    x = np.ascontiguousarray(x)
    bias = None if bias is None else np.ascontiguousarray(bias)
    y = np.empty((*x.shape[:x.ndim - 1], weight.shape[1]), x.dtype)
    memory = np.empty(library.packed_bytes(kernels, weight.shape[0], weight.shape[1]) + 64, np.uint8)
    pack(kernels, weight, aligned(memory), num_threads)
    memset(&args, 0, sizeof(args))
    args.x, args.bias, args.y = data_of(x), data_of(bias), data_of(y)
    args.weight.data, args.weight.depth, args.weight.width = aligned(memory), weight.shape[0], weight.shape[1]
    args.rows = y.size // args.weight.width if args.weight.width else 0
    args.x_stride, args.y_stride = args.weight.depth, args.weight.width
    args.activation = activation_of(activation)
    args.x_dtype = args.y_dtype = dtype_of(x)
    with nogil:
        status = library.linear(kernels, &args, num_threads)
    raise_status(status)
    return y


def linear_backward(x not None, grad_y not None, int num_threads):
    """The gradient of the weight, x.T @ grad_y, of x (rows, d_in) and grad_y (rows, d_out): (d_in, d_out)."""
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_linear_backward args
    cdef int status
    grad_weight = np.empty((x.shape[1], grad_y.shape[1]), x.dtype)
    args.x, args.grad_y, args.grad_weight = data_of(x), data_of(grad_y), data_of(grad_weight)
    args.rows, args.d_in, args.d_out = x.shape[0], x.shape[1], grad_y.shape[1]
    with nogil:
        status = library.linear_backward(kernels, &args, num_threads)
    raise_status(status)
    return grad_weight


def sum_rows(x not None, int num_threads):
    """The sum of the rows of x (rows, width): (width,)."""
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef ptrdiff_t rows = x.shape[0], width = x.shape[1]
    cdef int status
    y = np.empty(width, x.dtype)
    cdef const void *x_data = data_of(x)
    cdef void *y_data = data_of(y)
    with nogil:
        status = library.sum_rows(kernels, x_data, rows, width, y_data, num_threads)
    raise_status(status)
    return y

# ---- norms ----


cdef object normalize(x, weight, bias, double eps, int rms, int num_threads):
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_norm args
    cdef int status
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    bias = None if bias is None else np.ascontiguousarray(bias)
    y = np.empty_like(x)
    memset(&args, 0, sizeof(args))
    args.x, args.weight, args.bias, args.y = data_of(x), data_of(weight), data_of(bias), data_of(y)
    args.width = args.stride = x.shape[x.ndim - 1]
    args.parts = 1
    args.rows = x.size // args.width if args.width else 0
    args.eps, args.rms = eps, rms
    with nogil:
        status = library.norm(kernels, &args, num_threads)
    raise_status(status)
    return y


def layer_norm(x not None, weight not None, bias, double eps, int num_threads):
    return normalize(x, weight, bias, eps, 0, num_threads)


def rms_norm(x not None, weight not None, double eps, int num_threads):
    return normalize(x, weight, None, eps, 1, num_threads)


def norm_backward(grad_y not None, x not None, weight not None, double eps, bint rms, int num_threads):
    """The gradients of x (..., width), weight and bias (width,); an RMSNorm has no use for the last. C-contiguous."""
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_norm_backward args
    cdef int status
    grad_x, grad_weight, grad_bias = np.empty_like(x), np.empty_like(weight), np.empty_like(weight)
    args.grad_y, args.x, args.weight = data_of(grad_y), data_of(x), data_of(weight)
    args.grad_x, args.grad_weight, args.grad_bias = data_of(grad_x), data_of(grad_weight), data_of(grad_bias)
    args.width = len(weight)
    args.rows = x.size // args.width if args.width else 0
    args.eps, args.rms = eps, rms
    with nogil:
        status = library.norm_backward(kernels, &args, num_threads)
    raise_status(status)
    return grad_x, grad_weight, grad_bias

# ---- activations ----


cdef object activate(x, sa_activation activation, int num_threads):
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef int status
    y = np.array(x, order="C")
    cdef void *data = data_of(y)
    cdef ptrdiff_t n = y.size
    with nogil:
        status = library.activate(kernels, activation, data, n, num_threads)
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


def activation_backward(grad_y not None, x not None, up, str activation, int num_threads):
    """The gradient of x, for y = act(x); with `up`, for y = act(x) * up, the gradients of x and up. One shape."""
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_activation_backward args
    cdef int status
    memset(&args, 0, sizeof(args))
    grad_x = np.empty_like(x)
    grad_up = None if up is None else np.empty_like(x)
    args.grad_y, args.x, args.up = data_of(grad_y), data_of(x), data_of(up)
    args.grad_x, args.grad_up = data_of(grad_x), data_of(grad_up)
    args.n, args.activation = x.size, activation_of(activation)
    with nogil:
        status = library.activation_backward(kernels, &args, num_threads)
    raise_status(status)
    return grad_x if up is None else (grad_x, grad_up)

# ---- rotary positions ----


def rotary_angles(frequencies not None, ptrdiff_t positions, double factor=1.0):
    """The cosines and sines of position * frequency, times a factor: two float32 (positions, pairs)."""
    frequencies = np.ascontiguousarray(frequencies, np.float64)
    cosines = np.empty((positions, len(frequencies)), np.float32)
    sines = np.empty_like(cosines)
    library.rotary_angles(<const double *>data_of(frequencies), len(frequencies), positions, factor,
                          <float *>data_of(cosines), <float *>data_of(sines))
    return cosines, sines
