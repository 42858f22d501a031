"""What layers are made of, as functions: the linear layer, the norms, the activations.

They take arrays in any form that attention takes, of dtype float32, float64, float16 or bfloat16, and give
the dtype of x back. float64 is computed in float64; float16 and bfloat16 are widened to float32, and the
result is rounded once. Parameters (weight, bias) have the dtype of x or float32. NaN and Inf go where the
formula takes them, within their row. The number of threads changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfattn import _kernels
from selfattn._arguments import Array, arithmetic, as_array
from selfattn._checks import as_number
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    from selfattn._arguments import AnyArray

__all__ = ["gelu", "gelu_tanh", "layer_norm", "linear", "relu", "rms_norm", "silu"]

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


def linear(
    x: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None = None,
    *,
    activation: Activation | None = None,
    num_threads: int | None = None,
) -> Array:
    """act(x · weight + bias): x (..., d_in), weight (d_in, d_out), bias (d_out,) -> (..., d_out).

    The weight may have any strides: a matrix of PyTorch's, (d_out, d_in), is passed as weight.T at no cost.
    The activation is one of this module's, or None. Raises TypeError for a dtype, ValueError for shapes that
    do not fit and for an unknown activation.
    """
    if activation not in (None, "gelu", "gelu_tanh", "relu", "silu"):
        raise ValueError(f'activation={activation!r} must be "gelu", "gelu_tanh", "relu", "silu" or None')
    x = _as_floats("x", x)
    weight = _as_parameter("weight", weight, x)
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {weight.shape}; it needs (d_in, d_out)")
    d_in, d_out = weight.shape
    if not x.ndim or x.shape[-1] != d_in:
        raise ValueError(f"x has shape {x.shape}; its last dimension must be d_in={d_in}, as weight's first")
    if bias is not None:
        bias = _as_parameter("bias", bias, x, (d_out,))
    y = _kernels.linear(_widened(x), weight, bias, activation, resolve_num_threads(num_threads))
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
    y = _kernels.layer_norm(_widened(x), weight, bias, _as_eps(eps), resolve_num_threads(num_threads))
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
    y = _kernels.rms_norm(_widened(x), _as_scale(weight, x), _as_eps(eps), resolve_num_threads(num_threads))
    return _narrowed(y, x.dtype)


def gelu(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """x · Φ(x), Φ the normal distribution's: "Gaussian Error Linear Units" (Hendrycks and Gimpel 2016).

    x has any shape. Not the approximation; the tail for negative x keeps its digits. Raises TypeError for a
    dtype.
    """
    return _activated(_kernels.gelu, x, num_threads)


def gelu_tanh(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): the approximation of gelu in the same paper.

    x has any shape. Models whose configuration says "gelu_new" or "gelu_pytorch_tanh" mean this one. Raises
    TypeError for a dtype.
    """
    return _activated(_kernels.gelu_tanh, x, num_threads)


def relu(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """max(x, 0), NaN staying NaN: "Rectified Linear Units" (Nair and Hinton 2010). x has any shape.

    Raises TypeError for a dtype.
    """
    return _activated(_kernels.relu, x, num_threads)


def silu(x: AnyArray, *, num_threads: int | None = None) -> Array:
    """x / (1 + exp(-x)), also called swish (Elfwing, Uchibe and Doya 2018). x has any shape.

    Raises TypeError for a dtype.
    """
    return _activated(_kernels.silu, x, num_threads)


def _activated(kernel: Callable[[Array, int], Array], x: AnyArray, num_threads: int | None) -> Array:
    x = _as_floats("x", x)
    return _narrowed(kernel(_widened(x), resolve_num_threads(num_threads)), x.dtype)


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


def _as_scale(weight: AnyArray | None, x: Array) -> Array:
    if weight is None:
        return np.ones(x.shape[-1], arithmetic(x.dtype))
    return _as_parameter("weight", weight, x, x.shape[-1:])


def _as_eps(eps: Any) -> float:
    number = as_number("eps", eps)
    if number < 0:
        raise ValueError(f"eps={eps} must be at least 0")
    return number


def _widened(x: Array) -> Array:
    return np.require(x, arithmetic(x.dtype), ["C", "A"])


def _narrowed(y: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # what float16 cannot hold is Inf
        return y.astype(dtype, copy=False)
