# SPDX-License-Identifier: Apache-2.0
"""Packed batches: the real words of a batch packed one after another, and the way back to the caller's shape.

Padding is removed before anything is computed and put back, as zeros, at the end; so a padded batch, a packed
batch and a sentence alone run the same arithmetic and give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfattn._checks import as_cu_seqlens, as_lengths
from selfattn.attention.arrays import head_sizes
from selfattn.attention.options import AttentionOptions, Problem
from selfattn.attention.packed import attend, sequences_of
from selfattn.attention.weights import weigh
from selfattn.layers.base import Array

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """`tokens` (tokens, d_model), C-contiguous; sequence b is tokens[cu_seqlens[b]:cu_seqlens[b + 1]]."""

    tokens: Array
    cu_seqlens: Array  # (batch + 1,) int64
    leading: tuple[int, ...]  # the caller's shape without d_model
    real: Array | None  # (batch, seq_len) bool: where the tokens came from, when there was padding
    packed: bool  # the caller gave cu_seqlens

    @classmethod
    def of(
        cls, x: npt.ArrayLike, lengths: npt.ArrayLike | None, cu_seqlens: npt.ArrayLike | None, d_model: int
    ) -> PackedBatch:
        """x ([batch,] seq_len, d_model), with lengths when padded, or (tokens, d_model) with cu_seqlens."""
        x = check_words(x, d_model)
        leading = x.shape[:-1]
        if len(leading) not in (1, 2):
            raise ValueError(f"x has shape {x.shape}; it needs ([batch,] seq_len, d_model={d_model})")
        if lengths is not None and cu_seqlens is not None:
            raise ValueError("lengths and cu_seqlens both given: one is for padded x, the other for packed x")
        if cu_seqlens is not None:
            if len(leading) != 1:
                raise ValueError(
                    f"x has shape {x.shape}; with cu_seqlens it needs (tokens, d_model={d_model})"
                )
            bounds = as_cu_seqlens("cu_seqlens", cu_seqlens, len(x), "the number of tokens")
            return cls.packed_side_by_side(x, bounds)
        batch, seq_len = leading if len(leading) == 2 else (1, *leading)
        if lengths is None:
            bounds = np.arange(batch + 1, dtype=np.int64) * seq_len
            return cls(x.reshape(batch * seq_len, d_model), bounds, leading, None, False)
        if len(leading) != 2 or np.shape(lengths) != leading[:1]:
            raise ValueError(
                f"lengths has shape {np.shape(lengths)} and x has shape {x.shape}; "
                "they need (batch,) and (batch, seq_len, d_model)"
            )
        valid = as_lengths("lengths", lengths, batch, seq_len, "seq_len")  # (batch,)
        real = np.arange(seq_len) < valid[:, None]
        return cls(x[real], np.concatenate([[0], np.cumsum(valid)]).astype(np.int64), leading, real, False)

    @classmethod
    def packed_side_by_side(cls, tokens: Array, cu_seqlens: Array) -> PackedBatch:
        """What the caller packed, with nothing left to check."""
        return cls(tokens, cu_seqlens, tokens.shape[:-1], None, True)

    @property
    def lengths(self) -> Array:
        """(batch,) words per sequence."""
        return np.diff(self.cu_seqlens)

    def restore(self, rows: Array) -> Array:
        """rows (tokens, width) in the caller's shape (..., width), zeros in the padding."""
        if self.real is None:
            return rows.reshape(*self.leading, rows.shape[-1])
        out = np.zeros((*self.leading, rows.shape[-1]), dtype=rows.dtype)
        out[self.real] = rows
        return out

    def take(self, grad_y: npt.ArrayLike, width: int) -> Array:
        """The inverse of restore: (..., width) in the caller's shape -> (tokens, width), padding left out."""
        grad_y = check_gradient(grad_y, (*self.leading, width))
        return grad_y.reshape(len(self.tokens), width) if self.real is None else grad_y[self.real]

    def attend(
        self, query: Array, key: Array, value: Array, options: AttentionOptions, num_threads: int
    ) -> Array:
        """Each sequence attends to itself: (tokens, heads, dim) arrays -> (tokens, num_heads * value_dim)."""
        (tokens, num_heads, _), value_dim = query.shape, value.shape[2]
        out = np.empty((tokens, num_heads, value_dim), query.dtype)
        sequences = sequences_of(query, key, value, self.cu_seqlens, self.cu_seqlens)
        attend(query, key, value, sequences, options, out, None, num_threads)
        return out.reshape(tokens, num_heads * value_dim)

    def attention_weights(
        self, query: Array, key: Array, options: AttentionOptions, num_threads: int
    ) -> Array:
        """(batch, num_heads, longest, longest), zeros in the padding; without batch when x had none."""
        one = len(self.leading) == 1 and not self.packed
        longest = int(self.lengths.max(initial=0)) if self.packed else self.leading[-1]
        out = np.zeros((self.lengths.size, query.shape[1], longest, longest), dtype=np.float32)
        for b, (begin, end) in enumerate(zip(self.cu_seqlens[:-1], self.cu_seqlens[1:], strict=True)):
            q, k = (array[begin:end].swapaxes(0, 1) for array in (query, key))
            problem = Problem(q.dtype, *head_sizes(q, k))
            out[b, :, : end - begin, : end - begin] = weigh(q, k, problem, options, num_threads)
        return out[0] if one else out


def positions_of(cu_seqlens: Array) -> Array:
    """The position of every token in its sequence, (tokens,)."""
    positions: Array = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    return positions


def check_words(x: npt.ArrayLike, d_model: int) -> Array:
    """x (..., d_model) as a float32 array, aligned and C-contiguous; raises when it is anything else."""
    x = np.asarray(x)
    if x.dtype != np.float32:
        raise TypeError(f"x has dtype {x.dtype}, the layers compute in float32: pass x.astype(np.float32)")
    if x.ndim < 1 or x.shape[-1] != d_model:
        raise ValueError(f"x has shape {x.shape}; its last dimension must be d_model={d_model}")
    return np.require(x, requirements=["C", "A"])


def check_gradient(grad_y: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    """grad_y as a float32 array of the result's shape, aligned and C-contiguous."""
    grad_y = np.asarray(grad_y)
    if grad_y.dtype != np.float32:
        cast = "pass grad_y.astype(np.float32)"
        raise TypeError(f"grad_y has dtype {grad_y.dtype}, the layers compute in float32: {cast}")
    if grad_y.shape != shape:
        raise ValueError(f"grad_y has shape {grad_y.shape}; the result it is the gradient of has {shape}")
    return np.require(grad_y, requirements=["C", "A"])
