# SPDX-License-Identifier: Apache-2.0
"""Caches for the tests of KVCache, and what fills them."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from selfattn import KVCache


def small(dtype: DTypeLike = np.float32, **sizes: Any) -> KVCache:
    shape = {"batch": 2, "num_kv_heads": 2, "head_dim": 8, "value_dim": 5, "capacity": 10}
    return KVCache(**(shape | sizes), dtype=dtype)


def tokens(
    rng: np.random.Generator,
    new: int,
    *,
    batch: int = 2,
    heads: int = 2,
    dim: int = 8,
    value_dim: int = 5,
    dtype: DTypeLike = np.float32,
) -> list[NDArray]:
    """Keys and values that fit into a small cache."""
    return [rng.standard_normal((batch, heads, new, d)).astype(dtype) for d in (dim, value_dim)]


def filled(rng: np.random.Generator, dtype: DTypeLike, lengths: list[int], value_dim: int = 17) -> KVCache:
    """A ragged cache whose other slots hold NaN, or what is as bad."""
    batch = len(lengths)
    cache = KVCache(batch, 2, 24, value_dim=value_dim, capacity=333, dtype=dtype)
    cache._key[...] = cache._value[...] = 127 if dtype == np.int8 else np.nan
    if dtype == np.int8:
        cache._key_scale[...] = cache._value_scale[...] = np.nan
    cache.append(*tokens(rng, max(lengths), batch=batch, dim=24, value_dim=value_dim), lengths)
    return cache


def state(cache: KVCache) -> list[NDArray | None]:
    """All that a caller can see."""
    arrays = (cache.lengths, cache.key, cache.value, cache.key_scale, cache.value_scale)
    return [None if array is None else array.copy() for array in arrays]


def assert_same_state(cache: KVCache, expected: list[NDArray | None]) -> None:
    for ours, theirs in zip(state(cache), expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.shape, ours.tobytes()) == (theirs.shape, theirs.tobytes())


def whole_arrays(cache: KVCache) -> list[NDArray]:
    """Keys and values as numbers to compute with."""
    if cache.dtype != np.int8:
        return [cache.key, cache.value]
    scaled = ((cache.key, cache.key_scale), (cache.value, cache.value_scale))
    return [numbers.astype(np.float32) * scales[..., None] for numbers, scales in scaled]
