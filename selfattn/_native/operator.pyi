"""The attention operator's bindings; selfattn.attention is the public face."""

from typing import Any

import numpy as np

from selfattn.attention.options import AttentionOptions

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Sizes = tuple[int, int, int, int, int, int]
MAX_LEADING: int

def plain_sizes(query: Any, key: Any, value: Any) -> tuple[tuple[int, ...], Sizes] | None: ...
def lies_apart(out: Array, inputs: tuple[Array | None, ...]) -> bool: ...
def attention(
    query: Array,
    key: Array,
    value: Array | None,
    out: Array | None,
    lse: Array | None,
    leading: tuple[int, ...],
    sizes: Sizes,
    options: AttentionOptions | str | None,
    num_threads: int,
    *,
    what: str = "attention",
    positions: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_kv: Array | None = None,
    block_tables: Array | None = None,
    key_scale: Array | None = None,
    value_scale: Array | None = None,
    uninterrupted: bool = False,
) -> None: ...
def attention_backward(
    grad_out: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    grad_query: Array | None,
    grad_key: Array | None,
    grad_value: Array | None,
    leading: tuple[int, ...],
    sizes: Sizes,
    options: AttentionOptions | str | None,
    num_threads: int,
    *,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_kv: Array | None = None,
    grad_sink_rows: Array | None = None,
    grad_alibi_rows: Array | None = None,
    grad_bias: Array | None = None,
    grad_relative_bias: Array | None = None,
) -> None: ...
