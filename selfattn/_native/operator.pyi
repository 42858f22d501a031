# SPDX-License-Identifier: Apache-2.0
"""The attention operator's bindings; selfattn.attention is the public face."""

from typing import Any

import numpy as np

from selfattn.attention.options import AttentionOptions

_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
_Sizes = tuple[int, int, int, int, int, int]
MAX_LEADING: int

def plain_sizes(query: Any, key: Any, value: Any) -> tuple[tuple[int, ...], _Sizes] | None: ...
def lies_apart(out: _Array, inputs: tuple[_Array | None, ...]) -> bool: ...
def attention(
    query: _Array,
    key: _Array,
    value: _Array | None,
    out: _Array | None,
    lse: _Array | None,
    leading: tuple[int, ...],
    sizes: _Sizes,
    options: AttentionOptions | str | None,
    num_threads: int,
    *,
    what: str = "attention",
    positions: _Array | None = None,
    cu_seqlens_q: _Array | None = None,
    cu_seqlens_kv: _Array | None = None,
    block_tables: _Array | None = None,
    key_scale: _Array | None = None,
    value_scale: _Array | None = None,
    uninterrupted: bool = False,
) -> None: ...
def attention_backward(
    arrays: tuple[_Array, _Array, _Array, _Array, _Array, _Array],
    grads: dict[str, _Array],
    leading: tuple[int, ...],
    sizes: _Sizes,
    options: AttentionOptions | str | None,
    num_threads: int,
    *,
    cu_seqlens_q: _Array | None = None,
    cu_seqlens_kv: _Array | None = None,
) -> None: ...
