# SPDX-License-Identifier: Apache-2.0
"""What layers are made of, as functions: the linear layer, the norms, the activations; and the way back.

They take arrays in any form that attention takes, of dtype float32, float64, float16 or bfloat16, and give
the dtype of x back. float64 is computed in float64; float16 and bfloat16 are widened to float32, and the
result is rounded once. Parameters (weight, bias) have the dtype of x or float32. NaN and Inf go where the
formula takes them, within their row. The number of threads changes no bit.

Each function has a ..._backward. grad_y is the gradient of a loss with respect to the function's result: of
its shape, of the dtype of x or float32. What comes back are the gradients with respect to x and the
parameters, each of the shape and dtype of what it is the gradient of (for a weight of None, of the dtype that
x is computed in). Nothing of the forward computation is needed but x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfattn._checks import Activation, as_activation, as_eps, as_precision
from selfattn._native import pointwise as _pointwise
from selfattn.attention.arrays import Array, arithmetic, as_array
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    from selfattn.attention.arrays import AnyArray

__all__ = [
    "column_sums",
    "gate_backward",
    "gelu",
    "gelu_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "silu",
    "silu_backward",
]


def linear(
    x: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    *,
    activation: Activation | None = None,
    precision: Literal["bfloat16"] | None = None,
    num_threads: int | None = None,
) -> Array:
    """act(x · weight + bias): x (..., d_in), weight (d_in, d_out), bias (d_out,) -> (..., d_out).

    The weight may have any strides: a matrix of PyTorch's, (d_out, d_in), is passed as weight.T at no cost.
    The activation is one of this module's, or None. precision="bfloat16" rounds x and weight to it, where the
    processor multiplies those faster; sums are float32. Raises TypeError for a dtype, ValueError for
    shapes that do not fit, an unknown activation or precision, and a precision with float64.
    """
    activation = as_activation(activation, optional=True)
    x = _as_floats("x", x)
    weight = _as_matrix(weight, x)
    if bias is not None:
        bias = _as_parameter("bias", bias, x, weight.shape[1:])
    operands = as_precision(precision, x.dtype)
    y = _pointwise.linear(_widened(x), weight, bias, activation, resolve_num_threads(num_threads), operands)
    return _narrowed(y, x.dtype)


def layer_norm(
    x: AnyArray,
    weight: AnyArray | None = None,
    bias: AnyArray | None = None,
    *,
    eps: float = 1e-5,
    num_threads: int | None = None,
) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, (..., width) -> the same shape.

    "Layer Normalization" (Ba, Kiros and Hinton 2016); the variance is the biased one. weight and bias are
    (width,); None stands for ones, for zeros. Raises TypeError for a dtype, ValueError for shapes that do not
    fit and for a negative eps.
    """
    x = _as_rows(x)
    weight, width = _as_scale(weight, x), x.shape[-1:]
    if bias is not None:
        bias = _as_parameter("bias", bias, x, width)
    y = _pointwise.layer_norm(_widened(x), weight, bias, as_eps(eps), resolve_num_threads(num_threads))
    return _narrowed(y, x.dtype)


def rms_norm(
    x: AnyArray,
    weight: AnyArray | None = None,
    *,
    eps: float = 1e-6,
    num_threads: int | None = None,
) -> Array:
    """x / sqrt(mean(x²) + eps) * weight over the last axis, (..., width) -> the same shape.

    "Root Mean Square Layer Normalization" (Zhang and Sennrich 2019). weight is (width,); None stands for
    ones. Raises TypeError for a dtype, ValueError for shapes that do not fit and for a negative eps.
    """
    x = _as_rows(x)
    y = _pointwise.rms_norm(_widened(x), _as_scale(weight, x), as_eps(eps), resolve_num_threads(num_threads))
    return _narrowed(y, x.dtype)


