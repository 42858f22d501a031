# SPDX-License-Identifier: Apache-2.0
"""The keys and values of a sequence that grows: what a decoder keeps from one token to the next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integer, as_lengths
from selfattn._native import operator as _operator
from selfattn.attention.arrays import FLOAT32, Array, arithmetic, as_array, finish, head_sizes, target
from selfattn.attention.options import Lengths, Problem, accepted_by, checked, no_options
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:  # numpy.typing is slow to import
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.attention.arrays import AnyArray
    from selfattn.attention.options import ScoreOptions

_CACHED = accepted_by("KVCache.attention", without=("kv_lengths", "dropout", "seed"))
_CACHE_LINE = 64
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int8")


class KVCache:
    """Keys and values of a batch of sequences, with room for `capacity` tokens each; attended to as they lie.

    Args:
        batch: sequences, which may grow at different speeds.
        num_kv_heads, head_dim: as of the keys.
        value_dim: as of the values; by default head_dim.
        capacity: tokens per sequence that there is room for. The memory is taken up as it is filled.
        dtype: float32, float64, float16, bfloat16 (that of ml_dtypes), or int8, a quarter of float32's bytes.
            Each token of each head then is rounded to a multiple, -127 to 127, of its own float32 scale.

    An error leaves a cache as it was; so does Ctrl-C. Raises TypeError for sizes that are not integers or
    another dtype, ValueError for negative sizes or no head or dimension.
    """

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        capacity: int,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        value_dim = head_dim if value_dim is None else value_dim
        sizes = {"batch": batch, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        sizes |= {"value_dim": value_dim, "capacity": capacity}
        for name, size in sizes.items():
            least = 1 if name in ("num_kv_heads", "head_dim") else 0
            if as_integer(name, size) < least:
                raise ValueError(f"{name}={size} must be at least {least}")
        self.dtype = np.dtype(np.dtype(dtype).type)  # of the machine's byte order, and NumPy's own object
        if self.dtype.name not in _DTYPES:
            raise TypeError(f"dtype={self.dtype.name} must be one of {', '.join(_DTYPES)}")
        self.capacity = capacity
        slots = (batch, num_kv_heads, capacity)
        self._key = _zeros_on_a_line((*slots, head_dim), self.dtype)
        self._value = _zeros_on_a_line((*slots, value_dim), self.dtype)
        quantised = self.dtype == np.int8
        self._key_scale: Array | None = np.zeros(slots, np.float32) if quantised else None
        self._value_scale: Array | None = np.zeros(slots, np.float32) if quantised else None
        self._lengths = np.zeros(batch, np.int64)

    # ---- what is stored ----

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(batch,) tokens stored of each sequence."""
        return _read_only(self._lengths.copy())

    @property
    def key(self) -> Array:
        """(batch, num_kv_heads, max(lengths), head_dim), a read-only view; a sequence's own are the first."""
        return self._stored(self._key)

    @property
    def value(self) -> Array:
        """(batch, num_kv_heads, max(lengths), value_dim), likewise."""
        return self._stored(self._value)

    @property
    def key_scale(self) -> Array | None:
        """(batch, num_kv_heads, max(lengths)) float32, what int8 keys are multiplied by, or None."""
        return None if self._key_scale is None else self._stored(self._key_scale)

    @property
    def value_scale(self) -> Array | None:
        """Likewise for the values."""
        return None if self._value_scale is None else self._stored(self._value_scale)

    def _stored(self, slots: Array) -> Array:
        return _read_only(slots[:, :, : self._lengths.max(initial=0)])

    # ---- growing ----

    def append(self, key: AnyArray, value: AnyArray, lengths: npt.ArrayLike | None = None) -> None:
        """Adds `new` tokens to every sequence, or the first lengths[b] of them to sequence b.

        Args:
            key: (batch, num_kv_heads, new, head_dim), float32 or the cache's dtype; float32 for int8.
            value: (batch, num_kv_heads, new, value_dim), likewise.
            lengths: (batch,) integers from 0 to new; what lies beyond is not stored.

        A token that holds NaN or Inf is NaN in an int8 cache. Raises TypeError for another dtype, ValueError
        for shapes and lengths that do not fit and where there is no room; nothing is added then.
        """
        tokens = [self._tokens("key", key, self._key), self._tokens("value", value, self._value)]
        new = tokens[0].shape[2]
        if tokens[1].shape[2] != new:
            raise ValueError(f"key has {new} new tokens and value {tokens[1].shape[2]}; they must be equal")
        batch = len(self._lengths)
        counts = np.full(batch, new) if lengths is None else as_lengths("lengths", lengths, batch, new, "new")
        grown = self._lengths + counts
        for item in np.flatnonzero(grown > self.capacity)[:1]:
            raise ValueError(
                f"sequence {item} has {self._lengths[item]} tokens, and {counts[item]} more are beyond "
                f"capacity={self.capacity}; make a KVCache with room for {grown[item]}"
            )
        slots = [self._key, self._value]
        if self._key_scale is not None and self._value_scale is not None:
            (tokens[0], key_scale), (tokens[1], value_scale) = map(_quantised, tokens)
            slots += [self._key_scale, self._value_scale]
            tokens += [key_scale, value_scale]
        with np.errstate(over="ignore"):  # float16 has no room beyond 65504: Inf, as NumPy rounds
            for item, (begin, end) in enumerate(zip(self._lengths, grown, strict=True)):
                for there, these in zip(slots, tokens, strict=True):
                    there[item, :, begin:end] = these[item, :, : end - begin]
        self._lengths = grown  # last: until here the new tokens lie beyond what is stored

    def clear(self) -> None:
        """Forgets every token and keeps the memory."""
        self._lengths = np.zeros_like(self._lengths)

    def _tokens(self, name: str, x: AnyArray, slots: Array) -> Array:
        array = as_array(name, x)
        accepted = sorted({"float32", self.dtype.name} - {"int8"})
        if array.dtype.name not in accepted:
            raise TypeError(
                f"{name} has dtype {array.dtype}; a cache of {self.dtype} takes {' or '.join(accepted)}"
            )
        batch, num_kv_heads, _, dim = slots.shape
        if array.ndim != 4 or (*array.shape[:2], array.shape[3]) != (batch, num_kv_heads, dim):
            raise ValueError(
                f"{name} has shape {array.shape}; this cache takes ({batch}, {num_kv_heads}, new, {dim})"
            )
        return array

    # ---- attending ----

    def attention(
        self,
        query: AnyArray,
        *,
        return_lse: bool = False,
        out: AnyArray | None = None,
        num_threads: int | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Any:
        """`selfattn.attention` to what is stored: (query, cache.key, cache.value, kv_lengths=cache.lengths).

        Append new tokens, then attend: by default the last query stands at the last token of its sequence.
        An int8 cache gives, to the last bit, what its keys and values times their scales would give.

        Args:
            query: (batch, num_heads, q_len, head_dim) in the cache's dtype; float32 for int8.
            mask, bias: broadcast to (batch, num_heads, q_len, max(lengths)).
            causal: as in `selfattn.attention`, "bottom_right" by default.
            window, scale, softcap, alibi_slopes, sinks, precision, return_lse, out, num_threads: as there.

        Returns:
            (batch, num_heads, q_len, value_dim) in the query's dtype; with return_lse also the lse.
        """
        _CACHED.refuse_others(options)
        query = self._query(query)
        lengths = self._lengths
        longest = int(np.maximum.reduce(lengths, initial=0))
        key, value = self._key[:, :, :longest], self._value[:, :, :longest]
        leading, sizes = _operator.plain_sizes(query, key, value) or head_sizes(query, key, value)
        problem = Problem(query.dtype, leading, sizes)
        if options:
            options.setdefault("causal", "bottom_right")
            record = checked(problem, **options)
        else:
            record = no_options(sizes[4], "bottom_right")
        record = record._replace(kv_lengths=Lengths(lengths))
        threads = resolve_num_threads(num_threads)
        num_heads, _, q_len, _, _, value_dim = sizes
        shape = (*leading, num_heads, q_len, value_dim)
        result = np.empty(shape, query.dtype) if out is None else target(out, shape, query.dtype)
        lse = np.empty(result.shape[:-1], arithmetic(query.dtype)) if return_lse else None
        _operator.attention(
            query, key, value, result, lse, leading, sizes, record, threads,
            key_scale=None if self._key_scale is None else self._key_scale[:, :, :longest],
            value_scale=None if self._value_scale is None else self._value_scale[:, :, :longest],
        )  # fmt: skip
        finished = result if out is None else finish(result, out)
        return (finished, lse) if return_lse else finished

    def _query(self, x: AnyArray) -> Array:
        query = as_array("query", x)
        expected = self.dtype if self._key_scale is None else FLOAT32
        if query.dtype != expected:
            raise TypeError(
                f"query has dtype {query.dtype}; with a cache of {self.dtype} it must be {expected}"
            )
        batch = len(self._lengths)
        if query.ndim != 4 or query.shape[0] != batch:
            raise ValueError(
                f"query has shape {query.shape}; it must be ({batch}, num_heads, q_len, head_dim)"
            )
        return query


def _zeros_on_a_line(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros whose first is the first of a cache line: rows that cross lines are read up to a tenth slower."""
    size = math.prod(map(int, shape)) * dtype.itemsize
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % _CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def _quantised(x: Array) -> tuple[Array, Array]:
    """Float32 (..., dim) as int8 of the same shape and their scales, (...); x is about numbers * scales."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scales = np.abs(x).max(axis=-1, initial=0) / np.float32(127)
        steps = np.nan_to_num(np.rint(x / scales[..., None]))
    # a subnormal scale may be as little as 2/3 of what it should be, and 127 steps not reach
    numbers = steps.clip(-127, 127).astype(np.int8)
    return numbers, np.where(np.isfinite(scales), scales, np.float32(np.nan))


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
