# SPDX-License-Identifier: Apache-2.0
"""Attention over parts of the keys, put together again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn.attention.arrays import Array, arithmetic, as_array, require_float

if TYPE_CHECKING:
    from selfattn.attention.arrays import AnyArray


def merge_attention(outputs: Iterable[AnyArray], lses: Iterable[AnyArray]) -> tuple[Array, Array]:
    """The attention over all keys, from that over each of several parts of them.

    The mean of the outputs, weighted by exp(lse): "Online normalizer calculation for softmax" (Milakov and
    Gimelshein, 2018), section 3.1. Computed in float64 and rounded once, at the end.

    Args:
        outputs: for each part an array (..., num_heads, q_len, value_dim), all of one shape and dtype.
        lses: for each part its lse, (..., num_heads, q_len), as return_lse gives it.

    No key may be in two parts. Give sinks to one part only; they count in the rows that have a key there. A
    part in which a row has no key (lse -inf) adds nothing to it, whatever its output holds.

    Returns:
        out and lse, in the dtypes of the parts; they can be merged again. A row without a key in any part is
        0, its lse -inf.

    Raises:
        TypeError: outputs of several dtypes, or of one that attention does not give; lses likewise.
        ValueError: no part, not as many outputs as lses, or shapes that do not fit.
    """
    parts, logs = _parts(outputs, lses)
    top = np.max(logs, axis=0).astype(np.float64)  # (..., num_heads, q_len)
    top = np.where(top == -np.inf, 0.0, top)
    out, total = np.zeros(parts[0].shape), np.zeros(top.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        for part, log in zip(parts, logs, strict=True):
            weight = np.exp(log - top)
            total += weight
            out += weight[..., None] * np.where(log[..., None] == -np.inf, 0.0, part.astype(np.float64))
        out /= np.where(total == 0, 1.0, total)[..., None]
        lse = top + np.log(total)
    return out.astype(parts[0].dtype), lse.astype(logs[0].dtype)


def _parts(outputs: Iterable[AnyArray], lses: Iterable[AnyArray]) -> tuple[list[Array], list[Array]]:
    parts = [as_array(f"outputs[{i}]", part) for i, part in enumerate(outputs)]
    logs = [as_array(f"lses[{i}]", log) for i, log in enumerate(lses)]
    if not parts or len(parts) != len(logs):
        raise ValueError(
            f"{len(parts)} outputs and {len(logs)} lses; each part has one of both, and one is needed"
        )
    require_float("outputs[0]", parts[0])
    first, log_dtype = parts[0], arithmetic(parts[0].dtype)
    if first.ndim < 3:
        raise ValueError(f"outputs[0] has shape {first.shape}; it must be (..., num_heads, q_len, value_dim)")
    for i in range(len(parts)):
        _require(f"outputs[{i}]", parts[i], first.dtype, first.shape)
        _require(f"lses[{i}]", logs[i], log_dtype, first.shape[:-1])
    return parts, logs


def _require(name: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype:
        raise TypeError(f"{name} has dtype {array.dtype}; beside outputs[0] it must be {dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; beside outputs[0] it must be {shape}")
