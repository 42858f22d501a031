# SPDX-License-Identifier: Apache-2.0
"""Norms: what keeps the size of a word's vector in bounds from layer to layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from selfattn._checks import as_eps
from selfattn._native import pointwise as _pointwise
from selfattn.layers.base import Array, Layer, Weights, as_bias, as_weight
from selfattn.layers.packed_batch import check_gradient, check_words
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    import numpy.typing as npt


class BaseNorm(Layer):
    """What the two norms have in common."""

    weight: Array  # (d_model,)
    eps: float
    kind: ClassVar[str]

    @abstractmethod
    def _normed(self, x: Array, threads: int) -> Array:
        """x (..., d_model) float32, C-contiguous -> the same shape; nothing is checked."""

    def __call__(self, x: npt.ArrayLike, *, num_threads: int | None = None) -> Array:
        """x (..., d_model) float32 -> the same shape."""
        return self._normed(check_words(x, len(self.weight)), resolve_num_threads(num_threads))

    def forward(self, x: npt.ArrayLike, *, num_threads: int | None = None) -> tuple[Array, Array]:
        """The result of the call, and what `backward` needs; x must not change until then."""
        from selfattn.layers import backward  # here: only those who learn need it

        return backward.norm_forward(self, check_words(x, len(self.weight)), resolve_num_threads(num_threads))

    def backward(
        self, saved: Array, grad_y: npt.ArrayLike, *, num_threads: int | None = None
    ) -> tuple[Array, Weights]:
        """grad_y (..., d_model) -> (grad_x, the gradients of the weights by name)."""
        from selfattn.layers import backward  # here: only those who learn need it

        grad_y, threads = check_gradient(grad_y, saved.shape), resolve_num_threads(num_threads)
        return backward.norm_backward(self, saved, grad_y, threads)


@dataclass(frozen=True, eq=False, repr=False)
class LayerNorm(BaseNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016), over the last axis."""

    weight: Array  # (d_model,)
    bias: Array | None = None
    eps: float = 1e-5
    kind: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        weight = as_weight("weight", self.weight, 1)
        self._set(weight=weight, bias=as_bias("bias", self.bias, len(weight)), eps=as_eps(self.eps))

    def _normed(self, x: Array, threads: int) -> Array:
        return _pointwise.layer_norm(x, self.weight, self.bias, self.eps, threads)


@dataclass(frozen=True, eq=False, repr=False)
class RMSNorm(BaseNorm):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), over the last axis."""

    weight: Array  # (d_model,)
    eps: float = 1e-6
    kind: ClassVar[str] = "rms"

    def __post_init__(self) -> None:
        self._set(weight=as_weight("weight", self.weight, 1), eps=as_eps(self.eps))

    @property
    def bias(self) -> None:
        """An RMSNorm has no bias."""
        return None

    def _normed(self, x: Array, threads: int) -> Array:
        return _pointwise.rms_norm(x, self.weight, self.eps, threads)


Norm = LayerNorm | RMSNorm
