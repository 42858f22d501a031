"""The layers' way back: bindings. (The gradient of a linear layer's x is a product with the weight turned, and
_kernels.linear computes it.) No arithmetic and no validation here; selfattn.functional has checked the arguments.

Arrays are float32 or float64, all of one dtype, native, aligned and C-contiguous. All results are new.
"""

from libc.string cimport memset

import numpy as np

from selfattn._kernels cimport (
    activation_code, data_of, kernels_for, raise_status, run_activation_backward, run_norm_backward, run_sum_rows,
    run_weight_gradient, sa_activation_backward, sa_kernels, sa_norm_backward, sa_weight_gradient,
)


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
    args.n, args.activation = x.size, activation_code(activation)
    with nogil:
        status = run_activation_backward(kernels, &args, num_threads)
    raise_status(status)
    return grad_x if up is None else (grad_x, grad_up)


def norm_backward(grad_y not None, x not None, weight not None, double eps, bint rms, int num_threads):
    """The gradients of x (..., width), weight and bias (width,); an RMSNorm has no use for the last."""
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
        status = run_norm_backward(kernels, &args, num_threads)
    raise_status(status)
    return grad_x, grad_weight, grad_bias


def weight_gradient(x not None, grad_y not None, int num_threads):
    """x.T @ grad_y of x (rows, d_in) and grad_y (rows, d_out): (d_in, d_out)."""
    cdef const sa_kernels *kernels = kernels_for(x)
    cdef sa_weight_gradient args
    cdef int status
    grad_weight = np.empty((x.shape[1], grad_y.shape[1]), x.dtype)
    args.x, args.grad_y, args.grad_weight = data_of(x), data_of(grad_y), data_of(grad_weight)
    args.rows, args.d_in, args.d_out = x.shape[0], x.shape[1], grad_y.shape[1]
    with nogil:
        status = run_weight_gradient(kernels, &args, num_threads)
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
        status = run_sum_rows(kernels, x_data, rows, width, y_data, num_threads)
    raise_status(status)
    return y
