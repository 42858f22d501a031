# SPDX-License-Identifier: Apache-2.0
"""The specification of dropout: which weights stay, from a counter-based generator, in plain NumPy.

Every weight has its own random number, a function of the seed and of where the weight stands, so that the
gradients need no mask to be kept, and neither threads nor the batch around an item can change it. The
generator is Philox4x64-10 of "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al., 2011), the one of
numpy.random.Philox.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selfattn.attention.arrays import Array

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B  # what the two halves of the key grow by in every round
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def dropout_factors(
    shape: tuple[int, ...], dropout: float, seed: int | None, dtype: Any, first_item: int = 0
) -> Array:
    """What the weights, (..., H, Q, K), are multiplied by: 1 / (1 - dropout) where they stay, 0 elsewhere.

    A weight stays if its number, out of 2**32, is at least round(dropout * 2**32). The number of key j, query
    i, head h and item b is the 32-bit word j % 8, low halves first, of the block of Philox4x64-10 at counter
    (j // 8, i, h, b) under the key (seed, 0); b is the flattened leading index, counted from first_item.
    """
    *leading, num_heads, q_len, kv_len = shape
    item = first_item + np.arange(np.prod(leading, dtype=np.int64)).reshape(*leading, 1, 1, 1)
    head, query = np.arange(num_heads)[:, None, None], np.arange(q_len)[:, None]
    blocks = philox4x64((np.arange(-(-kv_len // 8)), query, head, item), seed or 0)  # (..., H, Q, blocks, 4)
    words = np.stack([blocks & _LOW, blocks >> _HALF], axis=-1)  # (..., H, Q, blocks, 4, 2)
    words = words.reshape(*shape[:-1], 8 * blocks.shape[-2])
    factors: Array = (words[..., :kv_len] >= round(dropout * 2**32)).astype(dtype)
    factors *= factors.dtype.type(1 / (1 - dropout))
    return factors


def philox4x64(counter: tuple[Any, Any, Any, Any], seed: int) -> Array:
    """The four 64-bit words of every block, (..., 4); the words of the counter broadcast together."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word).astype(np.uint64) for word in counter))
    for turn in range(10):
        key0, key1 = (np.uint64((k + turn * w) % 2**64) for k, w in zip((seed, 0), _WEYL, strict=True))
        with np.errstate(over="ignore"):  # multiplication modulo 2**64 is what is meant
            (high0, low0), (high1, low1) = _product(_MULTIPLIERS[0], c0), _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
    return np.stack([c0, c1, c2, c3], axis=-1)


def _product(a: np.uint64, b: Array) -> tuple[Array, Array]:
    """The high and the low 64 bits of a * b, by halves."""
    a_high, a_low, b_high, b_low = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle = a_high * b_low + (a_low * b_low >> _HALF)  # less than 2**64
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF), a * b
