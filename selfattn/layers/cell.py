# SPDX-License-Identifier: Apache-2.0
"""The self-attention cell: three matrices that turn words into words with their context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfattn.attention.options import AttentionOptions, Scale, default_scale
from selfattn.layers.base import Array, Weights, as_causal, as_scale, initial_weight, same
from selfattn.layers.packed_batch import PackedBatch
from selfattn.layers.projections import Projections
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    import numpy.typing as npt

    from selfattn.layers.backward import SavedHeads


@dataclass(frozen=True, eq=False, repr=False)
class SelfAttentionCell(Projections):
    """One unit of self-attention with its own query, key and value matrices, the same for every word.

    query_weight, key_weight (d_model, head_dim); value_weight (d_model, value_dim); biases (head_dim,),
    (head_dim,), (value_dim,) or None. Weights are (d_in, d_out): query = x @ query_weight + query_bias. They
    are kept as read-only float32; ValueError for shapes that don't fit together and for NaN or Inf.
    """

    query_weight: Array
    key_weight: Array
    value_weight: Array
    query_bias: Array | None = None
    key_bias: Array | None = None
    value_bias: Array | None = None

    def __post_init__(self) -> None:
        self._set_projections()
        same("head_dim", query_weight=self.query_weight.shape[1], key_weight=self.key_weight.shape[1])

    @classmethod
    def initialize(
        cls,
        d_model: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        bias: bool = False,
        rng: np.random.Generator,
    ) -> SelfAttentionCell:
        """A cell with random weights of variance 1/d_model and, with `bias`, zero biases."""
        widths = (head_dim, head_dim, head_dim if value_dim is None else value_dim)
        weights = (initial_weight(rng, d_model, width) for width in widths)
        return cls(*weights, *(np.zeros(width, np.float32) if bias else None for width in widths))

    def _options(self, causal: bool, scale: float | None) -> AttentionOptions:
        """What the operator is told, both checked."""
        factor = default_scale(self.head_dim) if scale is None else Scale(scale)
        return AttentionOptions(scale=factor, causal="top_left" if causal else None)

    def __call__(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        causal: bool = False,
        scale: float | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """The self-attention value of every word: x (..., d_model) -> (..., value_dim), float32.

        x is (seq_len, d_model), (batch, seq_len, d_model) with `lengths` (batch,) when padded (the result is
        0 in the padding), or (tokens, d_model) with `cu_seqlens` (batch + 1,): sequence b is rows
        cu_seqlens[b] to cu_seqlens[b + 1]. All three give the same bits. `scale` is by default
        1/sqrt(head_dim).
        """
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        options = self._options(as_causal(causal), as_scale(scale))
        values = self._attend(words, options, resolve_num_threads(num_threads))
        return words.restore(values)

    def forward(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        causal: bool = False,
        scale: float | None = None,
        num_threads: int | None = None,
    ) -> tuple[Array, tuple[PackedBatch, SavedHeads]]:
        """The result of the call, to the bit, and what `backward` needs; x must not change until then."""
        from selfattn.layers import backward  # here: only those who learn need it

        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        options, threads = self._options(as_causal(causal), as_scale(scale)), resolve_num_threads(num_threads)
        y, saved = backward.heads_forward(self, words.tokens, words.cu_seqlens, options, threads)
        return words.restore(y.copy()), (words, saved)

    def backward(
        self,
        saved: tuple[PackedBatch, SavedHeads],
        grad_y: npt.ArrayLike,
        *,
        num_threads: int | None = None,
    ) -> tuple[Array, Weights]:
        """grad_y (..., value_dim) -> (grad_x, 0 in the padding; the gradients of the weights by name)."""
        from selfattn.layers import backward  # here: only those who learn need it

        words, heads = saved
        rows = words.take(grad_y, self.value_dim)
        grad_x, grads = backward.heads_backward(self, heads, rows, resolve_num_threads(num_threads))
        return words.restore(grad_x), grads

    def attention_weights(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        causal: bool = False,
        scale: float | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """How much each word attends to each other, (seq_len, seq_len), or (batch, seq_len, seq_len) for a
        batch (seq_len is the longest for packed x). Rows sum to 1; rows and columns of padding are 0.
        """
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        options = self._options(as_causal(causal), as_scale(scale))
        weights = self._weigh(words, options, resolve_num_threads(num_threads))
        return weights[..., 0, :, :]
