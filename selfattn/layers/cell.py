"""The self-attention cell: three matrices that turn words into words with their context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selfattn import _kernels
from selfattn.layers.base import Array, Layer, bias, initial_weight, same, weight
from selfattn.layers.ragged import Ragged
from selfattn.runtime import resolve_num_threads


@dataclass(frozen=True, eq=False, repr=False)
class SelfAttentionCell(Layer):
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
        query, key, value = (weight(name, getattr(self, name), 2) for name in _WEIGHTS)
        same("d_model", query_weight=len(query), key_weight=len(key), value_weight=len(value))
        same("head_dim", query_weight=query.shape[1], key_weight=key.shape[1])
        self._set(query_weight=query, key_weight=key, value_weight=value)
        for name, matrix in zip(_BIASES, (query, key, value), strict=True):
            self._set(**{name: bias(name, getattr(self, name), matrix.shape[1])})

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

    @property
    def d_model(self) -> int:
        """The width of a word's vector."""
        return self.query_weight.shape[0]

    @property
    def head_dim(self) -> int:
        """The width of a query and of a key."""
        return self.query_weight.shape[1]

    @property
    def value_dim(self) -> int:
        """The width of a value, and of the result."""
        return self.value_weight.shape[1]

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
        words = Ragged.of(x, lengths, cu_seqlens, self.d_model)
        query, key, value = self._project(words, num_threads)
        return words.restore(
            words.attend(query, key, value, causal=causal, scale=scale, num_threads=num_threads)
        )

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
        words = Ragged.of(x, lengths, cu_seqlens, self.d_model)
        query, key, _ = self._project(words, num_threads)
        weights = words.attention_weights(query, key, causal=causal, scale=scale, num_threads=num_threads)
        return weights[..., 0, :, :]

    def _project(self, words: Ragged, num_threads: int | None) -> list[Array]:
        """The query, key and value of every word, (tokens, 1, dim) each."""
        threads = resolve_num_threads(num_threads)
        names = zip(_WEIGHTS, _BIASES, strict=True)
        pairs = [(getattr(self, weight), getattr(self, bias)) for weight, bias in names]
        return [_kernels.linear(words.tokens, *pair, None, threads)[:, None, :] for pair in pairs]


_WEIGHTS = ("query_weight", "key_weight", "value_weight")
_BIASES = ("query_bias", "key_bias", "value_bias")
