"""The specification, continued: the pieces of a layer. `selfattn.reference` names them all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x (..., d_in) * weight (d_in, d_out) + bias (d_out,)."""
    return x @ weight if bias is None else x @ weight + bias


def layer_norm(x: Array, weight: Array, bias: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Mean 0, variance 1 (biased) on the last axis, then * weight + bias; float64 inside, x.dtype outside."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    out: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight
    return (out if bias is None else out + bias).astype(x.dtype)


def rms_norm(x: Array, weight: Array, *, eps: float = 1e-6) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; float64 inside, x.dtype outside."""
    wide = x.astype(np.float64)
    out: Array = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps) * weight
    return out.astype(x.dtype)


def gelu(x: Array) -> Array:
    """x * Phi(x), Phi from the complementary error function (float64 inside)."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    out: Array = 0.5 * x * erfc(x.astype(np.float64) / -math.sqrt(2))
    return out.astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of gelu."""
    out: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return out


def relu(x: Array) -> Array:
    """max(x, 0); NaN stays NaN."""
    out: Array = np.maximum(x, 0)
    return out


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    with np.errstate(over="ignore"):
        out: Array = x / (1 + np.exp(-x))
    return out


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu, "silu": silu}
