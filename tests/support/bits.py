# SPDX-License-Identifier: Apache-2.0
"""What must not show in the bits of a result: options to try that on, and all instruction sets that agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from support.accuracy import assert_same_bits
from support.strategies import using

import selfattn

HEADS = {"heads": 6, "kv_heads": 2}
TOGETHER: dict[str, Any] = {  # none of them is of one batch, of one length or without effect
    "window": (61, 0),
    "softcap": 1.5,
    "alibi_slopes": selfattn.alibi_slopes(6),
    "sinks": np.array([0.5, -1.0, 3.0, -np.inf, 0.0, 7.0]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "no option": {},
    **{name: {name: option} for name, option in TOGETHER.items()},
    "together": TOGETHER,
}


def with_masks(
    rng: np.random.Generator, options: dict[str, Any], q_len: int, kv_len: int, dtype: DTypeLike
) -> dict[str, Any]:
    """The options, a mask and a bias of the dtype and a diagonal."""
    return {
        "mask": rng.random((q_len, kv_len)) < 0.9,
        "bias": rng.standard_normal((6, 1, kv_len)).astype(dtype),
        "causal": "bottom_right",
    } | options


def both(*arrays: NDArray, **options: Any) -> NDArray:
    """out and lse side by side, (..., q_len, value_dim + 1), in the dtype of the lse."""
    out, lse = selfattn.attention(*arrays, **options, return_lse=True)
    return np.concatenate([out.astype(lse.dtype), lse[..., None]], axis=-1)


def assert_all_the_same(*results: Any) -> None:
    """Arrays, or tuples of them, of the same bits."""
    for other in results[1:]:
        if isinstance(other, tuple):
            for ours, expected in zip(other, results[0], strict=True):
                assert_same_bits(ours, expected)
        else:
            assert_same_bits(other, results[0])


def on_every_isa_with_fma(compute: Callable[[], Any]) -> list[Any]:
    """What it computes on each that is here; baseline has no fused multiply-add, and another answer."""
    results = []
    for name in selfattn.available_isas():
        if name != "baseline":
            with using(name):
                results.append(compute())
    return results
