# SPDX-License-Identifier: Apache-2.0
"""The feed-forward network of a layer: what a word does with its context, each word for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfattn._checks import as_activation
from selfattn._native import pointwise as _pointwise
from selfattn.layers.base import Array, Layer, Weights, as_bias, as_weight, initial_weight, same
from selfattn.layers.packed_batch import check_gradient, check_words
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    import numpy.typing as npt

    from selfattn.layers.backward import SavedFeedForward


@dataclass(frozen=True, eq=False, repr=False)
class FeedForward(Layer):
    """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)) (Shazeer 2020, "GLU Variants").

    up_weight, gate_weight (d_model, d_ff); down_weight (d_ff, d_out); biases (d_ff,), (d_ff,), (d_out,) or
    None. activation: "gelu" (exact), "gelu_tanh", "relu", "silu".
    """

    up_weight: Array
    down_weight: Array
    up_bias: Array | None = None
    down_bias: Array | None = None
    gate_weight: Array | None = None
    gate_bias: Array | None = None
    activation: str = "gelu"

    def __post_init__(self) -> None:
        as_activation(self.activation)
        up, down = as_weight("up_weight", self.up_weight, 2), as_weight("down_weight", self.down_weight, 2)
        d_ff = up.shape[1]
        same("d_ff", up_weight=d_ff, down_weight=len(down))
        self._set(up_weight=up, down_weight=down, up_bias=as_bias("up_bias", self.up_bias, d_ff))
        self._set(down_bias=as_bias("down_bias", self.down_bias, down.shape[1]))
        if self.gate_weight is None:
            if self.gate_bias is not None:
                raise ValueError("gate_bias needs a gate_weight")
            return
        gate = as_weight("gate_weight", self.gate_weight, 2)
        same("d_model", up_weight=len(up), gate_weight=len(gate))
        same("d_ff", up_weight=d_ff, gate_weight=gate.shape[1])
        self._set(gate_weight=gate, gate_bias=as_bias("gate_bias", self.gate_bias, d_ff))

    @classmethod
    def initialize(
        cls,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        rng: np.random.Generator,
    ) -> FeedForward:
        """Random weights and, with `bias`, zero biases; d_model in and out."""
        up, down = initial_weight(rng, d_model, d_ff), initial_weight(rng, d_ff, d_model)
        gate = initial_weight(rng, d_model, d_ff) if gated else None
        hidden, out = (np.zeros(width, np.float32) if bias else None for width in (d_ff, d_model))
        return cls(up, down, hidden, out, gate, hidden if gated else None, activation)

    @classmethod
    def from_joined(
        cls,
        joined_weight: npt.ArrayLike,
        down_weight: Array,
        *,
        gate_first: bool,
        joined_bias: npt.ArrayLike | None = None,
        down_bias: Array | None = None,
        activation: str = "gelu",
    ) -> FeedForward:
        """A network with a gate, from one matrix that holds gate and up side by side.

        Args:
            joined_weight: (d_model, 2 * d_ff): gate, then up, or up, then gate. A read-only array of float32
                is not copied: gate_weight and up_weight are views of it.
            down_weight: (d_ff, d_out).
            gate_first: True where the gate, which the activation is of, is the first half.
            joined_bias: (2 * d_ff,) in the same order, or None.
            down_bias, activation: as of a FeedForward.

        Raises:
            TypeError: as for a FeedForward; gate_first that is not a bool.
            ValueError: as for a FeedForward; joined_weight with an odd number of columns.

        >>> halves, down = np.ones((8, 32), np.float32), np.ones((16, 8), np.float32)
        >>> network = FeedForward.from_joined(halves, down, gate_first=True, activation="silu")
        >>> network.gate_weight.shape, network(np.ones((3, 8), np.float32)).shape
        ((8, 16), (3, 8))
        """
        if not isinstance(gate_first, bool | np.bool_):
            raise TypeError(f"gate_first={gate_first!r} must be True or False")
        joined = as_weight("joined_weight", joined_weight, 2)
        width = joined.shape[1]
        if width % 2:
            raise ValueError(
                f"joined_weight has {width} columns; gate and up side by side are of equal width"
            )
        bias = as_bias("joined_bias", joined_bias, width)
        first, second = slice(0, width // 2), slice(width // 2, width)
        gate, up = (first, second) if gate_first else (second, first)
        return cls(
            up_weight=joined[:, up],
            down_weight=down_weight,
            up_bias=None if bias is None else bias[up],
            down_bias=down_bias,
            gate_weight=joined[:, gate],
            gate_bias=None if bias is None else bias[gate],
            activation=activation,
        )

    @property
    def d_model(self) -> int:
        """The width of a word's vector."""
        return self.up_weight.shape[0]

    @property
    def d_out(self) -> int:
        """The width of the result."""
        return self.down_weight.shape[1]

    def __call__(self, x: npt.ArrayLike, *, num_threads: int | None = None) -> Array:
        """x (..., d_model) float32 -> (..., d_out)."""
        words = check_words(x, self.d_model)
        rows = words.reshape(-1, self.d_model) if words.size else words.reshape(0, self.d_model)
        threads = resolve_num_threads(num_threads)
        if self.gate_weight is None:
            hidden = _pointwise.linear(rows, self.up_weight, self.up_bias, self.activation, threads)
        else:
            hidden = _pointwise.linear(rows, self.gate_weight, self.gate_bias, self.activation, threads)
            hidden *= _pointwise.linear(rows, self.up_weight, self.up_bias, None, threads)
        out = _pointwise.linear(hidden, self.down_weight, self.down_bias, None, threads)
        return out.reshape(*words.shape[:-1], self.d_out)

    def forward(self, x: npt.ArrayLike, *, num_threads: int | None = None) -> tuple[Array, SavedFeedForward]:
        """The result of the call, to the bit, and what `backward` needs; x must not change until then."""
        from selfattn.layers import backward  # here: only those who learn need it

        return backward.feed_forward_forward(
            self, check_words(x, self.d_model), resolve_num_threads(num_threads)
        )

    def backward(
        self, saved: SavedFeedForward, grad_y: npt.ArrayLike, *, num_threads: int | None = None
    ) -> tuple[Array, Weights]:
        """grad_y (..., d_out) -> (grad_x, the gradients of the weights by name)."""
        from selfattn.layers import backward  # here: only those who learn need it

        grad_y = check_gradient(grad_y, (*saved.x.shape[:-1], self.d_out))
        return backward.feed_forward_backward(self, saved, grad_y, resolve_num_threads(num_threads))