def gelu(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """x · Φ(x), Φ the normal distribution's: "Gaussian Error Linear Units" (Hendrycks and Gimpel 2016).

    x has any shape. Not the approximation; the tail for negative x keeps its digits. Raises TypeError for a
    dtype.
    """
    return _activated(_pointwise.gelu, x, num_threads)


def gelu_tanh(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): the approximation of gelu in the same paper.

    x has any shape. Models whose configuration says "gelu_new" or "gelu_pytorch_tanh" mean this one. Raises
    TypeError for a dtype.
    """
    return _activated(_pointwise.gelu_tanh, x, num_threads)


def relu(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """max(x, 0), NaN staying NaN: "Rectified Linear Units" (Nair and Hinton 2010). x has any shape.

    Raises TypeError for a dtype.
    """
    return _activated(_pointwise.relu, x, num_threads)


def silu(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """x / (1 + exp(-x)), also called swish (Elfwing, Uchibe and Doya 2018). x has any shape.

    Raises TypeError for a dtype.
    """
    return _activated(_pointwise.silu, x, num_threads)


def _activated(kernel: Callable[[Array, int], Array], x: AnyArray, num_threads: int | None) -> Array:
    x = _as_floats("x", x)
    return _narrowed(kernel(_widened(x), resolve_num_threads(num_threads)), x.dtype)


# ---- the way back ----


def linear_backward(
    grad_y: AnyArray,
    x: AnyArray,
    weight: AnyArray,
    *,
    bias: bool = False,
    num_threads: int | None = None,
) -> tuple[Array, Array, Array | None]:
    """Back through x · weight + bias: the gradients of x, weight and, if `bias`, of the bias, otherwise None.

    grad_y (..., d_out), x (..., d_in), weight (d_in, d_out); the bias' gradient has the weight's dtype. An
    activation has its own function: its gradient comes first. Raises as `linear` does.
    """
    x, weight = _as_floats("x", x), _as_floats("weight", weight)
    matrix = _as_matrix(weight, x)
    grad = _as_gradient(grad_y, x, (*x.shape[:-1], matrix.shape[1]))
    threads = resolve_num_threads(num_threads)
    grad_x = _pointwise.linear(grad, matrix.T, None, None, threads)
    grad_rows = _as_matrix_of_rows(grad)
    grad_weight = _pointwise.linear_backward(_as_matrix_of_rows(_widened(x)), grad_rows, threads)
    grad_bias = _narrowed(_pointwise.sum_rows(grad_rows, threads), weight.dtype) if bias else None
    return _narrowed(grad_x, x.dtype), _narrowed(grad_weight, weight.dtype), grad_bias


def column_sums(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """The sum over all axes but the last, (..., width) -> (width,): the gradient of a bias.

    Computed in float64, in a fixed order. Raises TypeError for a dtype, ValueError for an x without an axis.
    """
    x = _as_rows(x)
    rows = _as_matrix_of_rows(_widened(x))
    return _narrowed(_pointwise.sum_rows(rows, resolve_num_threads(num_threads)), x.dtype)


def layer_norm_backward(
    grad_y: AnyArray,
    x: AnyArray,
    weight: AnyArray | None = None,
    *,
    eps: float = 1e-5,
    num_threads: int | None = None,
) -> tuple[Array, Array, Array]:
    """Back through `layer_norm`: the gradients of x, weight and bias, computed in float64.

    Raises as it does.
    """
    return _norm_backward(grad_y, x, weight, eps, False, num_threads)


def rms_norm_backward(
    grad_y: AnyArray,
    x: AnyArray,
    weight: AnyArray | None = None,
    *,
    eps: float = 1e-6,
    num_threads: int | None = None,
) -> tuple[Array, Array]:
    """Back through `rms_norm`: the gradients of x and weight, computed in float64. Raises as it does."""
    return _norm_backward(grad_y, x, weight, eps, True, num_threads)[:2]


def _norm_backward(
    grad_y: AnyArray, x: AnyArray, weight: AnyArray | None, eps: float, rms: bool, num_threads: int | None
) -> tuple[Array, Array, Array]:
    x = _as_rows(x)
    dtype = arithmetic(x.dtype) if weight is None else _as_floats("weight", weight).dtype
    scale, grad = np.ascontiguousarray(_as_scale(weight, x)), _as_gradient(grad_y, x, x.shape)
    threads = resolve_num_threads(num_threads)
    grads = _pointwise.norm_backward(grad, _widened(x), scale, as_eps(eps), rms, threads)
    return _narrowed(grads[0], x.dtype), _narrowed(grads[1], dtype), _narrowed(grads[2], dtype)


def gelu_backward(grad_y: AnyArray, x: AnyArray, *, num_threads: int | None = None) -> Array:
    """Back through `gelu`: grad_y · (Φ(x) + x φ(x)), φ the derivative of Φ. Raises as it does."""
    return _activation_backward(grad_y, x, "gelu", num_threads)


def gelu_tanh_backward(grad_y: AnyArray, x: AnyArray, *, num_threads: int | None = None) -> Array:
    """Back through `gelu_tanh`: the exact gradient of that approximation. Raises as it does."""
    return _activation_backward(grad_y, x, "gelu_tanh", num_threads)


def relu_backward(grad_y: AnyArray, x: AnyArray, *, num_threads: int | None = None) -> Array:
    """Back through `relu`: grad_y where x > 0, at 0 and below grad_y · 0. Raises as it does."""
    return _activation_backward(grad_y, x, "relu", num_threads)


def silu_backward(grad_y: AnyArray, x: AnyArray, *, num_threads: int | None = None) -> Array:
    """Back through `silu`: with s = 1 / (1 + exp(-x)), grad_y · s (1 + x (1 - s)). Raises as it does."""
    return _activation_backward(grad_y, x, "silu", num_threads)


def _activation_backward(
    grad_y: AnyArray, x: AnyArray, activation: Activation, num_threads: int | None
) -> Array:
    x = _as_floats("x", x)
    grad, threads = _as_gradient(grad_y, x, x.shape), resolve_num_threads(num_threads)
    grad_x = _pointwise.activation_backward(grad, _widened(x), None, activation, threads)
    return _narrowed(grad_x, x.dtype)


def gate_backward(
    grad_y: AnyArray, gate: AnyArray, up: AnyArray, activation: str, *, num_threads: int | None = None
) -> tuple[Array, Array]:
    """Back through act(gate) · up ("GLU Variants Improve Transformer", Shazeer 2020): the gradients of both.

    gate and up have one shape and one dtype, and so have the gradients. Raises TypeError for a dtype,
    ValueError for shapes that differ and for an unknown activation.
    """
    as_activation(activation)
    gate, up = _as_floats("gate", gate), _as_floats("up", up)
    if up.dtype != gate.dtype:
        raise TypeError(f"up has dtype {up.dtype}, gate {gate.dtype}; they must be the same")
    if up.shape != gate.shape:
        raise ValueError(f"up has shape {up.shape}, gate {gate.shape}; they must be the same")
    grad, threads = _as_gradient(grad_y, gate, gate.shape), resolve_num_threads(num_threads)
    grads = _pointwise.activation_backward(grad, _widened(gate), _widened(up), activation, threads)
    return _narrowed(grads[0], gate.dtype), _narrowed(grads[1], up.dtype)


# ---- arguments ----


def _as_floats(name: str, x: AnyArray) -> Array:
    array = as_array(name, x)
    if array.dtype.name not in ("float32", "float64", "float16", "bfloat16"):
        accepted = "float32, float64, float16 or bfloat16"
        raise TypeError(f"{name} has dtype {array.dtype}; it must be {accepted}: {name}.astype(np.float32)")
    return array


def _as_rows(x: AnyArray) -> Array:
    array = _as_floats("x", x)
    if not array.ndim:
        raise ValueError("x has shape (); a norm needs an axis to run over, (..., width): x[None]")
    return array


def _as_parameter(name: str, parameter: AnyArray, x: Array, shape: tuple[int, ...] | None = None) -> Array:
    """A weight or bias in the dtype that x is computed in, at any strides."""
    array = _as_floats(name, parameter)
    if array.dtype not in (x.dtype, np.float32):
        raise TypeError(f"{name} has dtype {array.dtype}, x {x.dtype}; {name} must be as x, or float32")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; it needs {shape}, one number for each channel")
    return np.require(array, arithmetic(x.dtype), ["A"])


def _as_matrix(weight: AnyArray, x: Array) -> Array:
    """A weight (d_in, d_out) that fits x (..., d_in)."""
    matrix = _as_parameter("weight", weight, x)
    if matrix.ndim != 2:
        raise ValueError(f"weight has shape {matrix.shape}; it needs (d_in, d_out)")
    d_in = len(matrix)
    if not x.ndim or x.shape[-1] != d_in:
        raise ValueError(f"x has shape {x.shape}; its last dimension must be d_in={d_in}, as weight's first")
    return matrix


def _as_gradient(grad_y: AnyArray, x: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of a result of that shape, contiguous in the dtype that x is computed in."""
    grad = _as_floats("grad_y", grad_y)
    if grad.dtype not in (x.dtype, np.float32):
        raise TypeError(f"grad_y has dtype {grad.dtype}, x {x.dtype}; grad_y must be as x, or float32")
    if grad.shape != shape:
        raise ValueError(f"grad_y has shape {grad.shape}; it needs that of the result, {shape}")
    return np.require(grad, arithmetic(x.dtype), ["C", "A"])


def _as_matrix_of_rows(x: Array) -> Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _as_scale(weight: AnyArray | None, x: Array) -> Array:
    if weight is None:
        return np.ones(x.shape[-1], arithmetic(x.dtype))
    return _as_parameter("weight", weight, x, x.shape[-1:])


def _widened(x: Array) -> Array:
    return np.require(x, arithmetic(x.dtype), ["C", "A"])


def _narrowed(y: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # what float16 cannot hold is Inf
        return y.astype(dtype, copy=False)
