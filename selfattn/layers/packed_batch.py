"""Packed batches: the real words of a batch packed one after another, and the way back to the caller's shape.

Padding is removed before anything is computed and put back, as zeros, at the end; so a padded batch, a packed
batch and a sentence alone run the same arithmetic and give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn.attention.dense import attention_weights
from selfattn.attention.packed import varlen_attention
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
            return cls(x, check_cu_seqlens(cu_seqlens, x.shape), leading, None, True)
        batch, seq_len = leading if len(leading) == 2 else (1, *leading)
        if lengths is None:
            bounds = np.arange(batch + 1, dtype=np.int64) * seq_len
            return cls(x.reshape(batch * seq_len, d_model), bounds, leading, None, False)
        valid = _check_lengths(lengths, x.shape)  # (batch,)
        real = np.arange(seq_len) < valid[:, None]
        return cls(x[real], np.concatenate([[0], np.cumsum(valid)]).astype(np.int64), leading, real, False)

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

    def attend(self, query: Array, key: Array, value: Array, **how: Any) -> Array:
        """Each sequence attends to itself: (tokens, heads, dim) arrays -> (tokens, num_heads * value_dim)."""
        out: Array = varlen_attention(query, key, value, self.cu_seqlens, **how)
        return out.reshape(len(out), out.shape[1] * out.shape[2])

    def attention_weights(self, query: Array, key: Array, **how: Any) -> Array:
        """(batch, num_heads, longest, longest), zeros in the padding; without batch when x had none."""
        one = len(self.leading) == 1 and not self.packed
        longest = int(self.lengths.max(initial=0)) if self.packed else self.leading[-1]
        out = np.zeros((self.lengths.size, query.shape[1], longest, longest), dtype=np.float32)
        for b, (begin, end) in enumerate(zip(self.cu_seqlens[:-1], self.cu_seqlens[1:], strict=True)):
            item = (array[begin:end].swapaxes(0, 1) for array in (query, key))
            out[b, :, : end - begin, : end - begin] = attention_weights(*item, **how)
        return out[0] if one else out


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


def _integers(name: str, array: npt.ArrayLike) -> Array:
    array = np.asarray(array)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; it needs integers")
    return array.astype(np.int64)


def _check_lengths(lengths: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    lengths = _integers("lengths", lengths)
    if len(shape) != 3 or lengths.shape != shape[:1]:
        raise ValueError(
            f"lengths has shape {lengths.shape} and x has shape {shape}; "
            "they need (batch,) and (batch, seq_len, d_model)"
        )
    bad = np.flatnonzero((lengths < 0) | (lengths > shape[1]))
    if bad.size:
        raise ValueError(f"lengths[{bad[0]}]={lengths[bad[0]]} must be between 0 and seq_len={shape[1]}")
    return lengths


def check_cu_seqlens(cu_seqlens: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
    cu_seqlens = _integers("cu_seqlens", cu_seqlens)
    if len(shape) != 2 or cu_seqlens.ndim != 1 or not cu_seqlens.size:
        raise ValueError(
            f"cu_seqlens has shape {cu_seqlens.shape} and x has shape {shape}; "
            "they need (batch + 1,) and (tokens, d_model)"
        )
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != shape[0]:
        raise ValueError(
            f"cu_seqlens begins at {cu_seqlens[0]} and ends at {cu_seqlens[-1]}; "
            f"it must begin at 0 and end at the number of tokens, {shape[0]}"
        )
    back = np.flatnonzero(np.diff(cu_seqlens) < 0)
    if back.size:
        i = int(back[0])
        raise ValueError(
            f"cu_seqlens[{i + 1}]={cu_seqlens[i + 1]} is less than cu_seqlens[{i}]={cu_seqlens[i]}; "
            "it must not decrease"
        )
    return cu_seqlens
